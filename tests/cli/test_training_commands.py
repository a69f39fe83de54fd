"""From a network's name and a folder of pictures to a bundle: wrap, fit, compress, build, each by what it writes."""

import contextlib
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

import dynamic
from dynamic.__main__ import main
from dynamic.cli.sources.data_sets.batches import batches_of
from dynamic.cli.sources.data_sets.named_data import data_named
from dynamic.cli.sources.networks.named_networks import network_named
from dynamic.data import digits
from dynamic.models import compress as compress  # before an export: tests read the table of operators once a process

MINE = """
import torch
from torch import nn

class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.classes = nn.Linear(16, 3)

    def forward(self, x):
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.classes(x.amax((2, 3)))

def small():
    torch.manual_seed(0)
    return Small()
"""


def shell(*arguments: str | Path) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as exited:
        main([str(argument) for argument in arguments])
    return int(exited.value.code or 0), out.getvalue(), err.getvalue()


@dataclass(frozen=True)
class Work:
    """A working folder, and what `fit` printed as JSON."""

    folder: Path
    report: dict[str, object]
    notes: str


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Work]:
    """mine.py, photos/{0,1,2}, and trained.safetensors."""
    folder = tmp_path_factory.mktemp("work")
    images = digits()
    for number in np.flatnonzero(images.labels < 3):
        place = folder / "photos" / str(images.labels[number])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images.images[number, ..., 0]).save(place / f"{number}.png")
    (folder / "mine.py").write_text(MINE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [*sys.path])
        options = ["--mode", "joint", "--epochs", "12", "--optimizer", "adamw", "--lr", "0.01", "--std", "0.5"]
        code, out, err = shell("fit", "mine.py:small", "photos", "-o", "trained.safetensors", *options, "--json")
        assert code == 0, err
        yield Work(folder, json.loads(out), err)
    sys.modules.pop("mine", None)


def test_fit_trains_on_one_half_and_reports_on_the_other(work: Work) -> None:
    assert "268 of 537 examples train, the other 269 are held out" in work.notes or "269 of 537" in work.notes
    (level,) = work.report["report"]["held_out"]  # type: ignore[index]
    named = network_named("trained.safetensors")
    _, held_out = data_named("photos").halves(0)
    right = []
    for inputs, labels in batches_of(held_out, named.preprocess, None, None):
        with torch.no_grad():
            right.append(named.module("is a file")(torch.from_numpy(inputs)).argmax(1).numpy() == labels)
    assert level["right"] == pytest.approx(np.concatenate(right).mean())
    assert level["right"] > 0.8
    assert named.classes == ("0", "1", "2")
    assert named.preprocess == dynamic.Preprocess.of(std=(0.5,))


def test_wrap_shows_the_exits_and_fit_trains_them(work: Work) -> None:
    code, out, err = shell("wrap", "trained.safetensors", "--exits", "1", "--shape", "1x8x8", "--json")
    assert (code, err) == (0, "")
    (place,) = json.loads(out)["exits"]
    assert 0 < place["share"] < 1
    assert place["shape"][0] in (8, 16)
    code, out, _ = shell("fit", "wrapped.safetensors", "photos", "--epochs", "3")
    assert code == 0
    assert "heads: 3 epochs" in out
    assert out.endswith("next: dynamic build fitted.safetensors photos\n")
    before, after = network_named("wrapped.safetensors"), network_named("fitted.safetensors")
    inputs = torch.rand(2, 1, 8, 8)
    mine, theirs = before.module("is a file")(inputs), after.module("is a file")(inputs)
    torch.testing.assert_close(mine[-1], theirs[-1])  # the backbone is as it was
    assert not torch.allclose(mine[0], theirs[0])
    code, out, err = shell("build", "fitted.safetensors", "photos", "-o", "two", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert len(result["stages"]) == 2
    assert result["inputs"] == len(data_named("photos").halves(0)[1])


def test_a_bundle_in_one_command(work: Work) -> None:
    code, out, err = shell("build", "trained.safetensors", "photos", "--exits", "1", "--max-drop", "0.1", "-o", "one")
    assert code == 0, err
    assert out.splitlines()[-1] == f"next: dynamic profile {Path('one').resolve()}"
    bundle = dynamic.load("one")
    assert bundle.classes == ("0", "1", "2")
    assert len(bundle.records) == len(data_named("photos").halves(0)[1])  # what trained the network is left out
    with bundle.runtime() as run:
        answer = run(np.asarray(Image.open(next(Path("photos/1").iterdir()))))
    assert answer.name in ("0", "1", "2")


def test_compress_writes_a_network_that_build_takes(work: Work) -> None:
    code, out, err = shell("compress", "trained.safetensors", "photos", "-o", "small.onnx", "--json")
    assert code == 0, err
    accuracy = json.loads(out)["report"]["after"]["accuracy"]
    named = network_named("small.onnx")
    assert named.preprocess == dynamic.Preprocess.of(std=(0.5,))
    session = onnxruntime.InferenceSession("small.onnx", providers=["CPUExecutionProvider"])
    _, held_out = data_named("photos").halves(0)
    right = [
        session.run(None, {session.get_inputs()[0].name: inputs})[0].argmax(1) == labels
        for inputs, labels in batches_of(held_out, named.preprocess, None, None)
    ]
    assert np.concatenate(right).mean() == pytest.approx(accuracy, abs=0.02)  # engines round less often
    code, out, err = shell("build", "small.onnx", "trained.safetensors", "photos", "-o", "both", "--json")
    assert code == 0, err
    assert json.loads(out)["inputs"] == len(held_out)


@pytest.mark.parametrize(("method", "amount"), [("prune_channels", "0.5"), ("low_rank", "0.8")])
def test_other_methods(work: Work, method: str, amount: str) -> None:
    options = ["--method", method, "--amount", amount, "--epochs", "1", "--lr", "0.001", "-o", f"{method}.onnx"]
    code, out, err = shell("compress", "trained.safetensors", "photos", *options, "--json")
    assert code == 0, err
    report = json.loads(out)["report"]
    assert report["after"]["macs"] < report["before"]["macs"]
    session = onnxruntime.InferenceSession(f"{method}.onnx", providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    assert session.run(None, {name: np.zeros((5, 1, 8, 8), np.float32)})[0].shape == (5, 3)


def test_what_trained_as_a_whole_does_not_certify(work: Work) -> None:
    options = ["--mode", "joint", "--epochs", "1", "--whole", "-o", "whole.safetensors"]
    code, out, err = shell("fit", "trained.safetensors", "photos", *options)
    assert code == 0, err
    assert out.endswith("next: dynamic build whole.safetensors OTHER_DATA\n")
    code, _, err = shell("build", "whole.safetensors", "photos", "-o", "never")
    assert code == 1
    assert "trained network whole, and what trained may not certify: give other data" in err
    assert not Path("never").exists()


def test_a_network_of_other_classes_names_the_remedy(work: Work) -> None:
    for number in range(8):
        for name in ("cat", "dog"):
            Path("pets", name).mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), number).save(f"pets/{name}/{number}.png")
    code, _, err = shell("build", "trained.safetensors", "pets", "-o", "never")
    assert code == 1
    assert "answers 3 classes (0, 1, 2), and pets has 2 (cat, dog): name the folders or labels like its classes" in err
