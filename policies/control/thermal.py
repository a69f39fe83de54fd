"""Backing off before the hardware throttles: what an inference may take, from temperature and its rate of change.

A device warms and cools with a time constant of a minute or more, so what is given is proportional: everything while
the temperature that is ahead stays `_BAND_C` below the limit, the cheapest point at the limit, evenly in between. With
the rate of change in it (a PD controller) it settles inside the band instead of swinging through it.
"""

import math
from dataclasses import dataclass

_BAND_C = 4.0
AHEAD_S = 20.0  # how far ahead the temperature is looked at
_SMOOTH_S = 10.0  # time constant over which readings are averaged, and their slope
_LEAST_S = 0.5  # between two readings that a slope is taken from


@dataclass(frozen=True)
class Cooling:
    """Temperature and its slope, smoothed, at `time_s`."""

    time_s: float
    temperature_c: float
    slope_c: float = 0.0  # a second

    def with_reading(self, time_s: float, temperature_c: float) -> "Cooling":
        """After one more reading; those that follow at once are left out, and a clock that was set back starts anew."""
        passed_s = time_s - self.time_s
        if passed_s < 0:
            return Cooling(time_s, self.temperature_c, self.slope_c)
        if passed_s < _LEAST_S:
            return self
        weight = 1 - math.exp(-passed_s / _SMOOTH_S)
        now_c = self.temperature_c + weight * (temperature_c - self.temperature_c)
        slope_c = (now_c - self.temperature_c) / passed_s
        return Cooling(time_s, now_c, self.slope_c + weight * (slope_c - self.slope_c))

    @property
    def ahead_c(self) -> float:
        """The temperature that is predicted, `AHEAD_S` from now."""
        return self.temperature_c + AHEAD_S * self.slope_c

    def share(self, limit_c: float) -> float:
        """How much of what there is between the cheapest and the dearest point may be used, 0 to 1."""
        return min(1.0, max(0.0, (limit_c - self.ahead_c) / _BAND_C))
