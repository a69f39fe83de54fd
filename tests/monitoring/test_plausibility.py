"""Which jumps are believed, by hand."""

import math

import pytest

from dynamic.monitoring.plausibility import JUMPS, Believed, believe
from dynamic.policies.errors import InputError


def believed(*readings: tuple[float, float], jump: float = JUMPS["battery"]) -> list[float | None]:
    """What is believed after each (time_s, value)."""
    state, found = Believed(), []
    for time_s, value in readings:
        state = believe(state, value, time_s, jump)
        found.append(state.value)
    return found


def test_small_steps_are_believed_at_once() -> None:
    # from 0.80 to 0.75 are 5 points, though the difference of the floats is a little more
    assert believed((0, 0.80), (1, 0.75), (2, 0.79)) == [0.80, 0.75, 0.79]


def test_a_single_jump_is_not() -> None:
    assert believed((0, 0.8), (1, 0.1), (2, 0.79), (3, 0.1), (4, 0.1), (5, 0.78)) == [0.8, 0.8, 0.79, 0.79, 0.79, 0.78]


def test_three_in_a_row_that_agree_are() -> None:
    assert believed((0, 0.8), (1, 0.2), (2, 0.21), (3, 0.19), (4, 0.2)) == [0.8, 0.8, 0.8, 0.19, 0.2]


def test_three_that_do_not_agree_are_not() -> None:
    # 0.2 and 0.3 lie 10 points apart; then 0.3, 0.31, 0.32 agree
    assert believed((0, 0.8), (1, 0.2), (2, 0.3), (3, 0.31), (4, 0.32)) == [0.8, 0.8, 0.8, 0.8, 0.32]


def test_what_agrees_with_the_old_value_ends_doubt() -> None:
    assert believed((0, 0.8), (1, 0.2), (2, 0.2), (3, 0.8), (4, 0.2), (5, 0.2))[-1] == 0.8


def test_after_ten_seconds_anything_may_have_happened() -> None:
    assert believed((0, 0.8), (9.9, 0.2)) == [0.8, 0.8]
    assert believed((0, 0.8), (10, 0.2)) == [0.8, 0.2]


def test_temperatures_may_move_by_fifteen_degrees() -> None:
    jump = JUMPS["temperature_c"]
    assert believed((0, 40.0), (1, 55.0), (2, 70.1), (3, 85.0), jump=jump) == [40.0, 55.0, 55.0, 55.0]


def test_a_clock_that_falls_delays_belief_by_three_readings_at_most() -> None:
    assert believed((100, 0.8), (50, 0.3), (51, 0.3), (52, 0.3)) == [0.8, 0.8, 0.8, 0.3]


def test_the_state_is_not_changed() -> None:
    state = believe(Believed(), 0.8, 0.0, 0.05)
    doubting = believe(state, 0.2, 1.0, 0.05)
    assert state == Believed(0.8, 0.0)
    assert doubting == Believed(0.8, 0.0, (0.2,))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_number_is_refused(value: float) -> None:
    with pytest.raises(InputError, match="no number"):
        believe(Believed(), value, 0.0, 0.05)
