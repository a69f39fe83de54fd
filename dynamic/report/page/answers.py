"""Of each operating point: where inputs exit, what it gets wrong that the reference got right, and which classes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.certification.replay import Replay, replay
from dynamic.policies.ladder import Interval, Ladder, OperatingPoint
from dynamic.report.page.evidence import Evidence
from dynamic.report.stages_alone import accuracy_of, combiner_of

_EXAMPLES = 6  # easy and hard ones of each stage
_PAIRS, _WRONG, _CLASSES = 8, 8, 40  # rows of a point that are shown


@dataclass(frozen=True)
class Example:
    """One input: its number, its class, the answer, and the score at its exit."""

    record: int
    truth: str
    answer: str
    score: float


@dataclass(frozen=True)
class StageExamples:
    """Inputs that exit at a stage at one point: the most confident ones, and those barely confident enough."""

    point: str
    stage: str
    count: int
    easy: tuple[Example, ...]
    hard: tuple[Example, ...]


@dataclass(frozen=True)
class Confusion:
    """How often a class was answered as another, where the reference was right."""

    truth: str
    answer: str
    count: int


@dataclass(frozen=True)
class ClassDrop:
    """Accuracy of a class under the reference and at a point. The drop is the difference."""

    point: str
    name: str
    count: int
    reference: Interval
    accuracy: Interval
    drop: float


@dataclass(frozen=True)
class PointAnswers:
    """The answers of a point beside those of the reference, over N records.

    Args:
        point: Its name.
        count: N.
        accuracy: Of the point on these records.
        lost: Inputs that the reference answers rightly and the point wrongly.
        gained: Inputs that the point answers rightly and the reference wrongly.
        both_wrong: Inputs that both answer wrongly.
        confusions: Of the lost inputs, the most frequent pairs of classes.
        wrong: Lost inputs, the most confident first.
        stages: Inputs of each stage.
        classes: Accuracy by class, the largest drop first.
        classes_left_out: Classes with records that `classes` lacks.
    """

    point: str
    count: int
    accuracy: Interval
    lost: int
    gained: int
    both_wrong: int
    confusions: tuple[Confusion, ...]
    wrong: tuple[Example, ...]
    stages: tuple[StageExamples, ...]
    classes: tuple[ClassDrop, ...]
    classes_left_out: int


def point_answers(ladder: Ladder, evidence: Evidence, classes: Sequence[str] | None) -> tuple[PointAnswers, ...]:
    """Replay every point.

    Args:
        ladder: The ladder.
        evidence: The records.
        classes: Class names. None: their numbers.

    Returns:
        The answers of each point, in the order of the ladder.
    """
    reference = _replayed(ladder, ladder.points[0], evidence)
    return tuple(_PointReader(ladder, point, evidence, classes, reference).read() for point in ladder.points)


def _replayed(ladder: Ladder, point: OperatingPoint, evidence: Evidence) -> Replay:
    combiner = combiner_of(ladder)
    return replay(evidence.records.logits, combiner, thresholds=point.thresholds, backbone=ladder.backbone)


class _PointReader:
    """Reads what a point answers."""

    def __init__(
        self,
        ladder: Ladder,
        point: OperatingPoint,
        evidence: Evidence,
        classes: Sequence[str] | None,
        reference: Replay,
    ) -> None:
        self._ladder, self._point, self._evidence, self._classes = ladder, point, evidence, classes
        self._run = _replayed(ladder, point, evidence)
        self._right = self._run.prediction == evidence.truth
        self._reference_right = reference.prediction == evidence.truth

    def read(self) -> PointAnswers:
        """All of it."""
        right, reference_right = self._right, self._reference_right
        lost = np.flatnonzero(reference_right & ~right)
        drops = self._drops()
        return PointAnswers(
            point=self._point.name,
            count=len(right),
            accuracy=accuracy_of(right, self._evidence.records.group),
            lost=len(lost),
            gained=int((right & ~reference_right).sum()),
            both_wrong=int((~right & ~reference_right).sum()),
            confusions=self._confusions(lost),
            wrong=self._examples(lost[np.argsort(-self._run.score[lost], kind="stable")][:_WRONG]),
            stages=tuple(self._stage(stage) for stage in range(len(self._ladder.stage_names))),
            classes=tuple(drops[:_CLASSES]),
            classes_left_out=max(len(drops) - _CLASSES, 0),
        )

    def _stage(self, stage: int) -> StageExamples:
        here = np.flatnonzero(self._run.stage == stage)
        rising = here[np.argsort(self._run.score[here], kind="stable")]
        shown = self._evidence.shows_inputs
        return StageExamples(
            self._point.name,
            self._ladder.stage_names[stage],
            len(here),
            self._examples(rising[::-1][:_EXAMPLES]) if shown else (),
            self._examples(rising[:_EXAMPLES]) if shown else (),
        )

    def _confusions(self, lost: NDArray[np.intp]) -> tuple[Confusion, ...]:
        pairs, counts = np.unique(
            np.stack([self._evidence.truth[lost], self._run.prediction[lost]], axis=1), axis=0, return_counts=True
        )
        first = np.argsort(-counts, kind="stable")[:_PAIRS]
        return tuple(Confusion(self._name(*pairs[i][:1]), self._name(*pairs[i][1:]), int(counts[i])) for i in first)

    def _drops(self) -> list[ClassDrop]:
        rows, groups = [], self._evidence.records.group
        for label in np.unique(self._evidence.truth):
            own = self._evidence.truth == label
            group = None if groups is None else groups[own]
            before, after = (accuracy_of(right[own], group) for right in (self._reference_right, self._right))
            rows.append(
                ClassDrop(self._point.name, self._name(label), int(own.sum()), before, after, before.mid - after.mid)
            )
        return sorted(rows, key=lambda row: -row.drop)

    def _examples(self, records: NDArray[np.intp]) -> tuple[Example, ...]:
        return tuple(
            Example(
                int(i),
                self._name(self._evidence.truth[i]),
                self._name(self._run.prediction[i]),
                float(np.nan_to_num(self._run.score[i])),
            )
            for i in records
        )

    def _name(self, label: int) -> str:
        if label < 0:
            return "no finite answer"
        return str(label) if self._classes is None else self._classes[label]
