"""What makes a decision cheap: sets of points as bits of an integer, and copies of frozen values without checks."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def fast_replace(value: T, **changes: Any) -> T:
    """A copy of a frozen dataclass with other fields, unchecked. `dataclasses.replace` takes 6 to 10 times as long."""
    copy = object.__new__(type(value))
    copy.__dict__.update(value.__dict__, **changes)
    return copy


class Rank:
    """Points by one figure, the least first. Bit i of a set stands for point i, so a limit costs one search.

    Args:
        figures: One figure for each point, as measured. Limits compare with these.
        ties: A second figure that ranks points whose first figures are equal.
        order: Figures that rank the points instead, where measured ones cannot be distinguished.
    """

    __slots__ = ("_keys", "_order", "_sets", "_sorted", "figures")

    def __init__(
        self,
        figures: Sequence[float],
        ties: Sequence[float] | None = None,
        order: Sequence[float] | None = None,
    ) -> None:
        self.figures = tuple(figures)
        places = range(len(self.figures))
        self._keys = tuple(order or self.figures)
        keys = list(zip(self._keys, ties or (0.0,) * len(self.figures), strict=True))
        self._order = sorted(places, key=keys.__getitem__)  # of equals the first comes first
        by_figure = sorted(places, key=self.figures.__getitem__)
        self._sorted = [self.figures[i] for i in by_figure]
        self._sets = [0]
        for i in by_figure:
            self._sets.append(self._sets[-1] | 1 << i)

    def at_most(self, limit: float) -> int:
        """The points whose figure is at most the limit."""
        return self._sets[bisect_right(self._sorted, limit)]

    def below(self, limit: float) -> int:
        """The points whose figure is less than the limit."""
        return self._sets[bisect_left(self._sorted, limit)]

    def first(self, points: int) -> int:
        """The point of least rank in a set that is not empty."""
        for i in self._order:
            if points >> i & 1:
                return i
        raise ValueError("an empty set has no first point")

    def before(self, point: int) -> int:
        """The points of lower rank than a point."""
        return sum(1 << i for i in self._order[: self._order.index(point)])

    def least(self, points: int) -> int:
        """The points of least rank in a set that is not empty. Equals belong together."""
        least = self._keys[self.first(points)]
        return sum(1 << i for i in members(points) if self._keys[i] == least)


def members(points: int) -> Iterator[int]:
    """The points of a set, in order."""
    place = 0
    while points:
        if points & 1:
            yield place
        points >>= 1
        place += 1
