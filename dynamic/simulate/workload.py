"""The times at which requests arrive."""

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.errors import SettingError


class Workload(Protocol):
    """The contract of arrival processes: requests over `duration_s` seconds.

    Any class with these two members is a workload.

    Example:
        >>> import dataclasses
        >>> @dataclasses.dataclass
        ... class Once:
        ...     duration_s: float = 1.0
        ...
        ...     def arrivals(self, random):
        ...         return np.array([0.5])
        >>> workload: dynamic.simulate.Workload = Once()
        >>> workload.arrivals(np.random.default_rng(0))
        array([0.5])
    """

    @property
    def duration_s(self) -> float:
        """Length of the simulation in seconds."""

    def arrivals(self, random: np.random.Generator) -> NDArray[np.float64]:
        """Draw the arrival times.

        Args:
            random: Generator of all random numbers. The same state gives the same times.

        Returns:
            Arrival times `[M]` in seconds, rising, in [0, duration_s).

        Raises:
            AttributeError: `random` is no generator of numpy.

        Example:
            >>> dynamic.simulate.Constant(rate_hz=2, duration_s=2).arrivals(np.random.default_rng(0))
            array([0. , 0.5, 1. , 1.5])
        """


@dataclass(frozen=True)
class Constant:
    """Requests at equal distances, the first at time 0.

    Args:
        rate_hz: Requests a second, above 0.
        duration_s: Length of the simulation in seconds, above 0.

    Raises:
        SettingError: A figure is not a positive number.

    Example:
        >>> len(dynamic.simulate.Constant(rate_hz=5, duration_s=60).arrivals(np.random.default_rng(0)))
        300
    """

    rate_hz: float
    duration_s: float

    def __post_init__(self) -> None:
        _check(rate_hz=self.rate_hz, duration_s=self.duration_s)

    def arrivals(self, random: np.random.Generator) -> NDArray[np.float64]:
        """Compute the arrival times, which have no random part.

        Args:
            random: Unused.

        Returns:
            Arrival times `[M]` in seconds.

        Raises:
            Nothing: the figures were checked when the workload was made.

        Example:
            >>> dynamic.simulate.Constant(rate_hz=2, duration_s=1).arrivals(np.random.default_rng(0))
            array([0. , 0.5])
        """
        # a product like 0.1 * 30 must not gain or lose a request to rounding
        count = math.ceil(round(self.rate_hz * self.duration_s, 9))
        return np.arange(count) / self.rate_hz


@dataclass(frozen=True)
class Poisson:
    """Independent requests: a Poisson process of constant rate.

    Args:
        rate_hz: Requests a second on average, above 0.
        duration_s: Length of the simulation in seconds, above 0.

    Raises:
        SettingError: A figure is not a positive number.

    Example:
        >>> workload = dynamic.simulate.Poisson(rate_hz=20, duration_s=3600)
        >>> workload.duration_s
        3600
    """

    rate_hz: float
    duration_s: float

    def __post_init__(self) -> None:
        _check(rate_hz=self.rate_hz, duration_s=self.duration_s)

    def arrivals(self, random: np.random.Generator) -> NDArray[np.float64]:
        """Draw the arrival times: given their number, they are uniform.

        Args:
            random: Generator of all random numbers. The same state gives the same times.

        Returns:
            Arrival times `[M]` in seconds, rising.

        Raises:
            AttributeError: `random` is no generator of numpy.

        Example:
            >>> times_s = dynamic.simulate.Poisson(rate_hz=5, duration_s=60).arrivals(np.random.default_rng(0))
            >>> bool((np.diff(times_s) >= 0).all())
            True
        """
        return _poisson(self.rate_hz, 0.0, self.duration_s, random)


