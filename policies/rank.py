"""Points by one figure, least first: a set of points is the bits of an integer, and a limit costs one search."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence


class Rank:
    """`figures` of the points, which `ties` put in order where they are equal; bit i of a set stands for point i."""

    __slots__ = ("_order", "_sets", "_sorted", "figures")

    def __init__(self, figures: Sequence[float], ties: Sequence[float] | None = None) -> None:
        self.figures = tuple(figures)
        keys = list(zip(self.figures, ties or (0.0,) * len(self.figures), strict=True))
        self._order = sorted(range(len(keys)), key=keys.__getitem__)  # of equals the first comes first
        self._sorted = [self.figures[i] for i in self._order]
        self._sets = [0]
        for i in self._order:
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


def members(left: int) -> Iterator[int]:
    """The points of a set, in order."""
    place = 0
    while left:
        if left & 1:
            yield place
        left >>= 1
        place += 1
