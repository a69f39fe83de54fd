"""Decisions by hand: three points of 100, 50 and 10 ms, two networks of 200 and 50 MB."""

import math
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from policy_cases import INF, make_costs, make_ladder, make_point

from dynamic.policies import budget_policy
from dynamic.policies.budget import Budget
from dynamic.policies.budget_policy import BudgetPolicy, BudgetState
from dynamic.policies.decision import Decision, Feedback
from dynamic.policies.frontier import Frontier
from dynamic.policies.slowdown import Slowdown
from dynamic.policies.snapshot import Snapshot

LADDER = make_ladder(
    [
        make_point("reference", (INF, INF), (0.0, 0.0, 1.0), accuracy=0.95, backbones=(1,)),
        make_point("middle", (INF, -INF), (0.0, 1.0, 0.0), accuracy=0.94, target=0.01, risk=0.01),
        make_point("quick", (-INF, INF), (1.0, 0.0, 0.0), accuracy=0.85, target=None, risk=0.1),
    ],
    (0, 0, 1),
)
COSTS = make_costs([[10], [40], [100]], memory_mb=(50.0, 200.0), cpu_ms=((20.0,), (80.0,), (200.0,)), threads=2)
FRONTIER = Frontier.of(LADDER, COSTS)
POLICY = BudgetPolicy()


def decide(budget: Budget | None = None, state: BudgetState | None = None, **snapshot: Any) -> Decision:
    seen = Snapshot(time_s=0, **snapshot)
    return POLICY.decide(FRONTIER, budget or Budget(), seen, state or POLICY.initial())[0]


def after(*snapshots: Snapshot, budget: Budget | None = None) -> BudgetState:
    state = POLICY.initial()
    for snapshot in snapshots:
        _, state = POLICY.decide(FRONTIER, budget or Budget(), snapshot, state)
    return state


def name(decision: Decision) -> str:
    return decision.point.point.name


def test_the_case_is_what_it_says() -> None:
    assert [p.mean_ms[0] for p in FRONTIER.points] == [100, 50, 10]
    assert [p.memory_mb for p in FRONTIER.points] == [200, 50, 50]


def test_without_limits_the_most_accurate() -> None:
    found = decide()
    assert (name(found), found.feasible, found.gave_way) == ("reference", True, ())
    assert "most accurate" in found.reason
    assert "nothing rules it out" in found.reason


@pytest.mark.parametrize(
    ("drop", "expected"), [(0.0, "reference"), (0.009, "reference"), (0.01, "middle"), (0.05, "middle"), (0.1, "quick")]
)
def test_a_drop_that_may_be_spent_is_spent(drop: float, expected: str) -> None:
    found = decide(Budget(max_drop=drop))
    assert (name(found), found.feasible) == (expected, True)
    assert "cheapest" in found.reason
    assert ("max_drop" in found.reason) == (expected != "quick")


@pytest.mark.parametrize(
    ("limit", "expected", "gave_way"),
    [
        (100.1, "reference", ()),
        (99, "middle", ()),
        (49, "quick", ()),
        (9, "quick", ("latency_ms",)),
    ],
)
def test_latency(limit: float, expected: str, gave_way: tuple[str, ...]) -> None:
    found = decide(Budget(latency_ms=limit))
    assert (name(found), found.gave_way, found.feasible) == (expected, gave_way, not gave_way)
    assert ("latency_ms" in found.reason) == (limit < 100)
    if limit < 100:
        assert f"{limit:g} ms" in found.reason


def test_load_shares_the_processor() -> None:
    # 2 cores half busy and 2 threads wanted: (1 + 2) / 2 times as slow
    budget = Budget(latency_ms=100.1)
    assert name(decide(budget, cpu_load=0.0, cpu_cores=2)) == "reference"
    found = decide(budget, cpu_load=0.5, cpu_cores=2)
    assert name(found) == "middle"
    assert "slowdown 1.50" in found.reason
    assert "predicted 75 ms" in found.reason
    assert name(decide(budget, cpu_load=0.5, cpu_cores=8)) == "reference"  # 4 busy of 8, 2 wanted: room for all
    assert name(decide(Budget(latency_ms=76), cpu_load=0.5, cpu_cores=2)) == "middle"
    assert name(decide(Budget(latency_ms=74), cpu_load=0.5, cpu_cores=2)) == "quick"


def feedback(latency_ms: float, expected_ms: float, drift: bool = False, **snapshot: Any) -> Feedback:
    return Feedback(FRONTIER.points[0], 2, 1, latency_ms, expected_ms, 2, Snapshot(time_s=0, **snapshot), drift)


