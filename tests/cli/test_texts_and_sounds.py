"""Texts in a table and sounds in a folder, from names to a bundle that answers."""

import contextlib
import io
import json
import sys
import tomllib
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import dynamic
from dynamic.__main__ import main

MINE = """
import dynamic, torch
from torch import nn
from dynamic.models import BagOfTokens

def words():
    torch.manual_seed(0)
    return BagOfTokens(7, classes=2, width=8)

class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 8)
        self.first, self.second = (nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(2))
        self.last = nn.Linear(8, 2)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask[..., None].float()
        x = self.second(self.first(self.table(input_ids)))
        return self.last((x * mask).sum(1) / mask.sum(1))

class Shallow(Deep):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Identity()

def shallow():
    torch.manual_seed(0)
    return Shallow()

def deep():
    torch.manual_seed(0)
    return Deep()

def deep_with_tokenizer():
    network = deep()
    network.preprocess = dynamic.TextPreprocess.from_file("tokenizer.json")
    return network

def tones():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2))
    network.preprocess = dynamic.data.SoundPreprocess(8000, 64, None)
    return network
"""


def shell(*arguments: str | Path) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as exited:
        main([str(argument) for argument in arguments])
    return int(exited.value.code or 0), out.getvalue(), err.getvalue()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "mine_too.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("mine_too", None)


