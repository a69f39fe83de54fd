"""Costs by size of input, by hand: measured figures as they are, lines between them, and the point for one size."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.policy_cases import INF, make_costs, make_ladder, make_point

import dynamic
from dynamic.policies.costing.size_costs import SizeCosts, between
from dynamic.policies.costs import Costs
from dynamic.policies.errors import CorruptError, InputError
from dynamic.policies.frontier import Frontier

# one backbone of two stages, at 1 and 4 rows. The example has 10 tokens: 2 and 6 ms, at 4 rows twice that
SMALL = SizeCosts(2, ((1, 2), (2, 4)), ((1, 2), (2, 4)), ((0, 0), (0, 0)), ((1, 2), (2, 4)), (0.5, 0.5))
LARGE = SizeCosts(40, ((5, 10), (36, 72)), ((5, 10), (36, 72)), ((0, 0), (0, 0)), ((5, 10), (36, 72)), (1.5, 1.5))
COSTS = make_costs([[2, 4], [6, 12]], (1, 4), call_ms=(0.5, 0.5), row_mb=(3.0,), size=10, sizes=(SMALL, LARGE))
FIXED = replace(COSTS, size=None, sizes=())

REFERENCE = make_point("reference", (INF,), (0.0, 1.0))
QUICK = make_point("quick", (-INF,), (1.0, 0.0), accuracy=0.8, risk=0.1)
LADDER = make_ladder([REFERENCE, QUICK], (0, 0))
FRONTIER = Frontier.of(LADDER, COSTS)


@pytest.mark.parametrize(
    ("size", "first", "second", "call"),
    [
        (1, 1, 2, 0.5),  # below the least that was measured it is that
        (2, 1, 2, 0.5),
        (6, 1.5, 4, 0.5),
        (10, 2, 6, 0.5),
        (25, 3.5, 21, 1.0),
        (40, 5, 36, 1.5),
        (70, 8, 66, 2.5),  # beyond the largest the line goes on
    ],
)
def test_times_are_linear_between_measured_sizes(size: int, first: float, second: float, call: float) -> None:
    costs = COSTS.at_size(size)
    assert [row[0] for row in costs.latency_ms] == pytest.approx([first, second])
    assert [row[1] for row in costs.latency_ms] == pytest.approx([2 * first, 2 * second])
    assert costs.call_ms[0] == pytest.approx(call)
    assert costs.size == size
    assert costs.row_mb == pytest.approx((3.0 * size / 10,))


def test_noise_between_two_sizes_makes_no_larger_one_free() -> None:
    """0.031 ms at 16 and 0.0305 at 64: beyond, times are those at 64. A stage that grows goes on to grow."""
    sized = [
        SizeCosts(size, ((ms,), (size,)), ((ms,), (size,)), NONE, ((ms,), (size,)), (call,))
        for size, ms, call in ((16, 0.031, 0.2), (64, 0.0305, 0.1))
    ]
    larger = between(sized, 4096)
    assert larger.latency_ms == larger.cpu_ms == ((0.0305,), (4096,))
    assert larger.call_ms == (0.1,)
    assert between(sized, 40).latency_ms[0][0] == pytest.approx(0.03075)
    assert between(sized, 64).latency_ms == ((0.0305,), (64,))


def test_the_energy_of_a_stage_grows_as_its_time() -> None:
    costs = COSTS.powered(active_mw=1000.0, idle_mw=None).at_size(40)
    assert costs.energy_mj is not None
    assert [row[0] for row in costs.energy_mj] == pytest.approx([5, 36])


def test_without_a_size_costs_are_themselves() -> None:
    assert COSTS.at_size(None) is COSTS
    assert COSTS.at_size(10) is COSTS
    assert FIXED.at_size(77) is FIXED
    assert FIXED.measured_sizes == ()
    assert [entry.size for entry in COSTS.measured_sizes] == [2, 10, 40]


@pytest.mark.parametrize("size", [0, -3, 2.5, 10.0, True, "10", float("nan")])
def test_what_is_no_size_is_refused(size: Any) -> None:
    with pytest.raises(InputError, match=r"size=.* is no size of an input: give the product of its dynamic dimensions"):
        COSTS.at_size(size)
    assert COSTS.at_size(np.int64(10)) is COSTS  # type: ignore[arg-type]


def test_through_json_and_as_earlier_versions_wrote_them_where_nothing_is_dynamic() -> None:
    again = Costs.from_json(json.loads(json.dumps(COSTS.to_json())))
    assert again == COSTS
    assert {"size", "sizes"} & set(FIXED.to_json()) == set()
    assert Costs.from_json(json.loads(json.dumps(FIXED.to_json()))) == FIXED
    data: Any = json.loads(json.dumps(COSTS.to_json()))
    data["sizes"][0]["latency_ms"][0][0] = -1
    with pytest.raises(CorruptError, match="latency_ms"):
        Costs.from_json(data)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": None}, "need the size of the others"),
        ({"size": 0}, "size=0 is no size of an input"),
        ({"size": 0, "sizes": ()}, "size=0 is no size of an input"),
        ({"size": 2.5}, "size=2.5 is no size of an input"),
        ({"size": 2}, "must rise from 1 and not repeat 2"),
        ({"sizes": (LARGE, SMALL)}, "must rise from 1"),
        ({"sizes": (replace(LARGE, head_ms=((0, 0),)),)}, "head_ms at size 40 must have a row for each stage"),
        ({"sizes": (replace(LARGE, call_ms=(1.0,)),)}, "overhead at size 40 must have an entry for each batch size"),
        ({"sizes": (replace(LARGE, call_ms=(INF, 1.0)),)}, "inf is no cost"),
    ],
)
def test_tables_that_do_not_fit_are_refused(fields: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(COSTS, **fields)


def test_the_expected_time_of_a_request_depends_on_its_size() -> None:
    reference, quick = FRONTIER.points
    for size, first, second, call in ((2, 1, 2, 0.5), (10, 2, 6, 0.5), (40, 5, 36, 1.5)):
        whole = first + second + call
        assert FRONTIER.latency_ms(None, 1, size=size) == pytest.approx((whole, first + call))
        assert FRONTIER.first_answer(1, size=size).figures == pytest.approx([whole, first + call])
        assert FRONTIER.path_ms(reference, 1, size=size) == pytest.approx(whole)
        assert FRONTIER.path_ms(quick, 0, size=size) == pytest.approx(first + call)
    assert FRONTIER.latency_ms(None, 1) == FRONTIER.latency_ms(None, 1, size=10)


def test_a_point_that_is_faster_at_another_size_alone_is_no_dominated_one() -> None:
    """Two networks: the first is faster for short texts, the second for long ones, at equal accuracy."""
    table = ((9.0,), (30.0,))
    nothing = ((0.0,), (0.0,))
    long = SizeCosts(100, ((50.0,), (40.0,)), ((50.0,), (40.0,)), nothing, ((50.0,), (40.0,)), (0.0,))
    costs = make_costs(table, (1,), memory_mb=(50.0, 50.0), size=10, sizes=(long,))
    one = make_point("one", (-INF,), (1.0, 0.0), backbones=(0,))
    two = make_point("two", (INF,), (0.0, 1.0), backbones=(1,))
    ladder = make_ladder([make_point("reference", (INF,), (0.0, 1.0), backbones=(1,), accuracy=0.9), one, two], (0, 1))
    assert [p.name for p in Frontier.of(ladder, costs).points] == ["reference", "one", "two"]
    fixed = Frontier.of(ladder, replace(costs, size=None, sizes=()))
    assert [p.name for p in fixed.points][:2] == ["reference", "one"]


def decide(state: Any, size: int | None, limit_ms: float, time_s: float = 0.0, **fields: Any) -> Any:
    policy = dynamic.BudgetPolicy()
    snapshot = dynamic.Snapshot(time_s, rows=1, size=size, **fields)
    return policy.decide(FRONTIER, dynamic.Budget(latency_ms=limit_ms, percentile=None), snapshot, state)


@pytest.mark.parametrize(
    ("size", "limit_ms", "name", "alone"),
    [
        (None, 10, "reference", False),  # 8.5 ms
        (10, 10, "reference", False),
        (2, 10, "reference", False),  # 3.5 ms
        (40, 10, "quick", True),  # 42.5 and 6.5 ms: for this request alone
        (10, 8, "quick", False),
        (2, 8, "reference", True),  # 3.5 ms: a better point for a small request alone
        (40, 5, "quick", False),  # nothing fits
    ],
)
def test_a_request_gets_the_point_for_its_size(size: int | None, limit_ms: float, name: str, alone: bool) -> None:
    decision, _ = decide(dynamic.BudgetPolicy().initial(), size, limit_ms)
    assert (decision.point.name, decision.one_request_only) == (name, alone)
    assert decision.feasible == (limit_ms > 5)


def test_long_texts_do_not_change_what_runs_for_the_others() -> None:
    state = dynamic.BudgetPolicy().initial()
    chosen = []
    for number, size in enumerate((10, 40, 10, 40, 2, 10)):
        decision, state = decide(state, size, 10, float(number))
        chosen.append(decision.point.name)
    assert chosen == ["reference", "quick", "reference", "quick", "reference", "reference"]


def test_the_predicted_latency_is_that_of_the_size() -> None:
    decision, _ = decide(dynamic.BudgetPolicy().initial(), 40, 10)
    assert "The predicted latency is 6.5 ms" in str(decision.reason)


# 'one' takes 9 ms at size 10 and 50 at size 100, the reference 30 and 40: the head of 'one' reads a large feature
NONE = ((0.0,), (0.0,))
HEADY = SizeCosts(100, ((50.0,), (35.0,)), ((50.0,), (35.0,)), ((45.0,), (0.0,)), ((50.0,), (35.0,)), (0.0,))
ONE = make_point("one", (-INF,), (1.0, 0.0), accuracy=0.89)
ONE_LADDER = make_ladder([REFERENCE, ONE], (0, 0))
ONE_FRONTIER = Frontier.of(ONE_LADDER, make_costs(((9.0,), (21.0,)), (1,), size=10, sizes=(HEADY,)))


def test_a_request_of_another_size_gets_the_point_that_is_fastest_there() -> None:
    policy, budget = dynamic.BudgetPolicy(), dynamic.Budget(max_drop=0.01)
    assert ONE_FRONTIER.ranked("mean", 10) is ONE_FRONTIER.mean
    assert ONE_FRONTIER.ranked("mean", 100).figures == pytest.approx((40, 50))
    for size, name in ((10, "one"), (100, "reference"), (55, "one")):  # at 55 29.5 and 35 ms
        decision, _ = policy.decide(ONE_FRONTIER, budget, dynamic.Snapshot(0.0, size=size), policy.initial())
        assert (decision.point.name, decision.one_request_only) == (name, size == 100)
        assert f"'{name}' is the fastest of 2 of 2 points" in str(decision.reason)


def test_equally_accurate_points_are_ranked_by_their_time_at_the_size() -> None:
    equal = make_ladder([REFERENCE, replace(ONE, accuracy=REFERENCE.accuracy)], (0, 0))
    policy, frontier = dynamic.BudgetPolicy(), Frontier.of(equal, ONE_FRONTIER.costs)
    for size, name in ((10, "one"), (100, "reference")):
        decision, _ = policy.decide(frontier, dynamic.Budget(), dynamic.Snapshot(0.0, size=size), policy.initial())
        assert decision.point.name == name
        assert f"'{name}' is the most accurate of 2 of 2 points" in str(decision.reason)


def test_a_point_that_is_fastest_at_the_size_runs_where_its_network_is_loaded() -> None:
    """Two networks: the reference runs first, and is in memory."""
    long = SizeCosts(100, ((50.0,), (40.0,)), ((50.0,), (40.0,)), NONE, ((50.0,), (40.0,)), (0.0,))
    costs = make_costs(((9.0,), (30.0,)), (1,), memory_mb=(50.0, 50.0), size=10, sizes=(long,))
    points = [replace(REFERENCE, backbones=(1,)), replace(ONE, backbones=(0,))]
    policy, frontier = dynamic.BudgetPolicy(), Frontier.of(make_ladder(points, (0, 1)), costs)
    decision, state = policy.decide(frontier, dynamic.Budget(), dynamic.Snapshot(0.0, size=10), policy.initial())
    assert decision.point.name == "reference"
    saving = dynamic.Budget(max_drop=0.01)
    for time_s, size, name in ((1.0, 10, "one"), (2.0, 100, "reference"), (3.0, 10, "one")):
        decision, state = policy.decide(frontier, saving, dynamic.Snapshot(time_s, size=size), state)
        assert decision.point.name == name


@pytest.mark.parametrize("limit", ["cpu_ms", "energy_mj"])
def test_energy_and_cpu_time_are_those_of_the_size(limit: Any) -> None:
    """CPU times are 8 and 41 ms without the overhead, energies at 1 W as many mJ and the overhead of the example."""
    policy, frontier = dynamic.BudgetPolicy(), FRONTIER
    if limit == "energy_mj":
        frontier = FRONTIER.recost(COSTS.powered(active_mw=1000.0))
        assert frontier.ranked("effort", 40).figures == pytest.approx((41.5, 5.5))
    assert frontier.ranked("processor", 40).figures == pytest.approx((41, 5))
    for size, name in ((10, "reference"), (40, "quick"), (None, "reference")):
        budget = dynamic.Budget(energy_mj=10) if limit == "energy_mj" else dynamic.Budget(cpu_ms=10)
        snapshot = dynamic.Snapshot(0.0, rows=1, size=size)
        decision, _ = policy.decide(frontier, budget, snapshot, policy.initial())
        assert (decision.point.name, decision.feasible) == (name, True)


def test_a_small_request_does_not_break_the_cooldown_after_heat() -> None:
    policy, budget = dynamic.BudgetPolicy(), dynamic.Budget(latency_ms=10, percentile=None, temperature_c=60)
    state, chosen = policy.initial(), []
    readings: list[dict[str, Any]] = [
        {"time_s": 0.0, "temperature_c": 40},
        {"time_s": 1.0, "temperature_c": 40},
        {"time_s": 2.0, "temperature_c": 75},
        {"time_s": 3.0, "temperature_c": 75},
        *({"time_s": 4.0 + second, "temperature_c": 40} for second in range(58)),
        {"time_s": 62.0, "temperature_c": 40, "cpu_load": 0.9, "cpu_cores": 1},
        {"time_s": 63.0, "temperature_c": 40, "cpu_load": 0.9, "cpu_cores": 1, "size": 2},
    ]
    for reading in readings:
        decision, state = policy.decide(FRONTIER, budget, dynamic.Snapshot(rows=1, **reading), state)
        chosen.append(decision.point.name)
    assert chosen[:2] == ["reference", "reference"]
    assert set(chosen[2:]) == {"quick"}
    assert "are skipped for 300 s after heat" in str(decision.reason)
