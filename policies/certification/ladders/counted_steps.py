"""Steps along the thresholds of one exit, and the exact tests of their losses.

One free threshold needs no records that choose. The exits under a threshold t are {score > t}: whatever is drawn, these
sets are the same, they are nested, and their order is known. So all labels certify.

Proof that a bound is wrong with probability at most the level (fixed sequence testing, Angelopoulos et al. 2021,
"Learn then Test", Proposition 2, for a continuum of hypotheses). Let t* be the first threshold, in falling order, whose
risk is above the target. It depends on the population alone. Losses of n records under t* are independent draws of that
risk, so their p-value is at most the level with at most that probability. The walk tests the threshold at which no
record exits, then each at which one more does, and losses do not change in between. So it tests t* itself or ends
before it, and a walk that passes t* has a p-value at most the level there. Lower thresholds are reached through t*.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.certification.answers import Exits
from dynamic.policies.certification.bounds import batch_p, binomial_p, hypergeometric_p, signed_p
from dynamic.policies.certification.risks import ROUNDING, SPARE, Risk

_CLEARANCE = 1 / 16  # of the gap between two scores, so that rounding moves no record past a threshold
_FEW_LOSSES = 6.0  # expected ones, below which the harm bounds the drop better than its own test


@dataclass(frozen=True)
class LossTest:
    """The exact test of a mean loss, from counts.

    Args:
        risk: What is measured.
        count: Records that certify.
        batch: Inputs of the finite batch that the records are drawn from. None: the promise is for future inputs.
        nested: Whether losses only grow along the steps: exits may lose, and inputs that continue never do.
    """

    risk: Risk
    count: int
    batch: int | None = None
    nested: bool = False

    def is_one_sided(self, target: float) -> bool:
        """Whether only losses count, and no gains.

        The drop is at most the harm, whose test needs fewer records. Below some 6 expected losses gains make up for
        less than that: 300 records reject a drop of 0.02 in both ways, 150 by the harm alone. The choice depends on
        nothing that was drawn.
        """
        if self.batch is not None or not self.risk.signed:
            return True
        return self.nested and self.count * target <= _FEW_LOSSES

    def p_value(self, lost: int, gained: int, target: float, level: float) -> float:
        """A p-value for "the risk is above the target", to compare with `level`.

        A finite batch counts losses alone. The drop is at most that, and answers of drawn inputs are right.

        Args:
            lost: Losses of 1.
            gained: Losses of -1.
            target: The risk under the hypothesis.
            level: The level of the test.

        Returns:
            The p-value.
        """
        if self.batch is not None:
            allowed = int(target * self.batch + ROUNDING)
            if self.nested:
                return batch_p(lost, self.count, self.batch, allowed)
            return hypergeometric_p(lost, self.count, self.batch, allowed + 1)
        if not self.is_one_sided(target):
            return signed_p(lost, gained, self.count, target, SPARE * level)
        return binomial_p(lost, self.count, target)

    def most_lost(self, target: float, level: float) -> int:
        """The most losses, without gains, that reject the hypothesis. -1: not even none does."""
        low, high = -1, self.count
        while low < high:
            middle = (low + high + 1) // 2
            if self.p_value(middle, 0, target, level) <= level:
                low = middle
            else:
                high = middle - 1
        return low


@dataclass(frozen=True, eq=False)
class CountedSteps:
    """The thresholds of one exit at which certifying records exit, the highest first.

    Args:
        thresholds: Falling. Equal scores exit together `[K]`.
        lost: Losses of 1 under each `[K]`.
        gained: Losses of -1 under each `[K]`.
        exits: Certifying records that exit under each `[K]`.
        test: The test of the losses.
    """

    thresholds: NDArray[np.float32]
    lost: NDArray[np.intp]
    gained: NDArray[np.intp]
    exits: NDArray[np.intp]
    test: LossTest

    @classmethod
    def of(
        cls, exits: Exits, test: LossTest, within: NDArray[np.float32] | None = None, *, worst: bool = True
    ) -> "CountedSteps":
        """The steps of one exit.

        Args:
            exits: The exit and the last stage, evaluated on the certifying records.
            test: The test of the losses.
            within: Only these thresholds, which do not depend on the certifying records. None: all.
            worst: Whether missing labels count as the largest loss that they may give, and not as the least.

        Returns:
            The steps.
        """
        exit_ = exits.stages[0]
        exit_loss, last_loss = exits.loss if worst else exits.best
        order = exit_.most_confident_first
        score = exit_.score[order]
        ends = np.flatnonzero(np.append(score[:-1] > score[1:], True) & (score > -np.inf))
        lower = np.append(score, np.float32(-np.inf))[ends + 1]
        thresholds = np.append(score[:1], _just_above(lower, score[ends]))  # at the highest score no record exits
        passed = np.append(0, ends + 1)
        if within is not None:
            thresholds = np.sort(within)[::-1]
            passed = np.searchsorted(-score, -thresholds, side="left")  # threshold < score

        def counts(sign: int) -> NDArray[np.intp]:
            here, there = exit_loss[order] == sign, last_loss[order] == sign
            changes = np.cumsum(here.astype(np.intp) - there)
            return np.asarray(there.sum() + np.append(0, changes)[passed], np.intp)

        lost = counts(1)
        if worst and test.batch is not None:
            # nobody answers inputs of the batch that exit and were not asked about: such a step is never rejected
            opened = np.append(0, np.cumsum((exits.loss != exits.best)[0][order]))[passed]
            lost = np.where(opened > 0, test.count + 1, lost)
        return cls(thresholds, lost, counts(-1), passed, test)

    def __len__(self) -> int:
        return len(self.thresholds)

    def first_failure(self, target: float, level: float, start: int = 0) -> int:
        """The number of the first step from `start` on that is not rejected, or of steps where all are."""
        if self.test.is_one_sided(target):
            over = self.lost[start:] > self.test.most_lost(target, level)
            return start + (int(over.argmax()) if over.any() else len(over))
        for at in self._changes[np.searchsorted(self._changes, start, side="right") - 1 :] if len(self) else ():
            lost, gained = int(self.lost[at]), int(self.gained[at])
            if self.test.p_value(lost, gained, target, level) > level:
                return max(int(at), start)
        return len(self)

    @cached_property
    def _changes(self) -> NDArray[np.intp]:
        """Numbers of the steps whose losses differ from those before."""
        differ = (np.diff(self.lost) != 0) | (np.diff(self.gained) != 0)
        return np.flatnonzero(np.append(True, differ))


def _just_above(low: NDArray[np.float32], high: NDArray[np.float32]) -> NDArray[np.float32]:
    """Thresholds under which inputs above `low` exit, but for a clearance, and those at `high` always do."""
    with np.errstate(invalid="ignore"):
        between = (low + _CLEARANCE * (high.astype(np.float64) - low)).astype(np.float32)
    return np.where(np.isfinite(low) & (between < high), between, low)
