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
    """Points by one figure, least first. Bit i of a set stands for point i, and a limit costs one search.

    Args:
        figures: Of the points, as they were measured. Limits compare with these.
        ties: Put points in order whose figures are equal.
        order: Figures by which points are put in order instead, where measured ones are not told apart.
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

    def at_most(self, most: float) -> int:
        """The points whose figure is at most so much."""
        return self._sets[bisect_right(self._sorted, most)]

    def below(self, most: float) -> int:
        """The points whose figure is less."""
        return self._sets[bisect_left(self._sorted, most)]

    def first(self, left: int) -> int:
        """The point of least figure in a set that is not empty, as they are ordered."""
        for i in self._order:
            if left >> i & 1:
                return i
        raise ValueError("an empty set has no first point")

    def least(self, left: int) -> int:
        """The points of least figure in a set that is not empty, as they are ordered. Equals stay together."""
        least = self._keys[self.first(left)]
        return sum(1 << i for i in members(left) if self._keys[i] == least)


def members(left: int) -> Iterator[int]:
    """The points of a set, in order."""
    place = 0
    while left:
        if left & 1:
            yield place
        left >>= 1
        place += 1
