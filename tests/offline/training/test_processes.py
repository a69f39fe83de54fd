"""Training in two processes of torchrun: the weights of one process with the same batches."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import dynamic
from dynamic.offline.training.parallel.processes import Processes

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "tests" / "support" / "training" / "joint_in_processes.py"
LIMIT_S = 300
LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")  # it finds a port that is free
# rows of each step in the first process and in the second. Where there is no batch norm, that one may end earlier
SIZES = {"exits": ((10, 6), (3, 5), (8, 2)), "plain": ((10, 6), (3, 5), (8, 0))}


def run(folder: Path, name: str, *launcher: str) -> None:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(SCRIPT), str(folder), name]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
    assert ended.returncode == 0, ended.stderr[-4000:]


@pytest.fixture(scope="module", params=SIZES)
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What was saved by one process, and by each of two."""
    folder, kind = tmp_path_factory.mktemp("processes"), str(request.param)
    sizes = SIZES[kind]
    torch.manual_seed(7)
    steps = [(torch.randn(sum(rows), 12), torch.randint(0, 4, (sum(rows),))) for rows in sizes]
    first = [(x[:rows], y[:rows]) for (x, y), (rows, _) in zip(steps, sizes, strict=True)]
    second = [(x[rows:], y[rows:]) for (x, y), (rows, others) in zip(steps, sizes, strict=True) if others]
    torch.save([steps], folder / f"{kind}-alone.pt")
    torch.save([first, second], folder / f"{kind}-two.pt")
    run(folder, f"{kind}-alone")
    run(folder, f"{kind}-two", *LAUNCHER)
    names = (f"{kind}-alone-0-of-1", f"{kind}-two-0-of-2", f"{kind}-two-1-of-2")
    return [torch.load(folder / f"{name}.pt", weights_only=True) for name in names]


def test_both_processes_end_with_the_same_bits(results: list[dict[str, Any]]) -> None:
    alone, one, other = results
    for name, tensor in one["state"].items():
        assert torch.equal(tensor, other["state"][name]), name
    assert one["loss"] == other["loss"]
    assert one["accuracy"] == other["accuracy"]
    assert one["used"] == other["used"], "what was trained on is remembered in both"
    assert len(one["used"]) > len(alone["used"])


def test_the_weights_are_those_of_one_process(results: list[dict[str, Any]]) -> None:
    """Within 1e-5: sums are rounded in another order. Steps have more or fewer rows here than there, or none."""
    alone, two, _ = results
    for name, tensor in alone["state"].items():
        torch.testing.assert_close(two["state"][name], tensor, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.tensor(two["loss"]), torch.tensor(alone["loss"]), rtol=1e-5, atol=1e-5)
    assert two["accuracy"] == alone["accuracy"]
    assert alone["loss"][-1][-1] < alone["loss"][0][-1], "it learned something"


def test_dropout_masks_of_two_processes_differ(tmp_path: Path) -> None:
    """Both have the same batches, so that the seed alone decides."""
    torch.manual_seed(7)
    batches = [(torch.randn(8, 12), torch.randint(0, 4, (8,))) for _ in range(2)]
    torch.save([batches, batches], tmp_path / "dropout-two.pt")
    run(tmp_path, "dropout-two", *LAUNCHER)
    one, other = (torch.load(tmp_path / f"dropout-two-{rank}-of-2.pt", weights_only=True) for rank in range(2))
    assert len(one["masks"]) == len(other["masks"]) >= 6, "two steps in each of three epochs"
    for mask, second in zip(one["masks"], other["masks"], strict=True):
        assert not torch.equal(mask, second)
    for name, tensor in one["state"].items():
        assert torch.equal(tensor, other["state"][name]), name


def test_without_a_group_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    net, batch = nn.Linear(12, 4), [(torch.zeros(4, 12), torch.zeros(4, dtype=torch.int64))]
    with pytest.raises(dynamic.errors.SettingError, match=r"torchrun started 2 processes .*init_process_group"):
        dynamic.fit(net, batch, mode="joint", epochs=1, progress=False)


def test_heads_are_trained_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    net = dynamic.wrap(nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4)), torch.zeros(2, 12), exits=1)
    monkeypatch.setattr(Processes, "of_group", classmethod(lambda cls: cls(0, 2)))
    with pytest.raises(dynamic.errors.SettingError, match="trains in one process, and there are 2"):
        dynamic.fit(net, [(torch.zeros(4, 12), torch.zeros(4, dtype=torch.int64))], mode="heads", progress=False)


def test_alone_nothing_is_exchanged() -> None:
    alone = Processes()
    assert list(alone.in_step([1, 2], together=True)) == [1, 2]
    assert alone.rows_of_step(3, is_finite=False) == (3, False)
    assert alone.most(0.5) == 0.5
    assert alone.union(["a"]) == {"a"}
    assert alone.is_first
