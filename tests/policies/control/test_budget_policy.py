"""Single decisions by hand; `test_budget_policy_in_time` has what comes of many."""

import pickle
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
from support.budget_cases import COSTS, FRONTIER, LADDER, POLICY, after, decide, drifted, feedback, name
from support.policy_cases import INF, make_ladder, make_point

from dynamic.policies.budget import PRIORITY, Budget
from dynamic.policies.control.budget_policy import BudgetPolicy, BudgetState
from dynamic.policies.errors import SettingError
from dynamic.policies.fast_paths import fast_replace
from dynamic.policies.frontier import Frontier
from dynamic.policies.snapshot import Snapshot


def test_the_case_is_what_it_says() -> None:
    assert [p.mean_ms[0] for p in FRONTIER.points] == [100, 50, 10]
    assert [p.memory_mb for p in FRONTIER.points] == [200, 50, 50]


def test_without_limits_the_most_accurate() -> None:
    found = decide()
    assert (name(found), found.feasible, found.violated_limits) == ("reference", True, ())
    assert "most accurate" in found.reason
    assert "No limit excludes a point" in found.reason


@pytest.mark.parametrize(
    ("drop", "expected"), [(0.0, "reference"), (0.009, "reference"), (0.01, "middle"), (0.05, "middle"), (0.1, "quick")]
)
def test_a_drop_that_may_be_spent_is_spent(drop: float, expected: str) -> None:
    found = decide(Budget(max_drop=drop))
    assert (name(found), found.feasible) == (expected, True)
    assert "fastest" in found.reason
    assert ("max_drop" in found.reason) == (expected != "quick")


@pytest.mark.parametrize(
    ("limit", "expected", "violated_limits"),
    [
        (100.1, "reference", ()),
        (99, "middle", ()),
        (49, "quick", ()),
        (9, "quick", ("latency_ms",)),
    ],
)
def test_latency(limit: float, expected: str, violated_limits: tuple[str, ...]) -> None:
    found = decide(Budget(latency_ms=limit))
    assert (name(found), found.violated_limits, found.feasible) == (expected, violated_limits, not violated_limits)
    assert ("latency_ms" in found.reason) == (limit < 100)
    if limit < 100:
        assert f"{limit:g} ms" in found.reason


def test_load_shares_the_processor() -> None:
    # 2 cores half busy and 2 threads wanted: (1 + 2) / 2 times as slow
    budget = Budget(latency_ms=100.1)
    assert name(decide(budget, cpu_load=0.0, cpu_cores=2)) == "reference"
    found = decide(budget, cpu_load=0.5, cpu_cores=2)
    assert name(found) == "middle"
    assert "1.50 times the profile" in found.reason
    assert "predicted latency is 75 ms" in found.reason
    assert name(decide(budget, cpu_load=0.5, cpu_cores=8)) == "reference"  # 4 busy of 8, 2 wanted: room for all
    assert name(decide(Budget(latency_ms=76), cpu_load=0.5, cpu_cores=2)) == "middle"
    assert name(decide(Budget(latency_ms=74), cpu_load=0.5, cpu_cores=2)) == "quick"


def test_slowdown_is_what_load_does_not_explain() -> None:
    start = POLICY.initial()
    slow = POLICY.observe(start, feedback(200, 100))
    assert slow.device.speed == start.device.speed.observe([200], [100])
    explained = POLICY.observe(start, feedback(200, 100, cpu_load=1.0, cpu_cores=2))  # (2 + 2) / 2 = twice
    assert explained.device.speed.ratio == pytest.approx(1)
    waiting = POLICY.observe(start, feedback(200, 100, cpu_pressure=0.5))  # half of the time something waits
    assert waiting.device.speed.ratio == pytest.approx(1)
    budget = Budget(latency_ms=100.1, percentile=None)
    assert name(decide(budget, slow)) == "middle"
    assert name(decide(budget, explained)) == "reference"
    assert decide(budget, slow).slowdown == pytest.approx(slow.device.speed.ratio)


def test_where_only_the_pressure_is_known_it_counts() -> None:
    budget = Budget(latency_ms=101)
    assert name(decide(budget, cpu_pressure=0.2)) == "middle"
    assert decide(budget, cpu_pressure=0.2).slowdown == pytest.approx(1.25)
    assert decide(budget, cpu_pressure=1.0).slowdown == pytest.approx(10)
    assert decide(budget, cpu_pressure=0.2, cpu_load=0.0, cpu_cores=2).slowdown == 1.0


