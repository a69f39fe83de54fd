"""Costs inside the single graph, from whole requests alone: a graph whose every part takes a known time."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.fake_graph import Fake, measured

from dynamic.engines.contract import Output
from dynamic.engines.route_choice import CascadeEngine
from dynamic.engines.stage_loop import StageEngine
from dynamic.policies.costing.latency import mean_ms
from dynamic.policies.costs import Costs
from dynamic.policies.ladder import OperatingPoint
from dynamic.policies.scores import Combiner
from dynamic.policies.stage_plan import plan
from dynamic.profiling.graph_profile import GraphColumn, time_in_a_row
from dynamic.profiling.stage_column import measure_stages
from dynamic.profiling.stage_profile import profile

INF = float("inf")


def column(table: Any) -> list[float]:
    return [row[0] for row in table]


def predicted(fake: Fake, costs: Costs, thresholds: list[float]) -> float:
    """Of a request whose every row goes as deep as the thresholds let it."""
    limits, backbone = np.array(thresholds, np.float32), fake.spec.backbone
    todo = plan(limits, backbone)
    shares = tuple(float(s == todo.deepest) for s in range(len(backbone)))
    return mean_ms(
        OperatingPoint("", tuple(thresholds), (), None, 0.0, None, None, 1, (0, 0, 0), shares), todo, costs, 1
    )


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


def test_short_requests_are_measured_as_in_a_stream_of_their_kind() -> None:
    """One of another kind takes 0.4 ms more, four times the first network. In a stream nobody pays for it."""
    fake, costs = measured((0, 1), 0.0, [0.1, 1.0], [0.0, 0.0], change=0.4)
    assert column(costs.latency_ms) == pytest.approx([0.1, 1.0])
    assert costs.call_ms == (pytest.approx(0),)
    assert predicted(fake, costs, [-INF]) == pytest.approx(0.1)
    assert predicted(fake, costs, [INF]) == pytest.approx(1.0)


def test_long_requests_are_measured_once_a_turn() -> None:
    def timings(*took_ms: float) -> list[float]:
        now_ms, left = 0.0, iter(took_ms)

        def request() -> None:
            nonlocal now_ms
            now_ms += next(left)

        return time_in_a_row(request, lambda: now_ms / 1e3).ms

    assert timings(7, 9) == pytest.approx([7])
    assert timings(3, 2, 2.5, 9) == pytest.approx([2, 2.5]), "some 5 ms of them"
    assert timings(0.1, 1, 1, 1, 1, 1, 9) == pytest.approx([1] * 5)


class Stages:
    """An executor of two networks. Each takes its time on the clock, and 0.4 ms more behind the other."""

    name, precision, threads = "fake", "f32", 1

    def __init__(self) -> None:
        self.ms, self._last = 0.0, -1

    def start(self, inputs: Any) -> Any:
        return inputs

    def step(self, stage: int, carry: Any, head: bool) -> Any:
        self.ms += (0.1, 1.0)[stage] + 0.4 * (stage != self._last)
        self._last = stage
        return np.zeros((1, 2), np.float32), carry


def test_stages_are_measured_as_in_a_stream_too() -> None:
    """Requests that exit at the first stage take 0.1 ms. Those that go on pay twice for the change, 1.9 ms in all."""
    executor = Stages()
    fake, _ = measured((0, 1), 0.0, [0.1, 1.0], [0.0, 0.0])
    combiner = Combiner((1.0, 1.0), "max_probability", combine="last", backbone=(0, 1))
    stages = StageEngine(executor, fake.spec, combiner)  # type: ignore[arg-type]
    found = measure_stages(stages, 1, 0.0, lambda: executor.ms / 1e3)
    assert found.call + found.latency[0] == pytest.approx(0.1)
    assert found.call + sum(found.latency) == pytest.approx(1.9)


class ByRows(Fake):
    """Takes so much for each row."""

    def run(self, inputs: Any, thresholds: Any, rows: int) -> Output:
        self.ms += (rows - 1) * self.takes(thresholds)
        return super().run(inputs, thresholds, rows)


@pytest.mark.parametrize(("ms", "sizes"), [(1.0, (1, 8, 64)), (60.0, (1, 8)), (600.0, (1,))])
def test_the_usual_batch_sizes_take_a_minute_at_most(ms: float, sizes: tuple[int, ...]) -> None:
    """Ten turns of four kinds of request: 0.04 s, 2.4 s and 24 s for one row, and as many times that as rows."""
    fake, _ = measured((0, 1), 0.0, [ms / 2, ms / 2], [0.0, 0.0])
    slow = ByRows(fake.spec, fake.call, fake.body, fake.head)
    stagewise: Any = SimpleNamespace(name="fake", precision="f32", threads=1, options={}, spec=fake.spec)
    engine = CascadeEngine(stagewise, slow, route="graph")  # type: ignore[arg-type]
    costs = profile(engine, None, None, 0.0, slow.clock, progress=False)
    assert costs.batch == sizes
    assert slow.ms < 60e3
    assert [what for what in costs.not_measured if "batches" in what] == [
        f"batches above {sizes[-1]}" for _ in sizes[-1:] if sizes[-1] < 64
    ]
    assert profile(engine, None, (1, 8), 0.0, slow.clock, progress=False).batch == (1, 8), "asked for"


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
