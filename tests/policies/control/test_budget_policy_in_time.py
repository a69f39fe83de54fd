"""What many decisions in a row come to: following what happens, and not what is noise."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.budget_cases import FRONTIER, POLICY, after, feedback, name, switches
from support.policy_cases import repeatable

from dynamic.policies.budget import Budget
from dynamic.policies.control.budget_policy import BudgetState
from dynamic.policies.control.device_state import fair_share
from dynamic.policies.decision import Decision
from dynamic.policies.snapshot import Snapshot

KNOWN: dict[str, Any] = {
    "cpu_load": 0.5,
    "cpu_cores": 2.0,
    "battery": 0.5,
    "plugged": False,
    "memory_available_mb": 90.0,
    "memory_process_mb": 100.0,
    "temperature_c": 69.0,
    "throttled": False,
}
BUDGETS = [
    Budget(),
    Budget(latency_ms=110),
    Budget(battery_floor=0.6),
    Budget(battery_duration_s=3600, battery_floor=0.1),
    Budget(memory_mb=280),
    Budget(temperature_c=70),
    Budget(max_drop=0.02, latency_ms=60),
]


def serve(
    budget: Budget, count: int, seen: Any, took: Any, state: BudgetState | None = None
) -> tuple[list[str], BudgetState]:
    """Points for so many requests: `seen(number)` is the snapshot, `took(number)` how many times as long one takes."""
    chosen, state = [], state or POLICY.initial()
    for number in range(count):
        snapshot = seen(number)
        decision, state = POLICY.decide(FRONTIER, budget, snapshot, state)
        chosen.append(name(decision))
        expected_ms = decision.point.mean_ms[0]
        share = fair_share(snapshot.cpu_load, snapshot.cpu_cores, None, 2)
        back = feedback(
            expected_ms * share * took(number),
            expected_ms,
            point=decision.point,
            cpu_load=snapshot.cpu_load,
            cpu_cores=snapshot.cpu_cores,
        )
        state = POLICY.observe(state, back)
    return chosen, state


@pytest.mark.parametrize("limit_ms", [65, 75, 115, 130, 145, 160, 180])
@pytest.mark.parametrize("percentile", [None, 0.95])
def test_noise_around_a_limit_makes_few_changes(limit_ms: float, percentile: float | None) -> None:
    random = np.random.default_rng(0)
    loads = np.clip(0.3 + 0.12 * random.normal(size=2000), 0, 1)
    snapshots = [Snapshot(i / 2, cpu_load=float(load), cpu_cores=2.0) for i, load in enumerate(loads)]
    times = np.exp(0.25 * random.normal(size=10_000))
    budget = Budget(latency_ms=limit_ms, percentile=percentile)
    chosen, _ = serve(budget, 10_000, lambda i: snapshots[i // 5], times.__getitem__)
    assert switches(chosen) <= 40
    assert max(switches(chosen[i : i + 1000]) for i in range(0, 9001, 250)) <= 12


@pytest.mark.parametrize("seed", range(5))
def test_a_device_four_times_as_slow_is_followed(seed: int) -> None:
    noise = np.exp(0.1 * np.random.default_rng(seed).normal(size=3000))
    chosen, _ = serve(
        Budget(latency_ms=150, percentile=None),
        3000,
        lambda i: Snapshot(i, cpu_load=0.0, cpu_cores=2.0),
        lambda i: noise[i] * (4 if 1000 <= i < 2000 else 1),
    )
    assert set(chosen[:1000]) == {"reference"}
    assert set(chosen[1010:2000]) == {"quick"}  # 50 ms take 200
    assert set(chosen[2030:]) == {"reference"}
    assert switches(chosen) <= 4


def test_load_is_followed_at_once_and_back_after_sixteen() -> None:
    busy = Snapshot(1, cpu_load=1.0, cpu_cores=2.0)
    chosen, _ = serve(
        Budget(latency_ms=120, percentile=None),
        300,
        lambda i: busy if 100 <= i < 200 else Snapshot(0, cpu_load=0.0, cpu_cores=2.0),
        lambda i: 1.0,
    )
    assert chosen == ["reference"] * 100 + ["middle"] * 115 + ["reference"] * 85


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("silent", sorted(KNOWN))
def test_a_sensor_that_falls_silent_and_speaks_again_changes_nothing(budget: Budget, silent: str) -> None:
    without = KNOWN | {silent: None}
    steady = [Snapshot(number, **KNOWN) for number in range(60)]
    broken = [Snapshot(n, **(without if 20 <= n < 40 else KNOWN)) for n in range(60)]
    states, said = [], []
    for snapshots in (steady, broken):
        state, reasons = POLICY.initial(), []
        for snapshot in snapshots:
            decision, state = POLICY.decide(FRONTIER, budget, snapshot, state)
            reasons.append(decision.reason)
        states.append(state)
        said.append(reasons)
    assert said[0] == said[1]
    assert states[0].current == states[1].current


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_clock_that_is_set_back_changes_nothing(budget: Budget) -> None:
    state, names = POLICY.initial(), []
    for number in range(100):
        time_s = 1e6 + number if number < 50 else number
        decision, state = POLICY.decide(FRONTIER, budget, Snapshot(time_s, **KNOWN), state)
        names.append((name(decision), decision.violated_limits))
    assert len(set(names[20:])) == 1


numbers = st.none() | st.floats() | st.sampled_from([0.0, -1.0, 1e300, math.inf, math.nan])


@repeatable
@given(
    st.sampled_from(BUDGETS),
    st.lists(
        st.fixed_dictionaries(
            {key: numbers for key in KNOWN if key not in ("plugged", "throttled")}
            | {"cpu_pressure": numbers, "memory_pressure": numbers, "battery_mwh": numbers}
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_nonsense_of_sensors_still_gives_a_point(budget: Budget, readings: list[dict[str, Any]]) -> None:
    state = POLICY.initial()
    for number, reading in enumerate(readings):
        decision, state = POLICY.decide(FRONTIER, budget, Snapshot(number, **reading), state)
        assert decision.point in FRONTIER.points
        assert decision.feasible == (not decision.violated_limits)
        state = POLICY.observe(state, feedback(100, 100, **{k: reading[k] for k in ("cpu_load", "cpu_cores")}))


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_no_reading(budget: Budget, wrong: float) -> None:
    state = after(*(Snapshot(number, **KNOWN) for number in range(5)), budget=budget)
    silent: dict[str, Any] = {"plugged": False, "throttled": False}
    nothing = POLICY.decide(FRONTIER, budget, Snapshot(6, **silent), state)[0]
    floats: dict[str, Any] = {key: wrong for key, value in KNOWN.items() if isinstance(value, float)}
    found = POLICY.decide(FRONTIER, budget, Snapshot(6, **(silent | floats)), state)[0]
    assert (name(found), found.reason) == (name(nothing), nothing.reason)


def test_a_new_budget_is_followed_at_once() -> None:
    state = after(*(Snapshot(number) for number in range(3)), budget=Budget(latency_ms=20))
    for budget, expected in (
        (Budget(latency_ms=60), "middle"),
        (Budget(), "reference"),
        (Budget(latency_ms=101), "reference"),  # no room to spare is asked of it
        (Budget(max_drop=0.1), "quick"),
        (Budget(max_drop=0.01), "middle"),
    ):
        decision, state = POLICY.decide(FRONTIER, budget, Snapshot(9), state)
        assert name(decision) == expected


def test_the_same_budget_given_anew_is_no_change() -> None:
    state = after(Snapshot(0, cpu_load=1.0, cpu_cores=2.0), budget=Budget(latency_ms=120))
    names = []
    for number in range(20):
        decision, state = POLICY.decide(FRONTIER, Budget(latency_ms=120), Snapshot(number, cpu_load=0.0), state)
        names.append(name(decision))
    assert names == ["middle"] * 15 + ["reference"] * 5


def next_of(state: BudgetState, budget: Budget, **seen: Any) -> tuple[Decision, BudgetState]:
    return POLICY.decide(FRONTIER, budget, Snapshot(1, **seen), state)


def test_a_request_that_has_waited_gets_a_faster_point_for_itself_alone() -> None:
    budget = Budget(latency_ms=120)
    late, state = next_of(after(Snapshot(0), budget=budget), budget, waited_ms=50.0)
    assert (name(late), late.violated_limits) == ("middle", ())
    assert "at most 120 ms, 50 of which went into queue and preprocessing" in late.reason
    later, state = next_of(state, budget, waited_ms=90.0)
    assert name(later) == "quick"
    prompt, state = next_of(state, budget, waited_ms=0.0)
    assert name(prompt) == "reference"
    assert (late.one_request_only, later.one_request_only, prompt.one_request_only) == (True, True, False)
    too_late, state = next_of(state, budget, waited_ms=150.0)
    assert (name(too_late), too_late.violated_limits) == ("quick", ("latency_ms",))
    assert name(next_of(state, budget)[0]) == "reference"
    assert state.switch_delay.needed == 16


def test_what_heat_forced_out_rests_for_five_minutes_and_what_is_cheaper_for_half_of_one() -> None:
    budget = Budget(temperature_c=70)
    state, chosen = after(Snapshot(0, temperature_c=40), Snapshot(60, temperature_c=90), budget=budget), {}
    assert state.cooldown.start_s == 60
    for number in range(1, 2000):  # it is cool again at once
        time_s = 60 + number / 5
        decision, state = POLICY.decide(FRONTIER, budget, Snapshot(time_s, temperature_c=20), state)
        chosen[time_s] = name(decision)
    taken_up = next(at for at, point in chosen.items() if point == "reference")
    assert chosen[60.2] == "quick"
    middle = next(at for at, point in chosen.items() if point == "middle")
    assert 90 <= middle <= 90 + 17 / 5
    assert 360 <= taken_up <= 360 + 17 / 5
    assert set(list(chosen.values())[list(chosen).index(taken_up) :]) == {"reference"}


def test_a_queue_behind_it_gets_a_faster_point_too() -> None:
    budget = Budget(latency_ms=220)
    state = after(Snapshot(0), budget=budget)
    names = [name(next_of(state, budget, queue_length=n)[0]) for n in (0, 1, 2, 3, 4, 50)]
    assert names == ["reference", "reference", "middle", "middle", "quick", "quick"]
    assert name(next_of(next_of(state, budget, queue_length=50)[1], budget)[0]) == "reference"


def test_a_queue_is_served_in_time() -> None:
    # 30 requests come at once, then one every 120 ms; each should be answered within 450 ms
    arrived = [0.0] * 30 + [120.0 * n for n in range(1, 60)]
    budget, state, now_ms, took, names = Budget(latency_ms=450), POLICY.initial(), 0.0, [], []
    for number, came_ms in enumerate(arrived):
        now_ms = max(now_ms, came_ms)
        behind = sum(1 for other in arrived[number + 1 :] if other <= now_ms)
        seen = Snapshot(now_ms / 1e3, waited_ms=now_ms - came_ms, queue_length=behind)
        decision, state = POLICY.decide(FRONTIER, budget, seen, state)
        now_ms += decision.point.mean_ms[0]
        took.append(now_ms - came_ms)
        names.append(name(decision))
    assert max(took) < 1.05 * 450  # the dearest point alone would make it 3,000
    assert set(names[-40:]) == {"reference"}
    assert "quick" in names[:10]