def test_percentiles_are_of_requests_as_they_scatter() -> None:
    state = POLICY.initial()
    for took_ms in [140, 71] * 50:  # a factor of 1.4 either way: 0.34, around a mean that follows them
        state = POLICY.observe(state, feedback(took_ms, 100))
    state = fast_replace(state, device=fast_replace(state.device, speed=replace(state.device.speed, mean=0.0)))
    assert 0.3 < state.device.spread < 0.45
    assert name(decide(Budget(latency_ms=120), state)) == "middle"
    assert name(decide(Budget(latency_ms=120, percentile=None), state)) == "reference"
    assert name(decide(Budget(latency_ms=180), state)) == "reference"  # 100 * (1 + 0.45 * 1.645) = 174


def test_a_dearer_point_than_the_current_needs_room_to_spare() -> None:
    budget = Budget(latency_ms=105)
    loaded: dict[str, Any] = {"cpu_load": 0.5, "cpu_cores": 2.0}
    at_middle = after(Snapshot(0, **loaded), budget=budget)
    assert at_middle.current == 1
    state = at_middle
    for number in range(100):  # 100 fits 105, but not 0.9 of it
        found, state = POLICY.decide(FRONTIER, budget, Snapshot(number, cpu_load=0.0), state)
        assert name(found) == "middle"
    assert "at most 105 ms" in found.reason  # what was asked for
    wider = Budget(latency_ms=112)
    state = after(Snapshot(0, **loaded), budget=wider)
    names = []
    for number in range(20):
        found, state = POLICY.decide(FRONTIER, wider, Snapshot(number, cpu_load=0.0), state)
        names.append(name(found))
    assert names == ["middle"] * 15 + ["reference"] * 5
    assert name(decide(budget, after(Snapshot(0), budget=budget))) == "reference"


def test_rows_of_a_request() -> None:
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


def test_memory_of_this_process_is_that_before_any_network() -> None:
    budget = Budget(memory_mb=300)
    state = after(Snapshot(0, memory_process_mb=100), Snapshot(1, memory_process_mb=300), budget=budget)
    assert (state.device.base_mb, state.device.excess_mb) == (100, 0)
    assert name(POLICY.decide(FRONTIER, budget, Snapshot(2, memory_process_mb=300), state)[0]) == "reference"


def test_memory_beyond_what_was_expected_counts_once_it_has_settled() -> None:
    budget, state = Budget(memory_mb=320), POLICY.initial()
    found, state = POLICY.decide(FRONTIER, budget, Snapshot(0, memory_process_mb=100), state)
    assert name(found) == "reference"
    found, state = POLICY.decide(FRONTIER, budget, Snapshot(0.5, memory_process_mb=390), state)
    assert name(found) == "reference"  # what loading takes for a moment
    found, state = POLICY.decide(FRONTIER, budget, Snapshot(2, memory_process_mb=330), state)
    assert (name(found), found.keep_loaded) == ("middle", frozenset([0]))  # 30 more than 100 + 200
    assert "130 of which are not networks'" in found.reason
    for second in range(3, 30):
        found, state = POLICY.decide(FRONTIER, budget, Snapshot(second, memory_process_mb=150), state)
    assert state.device.excess_mb < 2  # it fades where it is not seen again


def test_what_is_resident() -> None:
    both = after(Snapshot(0), Snapshot(1, memory_available_mb=50))
    assert both.device.resident == {1}  # what was loaded is room: nothing had to go
    swapped = after(Snapshot(0, rows=1), Snapshot(1, rows=3), budget=Budget(latency_ms=250))
    assert swapped.device.resident == {0, 1}
    seen = [Snapshot(0, memory_process_mb=100), Snapshot(0.1, memory_process_mb=300, rows=3)]
    assert after(*seen, budget=Budget(latency_ms=250, memory_mb=350)).device.resident == {0, 1}
    assert after(*seen, budget=Budget(latency_ms=250, memory_mb=349)).device.resident == {0}  # not both


def test_battery_goes_before_the_drop() -> None:
    found = decide(Budget(battery_floor=0.2, max_drop=0.01), battery=0.1)
    assert (name(found), found.violated_limits, found.feasible) == ("quick", ("max_drop",), False)


def test_all_that_gives_way_is_named() -> None:
    found = decide(Budget(memory_mb=40, latency_ms=5, max_drop=0), memory_process_mb=10, cpu_load=0, cpu_cores=2)
    assert name(found) == "quick"
    assert found.violated_limits == ("memory_mb", "latency_ms", "max_drop")
    assert not found.feasible
    assert all(field in found.reason for field in found.violated_limits)
    assert "\n" not in found.reason