@dataclass(frozen=True)
class Bursty:
    """A Markov-modulated Poisson process of two states, quiet and busy (Fischer and Meier-Hellstern 1993).

    The quiet state comes first. The lengths of both states are exponential. The mean rate is
    (quiet_hz quiet_s + busy_hz busy_s) / (quiet_s + busy_s).

    Args:
        quiet_hz: Requests a second in the quiet state, not negative.
        busy_hz: Requests a second in the busy state, above 0.
        quiet_s: Mean length of a quiet state in seconds, above 0.
        busy_s: Mean length of a busy state in seconds, above 0.
        duration_s: Length of the simulation in seconds, above 0.

    Raises:
        SettingError: A figure is out of range.

    Example:
        >>> workload = dynamic.simulate.Bursty(1, 20, quiet_s=30, busy_s=10, duration_s=600)
        >>> bool(workload.arrivals(np.random.default_rng(0)).max() < 600)
        True
    """

    quiet_hz: float
    busy_hz: float
    _: KW_ONLY
    quiet_s: float
    busy_s: float
    duration_s: float

    def __post_init__(self) -> None:
        _check(busy_hz=self.busy_hz, quiet_s=self.quiet_s, busy_s=self.busy_s, duration_s=self.duration_s)
        if not 0 <= self.quiet_hz < math.inf:
            raise SettingError(f"quiet_hz={self.quiet_hz}: give a number that is not negative")

    def arrivals(self, random: np.random.Generator) -> NDArray[np.float64]:
        """Draw the states and the arrival times in them.

        Args:
            random: Generator of all random numbers. The same state gives the same times.

        Returns:
            Arrival times `[M]` in seconds, rising.

        Raises:
            AttributeError: `random` is no generator of numpy.

        Example:
            >>> workload = dynamic.simulate.Bursty(0, 5, quiet_s=10, busy_s=10, duration_s=600)
            >>> bool(workload.arrivals(np.random.default_rng(0)).min() > 0)
            True
        """
        parts, start, busy = [np.empty(0)], 0.0, False
        while start < self.duration_s:
            end = min(start + random.exponential(self.busy_s if busy else self.quiet_s), self.duration_s)
            parts.append(_poisson(self.busy_hz if busy else self.quiet_hz, start, end, random))
            start, busy = end, not busy
        return np.concatenate(parts)


@dataclass(frozen=True)
class Diurnal:
    """A Poisson process whose rate is a sine around its mean, as requests follow the time of day.

    Times are drawn by thinning (Lewis and Shedler 1979).

    Args:
        mean_hz: Requests a second on average, above 0.
        duration_s: Length of the simulation in seconds, above 0.
        swing: Amplitude of the sine as a fraction of the mean, 0 to 1.
        period_s: Length of a day in seconds, above 0.
        peak_s: Time of the highest rate within each period, in seconds.

    Raises:
        SettingError: A figure is out of range.

    Example:
        >>> day = dynamic.simulate.Diurnal(0.1, 86_400, swing=0.5)
        >>> day.peak_s / 3600
        14.0
    """

    mean_hz: float
    duration_s: float
    _: KW_ONLY
    swing: float = 0.8
    period_s: float = 86_400.0
    peak_s: float = 50_400.0

    def __post_init__(self) -> None:
        _check(mean_hz=self.mean_hz, duration_s=self.duration_s, period_s=self.period_s)
        if not 0 <= self.swing <= 1:
            raise SettingError(f"swing={self.swing} must be a fraction of the mean, 0 to 1")

    def arrivals(self, random: np.random.Generator) -> NDArray[np.float64]:
        """Draw the arrival times.

        Args:
            random: Generator of all random numbers. The same state gives the same times.

        Returns:
            Arrival times `[M]` in seconds, rising.

        Raises:
            AttributeError: `random` is no generator of numpy.

        Example:
            >>> times_s = dynamic.simulate.Diurnal(0.1, 86_400).arrivals(np.random.default_rng(0))
            >>> bool(times_s[-1] < 86_400)
            True
        """
        times_s = _poisson(self.mean_hz * (1 + self.swing), 0.0, self.duration_s, random)
        phase = 2 * np.pi * (times_s - self.peak_s) / self.period_s
        rate = (1 + self.swing * np.cos(phase)) / (1 + self.swing)
        return times_s[random.uniform(size=len(times_s)) < rate]