@pytest.fixture
def texts(folder: Path) -> Path:
    """The working folder with tokenizer.json and texts.csv, 240 texts of lights and music."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "turn", "the", "lights", "music", "on", "off"]
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save("tokenizer.json")
    random = np.random.default_rng(0)
    rows = []
    for _ in range(240):
        thing = ("lights", "music")[random.integers(2)]
        filler = " ".join(random.choice(["turn", "the", "on", "off"], random.integers(1, 6)))
        rows.append(f"{filler} {thing},{thing}")
    Path("texts.csv").write_text("\n".join(["text,label", *rows]))
    return folder


def following(out: str) -> list[str]:
    """The command that stands behind "next:"."""
    *_, line = out.splitlines()
    assert line.startswith("next: dynamic ")
    return line.removeprefix("next: dynamic ").split()


@pytest.mark.parametrize("network", ["deep", "deep_with_tokenizer"])
def test_an_own_network_of_texts_with_exits_is_built_as_fit_says(texts: Path, network: str) -> None:
    tokenizer = [] if network == "deep_with_tokenizer" else ["--tokenizer", "tokenizer.json"]
    training = ["--exits", "1", "--mode", "joint", "--epochs", "15", "--lr", "0.03"]
    code, out, err = shell("fit", f"mine_too.py:{network}", "texts.csv", *training, *tokenizer)
    assert code == 0, err
    assert following(out) == ["build", "fitted.safetensors", "texts.csv"]
    code, _, err = shell("init", "texts.csv", "--yes", "--network", "fitted.safetensors")
    assert code == 0, err
    settings = tomllib.loads(Path("dynamic.toml").read_text())
    assert "tokenizer" not in settings
    assert "exits" not in settings["build"]
    if tokenizer:
        Path("tokenizer.json").unlink()  # the file holds it
    code, _, err = shell(*following(out))
    assert code == 0, err
    with dynamic.load("shelf").runtime() as run:
        assert [stage.backbone for stage in dynamic.load("shelf").spec.stages] == [0, 0]
        assert run("turn the music on").name == "music"
        assert run("off off off the lights").name == "lights"


def test_the_exits_of_a_file_of_settings_are_the_most_that_are_added(texts: Path) -> None:
    code, out, err = shell("init", "texts.csv", "--yes", "--network", "mine_too.py:shallow")
    assert code == 0, err
    settings = tomllib.loads(Path("dynamic.toml").read_text())
    assert settings["tokenizer"] == "tokenizer.json"
    assert settings["build"]["exits"] == 3
    code, _, err = shell(*following(out))
    assert code == 0, err
    stages = len(dynamic.load("shelf").spec.stages)
    assert stages in (2, 3)
    assert f"exits = 3 of the settings adds {stages - 1}: network shallow has no place for more" in err
    # a number of the command line is meant as it is
    code, _, err = shell(*following(out), "--exits", "3")
    assert code == 1
    assert "3 exits do not fit" in err
    code, _, err = shell(*following(out), "--exits", "0")
    assert code == 0, err
    assert len(dynamic.load("shelf").spec.stages) == 1


def test_the_exits_of_a_file_of_settings_pass_networks_that_take_none(texts: Path) -> None:
    Path("dynamic.toml").write_text('data = "texts.csv"\ntokenizer = "tokenizer.json"\n[build]\nexits = 2\n')
    code, _, err = shell("fit", "mine_too.py:deep", "texts.csv", "--exits", "1", "--epochs", "1", "-c", "dynamic.toml")
    assert code == 0, err
    code, _, err = shell("build", "--network", "fitted.safetensors", "-c", "dynamic.toml")
    assert code == 0, err
    assert "exits = 2 of the settings adds none: network fitted has exits already" in err
    assert len(dynamic.load("shelf").spec.stages) == 2
    code, _, err = shell("build", "--network", "fitted.safetensors", "-c", "dynamic.toml", "--exits", "2")
    assert code == 1
    assert "leave out --exits" in err


def test_wrap_takes_the_tokenizer_of_a_network_of_texts(texts: Path) -> None:
    code, out, err = shell("wrap", "mine_too.py:deep_with_tokenizer", "--exits", "1", "-o", "own.safetensors")
    assert code == 0, err
    code, out, err = shell("wrap", "mine_too.py:deep", "--exits", "1", "--tokenizer", "tokenizer.json")
    assert code == 0, err
    assert following(out) == ["fit", "wrapped.safetensors", "DATA"]
    code, out, err = shell("fit", "wrapped.safetensors", "texts.csv", "--epochs", "1")
    assert code == 0, err
    code, out, err = shell("wrap", "mine_too.py:deep", "--exits", "1")
    assert code == 1
    assert err == (
        "error: network mine_too.py:deep does not say what it takes: give --shape 3x224x224, or --tokenizer "
        "tokenizer.json where it takes texts\n"
    )


def test_a_table_of_texts(texts: Path) -> None:
    training = ["--mode", "joint", "--epochs", "4", "--lr", "0.03", "--tokenizer", "tokenizer.json"]
    code, out, err = shell("fit", "mine_too.py:words", "texts.csv", *training, "-o", "words.safetensors", "--json")
    assert code == 0, err
    assert json.loads(out)["report"]["held_out"][0]["right"] > 0.9
    options = ["--tokenizer", "tokenizer.json", "--max-tokens", "12", "--max-drop", "0.1", "-o", "texts"]
    code, out, err = shell("build", "words.safetensors", "texts.csv", *options)
    assert code == 0, err
    with dynamic.load("texts").runtime() as run:
        assert run("turn the music on").name == "music"
        assert run("off off off the lights").name == "lights"
    table = [line.split(",") for line in Path("texts.csv").read_text().splitlines()[1:]]
    Path("texts.jsonl").write_text("\n".join(json.dumps({"text": text, "label": name}) for text, name in table))
    Path("plain.csv").write_text("\n".join(["number,text,time", *(f"3,{text},noon" for text, _ in table)]))
    for name, known in (("texts.csv", 240), ("texts.jsonl", 240), ("plain.csv", 0)):
        code, out, err = shell("run", "texts", name, "--json", "--in-order")
        assert code == 0, err
        *rows, last = map(json.loads, out.splitlines())
        assert (len(rows), last["summary"]["known"]) == (240, known)
        assert [row["name"] for row in rows[:3]] == [name for _, name in table[:3]]
    for name in ("texts.csv", "texts.jsonl"):
        code, out, err = shell("report", "texts", "--inputs", name, "-o", "page.html", "--json")
        assert code == 0, err
        assert json.loads(out)["left_out"] == {}
        page = Path("page.html").read_text(encoding="utf-8")
        assert "the 240 inputs that were given" in page
        assert any(f"<blockquote>{text}</blockquote>" in page for text, _ in table)
    assert "the column of a table" in shell("report", "texts", "--inputs", "plain.csv")[2]
    Path("lines.tsv").write_text("music\tturn the music on\nlights\tthe lights off\n")
    Path("dynamic.toml").write_text('shelf = "texts"\n')
    code, out, err = shell("run", "-c", "dynamic.toml", "lines.tsv", "--json")
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["summary"]["known"] == 2
    code, _, err = shell("run", "-c", "dynamic.toml", "texts")
    assert code == 2
    assert "inputs" in err


def test_a_folder_of_sounds(folder: Path) -> None:
    random = np.random.default_rng(0)
    for number in range(120):
        name, period = (("high", 4), ("low", 16))[number % 2]
        samples = 8000 * np.sin(2 * np.pi * (np.arange(64) + random.integers(64)) / period)
        Path("calls", name).mkdir(parents=True, exist_ok=True)
        with wave.open(f"calls/{name}/{number}.wav", "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes(samples.astype(np.int16).tobytes())
    training = ["--mode", "joint", "--epochs", "40", "--lr", "0.02", "--optimizer", "adamw"]
    code, out, err = shell("fit", "mine_too.py:tones", "calls", *training, "-o", "tones.safetensors", "--json")
    assert code == 0, err
    assert json.loads(out)["report"]["held_out"][0]["right"] > 0.9
    code, out, err = shell("build", "tones.safetensors", "calls", "--max-drop", "0.1", "-o", "sounds", "--json")
    assert code == 0, err
    assert json.loads(out)["inputs"] == 60
    code, out, err = shell("run", "sounds", "calls", "--json")
    assert code == 0, err
    *rows, last = map(json.loads, out.splitlines())
    assert len(rows) == last["summary"]["known"] == 120
