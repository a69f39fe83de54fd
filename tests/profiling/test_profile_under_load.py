"""A profile that was taken under load: noise does not rank points, and it is said wherever costs are shown."""

import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from support.fake_graph import measured
from support.policy_cases import INF, make_costs, make_ladder, make_point
from support.simulation_cases import FRONTIER, PLAIN, RECORDS

from dynamic.bundle.golden_vectors import figures
from dynamic.bundle.tables import points_text
from dynamic.monitoring.contract import Reading
from dynamic.policies.budget import Budget
from dynamic.policies.control.budget_policy import BudgetPolicy
from dynamic.policies.control.fixed_policy import FixedPolicy
from dynamic.policies.costs import Costs
from dynamic.policies.errors import InputError
from dynamic.policies.frontier import Frontier
from dynamic.policies.snapshot import Snapshot
from dynamic.profiling import stage_profile
from dynamic.profiling.graph_profile import GraphColumn, uncertainty
from dynamic.profiling.stage_column import StageColumn
from dynamic.simulate import Constant, SimulationReport, simulate

LADDER = make_ladder(
    [
        make_point("reference", (INF, INF), (0.0, 0.0, 1.0), accuracy=0.95, backbones=(2,)),
        make_point("middle", (INF, -INF), (0.0, 1.0, 0.0), accuracy=0.94, backbones=(1,), target=0.01, risk=0.01),
        make_point("cheapest", (-INF, INF), (1.0, 0.0, 0.0), accuracy=0.90, backbones=(0,), target=None, risk=0.05),
    ],
    (0, 1, 2),
)


def costs(*ms: float, noise: float = 0.0, **fields: Any) -> Costs:
    """Three networks that take so long."""
    return make_costs([[value] for value in ms], memory_mb=(50.0, 50.0, 50.0), noise=noise, **fields)


def names(frontier: Frontier) -> list[str]:
    """Of the points."""
    return [p.name for p in frontier.points]


def test_noise_does_not_make_the_cheapest_point_dearer_than_the_reference() -> None:
    # 10.4, 10.2 and 10.0 ms within 5%: by compute the first is the cheapest
    loaded = Frontier.of(LADDER, costs(10.4, 10.2, 10.0, noise=0.05))
    assert names(loaded) == ["reference", "middle", "cheapest"]
    assert loaded.cheapest.name == "cheapest"
    found, _ = BudgetPolicy().decide(loaded, Budget(max_drop=0.1), Snapshot(0), BudgetPolicy().initial())
    assert found.point.name == "cheapest"
    low = Budget(battery_floor=0.2)
    found, _ = BudgetPolicy().decide(loaded, low, Snapshot(0, battery=0.1), BudgetPolicy().initial())
    assert found.point.name == "cheapest"
    written = figures(loaded)["points"]
    assert sorted(written, key=lambda p: p["cpu_ms"])[0]["name"] == "cheapest"  # a port ranks alike
    assert sorted(written, key=lambda p: p["mean_ms"][0])[0]["name"] == "cheapest"
    # what is measured stays what it is
    assert [p.mean_ms[0] for p in loaded.points] == [10.0, 10.2, 10.4]


def test_what_differs_by_more_than_the_noise_is_believed() -> None:
    slower = Frontier.of(LADDER, costs(12.0, 9.0, 10.0, noise=0.05))
    assert names(slower) == ["reference", "middle"]
    assert Frontier.of(LADDER, costs(10.4, 9.0, 10.0)).cheapest.name == "middle"
    assert "cheapest" not in names(Frontier.of(LADDER, costs(10.4, 10.2, 10.0)))


def test_latency_limits_go_by_what_was_measured() -> None:
    loaded = Frontier.of(LADDER, costs(10.4, 10.2, 10.0, noise=0.05))
    found, _ = BudgetPolicy().decide(
        loaded, Budget(latency_ms=10.1, max_drop=0.1), Snapshot(0), BudgetPolicy().initial()
    )
    assert (found.point.name, found.feasible) == ("reference", True)


