"""Paths of thresholds that walks test in order: those of a search, and those of one exit."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.certification.answers import Exits
from dynamic.policies.certification.ladders.counted_steps import CountedSteps, LossTest
from dynamic.policies.certification.risks import Evidence
from dynamic.policies.certification.threshold_search import Candidate, Search
from dynamic.policies.ladder import Missing

NINE_OF_TEN = 1.2816  # quantile of the normal distribution
_FORECASTS = 10  # steps that are asked how many records they need
_MOST_STEPS = 2000  # certifying records. Beyond, thresholds are quantiles of scores that chose
_QUANTILES = 250  # of these scores


class Steps(Protocol):
    """Tests in the order in which a walk takes them, from the safest thresholds to the cheapest."""

    def __len__(self) -> int:
        """Number of steps."""
        ...

    def first_failure(self, target: float, level: float, start: int) -> int:
        """The number of the first step from `start` on that is not rejected, or of steps where all are."""
        ...


class StepPath(Steps, Protocol):
    """Steps with their thresholds."""

    @property
    def best(self) -> Steps:
        """The steps if every missing label gave the least loss."""
        ...

    def candidate(self, step: int) -> Candidate:
        """The thresholds of a step, with cost and risk on the records that chose."""
        ...

    def missing(self, target: float, level: float) -> Missing:
        """What a target without a certified point lacks."""
        ...

    def evidence(self, candidate: Candidate) -> Evidence:
        """What the certifying records say of some thresholds."""
        ...

    def open_rows(self, step: int) -> NDArray[np.intp]:
        """Certifying records whose label a step needs, in the order in which steps up to it need them."""
        ...


@dataclass(frozen=True, eq=False)
class EvidenceSteps:
    """Steps that are tested by the evidence on each of them."""

    steps: Sequence[Evidence]

    def __len__(self) -> int:
        return len(self.steps)

    def first_failure(self, target: float, level: float, start: int) -> int:
        """See `Steps`."""
        while start < len(self.steps) and self.steps[start].p_value(target, level) <= level:
            start += 1
        return start


@dataclass(frozen=True, eq=False)
class SearchedPath(EvidenceSteps):
    """The path of a search.

    Args:
        steps: Evidence on each step.
        candidates: Its thresholds.
        evidence: Thresholds -> evidence of the certifying records on them.
    """

    candidates: Sequence[Candidate]
    evidence: Callable[[Candidate], Evidence]

    @classmethod
    def of(cls, candidates: Sequence[Candidate], evidence: Callable[[Candidate], Evidence]) -> "SearchedPath":
        """The path with the evidence on its thresholds."""
        return cls([evidence(candidate) for candidate in candidates], candidates, evidence)

    @property
    def best(self) -> Steps:
        """See `StepPath`."""
        return EvidenceSteps([step.best for step in self.steps])

    def candidate(self, step: int) -> Candidate:
        """See `StepPath`."""
        return self.candidates[step]

    def missing(self, target: float, level: float) -> Missing:
        """See `StepPath`. The first step may be unlucky, so a few later ones are asked too."""
        return forecast(self.steps[:_FORECASTS], target, level)

    def open_rows(self, step: int) -> NDArray[np.intp]:
        """See `StepPath`."""
        rows: dict[int, None] = {}
        for evidence in self.steps[: step + 1]:
            if evidence.opened is not None:
                rows |= dict.fromkeys(np.flatnonzero(evidence.opened).tolist())
        return np.array(list(rows), np.intp)


class OneExitPath:
    """All thresholds of the only exit. A walk starts at the highest one, which is the safest.

    A walk starts elsewhere where the records are too few to show a risk below the target, even without a loss. It does
    so too where the reference loses, because the first exits may gain there. Then it starts at the threshold of the
    least expected risk, which records choose that certify nothing.

    Args:
        exits: The exit and the last stage, evaluated on the certifying records. All other exits are off.
        test: The test of their losses.
        stages: Number of stages.
        search: The search on the records that chose.
        evidence: Thresholds -> evidence of the certifying records on them.
        margin: Standard errors that the search adds to a risk. None: labels were asked for on demand, so that no record
            chose. Every walk then starts at the highest threshold and takes every step.
        level: Of each target at the start.
    """

    def __init__(
        self,
        exits: Exits,
        test: LossTest,
        *,
        stages: int,
        search: Search,
        evidence: Callable[[Candidate], Evidence],
        margin: float | None,
        level: float,
    ) -> None:
        self._search, self.evidence, self._level, self._exits = search, evidence, level, exits
        self._stage, self._stages = exits.stages[0].stage, stages
        within = None
        if margin is not None and test.count > _MOST_STEPS and not test.nested:
            within = search.thresholds(self._stage, _QUANTILES)
        self.steps = CountedSteps.of(exits, test, within)
        self._margin = margin
        self._starts: dict[float, int] = {}

    def __len__(self) -> int:
        return len(self.steps)

    def first_failure(self, target: float, level: float, start: int) -> int:
        """See `Steps`."""
        first = max(start, self._start(target))
        at = self.steps.first_failure(target, level, first)
        return start if at == first else at

    def candidate(self, step: int) -> Candidate:
        """See `StepPath`."""
        limits = [math.inf] * (self._stages - 1)
        limits[self._stage] = float(self.steps.thresholds[step])
        return self._search.candidate(limits)

    def missing(self, target: float, level: float) -> Missing:
        """See `StepPath`."""
        count = len(self.steps)
        chosen = sorted({math.ceil(count * part / _FORECASTS) - 1 for part in range(1, _FORECASTS + 1)} - {-1})
        return forecast([self.evidence(self.candidate(step)) for step in chosen], target, level)

    def open_rows(self, step: int) -> NDArray[np.intp]:
        """See `StepPath`."""
        order, opened = self._exits.stages[0].most_confident_first, self._exits.loss != self._exits.best
        first = order[: self.steps.exits[step]]
        return np.concatenate([first[opened[0][first]], order[opened[1][order]] if opened[1].any() else first[:0]])

    @cached_property
    def best(self) -> CountedSteps:
        """See `StepPath`."""
        return CountedSteps.of(self._exits, self.steps.test, worst=False)

    def _start(self, target: float) -> int:
        """Number of the step at which the walk of a target starts."""
        if target not in self._starts:
            self._starts[target] = 0
            unreachable = self.steps.test.most_lost(target, self._level) < 0
            if self._margin is not None and (unreachable or self.steps.test.risk.of_reference):
                safest = self._search.safest_threshold(self._stage, self._margin)
                falling = -self.steps.thresholds.astype(np.float64)
                self._starts[target] = int(np.searchsorted(falling, -safest))
        return self._starts[target]


def forecast(steps: Sequence[Evidence], target: float, level: float) -> Missing:
    """The target with the fewest records that would do for one of some steps."""
    units = steps[0].sample.units if steps else 0
    forecasts = [(step.needed(target, level), number) for number, step in enumerate(steps)]
    enough = [(needed, number) for needed, number in forecasts if needed is not None and needed > units]
    if not enough:
        return Missing(target, steps[0].mean if steps else None, None)
    needed, number = min(enough)
    return Missing(target, steps[number].mean, needed, steps[number].needed(target, level, NINE_OF_TEN))
