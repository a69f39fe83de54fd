"""Less effort before the hardware throttles, from the temperature and its rate of change.

A device warms and cools with a time constant of a minute or more, so the control is proportional. Every point may run
while the predicted temperature is `_BAND_C` below the limit, and only the cheapest one at the limit. In between the
effort falls evenly. The rate of change makes it a PD controller, which settles inside the band.
"""

import math
from dataclasses import dataclass

_BAND_C = 4.0
AHEAD_S = 20.0  # how far ahead the temperature is predicted
_SMOOTH_S = 10.0  # time constant over which readings and their slope are averaged
_LEAST_S = 0.5  # between two readings that give a slope


@dataclass(frozen=True)
class Cooling:
    """A smoothed temperature and its slope.

    Args:
        time_s: When they were updated.
        temperature_c: The temperature.
        slope_c: Degrees a second.
    """

    time_s: float
    temperature_c: float
    slope_c: float = 0.0

    def with_reading(self, time_s: float, temperature_c: float) -> "Cooling":
        """After one more reading.

        A reading within half a second is ignored. Where the clock was set back, only the time changes.
        """
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
        """The temperature that is predicted for `AHEAD_S` from now."""
        return self.temperature_c + AHEAD_S * self.slope_c

    def share(self, limit_c: float) -> float:
        """Share of the range from the cheapest to the most expensive point that may be used, 0 to 1."""
        return min(1.0, max(0.0, (limit_c - self.ahead_c) / _BAND_C))
