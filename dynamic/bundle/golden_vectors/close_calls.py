"""A check that no golden decision depends on rounding: on another order of additions, or another language's exp."""

from itertools import pairwise

from dynamic.policies.control.budget_policy import BudgetPolicy
from dynamic.policies.control.limits.candidate_filter import SMALLEST, TOLERANCE, CandidateFilter
from dynamic.policies.control.reasons import Note
from dynamic.policies.fast_paths import Rank, members

CLOSE = 1e-6  # share of a limit by which a figure must differ from it


class CloseCalls(CandidateFilter):
    """A filter of candidates that sets `close` where a figure is so close to its limit that rounding decides.

    Figures that are compared without arithmetic may be equal to their limit.
    """

    close = False

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
        """See `CandidateFilter`."""
        self._compare(rank, limit)
        self._compare(rank, limit * upgrade_share)
        return super().keep(field, rank, limit, note, violation, upgrade_share, beside)

    def nearest(self, rank: Rank, beside: float | None) -> float | None:
        """See `CandidateFilter`."""
        if beside is not None:
            least, inaccuracy = rank.figures[rank.first(self.points)], self.frontier.accuracy.figures
            whole = max(beside + least, SMALLEST)
            self._compare(rank, least + TOLERANCE * whole)
            scores = sorted((beside + rank.figures[i]) / whole + inaccuracy[i] for i in members(self.points))
            if any(0 < b - a <= CLOSE for a, b in pairwise(scores)):
                CloseCalls.close = True
        return super().nearest(rank, beside)

    def prefer(self, rank: Rank, limit: float, note: Note) -> bool:
        """See `CandidateFilter`."""
        self._compare(rank, limit)
        return super().prefer(rank, limit, note)

    def _compare(self, rank: Rank, limit: float) -> None:
        is_exact = rank in (self.frontier.drop, self.frontier.accuracy)
        for figure in rank.figures:
            if abs(figure - limit) <= CLOSE * abs(figure) and not (is_exact and figure == limit):
                CloseCalls.close = True


class CheckedPolicy(BudgetPolicy):
    """The budget policy with this filter."""

    candidate_filter = CloseCalls
