"""The points that are still candidates while one limit after another is applied, and notes on what excluded them."""

from collections.abc import Callable

from dynamic.policies.budget import Budget
from dynamic.policies.control.device_state import DeviceState
from dynamic.policies.control.feasibility import NO_SENSOR
from dynamic.policies.control.reasons import Note
from dynamic.policies.fast_paths import Rank, members
from dynamic.policies.frontier import Frontier

UPGRADE_SHARE = 0.9  # of a limit: a more expensive point than the current one must fit into this share
TOLERANCE = 0.01  # share of a figure beyond its limit that is too little for a change of the point
SMALLEST = 1e-9  # of a figure that another is divided by
_WORTH = "Points of up to {} remain, because a cheaper one would lose more accuracy than it saves"


class CandidateFilter:
    """The `points` that no limit has excluded, as bits (see `Rank`).

    Where no point meets a limit, the limit is violated. The points that come closest to it remain then, and accuracy
    counts among them.

    Args:
        frontier: The points and their costs.
        current: The point that runs now. None: none yet.
    """

    __slots__ = ("current", "excluded_by", "frontier", "notes", "points", "upgrade_notes", "violated_limits")

    def __init__(self, frontier: Frontier, current: int | None) -> None:
        self.frontier, self.current = frontier, current
        self.points = (1 << len(frontier.points)) - 1
        self.violated_limits: list[str] = []
        self.notes: list[Note] = []
        self.upgrade_notes: list[tuple[int, float]] = []  # see `worded`
        self.excluded_by: Limit | None = None  # the limit that excluded the current point

    def apply(self, limit: "Limit", budget: Budget, device: DeviceState, wait: bool) -> None:
        """Apply one limit. `wait` counts the time that this request has waited."""
        limit(self, budget, device, wait)
        if self.excluded_by is None and self.current is not None and not self.points >> self.current & 1:
            self.excluded_by = limit

    def keep(
        self,
        field: str | None,
        rank: Rank,
        limit: float,
        note: Note,
        violation: Note | None = None,
        upgrade_share: float = 1.0,
        beside: float | None = 0.0,
    ) -> bool:
        """Keep the points whose figure is within a limit.

        Where no point is, those of the least figure remain, and more expensive ones that are worth it (see `nearest`).

        Args:
            field: The budget's field that is violated where no point fits. None: none is.
            rank: The points by their figure.
            limit: The largest figure.
            note: The reason where some points are excluded.
            violation: The reason where no point fits. The least figure is its first value.
            upgrade_share: More expensive points than the current one must fit into this share of the limit.
            beside: See `nearest`.

        Returns:
            Whether a point fits.
        """
        fitting = rank.at_most(limit)
        if upgrade_share < 1.0 and self.current is not None:
            fitting &= rank.at_most(limit * upgrade_share) | rank.at_most(rank.figures[self.current])
        narrowed = self.points & fitting
        if narrowed:
            if narrowed != self.points:
                if upgrade_share < 1.0 and self.points & rank.at_most(limit) != narrowed:
                    self.upgrade_notes.append((len(self.notes), upgrade_share))
                self.points = narrowed
                self.notes.append(note)
            return True
        worth = self.nearest(rank, beside)
        if field is not None:
            self.violated_limits.append(field)
        if violation is not None:
            self.notes.append((violation[0], rank.figures[rank.first(self.points)], *violation[1:]))
            self.notes += [] if worth is None else [(_WORTH, worth)]
        return False

    def nearest(self, rank: Rank, beside: float | None) -> float | None:
        """Keep the points that come closest to a limit that none meets.

        One percent more of the figure must bring one percentage point of accuracy. Figures within one percent of the
        least count as the least.

        Args:
            rank: The points by their figure.
            beside: An amount that every figure adds to. None: the figure is an accuracy, and only the least remains.

        Returns:
            The largest figure that is worth its accuracy, or None where the least figure alone is.
        """
        if beside is None:
            self.closest(rank)
            return None
        least = rank.figures[rank.first(self.points)]
        whole, inaccuracy = max(beside + least, SMALLEST), self.frontier.accuracy.figures
        best = min(members(self.points), key=lambda i: (beside + rank.figures[i]) / whole + inaccuracy[i])
        self.points &= rank.at_most(max(rank.figures[best], least + TOLERANCE * whole))
        return rank.figures[best] if rank.figures[best] > least else None

    def prefer(self, rank: Rank, limit: float, note: Note) -> bool:
        """Keep the points whose figure is within a limit where there are any. Returns whether there are."""
        narrowed = self.points & rank.at_most(limit)
        if narrowed and narrowed != self.points:
            self.points = narrowed
            self.notes.append(note)
        return bool(narrowed)

    def closest(self, rank: Rank) -> None:
        """Keep the points of the least figure."""
        self.points = rank.least(self.points)


Limit = Callable[[CandidateFilter, Budget, DeviceState, bool], None]


def unmeasured(name: str, value: float) -> Note:
    """The note of a limit that no sensor measures."""
    return NO_SENSOR[name], value
