"""When requests arrive."""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.errors import BudgetError


class Workload(Protocol):
    """Requests over `duration_s` seconds."""

    @property
    def duration_s(self) -> float:
        """From the start to the end of the simulation, in seconds."""

    def arrivals(self, random: np.random.Generator) -> NDArray[np.float64]:
        """Arrival times `[M]` in seconds, rising, in [0, duration_s)."""


@dataclass(frozen=True)
class Constant:
    """`rate_hz` requests a second at equal distances, the first at once."""

    rate_hz: float
    duration_s: float

    def __post_init__(self) -> None:
        _check(self.rate_hz, self.duration_s)

    def arrivals(self, random: np.random.Generator) -> NDArray[np.float64]:
        """Arrival times `[M]` in seconds; nothing random in them."""
        # a product like 0.1 * 30 must not gain or lose a request to rounding
        count = math.ceil(round(self.rate_hz * self.duration_s, 9))
        return np.arange(count) / self.rate_hz


@dataclass(frozen=True)
class Poisson:
    """`rate_hz` requests a second on average, independent of each other."""

    rate_hz: float
    duration_s: float

    def __post_init__(self) -> None:
        _check(self.rate_hz, self.duration_s)

    def arrivals(self, random: np.random.Generator) -> NDArray[np.float64]:
        """Arrival times `[M]` in seconds: given their number, they are uniform."""
        count = random.poisson(self.rate_hz * self.duration_s)
        return np.sort(random.uniform(0.0, self.duration_s, count))


def _check(rate_hz: float, duration_s: float) -> None:
    if not (0 < rate_hz < math.inf and 0 < duration_s < math.inf):
        raise BudgetError(f"rate_hz={rate_hz}, duration_s={duration_s}: give positive numbers")
