"""Each stage of a cascade alone, as a user would ship it without one: accuracy, and latency on this machine."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.certification.ladders.measured_points import accuracy_interval
from dynamic.policies.certification.replay import predictions, replay, shares
from dynamic.policies.certification.risks import Sample
from dynamic.policies.costing.costed_point import with_costs
from dynamic.policies.frontier import Frontier
from dynamic.policies.ladder import Interval, Ladder, OperatingPoint
from dynamic.policies.records import CERTIFY, Records
from dynamic.policies.scores import Combiner, softmax


@dataclass(frozen=True)
class Alone:
    """One stage alone, every other exit off: its accuracy on some records, and what one input costs here."""

    name: str
    stage: int
    accuracy: Interval
    mean_ms: float
    p95_ms: float
    cpu_ms: float
    memory_mb: float


def certifying(records: Records) -> Records:
    """The records that chose nothing. All of them, where every one chose."""
    part = records.select(records.part == CERTIFY)
    return part if len(part) else records


def accuracy_word(labelled: bool) -> str:
    """What accuracies are, with labels or without."""
    return "accuracy" if labelled else "agreement with the reference"


def ladder_word(ladder: Ladder) -> str:
    """What the accuracies of a ladder's points are, and of its stages alone."""
    return accuracy_word(all(point.drop is not None for point in ladder.points))


def combiner_of(ladder: Ladder) -> Combiner:
    """How the logits of its stages become answers."""
    return Combiner(ladder.temperature, ladder.score, combine=ladder.combine, backbone=ladder.backbone)


def accuracy_of(right: NDArray[np.bool_], group: NDArray[Any] | None) -> Interval:
    """The share of right answers `[N]` with its 95% interval, as a ladder has it. With groups `[N]`, groups count."""
    return Interval(*accuracy_interval(Sample(len(right), group), right))


def stages_alone(frontier: Frontier, records: Records) -> list[Alone]:
    """Every stage alone, in the order of the cascade. Without labels, accuracy is agreement with the last stage.

    Args:
        frontier: Ladder and costs.
        records: Records of this cascade. Those that certify are used.

    Returns:
        A row for each stage.
    """
    ladder, used = frontier.ladder, certifying(records)
    answers = [predictions(softmax(used.logits[:, s])) for s in range(used.stages)]
    truth = used.label if used.is_labelled and used.label is not None else answers[-1]
    rows = []
    for stage, name in enumerate(ladder.stage_names):
        thresholds = [math.inf] * (used.stages - 1)
        thresholds[stage : stage + 1] = [-math.inf] * (stage < used.stages - 1)  # the last stage has no threshold
        run = replay(used.logits, combiner_of(ladder), thresholds=thresholds, backbone=ladder.backbone)
        accuracy = accuracy_of(answers[stage] == truth, used.group)
        point = OperatingPoint(
            name=name,
            thresholds=tuple(thresholds),
            backbones=(ladder.backbone[stage],),
            target=None,
            risk=0.0,
            bound=None,
            delta=None,
            n=len(used),
            accuracy=accuracy,
            shares=shares(run.stage, used.stages),
        )
        cost = with_costs(point, ladder, frontier.costs)
        rows.append(Alone(name, stage, accuracy, cost.mean_ms[0], cost.p95_ms[0], cost.cpu_ms[0], cost.memory_mb))
    return rows