def test_slowdown_is_what_load_does_not_explain() -> None:
    start = POLICY.initial()
    slow = POLICY.observe(start, feedback(200, 100))
    assert slow.slowdown == start.slowdown.observe(200, 100)
    explained = POLICY.observe(start, feedback(200, 100, cpu_load=1.0, cpu_cores=2))  # (2 + 2) / 2 = twice
    assert explained.slowdown.ratio == pytest.approx(1)
    budget = Budget(latency_ms=100.1)
    assert name(decide(budget, slow)) == "middle"
    assert name(decide(budget, explained)) == "reference"


def test_a_dearer_point_than_the_current_needs_room_to_spare() -> None:
    at_middle = after(Snapshot(0), budget=Budget(latency_ms=60))
    assert at_middle.current == "middle"
    stayed = decide(Budget(latency_ms=105), at_middle)
    assert name(stayed) == "middle"  # 100 fits 105, but not 0.9 of it
    assert "at most 105 ms" in stayed.reason  # what was asked for
    assert name(decide(Budget(latency_ms=112), at_middle)) == "reference"
    assert "10 ms is over 9 ms" in decide(Budget(latency_ms=9), at_middle).reason
    at_reference = after(Snapshot(0))
    assert name(decide(Budget(latency_ms=105), at_reference)) == "reference"


def test_the_queue_is_a_batch() -> None:
    # one batch size: rows cost in proportion
    assert name(decide(Budget(latency_ms=250), rows=2)) == "reference"
    assert name(decide(Budget(latency_ms=250), rows=3)) == "middle"
    assert name(decide(Budget(latency_ms=250), rows=6)) == "quick"
    assert name(decide(Budget(latency_ms=250), rows=0)) == "reference"


def test_mean_or_percentile() -> None:
    costs = replace(COSTS, latency_p95_ms=((10.0,), (40.0,), (150.0,)))
    uneven = Frontier.of(LADDER, costs)
    found = {
        p: name(POLICY.decide(uneven, Budget(latency_ms=120, percentile=p), Snapshot(0), POLICY.initial())[0])
        for p in (None, 0.5, 0.95)
    }
    assert found == {None: "reference", 0.5: "reference", 0.95: "middle"}


def test_memory_of_this_process() -> None:
    # 100 MB before any network
    assert name(decide(Budget(memory_mb=300), memory_process_mb=100)) == "reference"
    found = decide(Budget(memory_mb=299), memory_process_mb=100)
    assert (name(found), found.feasible) == ("middle", True)
    assert "memory_mb at most 299 MB" in found.reason
    found = decide(Budget(memory_mb=120), memory_process_mb=100)  # nothing fits: the smallest stay
    assert (name(found), found.gave_way) == ("middle", ("memory_mb",))
    assert "150 MB is over 120 MB" in found.reason
    # the first reading counts: later ones hold the networks that were loaded
    state = after(Snapshot(0, memory_process_mb=100), Snapshot(1, memory_process_mb=310))
    assert name(decide(Budget(memory_mb=300), state, memory_process_mb=310)) == "reference"


def test_memory_that_is_free() -> None:
    assert name(decide(memory_available_mb=201)) == "reference"
    found = decide(memory_available_mb=199)
    assert name(found) == "middle"
    assert "199 MB of memory are free" in found.reason
    assert name(decide(memory_available_mb=1)) == "middle"  # the smallest
    loaded = after(Snapshot(0, memory_available_mb=300))
    assert loaded.resident == {1}
    assert name(decide(state=loaded, memory_available_mb=100)) == "reference"  # 200 of ours could be given back


def test_what_is_resident() -> None:
    both = after(Snapshot(0), Snapshot(1, memory_available_mb=50))
    assert both.resident == {1}  # what was loaded is room: nothing had to go
    swapped = after(Snapshot(0, rows=1), Snapshot(1, rows=3), budget=Budget(latency_ms=250))
    assert swapped.resident == {0, 1}
    managed = after(Snapshot(0), Snapshot(1, rows=3), budget=Budget(latency_ms=250, memory_mb=1000))
    assert managed.resident == {0}  # under a memory limit what is not needed is unloaded


@pytest.mark.parametrize(
    ("battery", "plugged", "expected"),
    [
        (0.21, False, "reference"),
        (0.2, False, "quick"),
        (0.05, None, "quick"),
        (0.05, True, "reference"),
        (None, False, "reference"),
    ],
)
def test_battery_floor(battery: float | None, plugged: bool | None, expected: str) -> None:
    found = decide(Budget(battery_floor=0.2), battery=battery, plugged=plugged)
    assert (name(found), found.feasible) == (expected, True)
    assert ("floor 20%" in found.reason) == (expected == "quick")


