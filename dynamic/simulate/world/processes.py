"""Values that change around a device over time: background load, ambient temperature, mains, memory."""

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from itertools import pairwise
from typing import Protocol, runtime_checkable

import numpy as np

from dynamic.policies.errors import SettingError

Piece = tuple[float, float]


@runtime_checkable
class Process(Protocol):
    """The contract of values that are constant between certain times.

    A number, or a function of the time in seconds, serves as well. The simulator asks such a function at every request.

    Example:
        >>> isinstance(dynamic.simulate.Steps((0.0, 60.0), (0.0, 1.0)), dynamic.simulate.Process)
        True
    """

    def __call__(self, time_s: float) -> float:
        """Return the value at a time.

        Args:
            time_s: Seconds from the start of the simulation.

        Returns:
            The value.

        Raises:
            TypeError: `time_s` is no number.

        Example:
            >>> dynamic.simulate.Steps((0.0, 60.0), (0.0, 1.0))(30.0)
            0.0
        """

    def piece(self, time_s: float) -> Piece:
        """Return the value at a time, and how long it holds.

        Args:
            time_s: Seconds from the start of the simulation.

        Returns:
            The value, and the time in seconds until which it holds.

        Raises:
            TypeError: `time_s` is no number.

        Example:
            >>> dynamic.simulate.Steps((0.0, 60.0), (0.0, 1.0)).piece(30.0)
            (0.0, 60.0)
        """


Value = float | Callable[[float], float]  # a number, a function of the time in seconds, or a Process


def pieces(value: Value) -> Callable[[float], Piece]:
    """A value in any form as a function like `Process.piece`. A plain function holds for no time at all."""
    if isinstance(value, Process):
        return value.piece
    if callable(value):
        return lambda time_s: (float(value(time_s)), time_s)
    always = float(value), math.inf
    return lambda time_s: always


def demand(slowdown: float, threads: int, cores: float) -> float:
    """The background load at which inference takes `slowdown` times as long: (b + t) / c, solved for b / c.

    Args:
        slowdown: Time of inference over its time alone.
        threads: Threads of inference.
        cores: Cores of the device.

    Returns:
        Share of the cores that others demand. Above 1 they demand more cores than there are.
    """
    return max(0.0, slowdown - threads / cores)


