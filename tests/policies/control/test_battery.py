"""Pacing: sums by hand, and a simulated battery that must last for five hours."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from support.budget_cases import COSTS, LADDER, POLICY, feedback, name, switches

from dynamic.policies.budget import Budget
from dynamic.policies.control.battery import BatteryPacer, DrainModel
from dynamic.policies.frontier import Frontier
from dynamic.policies.snapshot import Snapshot

HOUR_S = 3600


def learned(*steps: tuple[float, float], drain: DrainModel | None = None) -> DrainModel:
    found = drain or DrainModel()
    for effort_per_s, drain_per_s in steps:
        found = found.learn(effort_per_s, drain_per_s)
    return found


def test_two_loads_tell_idle_and_inference_apart() -> None:
    # drain = 2 + 0.5 * effort
    line = learned((2.0, 3.0), (10.0, 7.0), (2.0, 3.0)).line
    assert line == pytest.approx((2.0, 0.5))


def test_newer_steps_count_for_more() -> None:
    # the least squares of weights 0.81, 0.9 and 1, by numpy
    effort, drain = np.array([2.0, 10.0, 4.0]), np.array([3.0, 7.0, 6.0])
    slope, idle = np.polyfit(effort, drain, 1, w=np.sqrt([0.81, 0.9, 1.0]))
    assert learned(*zip(effort, drain, strict=True)).line == pytest.approx((idle, slope))


def test_where_all_was_as_busy_all_is_put_down_to_inference() -> None:
    assert learned((2.0, 3.0), (2.0, 3.0)).line == pytest.approx((0.0, 1.5))
    # a slope by which more load would be cheaper, or idle less than nothing, is noise: means are (0.9 * 2 + 4) / 1.9...
    assert learned((2.0, 3.0), (4.0, 1.0)).line == pytest.approx((0.0, 3.7 / 5.8))
    assert learned((2.0, 1.0), (4.0, 5.0)).line == pytest.approx((0.0, 5.9 / 5.8))


def test_what_is_known_of_inference_leaves_the_rest_to_idle() -> None:
    assert learned((2.0, 3.0), drain=DrainModel(per_effort=0.5)).line == pytest.approx((2.0, 0.5))
    assert learned((2.0, 3.0), drain=DrainModel(per_effort=5.0)).line == pytest.approx((0.0, 5.0))


def test_a_given_idle_power_counts_as_three_steps_and_is_forgotten() -> None:
    assert DrainModel(idle=2.0, per_effort=0.5).line == pytest.approx((2.0, 0.5))
    assert DrainModel(idle=2.0).line == pytest.approx((2.0, 0.0))
    assert DrainModel().line is None
    # one step that says 4: (3 * 0.9 * 2 + 4) / (3 * 0.9 + 1)
    once = learned((2.0, 5.0), drain=DrainModel(idle=2.0, per_effort=0.5)).line
    assert once == pytest.approx((9.4 / 3.7, 0.5))
    often = learned(*[(2.0, 5.0)] * 60, drain=DrainModel(idle=2.0, per_effort=0.5)).line
    assert often == pytest.approx((4.0, 0.5), rel=0.01)


def paced(per_effort: float | None = 1e-6, idle: float | None = 1e-5) -> BatteryPacer:
    """Half a charge that must last 10,000 s, after 100 s with 1 request a second of effort 10."""
    drain = DrainModel(idle, per_effort)
    return BatteryPacer.start(10_000, 0, 0.5, 0, 0, drain).with_reading(100, 0.5, 1000, 100, drain)


def test_ceiling_by_hand() -> None:
    # 0.4 to spend in 10,200 s, less what idle takes, at 1 request a second
    pace = paced()
    assert pace.rate_hz == pytest.approx(1)
    assert pace.effort_limit(0.1) == pytest.approx((0.4 / 10_200 - 1e-5) / 1e-6)
    assert pace.effort_limit(0.49) == 0  # 0.01 / 10,200 a second is less than idle takes
    assert pace.lasts_s(0.1, 10) == pytest.approx(0.4 / (1e-5 + 1e-5))
    assert pace.lasts_s(0.1, 0) == pytest.approx(0.4 / 1e-5)


def test_what_is_not_known_limits_nothing() -> None:
    unknown = paced(None, None)
    assert (unknown.effort_limit(0.0), unknown.lasts_s(0.0, 1e9)) == (math.inf, math.inf)
    # no rate yet, but idle alone is too much: that is known at once
    start = BatteryPacer.start(10_000, 0, 0.5, 0, 0, DrainModel(idle=1e-4, per_effort=1e-6))
    assert start.rate_hz is None
    assert start.effort_limit(0.0) == 0
    assert (
        BatteryPacer.start(10_000, 0, 0.5, 0, 0, DrainModel(idle=1e-5, per_effort=1e-6)).effort_limit(0.0) == math.inf
    )


def test_when_the_time_is_over_nothing_is_held_back() -> None:
    drain = DrainModel(1e-5, 1e-6)
    pace = paced().with_reading(9_999, 0.1, 99_990, 9_999, drain)
    assert pace.effort_limit(0.0) < math.inf
    assert pace.with_reading(10_000, 0.1, 100_000, 10_000, drain).effort_limit(0.0) == math.inf


def test_between_steps_of_the_battery_what_was_lost_is_exact() -> None:
    pace = BatteryPacer.start(10_000, 0, 0.5, 0, 0)
    pace = pace.with_reading(30, 0.49, 100, 10, DrainModel())  # since when it was 0.50 is not known
    assert (pace.drain.line, pace.edge_s) == (None, 30)
    pace = pace.with_reading(100, 0.49, 700, 80, DrainModel())
    pace = pace.with_reading(130, 0.48, 1100, 110, DrainModel())  # 0.01 and an effort of 1,000 in 100 s
    assert pace.drain.line == pytest.approx((0.0, 0.01 / 1000))
    assert (pace.edge_s, pace.edge, pace.edge_effort) == (130, 0.48, 1100)


def test_charged_in_between_a_step_says_nothing() -> None:
    pace = (
        BatteryPacer.start(10_000, 0, 0.5, 0, 0)
        .with_reading(30, 0.49, 100, 10, DrainModel())
        .with_reading(60, 0.6, 200, 20, DrainModel())
    )
    assert (pace.edge, pace.edge_s, pace.whole) == (0.6, 60, False)
    pace = pace.with_reading(90, 0.59, 300, 30, DrainModel())
    assert pace.drain.line is None


def test_the_rate_is_a_mean_at_first_and_follows_later() -> None:
    pace, count = BatteryPacer.start(1e6, 0, 0.5, 0, 0), 0
    for second in range(2, 200, 2):  # in turns 1 and 3 requests in two seconds
        count += 1 + second // 2 % 2 * 2
        pace = pace.with_reading(second, 0.5, count, count, DrainModel())
    assert pace.rate_hz == pytest.approx(1.0, rel=0.02)
    for second in range(200, 200 + 9000, 2):
        count += 10
        pace = pace.with_reading(second, 0.5, count, count, DrainModel())
    assert pace.rate_hz == pytest.approx(5.0, rel=0.02)


def test_a_clock_that_is_set_back_takes_all_that_it_timed_along() -> None:
    pace = paced()
    back = pace.with_reading(40, 0.5, 1010, 101, DrainModel(1e-5, 1e-6))
    assert (back.remaining_s(), back.effort_limit(0.1)) == (pace.remaining_s(), pace.effort_limit(0.1))
    assert back == replace(pace, time_s=40, start_s=-60, edge_s=-60, rate_s=40, read_s=40)


@dataclass(frozen=True)
class Run:
    """A battery used up."""

    hours: float
    chosen: list[str]
    late: list[str]
    violated_limits: list[int]
    reason: str


def run(seed: int, known: bool, idle_h: float = 7.0, full_h: float = 3.0, asked_h: float = 5.0) -> Run:
    """A battery that says 50%, in whole points: at full depth it lasts `full_h`, without inference `idle_h`.

    A request every two seconds on average; what one takes, and what else runs on the device, varies by a quarter.
    """
    random = np.random.default_rng(seed)
    hz, idle = 0.5, 0.5 / idle_h / HOUR_S
    whole = 200 * hz / (0.5 / full_h / HOUR_S - idle)  # effort that a full charge is worth
    costs = replace(COSTS, energy_mj=COSTS.cpu_ms, energy_source="meter", idle_mw=idle * whole) if known else COSTS
    frontier, budget, state = Frontier.of(LADDER, costs), Budget(battery_duration_s=asked_h * HOUR_S), POLICY.initial()
    charge, time_s, other, reason = 0.5, 0.0, 0.0, ""
    chosen: list[str] = []
    violated_limits: list[int] = []
    late: list[str] = []
    while charge > 0:
        shown = math.floor(100 * charge + 1e-9) / 100
        seen = Snapshot(time_s, battery=shown, plugged=False, battery_mwh=shown * whole / 3600 if known else None)
        decision, state = POLICY.decide(frontier, budget, seen, state)
        if decision.violated_limits:
            assert decision.violated_limits == ("battery_duration_s",)
            reason = reason or decision.reason
            violated_limits.append(len(chosen))
        chosen.append(name(decision))
        if time_s > asked_h * HOUR_S:
            late.append(name(decision))
        state = POLICY.observe(state, feedback(10, 10, point=decision.point))
        passed_s = random.exponential(1 / hz)
        kept = math.exp(-passed_s / 300)
        other = kept * other + math.sqrt(1 - kept**2) * random.normal()
        charge -= decision.point.cpu_ms[0] / whole * random.lognormal(-0.03, 0.25)
        charge -= idle * passed_s * math.exp(0.25 * other - 0.03)
        time_s += passed_s
    return Run(time_s / HOUR_S, chosen, late, violated_limits, reason)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_a_battery_lasts_as_long_as_asked_and_not_much_longer(seed: int, known: bool) -> None:
    found = run(seed, known)
    assert 5.0 < found.hours < 5.3  # the cheapest point alone would make 6
    assert switches(found.chosen) < 40
    assert set(found.late[-50:]) == {"reference"}  # what was to be kept was kept


@pytest.mark.parametrize("known", [True, False])
def test_where_there_is_enough_nothing_is_saved(known: bool) -> None:
    found = run(0, known, asked_h=2.8)
    assert set(found.chosen[-1000:]) == {"reference"}
    assert found.violated_limits == []
    assert found.hours > 2.8


def test_what_cannot_last_is_said_at_once_where_powers_are_known() -> None:
    found = run(0, True, idle_h=3.4, full_h=2.0)
    assert found.violated_limits[:100] == list(range(100))
    assert "the battery lasts 3.4 h even without inference, not 5.0 h. Lower the frame rate" in found.reason
    assert found.chosen.count("quick") == len(found.chosen)
    assert 3.0 < found.hours < 3.4


def test_what_cannot_last_is_said_once_it_is_seen_where_they_are_not() -> None:
    found = run(0, False, idle_h=3.4, full_h=2.0)
    assert found.violated_limits
    assert found.violated_limits[0] < 0.15 * len(found.chosen)
    assert found.chosen.count("quick") > 0.9 * len(found.chosen)
    assert 3.0 < found.hours < 3.4


def test_what_even_the_cheapest_point_uses_up() -> None:
    # idle alone would do for 5.6 h, the cheapest point makes it 4.9: some 2 h at that are enough to be sure
    found = run(1, True, idle_h=5.6, full_h=2.2)
    assert "battery lasts" in found.reason
    assert "h at the cheapest point, not" in found.reason
    assert found.chosen.count("quick") > 0.95 * len(found.chosen)


def pace_after(budget: Budget, *snapshots: Snapshot) -> BatteryPacer | None:
    state = POLICY.initial()
    frontier = Frontier.of(LADDER, COSTS)
    for snapshot in snapshots:
        _, state = POLICY.decide(frontier, budget, snapshot, state)
    return state.device.battery_pacer


def test_on_the_mains_the_end_that_was_asked_for_stays() -> None:
    at = [Snapshot(s, battery=b, plugged=p) for s, b, p in ((0, 0.5, False), (1800, 0.4, True), (1900, 0.45, False))]
    pace = pace_after(Budget(battery_duration_s=3600), *at)
    assert pace is not None
    assert (pace.start_s, pace.edge_s, pace.edge) == (0, 1900, 0.45)
    assert pace.remaining_s() == 1700


def test_charging_is_no_step_to_learn_from() -> None:
    pace = (
        BatteryPacer.start(3600, 0, 0.5, 0, 0)
        .with_reading(90, 0.5, 9, 9, DrainModel())
        .with_reading(100, 0.49, 10, 10, DrainModel())
    )
    assert pace.whole
    charging = pace.charging(200, 0.6, 20)
    assert (charging.edge_s, charging.edge, charging.whole, charging.start_s) == (200, 0.6, False, 0)
    assert charging.with_reading(300, 0.58, 30, 30, DrainModel()).drain == DrainModel()
    assert charging.charging(50, 0.6, 20).start_s == -150  # a clock that was set back


def test_nothing_is_learned_from_a_step_that_fell_while_nothing_was_read() -> None:
    pace = (
        BatteryPacer.start(36_000, 0, 0.5, 0, 0)
        .with_reading(90, 0.5, 9, 9, DrainModel())
        .with_reading(100, 0.49, 10, 10, DrainModel())
    )
    late = pace.with_reading(300, 0.49, 30, 30, DrainModel(), fresh=False).with_reading(310, 0.47, 31, 31, DrainModel())
    assert (late.edge, late.whole, late.drain) == (0.47, False, DrainModel())
    awake = pace.with_reading(300, 0.49, 30, 30, DrainModel()).with_reading(310, 0.48, 31, 31, DrainModel())
    assert (awake.edge, awake.whole, awake.drain.weight) == (0.48, True, 1)
    # asked once a minute, of a charge that falls every 7: good enough
    seldom = pace.with_reading(460, 0.49, 30, 30, DrainModel()).with_reading(520, 0.48, 31, 31, DrainModel())
    assert seldom.drain.weight == 1


def test_a_budget_that_no_longer_asks_forgets_when_it_began() -> None:
    frontier, state = Frontier.of(LADDER, COSTS), POLICY.initial()
    for time_s, budget in (
        (0, Budget(battery_duration_s=3600)),
        (10, Budget()),
        (7200, Budget(battery_duration_s=3600)),
    ):
        _, state = POLICY.decide(frontier, budget, Snapshot(time_s, battery=0.5), state)
    assert state.device.battery_pacer is not None
    assert state.device.battery_pacer.start_s == 7200
    _, state = POLICY.decide(
        frontier, Budget(battery_duration_s=3600, latency_ms=90), Snapshot(7300, battery=0.5), state
    )
    assert state.device.battery_pacer is not None
    assert state.device.battery_pacer.start_s == 7200
