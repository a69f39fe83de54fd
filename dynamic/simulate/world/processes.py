"""What changes around a device while it works: background load, ambient temperature, mains, memory."""

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol, runtime_checkable

import numpy as np

from dynamic.policies.errors import SettingError

Piece = tuple[float, float]


@runtime_checkable
class Process(Protocol):
    """A value that changes at certain times and holds between them."""

    def __call__(self, time_s: float) -> float:
        """The value at a time."""

    def piece(self, time_s: float) -> Piece:
        """(the value at a time, until when it holds): nobody has to ask again before that."""


Value = float | Callable[[float], float]  # a number, a function of the time in seconds, or a Process


def pieces(value: Value) -> Callable[[float], Piece]:
    """Anything that is a Value, as `Process.piece` gives it; a plain function has to be asked each time."""
    if isinstance(value, Process):
        return value.piece
    if callable(value):
        return lambda time_s: (float(value(time_s)), time_s)
    always = float(value), math.inf
    return lambda time_s: always


def demand(slowdown: float, threads: int, cores: float) -> float:
    """The background load at which inference of `threads` takes `slowdown` times as long: (b + t) / c, solved for b/c.

    Above 1: more wants to run than there are cores.
    """
    return max(0.0, slowdown - threads / cores)


@dataclass(frozen=True)
class Steps:
    """`values[i]` from `times_s[i]` on; before the first time, `values[0]` too.

    Raises SettingError where they are not as many, or times do not rise.
    """

    times_s: tuple[float, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        _check_times(self.times_s, self.values)

    def __call__(self, time_s: float) -> float:
        """The value at a time."""
        return self.piece(time_s)[0]

    def piece(self, time_s: float) -> Piece:
        """See Process."""
        after = bisect_right(self.times_s, time_s)
        until = self.times_s[after] if after < len(self.times_s) else math.inf
        return float(self.values[max(after - 1, 0)]), until


@dataclass(frozen=True)
class Line:
    """Straight lines through `values[i]` at `times_s[i]`, level before and after: a heat wave that comes and goes.

    Raises SettingError where they are not as many, or times do not rise.
    """

    times_s: tuple[float, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        _check_times(self.times_s, self.values)

    def __call__(self, time_s: float) -> float:
        """The value at a time."""
        after = bisect_right(self.times_s, time_s)
        if after in (0, len(self.times_s)):
            return float(self.values[min(after, len(self.times_s) - 1)])
        t0, t1 = self.times_s[after - 1 : after + 1]
        v0, v1 = self.values[after - 1 : after + 1]
        return v0 + (v1 - v0) * (time_s - t0) / (t1 - t0)


@dataclass(frozen=True)
class Bursts:
    """`low` for a while of `off_s` seconds, then one of `high` for `on_s`, and so on, `low` first.

    `high`: a level, or several of which each burst draws one. Lengths are exponential with these means, or all alike
    where `fixed`. The same `seed` gives the same bursts, in whatever order they are asked for.

    Raises SettingError on a length or level out of range.
    """

    low: float
    high: float | tuple[float, ...]
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
        """The level at a time."""
        return self.piece(time_s)[0]

    def piece(self, time_s: float) -> Piece:
        """See Process."""
        while not self._edges or self._edges[-1] <= time_s:
            self._extend()
        number = bisect_right(self._edges, time_s)
        return self._levels[number], self._edges[number]

    def _extend(self) -> None:
        """64 more pairs of silence and burst."""
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