def test_battery_goes_before_the_drop() -> None:
    found = decide(Budget(battery_floor=0.2, max_drop=0.01), battery=0.1)
    assert (name(found), found.gave_way, found.feasible) == ("quick", ("max_drop",), False)


def test_all_that_gives_way_is_named() -> None:
    found = decide(Budget(memory_mb=40, latency_ms=5, max_drop=0), memory_process_mb=10, cpu_load=0, cpu_cores=2)
    assert name(found) == "quick"
    assert found.gave_way == ("memory_mb", "latency_ms", "max_drop")
    assert not found.feasible
    assert all(field in found.reason for field in found.gave_way)
    assert "\n" not in found.reason


def drifted(state: BudgetState | None = None) -> BudgetState:
    return POLICY.observe(state or POLICY.initial(), feedback(100, 100, drift=True))


@pytest.mark.parametrize(
    ("budget", "snapshot", "before", "expected", "gave_way"),
    [
        (Budget(max_drop=0.1), {}, "quick", "reference", ()),
        (Budget(), {}, "reference", "reference", ()),
        (Budget(latency_ms=60, max_drop=0.1), {}, "quick", "middle", ()),
        (Budget(latency_ms=20, max_drop=0.1), {}, "quick", "quick", ()),
        (Budget(memory_mb=160, max_drop=0.1), {"memory_process_mb": 100}, "quick", "middle", ()),
        (Budget(battery_floor=0.2), {"battery": 0.1}, "quick", "quick", ()),
        (Budget(latency_ms=20, max_drop=0.01), {}, "quick", "quick", ("max_drop",)),
        (Budget(latency_ms=5), {}, "quick", "quick", ("latency_ms",)),
    ],
)
def test_on_drift_the_least_promised_drop_of_what_other_limits_allow(
    budget: Budget, snapshot: dict[str, Any], before: str, expected: str, gave_way: tuple[str, ...]
) -> None:
    found = decide(budget, drifted(), **snapshot)
    assert (name(found), found.gave_way, found.feasible) == (expected, gave_way, not gave_way)
    assert f"{expected!r} is the safest of" in found.reason
    assert "inputs have drifted from those of the calibration: " in found.reason
    reported = decide(replace(budget, on_drift="report"), drifted(), **snapshot)
    without = decide(budget, **snapshot)
    assert (name(reported), reported.reason) == (name(without), without.reason)
    assert name(without) == before
    assert "drifted" not in without.reason


def test_of_equally_safe_points_the_reference_is_first_however_accurate_others_were() -> None:
    points = [
        make_point("reference", (INF, INF), (0.0, 0.0, 1.0), accuracy=0.95, backbones=(1,)),
        make_point("better", (INF, 0.9), (0.0, 0.6, 0.4), accuracy=0.97, bound=0.0),
        make_point("same", (INF, 0.5), (0.0, 0.8, 0.2), accuracy=0.95, bound=0.0),
        make_point("quick", (-INF, INF), (1.0, 0.0, 0.0), accuracy=0.85, bound=0.2),
    ]
    frontier = Frontier.of(make_ladder(points, (0, 0, 1)), COSTS)
    assert [p.point.name for p in frontier.points] == [p.name for p in points]

    def chosen(budget: Budget, state: BudgetState) -> str:
        return name(POLICY.decide(frontier, budget, Snapshot(0, memory_process_mb=100), state)[0])

    assert [chosen(Budget(), s) for s in (POLICY.initial(), drifted())] == ["better", "reference"]
    assert [chosen(Budget(max_drop=0.2), s) for s in (POLICY.initial(), drifted())] == ["quick", "reference"]
    # where the reference is not allowed, the first of the others that promise no drop
    assert chosen(Budget(latency_ms=95, percentile=None), drifted()) == "better"


def test_drift_stays_until_it_is_cleared() -> None:
    budget = Budget(max_drop=0.1)
    assert not POLICY.initial().drift
    state = drifted()
    for _ in range(3):
        found, state = POLICY.decide(FRONTIER, budget, Snapshot(0), state)
        assert name(found) == "reference"
    cleared = POLICY.observe(state, feedback(100, 100))
    assert (cleared.drift, name(decide(budget, cleared))) == (False, "quick")


def test_a_request_that_took_what_says_nothing_still_tells_of_drift() -> None:
    state = POLICY.observe(POLICY.initial(), feedback(500, 100))
    told = POLICY.observe(state, feedback(500, 0, drift=True))
    assert told == replace(state, drift=True)