@pytest.mark.parametrize(
    ("budget", "snapshot", "before", "expected", "violated_limits"),
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
    budget: Budget, snapshot: dict[str, Any], before: str, expected: str, violated_limits: tuple[str, ...]
) -> None:
    found = decide(budget, drifted(), **snapshot)
    assert (name(found), found.violated_limits, found.feasible) == (expected, violated_limits, not violated_limits)
    assert f"{expected!r} is the safest of" in found.reason
    assert "Inputs have drifted from those of the calibration, " in found.reason
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
    assert [p.name for p in frontier.points] == [p.name for p in points]

    def chosen(budget: Budget, state: BudgetState) -> str:
        return name(POLICY.decide(frontier, budget, Snapshot(0, memory_process_mb=100), state)[0])

    assert [chosen(Budget(), s) for s in (POLICY.initial(), drifted())] == ["better", "reference"]
    assert [chosen(Budget(max_drop=0.2), s) for s in (POLICY.initial(), drifted())] == ["quick", "reference"]
    # where the reference is not allowed, the first of the others that promise no drop
    assert chosen(Budget(latency_ms=95, percentile=None), drifted()) == "better"


def test_drift_stays_until_it_is_cleared() -> None:
    budget = Budget(max_drop=0.1)
    assert not POLICY.initial().device.drift
    state = drifted()
    for _ in range(3):
        found, state = POLICY.decide(FRONTIER, budget, Snapshot(0), state)
        assert name(found) == "reference"
    cleared = POLICY.observe(state, feedback(100, 100))
    assert not cleared.device.drift
    assert name(decide(Budget(max_drop=0.1, memory_mb=999), cleared)) == "quick"


def test_a_request_that_took_what_says_nothing_still_tells_of_drift() -> None:
    state = POLICY.observe(POLICY.initial(), feedback(500, 100))
    told = POLICY.observe(state, feedback(500, 0, drift=True))
    assert told.device.drift
    assert told.device.speed == state.device.speed


def test_on_drift_drop_that_gives_way_last_is_kept_under_overload() -> None:
    overload: dict[str, Any] = {"cpu_load": 1.0, "cpu_cores": 2}
    asked = Budget(latency_ms=60, max_drop=0.1)
    found = decide(asked, drifted(), **overload)
    assert (name(found), found.violated_limits) == ("quick", ())
    found = decide(replace(asked, priority=("drop",)), drifted(), **overload)
    assert (name(found), found.violated_limits) == ("reference", ("latency_ms",))
    assert "100 ms as profiled, times 2, is over 60 ms" in found.reason
    found = decide(replace(asked, priority=("drop",), on_drift="report"), drifted(), **overload)
    assert (name(found), found.violated_limits) == ("quick", ())


# what each leaves, by hand: nothing fits all of them, and few fit two
ASKED: dict[str, dict[str, Any]] = {
    "memory": {"memory_mb": 200},  # middle and quick: 150 of 200
    "battery": {"battery_floor": 0.2},  # quick
    "latency": {"latency_ms": 60},  # middle and quick
    "energy": {"energy_mj": 150},  # middle and quick
    "drop": {"max_drop": 0.005},  # the reference
}
METERED = Frontier.of(LADDER, replace(COSTS, energy_mj=COSTS.cpu_ms, energy_source="meter"))
ALLOWED = {"memory": {1, 2}, "latency": {1, 2}, "energy": {1, 2}, "drop": {0}}
DROPS: dict[int, float] = {0: 0.0, 1: 0.01, 2: 0.1}
LATENCY: dict[int, float] = {0: 100, 1: 50, 2: 10}
FIGURES: dict[str, dict[int, float]] = {
    "memory": {0: 200, 1: 50, 2: 50},
    "latency": LATENCY,
    "energy": {0: 200, 1: 100, 2: 20},
    "drop": DROPS,
}
FIELD = {"memory": "memory_mb", "latency": "latency_ms", "energy": "energy_mj", "drop": "max_drop"}


