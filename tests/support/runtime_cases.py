"""A bundle, a monitor, and an engine without a library, that the tests of the runtime share."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.policy_cases import INF, make_costs, make_point
from torch import nn

import dynamic
from dynamic.engines.contract import Output
from dynamic.errors import EngineError
from dynamic.policies import BudgetPolicy, Decision, Policy
from dynamic.runtime.runtime import Runtime


def blobs(folder: Path) -> dynamic.Bundle:
    """A small and a large network on blobs that the large one tells apart better, with costs far apart."""
    torch.manual_seed(0)
    centers = torch.randn(4, 12)
    label = torch.arange(1200) % 4
    inputs = centers[label] + 1.1 * torch.randn(1200, 12)
    small = nn.Sequential(nn.Linear(12, 2), nn.Linear(2, 4))
    large = nn.Sequential(nn.Linear(12, 2000), nn.ReLU(), nn.Linear(2000, 2000), nn.ReLU(), nn.Linear(2000, 4))
    for network, steps in ((small, 60), (large, 12)):
        optimizer = torch.optim.Adam(network.parameters(), lr=0.003 if network is large else 0.05)
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs[:600]), label[:600]).backward()
            optimizer.step()
    built = dynamic.build([small, large], [(inputs[600:], label[600:])], classes=tuple("abcd"))
    return built.save(folder / "blobs").profile(batch=(1, 16), seconds=0.2)


_made: list[dynamic.Bundle] = []


def shared_blobs(folders: pytest.TempPathFactory) -> dynamic.Bundle:
    """The same bundle for all tests; nobody changes its files."""
    if not _made:
        _made.append(blobs(folders.mktemp("blobs")))
    return _made[0]


def monitor(**readings: Any) -> dynamic.FixedMonitor:
    """These readings, always."""
    return dynamic.FixedMonitor(dynamic.Snapshot(time_s=0.0, **readings))


REFERENCE = make_point("reference", (INF,), (0.0, 1.0), accuracy=0.9, bound=0.0, drop=0.0, backbones=(1,))
QUICK = make_point("quick", (0.5,), (0.5, 0.5), accuracy=0.8, bound=0.1, drop=0.1, backbones=(0, 1))
SMALL = make_point("small", (-INF,), (1.0, 0.0), accuracy=0.7, bound=0.2, drop=0.2, backbones=(0,))
X = np.zeros((1, 12), np.float32)


class Fake:
    """An engine of the two stages of `blobs`: everybody leaves at the last stage that the thresholds allow, label 0.

    `fails(engine, backbones, stagewise)` is asked when it loads and, with None for backbones, when it runs: it may
    raise. `calls`: what it was asked to run, as (stagewise, deadline_s, expected_s).
    """

    name, precision, threads = "onnxruntime", "f32", 1
    agrees = True

    def __init__(self, fails: Callable[..., None] = lambda *_: None) -> None:
        self.fails = fails
        self.calls: list[tuple[bool, float | None, Any]] = []
        self.prepared: list[tuple[frozenset[int], frozenset[int] | None]] = []
        self.closed = 0

    def ready(self, rows: int) -> bool:
        return True

    def prepare(
        self, backbones: frozenset[int], rows: int, resident: frozenset[int] | None = None, stagewise: bool = False
    ) -> bool:
        self.fails(self, backbones, stagewise)
        self.prepared.append((backbones, resident))
        return False

    def run(
        self,
        inputs: Mapping[str, NDArray[Any]],
        thresholds: NDArray[np.float32],
        deadline_s: float | None = None,
        stagewise: bool = False,
        expected_s: Any = None,
    ) -> Output:
        assert not self.closed, "a closed engine runs"
        self.fails(self, None, stagewise)
        self.calls.append((stagewise, deadline_s, expected_s))
        rows = len(next(iter(inputs.values())))
        logits = np.log(np.tile(np.array([0.7, 0.1, 0.1, 0.1], np.float32), (rows, 1)))
        stage = np.full(rows, 0 if thresholds[0] == -INF else 1)
        return Output(logits, stage, np.full(rows, 0.7, np.float32), deadline_s is None or deadline_s > 0)

    def close(self) -> None:
        self.closed += 1


def steady(run: Runtime, x: NDArray[Any]) -> None:
    """Until a request repeats the one before: the first ones load, and may be slow."""
    for _ in range(200):
        run(x)
        if run._controller.plan is not None:
            return
    raise AssertionError("no request repeats another")


class Takes(Policy):
    """Always the point of this name; `changes` of the decision."""

    def __init__(self, name: str, **changes: Any) -> None:
        self.name, self.changes = name, changes

    def decide(self, frontier: Any, budget: Any, snapshot: Any, state: Any) -> tuple[Decision, Any]:
        (point,) = (p for p in frontier.points if p.name == self.name)
        return Decision(point, reason=f"always {self.name}", **self.changes), state


class Notes(BudgetPolicy):
    """Decides as usual, and notes what it was told of each request."""

    decides_each_request = True

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[tuple[float | None, int | None]] = []

    def decide(self, frontier: Any, budget: Any, snapshot: Any, state: Any) -> tuple[Decision, Any]:
        self.requests.append((snapshot.waited_ms, snapshot.queue_length))
        return super().decide(frontier, budget, snapshot, state)


class Clock:
    """A clock that is set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def faked(bundle: dynamic.Bundle, engine: Any = None, budget: dynamic.Budget | None = None, **options: Any) -> Runtime:
    """A runtime on such an engine, of a certified ladder of three points that take 10, 6 and 1 ms, 50, 55, 5 MB."""
    made = with_ladder(bundle)
    policy, watch = options.pop("policy", None) or BudgetPolicy(), options.pop("monitor", None) or monitor()
    engine = engine or Fake()
    return Runtime.on_engine(made, made.frontier, engine, budget or dynamic.Budget(), watch, policy, **options)


def with_ladder(bundle: dynamic.Bundle) -> dynamic.Bundle:
    """The bundle with that ladder, and costs."""
    ladder = replace(bundle.ladder, points=(REFERENCE, QUICK, SMALL), certified=True)
    return replace(bundle, ladder=ladder, costs=make_costs([[1], [10]], memory_mb=(5.0, 50.0)))


def broken(*_: Any) -> None:
    """Fails always."""
    raise EngineError("out of order")
