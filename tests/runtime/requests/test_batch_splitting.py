"""A batch whose activations would not fit under `memory_mb` is answered in parts."""

import contextlib
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from support.child_process import in_child
from support.policy_cases import make_costs, make_ladder, make_point
from support.runtime_cases import Fake
from torch import Tensor, nn

import dynamic
from dynamic.engines.contract import Array, Output
from dynamic.policies.budget import Budget
from dynamic.policies.control.budget_policy import BudgetPolicy
from dynamic.policies.errors import InputError
from dynamic.policies.frontier import Frontier
from dynamic.policies.snapshot import Snapshot
from dynamic.runtime.batch_splitting import most_rows, run_split
from dynamic.runtime.fallback import Answer

COSTS = make_costs([[1.0], [2.0]], memory_mb=(10.0, 20.0), row_mb=(0.1, 0.5))


@pytest.mark.parametrize(
    ("budget", "readings", "rows"),
    [
        (200.0, {"memory_process_mb": 100.0}, 90),  # 0.45 of 100 MB, 0.5 MB a row
        (200.0, {"memory_process_mb": 50.0}, 117),  # networks of 20 MB are still to come to 50
        (100.0, {"memory_process_mb": 150.0}, 2),  # no room: parts of a megabyte
        (None, {"memory_process_mb": 150.0}, sys.maxsize),
        (200.0, {}, sys.maxsize),
        (None, {"memory_available_mb": 82.0}, 45),  # 32 MB are for others
        (200.0, {"memory_process_mb": 100.0, "memory_available_mb": 42.0}, 9),
    ],
)
def test_how_many_rows_fit(budget: float | None, readings: dict[str, Any], rows: int) -> None:
    assert most_rows(COSTS, (1,), Budget(memory_mb=budget), Snapshot(0, **readings), 50.0) == rows


def test_the_largest_network_decides_and_what_was_not_measured_does_not() -> None:
    snapshot, budget = Snapshot(0, memory_process_mb=100.0), Budget(memory_mb=200)
    assert most_rows(COSTS, (0,), budget, snapshot, None) == 450
    assert most_rows(COSTS, (0, 1), budget, snapshot, None) == 90
    assert most_rows(replace(COSTS, row_mb=()), (0, 1), budget, snapshot, None) == sys.maxsize
    with pytest.raises(InputError, match="row_mb has 1 entries for 2 backbones"):
        replace(COSTS, row_mb=(0.5,))


