"""When requests arrive."""

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.errors import SettingError


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
        _check(rate_hz=self.rate_hz, duration_s=self.duration_s)

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
        _check(rate_hz=self.rate_hz, duration_s=self.duration_s)

    def arrivals(self, random: np.random.Generator) -> NDArray[np.float64]:
        """Arrival times `[M]` in seconds: given their number, they are uniform."""
        return _poisson(self.rate_hz, 0.0, self.duration_s, random)


@dataclass(frozen=True)
class Bursty:
    """A Markov-modulated Poisson process of two states (Fischer and Meier-Hellstern 1993): quiet and busy.

    `quiet_hz` and `busy_hz` requests a second; states last `quiet_s` and `busy_s` on average, exponentially, quiet
    first. The mean rate is (quiet_hz quiet_s + busy_hz busy_s) / (quiet_s + busy_s).
    """

    quiet_hz: float
    busy_hz: float
    quiet_s: float
    busy_s: float
    duration_s: float

    def __post_init__(self) -> None:
        _check(busy_hz=self.busy_hz, quiet_s=self.quiet_s, busy_s=self.busy_s, duration_s=self.duration_s)
        if not 0 <= self.quiet_hz < math.inf:
            raise SettingError(f"quiet_hz={self.quiet_hz}: give a number that is not negative")

    def arrivals(self, random: np.random.Generator) -> NDArray[np.float64]:
        """Arrival times `[M]` in seconds."""
        parts, start, busy = [np.empty(0)], 0.0, False
        while start < self.duration_s:
            end = min(start + random.exponential(self.busy_s if busy else self.quiet_s), self.duration_s)
            parts.append(_poisson(self.busy_hz if busy else self.quiet_hz, start, end, random))
            start, busy = end, not busy
        return np.concatenate(parts)


@dataclass(frozen=True)
class Diurnal:
    """Requests that come and go with the time of day: a Poisson process whose rate is a sine around `mean_hz`.

    `swing` 0..1 of the mean that it goes up and down; the peak lies `peak_s` into each `period_s`. Drawn by thinning
    (Lewis and Shedler 1979).
    """

    mean_hz: float
    duration_s: float
    swing: float = 0.8
    period_s: float = 86_400.0
    peak_s: float = 50_400.0

    def __post_init__(self) -> None:
        _check(mean_hz=self.mean_hz, duration_s=self.duration_s, period_s=self.period_s)
        if not 0 <= self.swing <= 1:
            raise SettingError(f"swing={self.swing} must be a fraction of the mean, 0 to 1")

    def arrivals(self, random: np.random.Generator) -> NDArray[np.float64]:
        """Arrival times `[M]` in seconds."""
        times_s = _poisson(self.mean_hz * (1 + self.swing), 0.0, self.duration_s, random)
        phase = 2 * np.pi * (times_s - self.peak_s) / self.period_s
        rate = (1 + self.swing * np.cos(phase)) / (1 + self.swing)
        return times_s[random.uniform(size=len(times_s)) < rate]


@dataclass(frozen=True)
class Schedule:
    """A rate for each stretch of time: `rates_hz[i]` from `times_s[i]` on, Poisson, again and again every `period_s`.

    `times_s` rise from 0 and lie below `period_s` (None: `duration_s`, nothing comes again).
    """

    times_s: tuple[float, ...]
    rates_hz: tuple[float, ...]
    duration_s: float
    period_s: float | None = None

    def __post_init__(self) -> None:
        _check(duration_s=self.duration_s, period_s=self.period_s or self.duration_s)
        times_s = self.times_s
        rising = all(a < b for a, b in pairwise(times_s))
        if not times_s or times_s[0] != 0 or not rising or times_s[-1] >= (self.period_s or self.duration_s):
            raise SettingError(f"times_s={times_s} must rise from 0 and stay below the period")
        if len(self.rates_hz) != len(times_s) or not all(0 <= rate < math.inf for rate in self.rates_hz):
            raise SettingError(f"rates_hz={self.rates_hz}: give {len(times_s)} numbers that are not negative")

    def arrivals(self, random: np.random.Generator) -> NDArray[np.float64]:
        """Arrival times `[M]` in seconds."""
        period_s = self.period_s or self.duration_s
        parts = [np.empty(0)]
        for number in range(math.ceil(self.duration_s / period_s)):
            for rate_hz, start, end in zip(self.rates_hz, self.times_s, (*self.times_s[1:], period_s), strict=True):
                parts.append(_poisson(rate_hz, number * period_s + start, number * period_s + end, random))
        times_s = np.concatenate(parts)
        return times_s[times_s < self.duration_s]


@dataclass(frozen=True, eq=False)
class Recorded:
    """Arrival times that somebody recorded, `[M]` in seconds from the start.

    Raises SettingError on times that do not rise, are negative, or lie beyond `duration_s` (None: just after the last).
    """

    times_s: NDArray[np.float64]
    until_s: float | None = None

    def __post_init__(self) -> None:
        times_s = np.asarray(self.times_s, np.float64)
        if times_s.ndim != 1 or not np.isfinite(times_s).all() or (np.diff(times_s) < 0).any():
            raise SettingError("times_s must be finite and rising, one for each request")
        if len(times_s) and (times_s[0] < 0 or times_s[-1] >= self.duration_s):
            raise SettingError(
                f"times_s run from {times_s[0]:.6g} to {times_s[-1]:.6g} s: they must lie in [0, {self.duration_s:.6g})"
            )

    @property
    def duration_s(self) -> float:
        """To the end of the simulation, in seconds."""
        if self.until_s is not None:
            return self.until_s
        return float(np.nextafter(self.times_s[-1], np.inf)) if len(self.times_s) else 0.0

    def arrivals(self, random: np.random.Generator) -> NDArray[np.float64]:
        """Arrival times `[M]` in seconds, as recorded."""
        return np.asarray(self.times_s, np.float64)

    @classmethod
    def load(cls, path: Path, until_s: float | None = None) -> "Recorded":
        """From a text file with a time in seconds on each line, or an `.npy` array; the first counts as given."""
        try:
            times_s = np.load(path, allow_pickle=False) if path.suffix == ".npy" else np.loadtxt(path, ndmin=1)
        except (ValueError, EOFError) as error:
            raise SettingError(
                f"{path} does not read as arrival times ({error}): a number of seconds a line"
            ) from error
        return cls(times_s, until_s)


def _poisson(rate_hz: float, start_s: float, end_s: float, random: np.random.Generator) -> NDArray[np.float64]:
    count = random.poisson(rate_hz * (end_s - start_s))
    return np.sort(random.uniform(start_s, end_s, count))


def _check(**figures: float) -> None:
    if not all(0 < value < math.inf for value in figures.values()):
        text = ", ".join(f"{name}={value}" for name, value in figures.items())
        raise SettingError(f"{text}: give positive numbers")
