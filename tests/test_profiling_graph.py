"""Costs inside the single graph, from whole requests alone: a graph whose every part takes a known time."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dynamic.engines.contract import CascadeSpec, InputSpec, Output, StageSpec
from dynamic.engines.route_choice import CascadeEngine
from dynamic.policies.costs import Costs
from dynamic.policies.frontier import mean_ms
from dynamic.policies.ladder import Point
from dynamic.policies.stage_plan import plan
from dynamic.profiling.graph_profile import GraphColumn
from dynamic.profiling.stage_profile import profile

INF = float("inf")


class Fake:
    """Takes `call` ms, and of every stage that runs its body and, with its exit on, its head, on a clock of its own."""

    def __init__(self, spec: CascadeSpec, call: float, body: list[float], head: list[float]) -> None:
        self.spec, self.call, self.body, self.head = spec, call, body, head
        self.ms = 0.0

    def clock(self) -> float:
        return self.ms / 1e3

    def takes(self, thresholds: Any) -> float:
        todo = plan(np.array(thresholds, np.float32), self.spec.backbone)
        took = self.call
        for stage in range(todo.deepest + 1):
            took += todo.run[stage] * self.body[stage] + todo.on[stage] * self.head[stage]
        return took

    def run(self, inputs: Any, thresholds: Any, rows: int) -> Output:
        self.ms += self.takes(thresholds)
        return Output(np.zeros((rows, 2), np.float32), np.zeros(rows, np.int64), np.zeros(rows, np.float32))


def measured(backbone: tuple[int, ...], call: float, body: list[float], head: list[float]) -> tuple[Fake, Costs]:
    last = [s + 1 == len(backbone) or backbone[s + 1] != b for s, b in enumerate(backbone)]
    stages = tuple(
        StageSpec(f"s{s}", b, 0, f"{s}.onnx", None if last[s] else f"{s}_body.onnx", 1.0, 0.1)
        for s, b in enumerate(backbone)
    )
    spec = CascadeSpec((InputSpec("input", (3,), "float32"),), stages, 2)
    fake = Fake(spec, call, body, head)
    stagewise: Any = SimpleNamespace(name="fake", precision="f32", threads=1, options={}, spec=spec)
    engine = CascadeEngine(stagewise, fake, route="graph")  # type: ignore[arg-type]
    return fake, profile(engine, None, (1,), 0.0, fake.clock, progress=False)


def column(table: Any) -> list[float]:
    return [row[0] for row in table]


def predicted(fake: Fake, costs: Costs, thresholds: list[float]) -> float:
    """Of a request whose every row goes as deep as the thresholds let it."""
    limits, backbone = np.array(thresholds, np.float32), fake.spec.backbone
    todo = plan(limits, backbone)
    shares = tuple(float(s == todo.deepest) for s in range(len(backbone)))
    return mean_ms(Point("", tuple(thresholds), (), None, 0.0, None, None, 1, (0, 0, 0), shares), todo, costs, 1)


def test_parts_as_worked_out_by_hand() -> None:
    """A network, one of two exits, one of two exits: the reference is the call (2) and the bodies 5, 6 and head 0.5."""
    _, costs = measured((0, 1, 1, 2, 2), 2.0, [1, 3, 4, 5, 6], [0.25, 0.5, 0.25, 1.0, 0.5])
    assert costs.route == ("graph",)
    assert costs.call_ms == (pytest.approx(2),)
    assert column(costs.latency_ms) == pytest.approx([1.25, 3.5, 4.25, 6, 6.5])
    assert column(costs.latency_p95_ms) == pytest.approx([1.25, 3.5, 4.25, 6, 6.5]), "nothing varies"
    assert column(costs.head_ms) == pytest.approx([0, 0.5, 0, 1, 0]), "of exits that can be off while their stage runs"


@pytest.mark.parametrize(
    ("backbone", "call"), [((0, 1, 2), 2.0), ((0, 0, 1), 2.0), ((0, 1, 1), 2.0), ((0, 0, 0), 2.0), ((0, 1, 2), 0.0)]
)
def test_prediction_is_what_requests_take(backbone: tuple[int, ...], call: float) -> None:
    fake, costs = measured(backbone, call, [0.5, 3, 4], [0.25, 0.5, 0.25])
    for thresholds in ([INF, INF], [-INF, -INF], [0.5, -INF], [0.5, 0.5], [INF, 0.5], [0.5, INF], [INF, -INF]):
        assert predicted(fake, costs, thresholds) == pytest.approx(fake.takes(thresholds)), thresholds


def test_one_stage_alone() -> None:
    fake, costs = measured((0,), 2.0, [3], [0.5])
    assert costs.call_ms == (pytest.approx(0),), "it stays in the stage, which always runs"
    assert column(costs.latency_ms) == pytest.approx([5.5])
    assert predicted(fake, costs, []) == pytest.approx(5.5)


def with_spread(median: float, spread: float) -> list[float]:
    return [median] * 19 + [median + spread] * 2  # the 95th percentile of 21 is the 20th


def test_spread_adds_as_variances() -> None:
    found = GraphColumn((0, 1))
    found.leaving = [with_spread(10, 3), with_spread(15, 5)]
    found.without, found.reference = [[], []], with_spread(7, 1)  # the second network alone: a call of 2 and 5
    assert found.call == pytest.approx(2)
    assert found.latency == pytest.approx([8, 5])
    assert found.latency_p95 == pytest.approx([8 + 3, 5 + 4])  # 3^2 + 4^2 = 5^2


@pytest.mark.parametrize(("reference", "call"), [(100.0, 10.0), (1.0, 0.0)])
def test_noise_makes_no_stage_cost_less_than_nothing(reference: float, call: float) -> None:
    found = GraphColumn((0, 1))
    found.leaving, found.reference = [[10.0], [15.0]], [reference]
    assert (found.call, found.latency) == (call, [10 - call, 5])
