"""Callbacks of `fit` and `build`: called in order, with what the report and the bundle say, also after errors."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import dynamic
from dynamic.errors import CalibrationError, InputError


class Diary(dynamic.Callback):
    """Writes down every call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def on_fit_start(self, settings: Mapping[str, Any]) -> None:
        self.calls.append(("fit_start", dict(settings)))

    def on_epoch_end(self, epoch: int, figures: Mapping[str, float]) -> None:
        self.calls.append((f"epoch {epoch}", dict(figures)))

    def on_fit_end(self, report: Any) -> None:
        self.calls.append(("fit_end", report))

    def on_build_start(self, settings: Mapping[str, Any]) -> None:
        self.calls.append(("build_start", dict(settings)))

    def on_build_end(self, bundle: dynamic.Bundle) -> None:
        self.calls.append(("build_end", bundle))

    def on_error(self, error: BaseException) -> None:
        self.calls.append(("error", error))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


def network(width: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))


@pytest.fixture
def loader() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.randn(30, 4), torch.arange(30) % 3) for _ in range(10)]


@pytest.mark.parametrize(
    ("mode", "training"),
    [
        ("heads", dynamic.TrainingConfig()),
        ("heads", dynamic.TrainingConfig(cache=False)),
        ("joint", dynamic.TrainingConfig()),
    ],
)
def test_every_epoch_is_reported(mode: Any, training: dynamic.TrainingConfig, loader: Any) -> None:
    net, diary = dynamic.wrap(network(), torch.randn(2, 4), exits=1), Diary()
    report = dynamic.fit(net, loader, mode=mode, training=training, epochs=3, progress=False, callbacks=[diary])
    assert diary.names == ["fit_start", "epoch 1", "epoch 2", "epoch 3", "fit_end"]
    assert diary.calls[0][1]["mode"] == mode
    assert diary.calls[0][1]["epochs"] == 3
    for row, (_, figures) in enumerate(diary.calls[1:-1]):
        loss = {f"loss/{name}": value for name, value in zip(report.exits, report.history_loss[row], strict=True)}
        right = zip(report.exits, report.history_accuracy[row], strict=True)
        assert figures == loss | {f"accuracy/{name}": value for name, value in right}
    assert diary.calls[-1][1] is report


def test_epochs_of_a_checkpoint_are_not_reported_again(loader: Any, tmp_path: Path) -> None:
    for epochs, expected in ((2, ["epoch 1", "epoch 2"]), (2, [])):
        net, diary = dynamic.wrap(network(), torch.randn(2, 4), exits=1), Diary()
        checkpoint = tmp_path / "run.safetensors"
        dynamic.fit(net, loader, epochs=epochs, checkpoint=checkpoint, progress=False, callbacks=[diary])
        assert diary.names == ["fit_start", *expected, "fit_end"]


def test_an_error_is_reported_and_raised(loader: Any) -> None:
    net, diary = dynamic.wrap(network(), torch.randn(2, 4), exits=1), Diary()
    broken = [(x * float("nan"), y) for x, y in loader]
    with pytest.raises(InputError) as error:
        dynamic.fit(net, broken, mode="joint", epochs=1, progress=False, callbacks=[diary])
    assert diary.calls[-1] == ("error", error.value)
    assert diary.names == ["fit_start", "error"]


def test_a_callback_that_fails_ends_nothing(loader: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(dynamic.Callback):
        def on_epoch_end(self, epoch: int, figures: Mapping[str, float]) -> None:
            raise ConnectionError("the server is down")

    net, diary = dynamic.wrap(network(), torch.randn(2, 4), exits=1), Diary()
    with caplog.at_level(logging.WARNING, "dynamic"):
        dynamic.fit(net, loader, epochs=2, progress=False, callbacks=[Broken(), diary])
    assert diary.names == ["fit_start", "epoch 1", "epoch 2", "fit_end"]
    lines = [record.getMessage() for record in caplog.records if "Broken" in record.getMessage()]
    assert lines[0] == ("Broken failed in on_epoch_end (ConnectionError('the server is down')), and the run continues")


def test_a_callback_that_fails_at_the_start_is_no_surprise_at_the_end(loader: Any) -> None:
    class Unreachable(dynamic.Callback):
        def on_fit_start(self, settings: Mapping[str, Any]) -> None:
            raise ConnectionError("there is no such server")

    net = dynamic.wrap(network(), torch.randn(2, 4), exits=1)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(ConnectionError, match="no such server"):
        dynamic.fit(net, loader, epochs=1, progress=False, callbacks=[Unreachable()])
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_an_interrupt_of_a_callback_ends_the_run(loader: Any) -> None:
    class Impatient(dynamic.Callback):
        def on_epoch_end(self, epoch: int, figures: Mapping[str, float]) -> None:
            raise KeyboardInterrupt

    net, diary = dynamic.wrap(network(), torch.randn(2, 4), exits=1), Diary()
    with pytest.raises(KeyboardInterrupt):
        dynamic.fit(net, loader, epochs=2, progress=False, callbacks=[diary, Impatient()])
    assert diary.names == ["fit_start", "epoch 1", "error"]


def test_what_is_no_callback_is_refused(loader: Any) -> None:
    net = dynamic.wrap(network(), torch.randn(2, 4), exits=1)
    with pytest.raises(InputError, match=r"callbacks has a function: give dynamic.MLflowLogger"):
        dynamic.fit(net, loader, epochs=1, callbacks=[lambda: None])  # type: ignore[list-item]
    with pytest.raises(InputError, match=r"callbacks has a str"):
        dynamic.build([net], loader, callbacks=["mlflow"])  # type: ignore[list-item]


def test_build_reports_its_bundle_or_its_error(loader: Any) -> None:
    diary = Diary()
    bundle = dynamic.build([network(2), network()], loader, max_drops=(0.5,), progress=False, callbacks=[diary])
    assert diary.names == ["build_start", "build_end"]
    assert diary.calls[0][1]["networks"] == "Sequential-0, Sequential-1"
    assert diary.calls[0][1]["max_drops"] == (0.5,)
    assert diary.calls[1][1] is bundle
    diary = Diary()
    few = [(x[:3], y[:3]) for x, y in loader[:2]]
    with pytest.raises(CalibrationError):
        dynamic.build([network(2), network()], few, strict=True, progress=False, callbacks=[diary])
    assert diary.names == ["build_start", "error"]
