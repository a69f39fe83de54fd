"""Plausibility of readings: a charge or a temperature cannot jump, but the sensor of it can."""

import math
from dataclasses import dataclass, replace

from dynamic.policies.errors import InputError

# more than a device can do within `_YOUNG_S`: points of charge as a fraction, degrees Celsius
JUMPS = {"battery": 0.05, "temperature_c": 15.0}

_YOUNG_S = 10.0
_AGREEING = 3
_ROUNDING = 1e-9  # a step of exactly 5 points is no jump


@dataclass(frozen=True)
class Believed:
    """The accepted value of a sensor.

    Args:
        value: The value. None before the first reading.
        time_s: When it was read.
        doubted: Later readings that were too far from it.
    """

    value: float | None = None
    time_s: float = -math.inf
    doubted: tuple[float, ...] = ()


def believe(state: Believed, value: float, time_s: float, jump: float) -> Believed:
    """The accepted value after another reading.

    A reading further than `jump` from an accepted value of the last 10 s is doubted. The old value holds until three
    readings in a row lie within `jump` of each other.

    Args:
        state: The accepted value so far.
        value: The new reading.
        time_s: Its time, monotonic.
        jump: Largest plausible change.

    Returns:
        The new state.

    Raises:
        InputError: `value` is not finite.
    """
    if not math.isfinite(value):
        raise InputError(f"a reading of {value} is no number: exclude it first")
    if state.value is None or time_s - state.time_s >= _YOUNG_S or abs(value - state.value) <= jump + _ROUNDING:
        return Believed(value, time_s)
    doubted = (*state.doubted, value)[-_AGREEING:]
    if len(doubted) == _AGREEING and max(doubted) - min(doubted) <= jump + _ROUNDING:
        return Believed(value, time_s)
    return replace(state, doubted=doubted)