@dataclass(frozen=True)
class Steps:
    """A value that changes in steps.

    Args:
        times_s: Seconds at which each value begins, rising. Before the first, the first value holds too.
        values: The values, as many as `times_s`.

    Raises:
        SettingError: There are not as many values as times, or the times do not rise.

    Example:
        >>> load = dynamic.simulate.Steps((0.0, 60.0), (0.0, 1.5))
        >>> load(59.9), load(60.0)
        (0.0, 1.5)
    """

    times_s: tuple[float, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        _check_times(self.times_s, self.values)

    def __call__(self, time_s: float) -> float:
        """Return the value at a time.

        Args:
            time_s: Seconds from the start of the simulation.

        Returns:
            The value.

        Raises:
            TypeError: `time_s` is no number.

        Example:
            >>> dynamic.simulate.Steps((0.0, 60.0), (0.0, 1.5))(60.0)
            1.5
        """
        return self.piece(time_s)[0]

    def piece(self, time_s: float) -> Piece:
        """Return the value at a time, and how long it holds.

        Args:
            time_s: Seconds from the start of the simulation.

        Returns:
            The value, and the time in seconds until which it holds.

        Raises:
            TypeError: `time_s` is no number.

        Example:
            >>> dynamic.simulate.Steps((0.0, 60.0), (0.0, 1.5)).piece(60.0)
            (1.5, inf)
        """
        after = bisect_right(self.times_s, time_s)
        until = self.times_s[after] if after < len(self.times_s) else math.inf
        return float(self.values[max(after - 1, 0)]), until


@dataclass(frozen=True)
class Line:
    """A value on straight lines between given points, constant before the first and after the last.

    Args:
        times_s: Seconds of each point, rising.
        values: The value at each point, as many as `times_s`.

    Raises:
        SettingError: There are not as many values as times, or the times do not rise.

    Example:
        >>> heat_wave = dynamic.simulate.Line((0.0, 3600.0, 7200.0), (20.0, 35.0, 20.0))
        >>> heat_wave(1800.0)
        27.5
    """

    times_s: tuple[float, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        _check_times(self.times_s, self.values)

    def __call__(self, time_s: float) -> float:
        """Return the value at a time.

        Args:
            time_s: Seconds from the start of the simulation.

        Returns:
            The value.

        Raises:
            TypeError: `time_s` is no number.

        Example:
            >>> dynamic.simulate.Line((0.0, 10.0), (20.0, 30.0))(5.0)
            25.0
        """
        after = bisect_right(self.times_s, time_s)
        if after in (0, len(self.times_s)):
            return float(self.values[min(after, len(self.times_s) - 1)])
        t0, t1 = self.times_s[after - 1 : after + 1]
        v0, v1 = self.values[after - 1 : after + 1]
        return v0 + (v1 - v0) * (time_s - t0) / (t1 - t0)


@dataclass(frozen=True)
class Bursts:
    """A low level and bursts of a high level, in turns, low first.

    The same seed gives the same bursts, in whatever order times are asked for.

    Args:
        low: The level between bursts, not negative.
        high: The level in a burst, or several levels of which each burst draws one. Not negative.
        on_s: Mean length of a burst in seconds, above 0.
        off_s: Mean length of the time between bursts in seconds, above 0.
        fixed: Whether all lengths equal their mean. Otherwise they are exponential.
        seed: Seed of lengths and levels.

    Raises:
        SettingError: A length or level is out of range.

    Example:
        >>> load = dynamic.simulate.Bursts(0.0, 1.5, on_s=20, off_s=30, fixed=True)
        >>> load(29.0), load(31.0), load(51.0)
        (0.0, 1.5, 0.0)
    """

    low: float
    high: float | tuple[float, ...]
    _: KW_ONLY
    on_s: float
    off_s: float
    fixed: bool = False
    seed: int = 0
    _edges: list[float] = field(default_factory=list, init=False, repr=False, compare=False)
    _levels: list[float] = field(default_factory=list, init=False, repr=False, compare=False)
    _random: list[np.random.Generator] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not (0 < self.on_s < math.inf and 0 < self.off_s < math.inf):
            raise SettingError(f"on_s={self.on_s}, off_s={self.off_s}: give positive numbers of seconds")
        if not all(0 <= level < math.inf for level in (self.low, *self._high())):
            raise SettingError(f"low={self.low}, high={self.high}: give levels that are not negative")

    def _high(self) -> tuple[float, ...]:
        return self.high if isinstance(self.high, tuple) else (self.high,)

    def __call__(self, time_s: float) -> float:
        """Return the level at a time.

        Args:
            time_s: Seconds from the start of the simulation.

        Returns:
            The level.

        Raises:
            TypeError: `time_s` is no number.

        Example:
            >>> dynamic.simulate.Bursts(0.0, 1.5, on_s=20, off_s=30, fixed=True)(31.0)
            1.5
        """
        return self.piece(time_s)[0]

    def piece(self, time_s: float) -> Piece:
        """Return the level at a time, and how long it holds.

        Args:
            time_s: Seconds from the start of the simulation.

        Returns:
            The level, and the time in seconds until which it holds.

        Raises:
            TypeError: `time_s` is no number.

        Example:
            >>> dynamic.simulate.Bursts(0.0, 1.5, on_s=20, off_s=30, fixed=True).piece(31.0)
            (1.5, 50.0)
        """
        while not self._edges or self._edges[-1] <= time_s:
            self._extend()
        number = bisect_right(self._edges, time_s)
        return self._levels[number], self._edges[number]

    def _extend(self) -> None:
        """Draw 64 more pairs of a low part and a burst."""
        if not self._random:
            self._random.append(np.random.default_rng(self.seed))
        random, high = self._random[0], self._high()
        means = np.tile([self.off_s, self.on_s], 64)
        lengths = means if self.fixed else random.exponential(means)
        start = self._edges[-1] if self._edges else 0.0
        self._edges.extend((start + np.cumsum(lengths)).tolist())
        for level in random.choice(high, 64).tolist():
            self._levels.extend((self.low, level))


def _check_times(times_s: tuple[float, ...], values: tuple[float, ...]) -> None:
    if not times_s or len(times_s) != len(values):
        raise SettingError(f"{len(times_s)} times for {len(values)} values: give one each, and at least one")
    if any(a >= b for a, b in pairwise(times_s)):
        raise SettingError(f"times_s={times_s} must rise")
