"""`calibrate(labels=...)` and `dynamic certify --ask`: from networks and an oracle to a certificate."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typer.testing import CliRunner

import dynamic
from dynamic.cli.app import app
from dynamic.errors import CalibrationError, InputError, SettingError

COUNT = 900


def turned(radians: float) -> nn.Module:
    """The nearest of four corners, of a plane that is turned."""
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    turn = torch.tensor([[math.cos(radians), -math.sin(radians)], [math.sin(radians), math.cos(radians)]])
    layer = nn.Linear(2, 4)
    with torch.no_grad():
        layer.weight.copy_(3 * corners @ turn)
        layer.bias.zero_()
    return nn.Sequential(layer)


def deep() -> nn.Module:
    """The plane as it is, with more work."""
    there, back = nn.Linear(2, 64, bias=False), nn.Linear(64, 2, bias=False)
    with torch.no_grad():
        there.weight.copy_(torch.eye(64, 2))
        back.weight.copy_(torch.eye(2, 64))
    return nn.Sequential(there, back, turned(0.0))


def task(seed: int = 0, count: int = COUNT) -> tuple[Tensor, NDArray[np.int64]]:
    """Points around the corners, and whose they are."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=random)
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    return corners[labels] + 0.55 * torch.randn(count, 2, generator=random), labels.numpy()


def loader(inputs: Tensor) -> list[Tensor]:
    return list(inputs.split(100))


def calibrated(networks: Any, given: Any, **options: Any) -> dynamic.Records:
    return dynamic.calibrate(networks, given, engine="torch", progress=False, **options)


def test_a_person_labels_what_a_drop_needs(tmp_path: Path) -> None:
    inputs, labels = task()
    asked: list[int] = []

    def person(rows: NDArray[np.int64]) -> NDArray[np.int64]:
        asked.extend(rows.tolist())
        return labels[rows]

    path = tmp_path / "labels.csv"
    options: dict[str, Any] = {"max_drops": (0.05,), "budget": 100, "checkpoint": path}
    records = calibrated([turned(0.15), deep()], loader(inputs), labels=person, **options)
    small, large = (net(inputs).argmax(1).numpy() for net in (turned(0.15), deep()))
    assert 0 < len(asked) <= 100
    assert all(small[row] != large[row] for row in asked), "equal answers have no drop"
    assert path.read_text().splitlines() == ["row,label", *(f"{row},{labels[row]}" for row in asked)]
    ladder = dynamic.certify(records, (0.05,), combine="last")
    assert ladder.certified
    assert records.on_demand
    assert not records.finite
    again = calibrated([turned(0.15), deep()], loader(inputs), labels=lambda rows: 1 / 0, **options)
    assert dynamic.certify(again, (0.05,), combine="last") == ladder, "answers on disk are not asked for again"


def test_the_large_network_is_the_oracle_of_one_batch() -> None:
    inputs, _ = task()
    large = deep()(inputs).argmax(1).numpy()
    calls: list[int] = []

    def oracle(rows: NDArray[np.int64]) -> Any:
        calls.extend(rows.tolist())
        return deep()(inputs[rows]).argmax(1).numpy()

    records = calibrated(turned(0.1), None, batch=loader(inputs), labels=oracle, risk="disagreement", max_drops=(0.05,))
    ladder = dynamic.certify(records, (0.05,), risk="disagreement", combine="last")
    assert records.stage_names[-1] == "oracle"
    assert ladder.certificate is not None
    assert ladder.certificate.batch == COUNT
    score = torch.softmax(turned(0.1)(inputs), 1).max(1).values.detach().numpy()
    alone = score > ladder.points[1].thresholds[0]
    alone[calls] = False
    assert np.mean(alone & (turned(0.1)(inputs).argmax(1).numpy() != large)) <= 0.05
    assert alone.mean() > 0.5
    assert len(set(calls)) == len(calls) < 0.3 * COUNT