@dataclass(frozen=True)
class Schedule:
    """A Poisson process with one rate for each part of a period, which repeats.

    Args:
        times_s: Start of each part in seconds, rising from 0, below the period.
        rates_hz: Requests a second in each part, not negative, as many as `times_s`.
        duration_s: Length of the simulation in seconds, above 0.
        period_s: Length of a period in seconds. None: `duration_s`, so that nothing repeats.

    Raises:
        SettingError: Times do not rise from 0, or rates are negative or of another number.

    Example:
        >>> shift = dynamic.simulate.Schedule((0, 28_800), (1.0, 0.1), duration_s=7 * 86_400, period_s=86_400)
        >>> shift.rates_hz
        (1.0, 0.1)
    """

    times_s: tuple[float, ...]
    rates_hz: tuple[float, ...]
    _: KW_ONLY
    duration_s: float
    period_s: float | None = None

    def __post_init__(self) -> None:
        _check(duration_s=self.duration_s, period_s=self.period_s or self.duration_s)
        times_s = self.times_s
        rising = all(a < b for a, b in pairwise(times_s))
        if not times_s or times_s[0] != 0 or not rising or times_s[-1] >= (self.period_s or self.duration_s):
            raise SettingError(f"times_s={times_s} must rise from 0 and be below the period")
        if len(self.rates_hz) != len(times_s) or not all(0 <= rate < math.inf for rate in self.rates_hz):
            raise SettingError(f"rates_hz={self.rates_hz}: give {len(times_s)} numbers that are not negative")

    def arrivals(self, random: np.random.Generator) -> NDArray[np.float64]:
        """Draw the arrival times.

        Args:
            random: Generator of all random numbers. The same state gives the same times.

        Returns:
            Arrival times `[M]` in seconds, rising.

        Raises:
            AttributeError: `random` is no generator of numpy.

        Example:
            >>> silent_first = dynamic.simulate.Schedule((0, 10), (0.0, 5.0), duration_s=20)
            >>> bool(silent_first.arrivals(np.random.default_rng(0)).min() >= 10)
            True
        """
        period_s = self.period_s or self.duration_s
        parts = [np.empty(0)]
        for number in range(math.ceil(self.duration_s / period_s)):
            for rate_hz, start, end in zip(self.rates_hz, self.times_s, (*self.times_s[1:], period_s), strict=True):
                parts.append(_poisson(rate_hz, number * period_s + start, number * period_s + end, random))
        times_s = np.concatenate(parts)
        return times_s[times_s < self.duration_s]


@dataclass(frozen=True, eq=False)
class Recorded:
    """Arrival times from a recording.

    Args:
        times_s: Arrival times `[M]` in seconds from the start, rising.
        until_s: Length of the simulation in seconds. None: just after the last arrival.

    Raises:
        SettingError: Times fall, are negative, or lie beyond `until_s`.

    Example:
        >>> dynamic.simulate.Recorded(np.array([0.0, 0.4, 2.5]), until_s=10).duration_s
        10
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
        """Length of the simulation in seconds."""
        if self.until_s is not None:
            return self.until_s
        return float(np.nextafter(self.times_s[-1], np.inf)) if len(self.times_s) else 0.0

    def arrivals(self, random: np.random.Generator) -> NDArray[np.float64]:
        """Return the recorded times.

        Args:
            random: Unused.

        Returns:
            Arrival times `[M]` in seconds.

        Raises:
            Nothing: the times were checked when the workload was made.

        Example:
            >>> dynamic.simulate.Recorded(np.array([0.0, 0.4])).arrivals(np.random.default_rng(0))
            array([0. , 0.4])
        """
        return np.asarray(self.times_s, np.float64)

    @classmethod
    def load(cls, path: str | Path, until_s: float | None = None) -> "Recorded":
        """Read arrival times from a file. The first time is taken as it stands.

        Args:
            path: A text file with a time in seconds on each line, or an `.npy` array `[M]`.
            until_s: Length of the simulation in seconds. None: just after the last arrival.

        Returns:
            The workload.

        Raises:
            SettingError: The file does not read, or its times fall, are negative or lie beyond `until_s`.
            OSError: The file cannot be opened.

        Example:
            >>> np.savetxt("times.txt", [0.0, 0.4, 2.5])
            >>> len(dynamic.simulate.Recorded.load("times.txt").times_s)
            3
        """
        path = Path(path)
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


def as_workload(workload: "Workload | Sequence[float] | NDArray[np.float64]") -> Workload:
    """A workload, where times in seconds stand for themselves. Raises SettingError on anything else."""
    if hasattr(workload, "arrivals"):
        return cast(Workload, workload)
    try:
        times_s = np.asarray(workload, np.float64)
    except (TypeError, ValueError) as error:
        raise SettingError(
            f"workload={workload!r:.80} must be a workload such as dynamic.simulate.Poisson(5, 60), or a list of "
            "rising times in seconds"
        ) from error
    return Recorded(times_s)
