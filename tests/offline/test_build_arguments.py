"""`build` checks what it can before the long work, and says what nobody would accept."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dynamic
from dynamic.errors import CalibrationError, EngineError, InputError, SettingError
from dynamic.offline.build_steps import torch_steps

CLASSES = 4


class Reading(nn.Module):
    """Reads the class off the input, or always gives the same answer; `width` makes it as large as one likes."""

    def __init__(self, width: int, right: bool = True) -> None:
        super().__init__()
        self.inner = nn.Linear(CLASSES, width, bias=False)
        self.outer = nn.Linear(width, CLASSES, bias=False)
        with torch.no_grad():
            self.inner.weight.zero_()
            self.outer.weight.zero_()
            for number in range(CLASSES):
                self.inner.weight[number, number] = 1.0
                self.outer.weight[number, number] = 3.0 if right else 0.0

    def forward(self, x: Tensor) -> Tensor:
        """[B, C] -> [B, C]."""
        logits: Tensor = self.outer(torch.relu(self.inner(x)))
        return logits


def data(count: int = 400) -> list[Any]:
    """One-hot inputs with a little noise, and their classes, of which one in twenty is wrong."""
    random = torch.Generator().manual_seed(0)
    label = torch.arange(count) % CLASSES
    x = torch.eye(CLASSES)[label] + 0.1 * torch.rand(count, CLASSES, generator=random)
    wrong = torch.arange(count) % 20 == 0
    return [(x, torch.where(wrong, (label + 1) % CLASSES, label))]


class Seldom:
    """A loader that counts how often a batch beyond the first is read."""

    def __init__(self, labels: bool = True, shift: int = 0) -> None:
        self.read, self.labels, self.shift = 0, labels, shift

    def __iter__(self) -> Iterator[Any]:
        for number in range(3):
            self.read += number > 0
            x, y = data(40)[0]
            yield (x, y + self.shift) if self.labels else x


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"classes": ["a", "b"]}, InputError, "2 class names for 4 classes"),
        ({"classes": "abcd"}, InputError, "must be a list of names"),
        ({"classes": [1, 2, 3, 4]}, InputError, "must be a list of names"),
        ({"groups": [[1, 2]]}, InputError, "groups are"),
        ({"groups": [None, 1]}, InputError, "groups are object"),
        ({"search_share": 0}, SettingError, "search_share=0 must lie in"),
        ({"search_share": 1.5}, SettingError, "search_share=1.5 must lie in"),
        ({"seed": "0"}, SettingError, "seed='0' must be a whole number"),
        ({"floor": 1.2}, SettingError, "floor=1.2 must be an accuracy"),
        ({"delta": 2}, SettingError, "delta=2"),
        ({"risk": "loss"}, SettingError, "loss"),
        ({"score": "sure"}, SettingError, "score='sure'"),
        ({"combine": "all"}, SettingError, "combine='all'"),
        ({"max_drops": [2]}, SettingError, "max_drops"),
        ({"engine": "tensorflow"}, EngineError, "'tensorflow' is not known"),
        ({"precision": "f16"}, EngineError, "'f16' is not available"),
    ],
)
def test_nothing_is_exported_before_arguments_are_right(
    options: dict[str, Any], error: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_steps, "export_stages", _never)
    loader = Seldom()
    with pytest.raises(error, match=words):
        dynamic.build([Reading(8), Reading(16)], loader, **options)
    assert loader.read == 0


def test_an_engine_that_is_not_installed_is_noticed_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_steps, "export_stages", _never)
    monkeypatch.setattr("dynamic.engines.engine_factory.is_there", lambda package: package == "torch")
    with pytest.raises(EngineError, match=r"'openvino' is not installed: pip install"):
        dynamic.build([Reading(8)], Seldom(), engine="openvino")


def test_labels_are_looked_at_in_the_first_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_steps, "export_stages", _never)
    with pytest.raises(InputError, match="labels run from 1 to 4"):
        dynamic.build([Reading(8)], Seldom(shift=1))
    with pytest.raises(CalibrationError, match="needs labels"):
        dynamic.build([Reading(8)], Seldom(labels=False))


def test_networks_in_the_wrong_order_are_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "dynamic"):
        dynamic.build([Reading(64), Reading(8)], data(), engine="onnxruntime")
    assert "networks are not smallest first: 'Reading-0'" in caplog.text
    assert "['Reading-1', 'Reading-0']" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "dynamic"):
        dynamic.build([Reading(8), Reading(8), Reading(64)], data(), engine="onnxruntime")
    assert "smallest first" not in caplog.text


def test_an_exit_at_chance_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "dynamic"):
        bundle = dynamic.build([Reading(8, right=False), Reading(64)], data(), engine="onnxruntime")
    assert "'Reading-0' is right in" in caplog.text
    assert "it is at chance" in caplog.text
    assert "'Reading-1' is right" not in caplog.text
    assert min(p.accuracy.mid for p in bundle.ladder.points) > 0.6
    assert "left out" in str(bundle)
    assert bundle.ladder.floor == pytest.approx(0.25 + 0.5 * 0.70, abs=0.03)
    lower = dynamic.recertify(bundle, floor=0)
    assert min(p.accuracy.mid for p in lower.ladder.points) < 0.4
    assert lower.ladder.points[0].accuracy[1] == pytest.approx(0.95, abs=0.03)


def _never(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("this comes after the arguments were checked")
