"""Backing off, by hand and on a device that warms as first-order models do."""

import math

import pytest
from support.budget_cases import FRONTIER, POLICY, feedback, name, switches

from dynamic.policies.budget import Budget
from dynamic.policies.control.thermal import Cooling
from dynamic.policies.snapshot import Snapshot


def test_share_falls_evenly_over_four_degrees() -> None:
    found = [Cooling(0, c).share(70) for c in (20, 66, 67, 68, 69, 70, 90)]
    assert found == pytest.approx([1, 1, 0.75, 0.5, 0.25, 0, 0])


def test_where_it_is_going_counts() -> None:
    # in 20 s it is 3 degrees warmer, or cooler
    assert Cooling(0, 65, 0.15).share(70) == pytest.approx(0.5)
    assert Cooling(0, 71, -0.15).share(70) == pytest.approx(0.5)


def test_one_reading_by_hand() -> None:
    # 10 s after: 1 - 1/e of the way, of the temperature and of the slope
    weight = 1 - math.exp(-1)
    found = Cooling(5, 50).with_reading(15, 60)
    assert found.time_s == 15
    assert found.temperature_c == pytest.approx(50 + 10 * weight)
    assert found.slope_c == pytest.approx(weight * weight)


@pytest.mark.parametrize("every_s", [0.5, 1, 5, 30])
def test_follows_a_ramp(every_s: float) -> None:
    state, time_s = Cooling(0, 20), 0.0
    while time_s < 200:
        time_s += every_s
        state = state.with_reading(time_s, 20 + 0.1 * time_s)
    assert state.slope_c == pytest.approx(0.1, rel=0.01)
    assert 0 <= 20 + 0.1 * time_s - state.temperature_c < 0.1 * 10 + 0.01  # it lags by its time constant at most


def test_readings_that_follow_at_once_are_one() -> None:
    state = Cooling(0, 50).with_reading(2, 51)
    assert state.with_reading(2.4, 90) is state
    assert state.with_reading(2, 90) is state


def test_a_clock_that_is_set_back_changes_no_temperature() -> None:
    state = Cooling(100, 50).with_reading(110, 55)
    back = state.with_reading(3, 55)
    assert (back.temperature_c, back.slope_c, back.time_s) == (state.temperature_c, state.slope_c, 3)
    assert back.with_reading(13, 55).temperature_c == state.with_reading(120, 55).temperature_c


def heat(seconds: int, tau_s: float, warm_c: float, wave_s: float = math.inf) -> tuple[list[float], list[str]]:
    """Temperatures and points at 5 requests a second: at 25 C around, the dearest point ends at `warm_c`.

    The sensor tells whole degrees once a second. From `wave_s` on it is 10 degrees warmer around.
    """
    budget, state, seen = Budget(temperature_c=70), POLICY.initial(), Snapshot(0, temperature_c=25)
    above, temperatures, chosen = 0.0, [], []
    for request in range(5 * seconds):
        around = 25.0 if request / 5 < wave_s else 25.0 + 10 * (1 - math.exp((wave_s - request / 5) / 120))
        if request % 5 == 0:
            seen = Snapshot(request / 5, temperature_c=round(around + above))
        decision, state = POLICY.decide(FRONTIER, budget, seen, state)
        state = POLICY.observe(state, feedback(10, 10, point=decision.point))
        ends = (warm_c - 25) * decision.point.cpu_ms[0] / 200
        above += (1 - math.exp(-0.2 / tau_s)) * (ends - above)
        temperatures.append(around + above)
        chosen.append(name(decision))
    return temperatures, chosen


@pytest.mark.parametrize("tau_s", [60, 120, 300])
@pytest.mark.parametrize("warm_c", [85, 110])
def test_from_cold_it_comes_up_to_the_limit_and_not_over_it(tau_s: float, warm_c: float) -> None:
    temperatures, chosen = heat(1500, tau_s, warm_c)
    assert max(temperatures) < 70
    assert max(temperatures) > 58
    settled, points = temperatures[-3000:], chosen[-3000:]  # 10 minutes
    assert max(settled) - min(settled) < 15
    assert len(set(chosen)) > 1
    assert switches(points) <= 6  # in ten minutes: what was forced back rests longer each time


def test_where_the_dearest_point_may_run_it_does() -> None:
    temperatures, chosen = heat(1000, 90, 62)
    assert set(chosen) == {"reference"}
    assert max(temperatures) > 61


def test_after_a_heat_wave_it_settles_again() -> None:
    temperatures, chosen = heat(2500, 90, 85, wave_s=1000)
    assert max(temperatures) < 70.5
    before, late = chosen[2500:5000], chosen[-2500:]
    assert {"middle"} <= set(before) & set(late)
    assert max(temperatures[-2500:]) < 68
    assert switches(late) <= 8


def test_hot_from_the_start_the_cheapest_runs_until_it_has_cooled() -> None:
    budget, state = Budget(temperature_c=70), POLICY.initial()
    decision, state = POLICY.decide(FRONTIER, budget, Snapshot(0, temperature_c=80), state)
    assert (name(decision), decision.violated_limits) == ("quick", ("temperature_c",))
    assert "80.0 C on average is over 70.0 C" in decision.reason
    names = []
    for second in range(1, 121):
        reading = Snapshot(second, temperature_c=30 + 50 * math.exp(-second / 60))
        decision, state = POLICY.decide(FRONTIER, budget, reading, state)
        names.append(name(decision))
    assert decision.violated_limits == ()
    assert names[0] == "quick"
    assert names[-1] == "reference"
    assert switches(names) <= 2