KNOWN: dict[str, Any] = {
    "cpu_load": 0.5,
    "cpu_cores": 2,
    "battery": 0.1,
    "plugged": False,
    "memory_available_mb": 70,
    "memory_process_mb": 100,
}
BUDGETS = [
    Budget(),
    Budget(latency_ms=110),
    Budget(battery_floor=0.2),
    Budget(memory_mb=200),
    Budget(max_drop=0.02, latency_ms=60),
]


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("silent", sorted(KNOWN))
def test_a_sensor_that_falls_silent_changes_nothing(budget: Budget, silent: str) -> None:
    state = after(Snapshot(0, **KNOWN), budget=budget)
    before = POLICY.decide(FRONTIER, budget, Snapshot(1, **KNOWN), state)
    without = Snapshot(1, **(KNOWN | {silent: None}), missing=(silent,))
    assert POLICY.decide(FRONTIER, budget, without, state)[0].reason == before[0].reason
    assert POLICY.decide(FRONTIER, budget, without, state)[1] == before[1]


@pytest.mark.parametrize("budget", BUDGETS)
def test_same_in_same_out(budget: Budget) -> None:
    state = POLICY.observe(after(Snapshot(0, **KNOWN), budget=budget), feedback(150, 100))
    kept = replace(state)
    first, after_first = POLICY.decide(FRONTIER, budget, Snapshot(1, **KNOWN), state)
    POLICY.decide(FRONTIER, Budget(latency_ms=1), Snapshot(2), POLICY.initial())  # in between, another
    again, after_again = BudgetPolicy().decide(Frontier.of(LADDER, COSTS), budget, Snapshot(1, **KNOWN), state)
    assert name(first) == name(again)
    assert (first.feasible, first.gave_way, first.reason) == (again.feasible, again.gave_way, again.reason)
    assert after_first == after_again
    assert state == kept


def outcome(found: tuple[Decision, BudgetState]) -> tuple[Any, ...]:
    decision, state = found
    return decision.point, decision.feasible, decision.gave_way, decision.reason, state


@pytest.mark.parametrize("budget", [*BUDGETS, Budget(latency_ms=100), Budget(latency_ms=20, max_drop=0.01)])
def test_a_choice_that_is_kept_is_what_would_be_chosen(budget: Budget) -> None:
    # the slowdown wanders over every limit, the sensors change now and then, and a request takes turns with another
    random, state, seen = np.random.default_rng(0), POLICY.initial(), Snapshot(0)
    for number in range(600):
        if number % 50 == 0:
            seen = Snapshot(number, cpu_load=random.choice([0, 0.5]), cpu_cores=2, rows=1 + number % 3)
        asked = replace(budget) if number % 7 == 0 else budget
        afresh = POLICY.decide(FRONTIER, asked, seen, replace(state))  # a copy keeps nothing
        found = POLICY.decide(FRONTIER, asked, seen, state)
        assert outcome(found) == outcome(afresh)
        took_ms = 100 * 5 ** np.sin(number / 20) * random.uniform(0.7, 1.4)
        state = POLICY.observe(found[1], feedback(took_ms, 100, drift=number // 40 % 3 == 1))


def test_nothing_is_chosen_again_while_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    budget, seen, state, times = Budget(latency_ms=75, max_drop=0.01), Snapshot(0, cpu_load=0.0), POLICY.initial(), []
    choose = budget_policy._choose
    monkeypatch.setattr(budget_policy, "_choose", lambda *given: (times.append(given), choose(*given))[1])

    def chosen(budget: Budget = budget, seen: Snapshot = seen, frontier: Frontier = FRONTIER) -> int:
        nonlocal state
        before = len(times)
        _, state = POLICY.decide(frontier, budget, seen, state)
        return len(times) - before

    assert [chosen() for _ in range(4)] == [1, 1, 0, 0]  # the first changes what is current
    for ratio, again in ((1.1, 1), (1.05, 0), (0.9, 1), (1.0, 0), (1.6, 1)):  # outside of what was seen, or between
        state = state._but(slowdown=Slowdown(math.log(ratio)))
        assert chosen() == again
    assert chosen() == 1  # at 1.6 another point became the current one
    assert chosen() == 0
    assert chosen(budget=Budget(latency_ms=75, max_drop=0.01)) == 1
    assert chosen(seen=Snapshot(0, cpu_load=0.0)) == 1
    assert chosen(frontier=FRONTIER.recost(COSTS)) == 1
    assert chosen() == 1
    assert chosen() == 0
    for drift, again in ((False, 0), (True, 1), (True, 0), (False, 1), (False, 0)):
        state = POLICY.observe(state, feedback(0, 0, drift=drift))  # nothing else changes
        assert chosen() == again


def test_a_decision_travels_with_its_reason() -> None:
    decision = decide(Budget(latency_ms=49))
    copy = pickle.loads(pickle.dumps(decision))
    assert copy.reason == decision.reason
