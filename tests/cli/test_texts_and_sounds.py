"""Texts in a table and sounds in a folder, from names to a bundle that answers."""

import contextlib
import io
import json
import sys
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


def test_a_table_of_texts(folder: Path) -> None:
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