def test_uncertainty_by_hand() -> None:
    # the middle half of 1..9 is 4 wide: 4 / 1.349 standard deviations, 1.2533 / sqrt(9) of that for a median of 5
    assert uncertainty([1.0, 2, 3, 4, 5, 6, 7, 8, 9]) == pytest.approx(2 * 1.2533 * 4 / 1.349 / 3 / 5)
    assert uncertainty([5.0] * 9) == uncertainty([]) == uncertainty([0.0] * 9) == 0


def test_a_small_stage_that_scatters_does_not_blur_large_ones() -> None:
    """A first stage of 0.02 ms within 0.007, before one of 10 ms within 0.01: whole requests are known to 0.2%."""
    column = StageColumn(2)
    column.full = [[0.01, 0.02, 0.03] * 9, [9.99, 10.0, 10.01] * 9]
    column.leaving = column.full[0]
    column.staying = column.whole = [a + b for a, b in zip(*column.full, strict=True)]
    assert column.noise < 0.003
    graph = GraphColumn((0, 1))
    graph.leaving, graph.whole = [column.leaving, column.staying], column.staying
    assert graph.noise == column.noise


def test_limits_compare_with_what_was_measured() -> None:
    """Noise orders points. It makes no point cheaper than it is."""
    loaded = Frontier.of(LADDER, costs(10.4, 10.2, 10.0, noise=0.05))
    assert [p.name for p in loaded.points] == ["reference", "middle", "cheapest"]
    for rank in (loaded.processor, loaded.effort, loaded.mean):
        assert rank.figures == (10.0, 10.2, 10.4)
        assert (rank.at_most(10.1), rank.at_most(10.2), rank.below(10.0)) == (0b001, 0b011, 0)
        assert rank.first(0b111) == 2, "the one of the least compute"
    found, _ = BudgetPolicy().decide(loaded, Budget(cpu_ms=10.1, max_drop=0.1), Snapshot(0), BudgetPolicy().initial())
    assert (found.point.name, found.feasible) == ("reference", True)
    found, _ = BudgetPolicy().decide(
        loaded, Budget(latency_ms=100, max_drop=0.1), Snapshot(0), BudgetPolicy().initial()
    )
    assert "'cheapest' is the fastest (times within 5% count as equal) of 3 of 3 points" in str(found.reason)
    found, _ = BudgetPolicy().decide(loaded, Budget(cpu_ms=9.9, max_drop=0.1), Snapshot(0), BudgetPolicy().initial())
    assert not found.feasible
    assert "cpu_ms is violated: 10.4 CPU-ms is over 9.9 CPU-ms" in str(found.reason)


def test_a_steady_profile_has_no_noise() -> None:
    _, found = measured((0, 1), 0.5, [2.0, 4.0], [0.5, 0.5])
    assert found.noise == pytest.approx(0, abs=1e-9)


class Busy:
    """A load of others that is what the test says, from the second reading on."""

    def __init__(self, load: float | None) -> None:
        self.load, self.calls = load, 0

    def __call__(self) -> Reading:
        self.calls += 1
        return Reading({"host_load": self.load if self.calls > 1 else None}, "test")


@pytest.mark.parametrize(("load", "said"), [(0.83, True), (0.05, False), (None, False)])
def test_load_is_said_and_remembered(
    load: float | None, said: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stage_profile, "OtherLoad", lambda: Busy(load))
    with caplog.at_level(logging.WARNING, "dynamic"):
        _, found = measured((0, 1), 0.5, [2.0, 4.0], [0.5, 0.5])
    assert found.load == load
    assert ("others used 83% of the processor" in caplog.text) == said
    again = Costs.from_json(json.loads(json.dumps(found.to_json())))
    assert again == found
    assert ("83%" in "".join(again.doubts)) == said


