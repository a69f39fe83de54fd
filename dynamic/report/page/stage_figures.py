"""Of each stage: what it costs here, how its scores are distributed, and whether its confidence is right."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.costs import Costs
from dynamic.policies.ladder import Ladder
from dynamic.policies.scores import Combiner, Floats, softmax
from dynamic.report.page.evidence import Evidence

_BINS = 20
_RELIABILITY_BINS = 10  # of equal width (Guo et al. 2017, section 2)


@dataclass(frozen=True)
class StageCost:
    """What one input costs at a stage on this machine, head included."""

    stage: str
    p50_ms: float
    p95_ms: float
    head_ms: float
    cpu_ms: float
    memory_mb: float  # of its backbone


@dataclass(frozen=True)
class ScoreBin:
    """How many inputs have a score in one bin at a stage, rightly and wrongly answered."""

    stage: str
    scaled: bool  # by the temperature
    low: float
    high: float
    right: int
    wrong: int


@dataclass(frozen=True)
class ReliabilityBin:
    """Mean confidence and accuracy of the inputs in one bin of confidence."""

    stage: str
    scaled: bool
    confidence: float
    accuracy: float
    count: int


@dataclass(frozen=True)
class Calibration:
    """The temperature of a stage, and its expected calibration error before and after (Guo et al. 2017, eq. 3)."""

    stage: str
    temperature: float
    error_before: float
    error_after: float


def stage_costs(costs: Costs, ladder: Ladder) -> tuple[StageCost, ...]:
    """The costs of every stage at the smallest batch.

    Args:
        costs: Costs of this machine.
        ladder: The ladder of the same cascade.

    Returns:
        A row for each stage.
    """
    return tuple(
        StageCost(
            name,
            costs.latency_ms[s][0],
            costs.latency_p95_ms[s][0],
            costs.head_ms[s][0],
            costs.cpu_ms[s][0],
            costs.memory_mb[ladder.backbone[s]],
        )
        for s, name in enumerate(ladder.stage_names)
    )


def score_bins(ladder: Ladder, evidence: Evidence) -> tuple[ScoreBin, ...]:
    """Histograms of the score that thresholds are compared with, all exits on, before and after scaling.

    Args:
        ladder: The ladder.
        evidence: The records.

    Returns:
        Bins of every stage.
    """
    rows = []
    for scaled in (False, True):
        temperature = ladder.temperature if scaled else (1.0,) * len(ladder.temperature)
        combiner = Combiner(temperature, ladder.score, combine=ladder.combine, backbone=ladder.backbone)
        state = combiner.start()
        for s, name in enumerate(ladder.stage_names):
            answer, score, state = combiner.add(state, s, evidence.records.logits[:, s])
            right = answer.argmax(axis=1) == evidence.truth
            edges = _edges(ladder, answer.shape[1])
            counts = [np.histogram(score[which & np.isfinite(score)], edges)[0] for which in (right, ~right)]
            rows += [
                ScoreBin(name, scaled, float(edges[i]), float(edges[i + 1]), int(counts[0][i]), int(counts[1][i]))
                for i in range(len(edges) - 1)
            ]
    return tuple(rows)


def _edges(ladder: Ladder, classes: int) -> NDArray[np.float64]:
    if ladder.score == "patience":
        return np.arange(len(ladder.stage_names) + 1, dtype=np.float64) - np.float64(0.5)
    low, high = (-math.log(classes), 0.0) if ladder.score == "negative_entropy" else (0.0, 1.0)
    return np.linspace(low - 1e-6, high + 1e-6, _BINS + 1)  # float32 rounds scores a little outside


def reliability(ladder: Ladder, evidence: Evidence) -> tuple[tuple[ReliabilityBin, ...], tuple[Calibration, ...]]:
    """Whether the probability of each stage alone is the share of right answers, before and after scaling.

    Args:
        ladder: The ladder.
        evidence: The records.

    Returns:
        Bins that hold inputs, and the temperature and errors of each stage.
    """
    bins, errors = [], []
    for s, name in enumerate(ladder.stage_names):
        both = []
        for scaled, temperature in ((False, 1.0), (True, ladder.temperature[s])):
            rows = _bins_of(softmax(evidence.records.logits[:, s], temperature), evidence.truth, name, scaled)
            bins += rows
            total = sum(row.count for row in rows)
            both.append(sum(row.count * abs(row.confidence - row.accuracy) for row in rows) / max(total, 1))
        errors.append(Calibration(name, ladder.temperature[s], *both))
    return tuple(bins), tuple(errors)


def _bins_of(probability: Floats, truth: NDArray[np.int64], stage: str, scaled: bool) -> list[ReliabilityBin]:
    finite = np.isfinite(probability).all(axis=1)
    confidence = probability[finite].max(axis=1).astype(np.float64)
    right = probability[finite].argmax(axis=1) == truth[finite]
    which = np.minimum((confidence * _RELIABILITY_BINS).astype(int), _RELIABILITY_BINS - 1)
    return [
        ReliabilityBin(stage, scaled, float(confidence[own].mean()), float(right[own].mean()), int(own.sum()))
        for number in range(_RELIABILITY_BINS)
        if (own := which == number).any()
    ]
