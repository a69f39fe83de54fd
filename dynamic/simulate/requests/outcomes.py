"""Outcomes of every record at every operating point, computed before the simulation begins."""

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.certification.replay import predictions, replay
from dynamic.policies.control.remaining_time import ahead_ms
from dynamic.policies.costing.latency import ONE_SIDED_95
from dynamic.policies.frontier import CostedPoint, Frontier
from dynamic.policies.records import Records
from dynamic.policies.scores import Combiner
from dynamic.policies.stage_plan import StagePlan


@dataclass(frozen=True, slots=True)
class Check:
    """A time at which an engine compares with the deadline: it has an answer, and would begin another stage.

    Args:
        answered: The stage of the answer.
        begins_ms: Time of the check, as profiled.
        ahead_ms: Time from the check to the next answer, by 95th percentiles as profiled.
    """

    answered: int
    begins_ms: float
    ahead_ms: float


class Outcome:
    """One operating point of a frontier on N records of S stages. Lists, since the loop reads single elements.

    `stage [N]` is the exit stage of each record, `on` the stages that answer. `path_ms [S]` is the profiled time to the
    answer of each stage. `median_ms [S]` and `sigma [S]` describe the lognormal time to it, by matching two moments
    (Fenton 1960). `checks [S]` are the checks under a deadline until the answer of a stage. `longest_ahead_ms [S]` is
    the largest `ahead_ms` of them (-inf: no check). `right [N]` is the correctness at `stage` (None: no labels). Times
    are those of inputs of the example's size. `at` gives those of another.
    """

    def __init__(self, costed: CostedPoint, number: int, frontier: Frontier, records: Records, noise: float) -> None:
        ladder = frontier.ladder
        self._frontier, self._noise = frontier, noise
        self._sized: dict[int | None, Outcome] = {}  # by size of input: they share it
        self.point, self.number, self.name = costed, number, costed.name
        self._records, self._backbone = records, ladder.backbone
        self._combiner = Combiner(ladder.temperature, ladder.score, combine=ladder.combine, backbone=ladder.backbone)
        played = replay(
            records.logits, self._combiner, thresholds=costed.operating_point.thresholds, backbone=ladder.backbone
        )
        self.stages = played.stage
        self.stage: list[int] = played.stage.tolist()
        self.right = played.prediction == records.label if records.is_labelled else None
        self.on = [stage for stage, on in enumerate(costed.plan.on) if on]
        self._answers: NDArray[np.bool_] | None = None
        self._sized[None] = self
        self._take_times(None)

    def at(self, size: int | None) -> "Outcome":
        """The same for inputs of another size, which take other times. None: that of the example."""
        sized = self._sized.get(size)
        if sized is None:
            sized = self._sized[size] = copy(self)
            sized._take_times(size)
        return sized

    def _take_times(self, size: int | None) -> None:
        """Set the times to those of inputs of a size."""
        costed, costs, stages = self.point, self._frontier.costs_at(size), range(self._records.stages)
        self.path_ms = [self._frontier.path_ms(costed, stage, rows=1, size=size) for stage in stages]
        self.checks = _checks(self.path_ms, costed.plan, ahead_ms(costs, costed.plan, 1))
        self.longest_ahead_ms = [max((c.ahead_ms for c in checks), default=-math.inf) for checks in self.checks]
        spread = [
            costs.at(p95, 1) / costs.at(median, 1) if costs.at(median, 1) > 0 else 1.0
            for median, p95 in zip(costs.latency_ms, costs.latency_p95_ms, strict=True)
        ]
        self.median_ms, self.sigma = _lognormal(self.path_ms, costs.at(costs.call_ms, 1), spread, self._noise)

    def right_at(self, stage: NDArray[np.int64], record: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """Whether the answers of some records are right at other stages than theirs.

        Args:
            stage: Stages `[M]`, all of them on.
            record: Records `[M]`.

        Returns:
            Correctness `[M]`. None without labels.
        """
        if not self._records.is_labelled:
            return None
        if self._answers is None:
            records, state = self._records, self._combiner.start()
            self._answers = np.zeros((len(records), records.stages), np.bool_)
            for number in self.on:
                answer, _, state = self._combiner.add(state, number, records.logits[:, number])
                self._answers[:, number] = predictions(answer) == records.label
        right: NDArray[np.bool_] = self._answers[record, stage]
        return right


def outcomes(frontier: Frontier, records: Records, noise: float) -> dict[CostedPoint, Outcome]:
    """The outcomes of all points of a frontier."""
    return {point: Outcome(point, i, frontier, records, noise) for i, point in enumerate(frontier.points)}


def _checks(path_ms: Sequence[float], todo: StagePlan, ahead: Sequence[float]) -> list[tuple[Check, ...]]:
    """For each stage, the checks until its answer, those of the stages before included."""
    checks: list[tuple[Check, ...]] = []
    so_far: tuple[Check, ...] = ()
    answered = -1
    for stage in range(len(path_ms)):
        if todo.run[stage] and answered >= 0:
            so_far = (*so_far, Check(answered, path_ms[stage - 1], ahead[stage]))
        checks.append(so_far)
        if todo.on[stage]:
            answered = stage
    return checks


def _lognormal(
    path_ms: Sequence[float], call_ms: float, spread: Sequence[float], noise: float
) -> tuple[list[float], list[float]]:
    """Median and sigma of the time to each stage.

    Args:
        path_ms: Time to each stage `[S]`.
        call_ms: Time of a call beside its stages.
        spread: p95 over median of each stage `[S]`.
        noise: Factor on the spread.
    """
    median_ms, sigma = [], []
    mean, variance, before = call_ms, 0.0, call_ms
    for path, ratio in zip(path_ms, spread, strict=True):
        stage_ms, before = max(path - before, 0.0), path
        square = (noise * math.log(max(ratio, 1.0)) / ONE_SIDED_95) ** 2
        mean += stage_ms * math.exp(square / 2)
        variance += stage_ms**2 * math.exp(square) * math.expm1(square)
        relative = variance / mean**2 if mean > 0 else 0.0
        median_ms.append(mean / math.sqrt(1 + relative))
        sigma.append(math.sqrt(math.log1p(relative)))
    return median_ms, sigma