def test_a_bundle_does_not_take_the_records_of_one_batch(tmp_path: Path) -> None:
    inputs, labels = task()
    pairs = [(x, torch.from_numpy(y)) for x, y in zip(inputs.split(100), np.split(labels, 9), strict=True)]
    networks = dynamic.Cascade([turned(0.15), deep()])
    bundle = dynamic.build(networks, pairs, engine="torch", progress=False)
    options: dict[str, Any] = {"labels": lambda rows: labels[rows], "max_drops": (0.05,)}
    finite = calibrated(networks, None, batch=loader(inputs), **options)
    with pytest.raises(CalibrationError, match=r"one batch of 900 inputs.*calibrate without batch="):
        dynamic.recertify(bundle, (0.05,), records=finite)
    records = calibrated(networks, loader(inputs), **options)
    assert dynamic.recertify(bundle, (0.05,), records=records).save(tmp_path / "shelf").records.on_demand


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch": [torch.zeros(4, 2)]}, InputError, "give one of both"),
        ({"budget": 10}, SettingError, "budget=10 has no oracle to ask: give labels="),
        ({"labels": np.zeros(COUNT, int)}, SettingError, "labels= is a ndarray, and it takes a function of rows"),
        ({"labels": lambda rows: rows, "budget": 0}, SettingError, "budget=0"),
        ({"labels": lambda rows: rows, "budget": COUNT + 1}, SettingError, f"above the {COUNT} inputs"),
        ({"labels": lambda rows: rows, "max_drops": (0.0,)}, SettingError, "max_drops holds 0"),
        ({"labels": lambda rows: rows, "groups": [0] * COUNT}, SettingError, "groups= and labels= exclude each other"),
        ({"labels": lambda rows: rows, "max_drops": (0.0001,)}, CalibrationError, "fewer than any certificate needs"),
    ],
)
def test_what_is_refused(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        calibrated([turned(0.15), deep()], loader(task()[0]), **options)


def test_neither_a_loader_nor_a_batch() -> None:
    with pytest.raises(InputError, match="None is no loader"):
        calibrated(turned(0.1), None)
    with pytest.raises(SettingError, match="batch= has no oracle"):
        calibrated(turned(0.1), None, batch=loader(task()[0]))


def test_the_command_writes_rows_and_continues(tmp_path: Path) -> None:
    inputs, labels = task()
    networks = [turned(0.15), deep()]
    cascade = dynamic.Cascade(networks, combine="last")
    dynamic.build(cascade, loader(inputs), risk="disagreement", progress=False).save(tmp_path / "shelf")
    path, out = tmp_path / "labels.csv", tmp_path / "out"
    command = ["certify", str(tmp_path / "shelf"), str(out), "--risk", "drop", "--max-drop", "0.05", "--ask", str(path)]
    run = CliRunner()
    first = run.invoke(app, [*command, "--rows", "8"])
    assert first.exit_code == 0, first.output
    assert "labels are likely" in first.output
    assert "8 rows of" in first.output
    assert not out.exists()
    for _ in range(40):
        lines = path.read_text().splitlines()
        filled = [line if line[-1] != "," else f"{line}{labels[int(line[:-1])]}" for line in lines[1:]]
        path.write_text("\n".join([lines[0], *filled]) + "\n")
        last = run.invoke(app, [*command, "--rows", "8"])
        assert last.exit_code == 0, last.output
        if out.exists():
            break
    bundle = dynamic.load(out)
    assert "more labels cannot help" in last.output
    assert bundle.ladder.certified
    assert bundle.ladder.points[1].kind == "drop"
    assert bundle.records.on_demand


def test_the_command_where_nobody_is_to_be_asked(tmp_path: Path) -> None:
    inputs, labels = task()
    pairs = [(x, torch.from_numpy(y)) for x, y in zip(inputs.split(100), np.split(labels, 9), strict=True)]
    dynamic.build([turned(0.15), deep()], pairs, progress=False).save(tmp_path / "shelf")
    command = ["certify", str(tmp_path / "shelf"), str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*command, "--ask", str(tmp_path / "labels.csv")])
    assert isinstance(done.exception, CalibrationError)
    assert "all 900 records have labels" in str(done.exception)
    alone = CliRunner().invoke(app, [*command, "--budget", "5"])
    assert isinstance(alone.exception, SettingError)