@pytest.mark.parametrize(
    ("loads", "kept", "count"),
    [((0.05,), 0.05, 1), ((0.8, 0.1), 0.1, 2), ((0.8, 0.3, 0.5), 0.3, 3), ((0.2, None), 0.2, 2)],
)
def test_a_profile_under_load_is_repeated(
    loads: tuple[float | None, ...], kept: float, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The calmest of three counts."""
    left, made = iter(loads), []
    monkeypatch.setattr(stage_profile, "OtherLoad", lambda: Busy(next(left)))
    columns: Any = [[object()] for _ in loads]

    def measure(*_: Any) -> Any:
        made.append(columns[len(made)])
        return made[-1]

    kept_columns, load, _ = stage_profile._measured_alone(measure, (1,), math.inf, time.monotonic)
    assert (load, len(made)) == (kept, count)
    assert kept_columns is columns[loads.index(kept)]


def test_a_repetition_measures_the_sizes_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first had no time for the third. The second has less time, and leaves out no more."""
    asked: list[tuple[Sequence[int], float]] = []

    def measure(sizes: Sequence[int], limit_s: float) -> Any:
        asked.append((sizes, limit_s))
        return [object()] * min(2, len(sizes))

    loads = iter((0.5, 0.05))
    monkeypatch.setattr(stage_profile._OthersDuring, "load", lambda _: next(loads))
    columns, load, _ = stage_profile._measured_alone(measure, (1, 8, 64), 60.0, lambda: 0.0)
    assert asked == [((1, 8, 64), 60.0), ((1, 8), math.inf)]
    assert (len(columns), load) == (2, 0.05)


def test_other_sizes_are_repeated_too_and_the_larger_load_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first time others use 50% while other sizes are measured, then 10% at most."""
    asked: list[tuple[tuple[int, ...], list[object]]] = []
    columns = [[object()], [object()]]
    profiles: Any = [object(), object()]

    def measure_sizes(batch: Any, measured: Any) -> Any:
        asked.append((batch, measured))
        return profiles[len(asked) - 1]

    loads, left = iter((0.05, 0.5, 0.1, None)), iter(columns)
    monkeypatch.setattr(stage_profile._OthersDuring, "load", lambda _: next(loads))
    measured_last = stage_profile._measured_alone(
        lambda *_: next(left),
        (1,),
        math.inf,
        lambda: 0.0,
        measure_sizes,  # type: ignore[arg-type, return-value]
    )
    assert asked == [((1,), columns[0]), ((1,), columns[1])]
    assert measured_last == (columns[1], 0.1, profiles[1])


def test_a_source_that_fails_is_no_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> Any:
        raise PermissionError("proc/stat")

    monkeypatch.setattr(stage_profile, "OtherLoad", fails)
    assert measured((0, 1), 0.5, [2.0, 4.0], [0.5, 0.5])[1].load is None


def test_doubts_in_words() -> None:
    assert costs(1, 2, 3).doubts == ()
    assert "DOUBTFUL" not in points_text(Frontier.of(LADDER, costs(1, 2, 3)))
    assert points_text(Frontier.of(LADDER, costs(1, 2, 3, load=0.5))).startswith("DOUBTFUL: others used 50%")
    words = replace(costs(1, 2, 3), load=0.5, noise=0.4).doubts
    assert "others used 50% of the processor while this was profiled" in words[0]
    assert "repeats leave figures uncertain by 40%" in words[1]


@pytest.mark.parametrize("noise", [-0.1, float("nan"), float("inf")])
def test_noise_is_a_fraction(noise: float) -> None:
    with pytest.raises(InputError, match="noise="):
        costs(1, 2, 3, noise=noise)


def test_a_simulation_says_what_its_costs_are_worth() -> None:
    def report(frontier: Frontier) -> SimulationReport:
        return simulate(
            frontier, RECORDS, device=PLAIN, workload=Constant(10, 0.4), policy=FixedPolicy("last"), budget=Budget()
        )

    doubtful = FRONTIER.recost(replace(FRONTIER.costs, load=0.5))
    assert "DOUBTFUL: others used 50% of the processor" in str(report(doubtful))
    assert "DOUBTFUL" not in str(report(FRONTIER))
    assert report(doubtful).to_json()["doubts"]


def test_the_overhead_of_a_call_counts_in_energy_and_cpu_time() -> None:
    # 2 ms of a stage and 0.5 of the call, at 1.2 W: 3 mJ
    bare = make_costs([[2.0]], call_ms=(0.5,), call_cpu_ms=(0.4,), cpu_ms=((1.5,),)).powered(1200.0)
    one = make_ladder([make_point("reference", (), (1.0,))], (0,))
    point = Frontier.of(one, bare).points[0]
    assert point.mean_ms[0] == pytest.approx(2.5)
    assert point.energy_mj is not None
    assert point.energy_mj[0] == pytest.approx(3.0)
    assert point.cpu_ms[0] == pytest.approx(1.9)