@pytest.mark.parametrize("order", list(permutations(["memory", "battery", "latency", "energy", "drop"]))[::5])
def test_what_has_the_lowest_priority_gives_way(order: tuple[str, ...]) -> None:
    budget = Budget(**{k: v for limit in ASKED for k, v in ASKED[limit].items()}, priority=order)
    left, violated_limits = {0, 1, 2}, []
    for limit in order:
        if limit == "battery":  # the floor: the least effort of what is left
            left = {max(left)}
        elif left & ALLOWED[limit]:
            left = left & ALLOWED[limit]
        else:
            violated_limits.append(FIELD[limit])
            least = min(FIGURES[limit][i] for i in left)
            left = {i for i in left if FIGURES[limit][i] == least}
    expected = ("reference", "middle", "quick")[min(left, key=LATENCY.__getitem__)]
    seen = Snapshot(0, battery=0.1, plugged=False, memory_process_mb=100)
    found, _ = POLICY.decide(METERED, budget, seen, POLICY.initial())
    assert (name(found), found.violated_limits, found.feasible) == (
        expected,
        tuple(violated_limits),
        not violated_limits,
    )


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (("drop",), "middle"),
        (("latency", "deadline"), "quick"),
        (("battery",), "quick"),
        (("memory",), "quick"),
        (("energy",), "quick"),
        ((), "quick"),
    ],
)
def test_a_policy_of_some_limits_leaves_the_others_out(limits: tuple[str, ...], expected: str) -> None:
    budget = Budget(latency_ms=20, max_drop=0.01, battery_floor=0.2, memory_mb=120)
    seen = Snapshot(0, battery=0.1, plugged=False, memory_process_mb=100)
    policy = BudgetPolicy(limits)
    found, _ = policy.decide(FRONTIER, budget, seen, policy.initial())
    assert name(found) == expected
    assert found.violated_limits == (("memory_mb",) if limits == ("memory",) else ())
    assert (found.keep_loaded is None) == ("memory" not in limits)


def test_a_limit_that_does_not_exist() -> None:
    with pytest.raises(SettingError, match="'max_drop', which is none of"):
        BudgetPolicy(("latency", "max_drop"))
    assert BudgetPolicy().limits == PRIORITY


KNOWN: dict[str, Any] = {
    "cpu_load": 0.5,
    "cpu_cores": 2,
    "battery": 0.1,
    "plugged": False,
    "memory_available_mb": 90,
    "memory_process_mb": 100,
}
BUDGETS = [
    Budget(),
    Budget(latency_ms=110),
    Budget(battery_floor=0.2, battery_duration_s=3600),
    Budget(memory_mb=200),
    Budget(max_drop=0.02, latency_ms=60, temperature_c=70),
]


@pytest.mark.parametrize("budget", BUDGETS)
def test_same_in_same_out(budget: Budget) -> None:
    state = POLICY.observe(after(Snapshot(0, **KNOWN), budget=budget), feedback(150, 100))
    kept = replace(state)
    first, after_first = POLICY.decide(FRONTIER, budget, Snapshot(1, **KNOWN), state)
    POLICY.decide(FRONTIER, Budget(latency_ms=1), Snapshot(2), POLICY.initial())  # in between, another
    again, after_again = BudgetPolicy().decide(FRONTIER, budget, Snapshot(1, **KNOWN), state)
    assert name(first) == name(again)
    assert (first.feasible, first.violated_limits, first.reason) == (
        again.feasible,
        again.violated_limits,
        again.reason,
    )
    assert after_first == after_again
    assert state == kept


def test_a_decision_travels_with_its_reason() -> None:
    decision = decide(Budget(latency_ms=49))
    copy = pickle.loads(pickle.dumps(decision))
    assert copy.reason == decision.reason


def test_a_first_reading_of_memory_after_networks_were_loaded_is_less_them() -> None:
    _, state = POLICY.decide(FRONTIER, Budget(), Snapshot(0), POLICY.initial())
    assert state.device.resident == frozenset({1})
    _, state = POLICY.decide(FRONTIER, Budget(), Snapshot(1, memory_process_mb=290.0), state)
    assert state.device.base_mb == 90


def test_all_networks_stay_only_once_there_is_room_for_all() -> None:
    # 250 MB in all and 32 in reserve: short, then some room, then room for everything with a tenth to spare
    state, found = POLICY.initial(), []
    for free_mb in (1000.0, 10.0, 40.0, 120.0, 320.0, 40.0):
        decision, state = POLICY.decide(FRONTIER, Budget(), Snapshot(len(found), memory_available_mb=free_mb), state)
        found.append(None if decision.keep_loaded is None else sorted(decision.keep_loaded))
    assert found[0] is None
    assert all(kept == [0] for kept in found[1:4])  # the large one went, and does not come back for a request
    assert found[4:] == [None, None]
