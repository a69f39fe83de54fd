"""What changes around a device: values at times, and how long they hold."""

import math

import numpy as np
import pytest

from dynamic.policies.errors import SettingError
from dynamic.simulate import Bursts, Line, Steps
from dynamic.simulate.world.processes import demand, pieces


def test_numbers_and_functions_are_values() -> None:
    assert pieces(0.3)(5.0) == (0.3, math.inf)
    assert pieces(lambda t: 2 * t)(5.0) == (10.0, 5.0)  # has to be asked each time
    assert pieces(Steps((0.0, 4.0), (1.0, 2.0)))(3.0) == (1.0, 4.0)


def test_steps_hold_until_the_next() -> None:
    steps = Steps((1.0, 4.0), (10.0, 20.0))
    assert [steps(t) for t in (0.0, 1.0, 3.9, 4.0, 99.0)] == [10, 10, 10, 20, 20]
    assert steps.piece(2.0) == (10.0, 4.0)
    assert steps.piece(4.0) == (20.0, math.inf)
    for times, values in (((), ()), ((1.0,), (1.0, 2.0)), ((1.0, 1.0), (1.0, 2.0))):
        with pytest.raises(SettingError):
            Steps(times, values)
        with pytest.raises(SettingError):
            Line(times, values)


def test_a_line_is_straight_between_and_level_outside() -> None:
    line = Line((10.0, 20.0), (25.0, 45.0))
    assert [line(t) for t in (0, 10, 15, 20, 30)] == [25, 25, 35, 45, 45]


def test_bursts_of_fixed_lengths() -> None:
    bursts = Bursts(0.1, 1.5, on_s=2, off_s=3, fixed=True)
    assert [bursts(t) for t in (0.0, 2.9, 3.0, 4.9, 5.0, 8.0)] == [0.1, 0.1, 1.5, 1.5, 0.1, 1.5]
    assert bursts.piece(3.5) == (1.5, 5.0)
    assert bursts(5_000_003.0) == 1.5


def test_bursts_are_the_same_in_whatever_order_they_are_asked_for() -> None:
    forward, backward = (Bursts(0.0, (1.0, 2.0, 3.0), on_s=20, off_s=30, seed=4) for _ in range(2))
    times = np.linspace(0, 40_000, 4001)
    there = [forward(t) for t in times]
    assert there == [backward(t) for t in times[::-1]][::-1]
    assert {0.0, 1.0, 2.0, 3.0} == set(there)
    # on for 20 of 50 seconds; 800 pairs of lengths, each as spread as it is long: 1.7% standard deviation
    assert np.mean(np.array(there) > 0) == pytest.approx(0.4, abs=0.05)
    assert forward != Bursts(0.0, (1.0, 2.0, 3.0), on_s=20, off_s=30, seed=5)


def test_bursts_check_themselves() -> None:
    for values in ((0.0, 1.0, 0.0, 1.0), (0.0, -1.0, 1.0, 1.0), (math.nan, 1.0, 1.0, 1.0)):
        with pytest.raises(SettingError):
            Bursts(values[0], values[1], on_s=values[2], off_s=values[3])


def test_the_demand_for_a_slowdown() -> None:
    # (b + t) / c = 4 with one thread on two cores: b = 7, 3.5 times the cores
    assert demand(4.0, 1, 2) == 3.5
    assert demand(1.0, 2, 2) == 0.0
    assert demand(0.5, 2, 2) == 0.0