@pytest.mark.parametrize("rows", [1, 4, 5, 9])
def test_parts_make_the_whole(rows: int) -> None:
    sizes: list[int] = []

    def run(inputs: Mapping[str, Array], count: int) -> Answer:
        x = inputs["x"]
        assert len(x) == count
        sizes.append(count)
        output = Output(x.astype(np.float32), x[:, 0].astype(np.int64), x[:, 1].astype(np.float32), count < 4)
        return Answer(output, (None,), moved=len(sizes) == 1, usual=True, stages=x[:, 0].tolist(), is_answered=True)  # type: ignore[arg-type]

    x = np.arange(2 * rows).reshape(rows, 2)
    answer = run_split(run, {"x": x}, rows, 4)
    assert sizes == [4] * (rows // 4) + ([rows % 4] if rows % 4 else [])
    assert answer.output.logits.tolist() == x.tolist()
    assert answer.output.stage.tolist() == x[:, 0].tolist()
    assert answer.output.complete == (rows < 4)
    assert answer.moved
    assert not answer.usual


def test_parts_of_several_engines_are_all_of_theirs() -> None:
    """What the last part ran on says nothing of the first."""
    engines = [Fake(), Fake(), Fake()]
    order = iter([engines[0], engines[1], engines[0]])

    def run(inputs: Mapping[str, Array], count: int) -> Answer:
        output = Output(np.zeros((count, 2), np.float32), np.zeros(count, np.int64), np.zeros(count, np.float32))
        return Answer(output, (next(order),), moved=False, usual=True, stages=[0] * count, is_answered=True)

    assert run_split(run, {"x": np.zeros((6, 2))}, 6, 2).engines == (engines[0], engines[1])


def test_one_row_must_fit_beside_the_networks() -> None:
    one = make_ladder([make_point("reference", (), (1.0,))], (0,))
    frontier = Frontier.of(one, make_costs([[1.0]], memory_mb=(10.0,), row_mb=(30.0,)))
    assert frontier.memory.figures == (40.0,)
    budget, snapshot = Budget(memory_mb=130), Snapshot(0, memory_process_mb=100.0)
    found, _ = BudgetPolicy().decide(frontier, budget, snapshot, BudgetPolicy().initial())
    assert found.violated_limits == ("memory_mb",)


class Wide(nn.Module):
    """A row of 16 numbers takes 256 kB on its way."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(16, 65_536, bias=False), nn.Linear(65_536, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 16] -> [B, 4]."""
        answer: Tensor = self.last(torch.relu(self.first(x)))
        return answer


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> dynamic.Bundle:
    torch.manual_seed(1)
    x = torch.randn(200, 16)
    network = Wide().eval()
    with torch.no_grad():
        label = network(x).argmax(1)
    label[::7] = (label[::7] + 1) % 4
    folder: Path = tmp_path_factory.mktemp("splitting")
    return dynamic.build(network, [(x, label)]).save(folder / "wide").profile(batch=(1, 8), seconds=0.05)


def test_a_profile_says_what_a_row_takes(bundle: dynamic.Bundle) -> None:
    assert bundle.costs is not None
    (row,) = bundle.costs.row_mb
    assert 0.2 < row < 1.2  # 65,536 numbers of 4 bytes, once or a few times


def test_a_large_batch_is_answered_in_parts_and_alike(bundle: dynamic.Bundle) -> None:
    x = np.random.default_rng(0).normal(size=(1000, 16)).astype(np.float32)
    monitor = dynamic.FixedMonitor(dynamic.Snapshot(time_s=0.0, memory_process_mb=100.0))
    sizes: list[int] = []
    with bundle.runtime(monitor=monitor, drift_alpha=None) as run:
        whole = run(x)
        first = run.engine
        plain = first.run

        def counted(inputs: Any, *args: Any, **kwargs: Any) -> Any:
            sizes.append(len(next(iter(inputs.values()))))
            return plain(inputs, *args, **kwargs)

        first.run = counted  # type: ignore[method-assign]
        run.budget = dynamic.Budget(memory_mb=200)
        parts = run(x)
        assert parts.decision.feasible
    assert bundle.costs is not None
    assert len(sizes) > 1
    assert sum(sizes) == 1000
    assert max(sizes) * bundle.costs.row_mb[0] <= 100.0
    np.testing.assert_allclose(parts.log_probs, whole.log_probs, rtol=1e-4, atol=1e-4)
    assert parts.label.tolist() == whole.label.tolist()


@pytest.mark.skipif(sys.platform != "linux", reason="reads what the process holds")
@pytest.mark.parametrize("gives_back", [True, False])
def test_a_split_batch_leaves_no_memory_behind(
    bundle: dynamic.Bundle, gives_back: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of some 200 MB: once they are done, the process holds what it held, as the next limit is measured on it."""
    x = np.random.default_rng(0).normal(size=(1500, 16)).astype(np.float32)
    monitor = dynamic.FixedMonitor(dynamic.Snapshot(time_s=0.0, memory_process_mb=100.0))
    if not gives_back:
        monkeypatch.setattr("dynamic.runtime.batch_splitting.giving_back", contextlib.nullcontext)

    def work() -> float:
        with bundle.runtime(dynamic.Budget(memory_mb=550), monitor=monitor, drift_alpha=None) as run:
            run(x[:2])
            before = psutil.Process().memory_info().rss
            run(x)
            return (psutil.Process().memory_info().rss - before) / 1e6

    left_mb = in_child(work)
    assert (left_mb < 60) == gives_back, left_mb
