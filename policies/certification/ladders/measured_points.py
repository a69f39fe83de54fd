"""Points of a ladder as they are measured on records, and those that a ladder excludes."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.certification.bounds import betting_p, upper_bound
from dynamic.policies.certification.ladders.chosen_points import ChosenPoint
from dynamic.policies.certification.replay import replay, shares
from dynamic.policies.certification.risks import Risk, Sample
from dynamic.policies.certification.threshold_search import Candidate
from dynamic.policies.ladder import Interval, OperatingPoint
from dynamic.policies.records import Records
from dynamic.policies.scores import Combiner
from dynamic.policies.stage_plan import plan

_TWO_SIDED_95 = 1.959964  # quantile of the normal distribution


def measured_point(
    records: Records,
    reference: NDArray[np.int64],
    *,
    combiner: Combiner,
    risk: Risk,
    chosen: ChosenPoint,
    delta: float,
) -> OperatingPoint:
    """A point as it answers some records. Where a label is missing, its loss is the largest that there may be.

    Args:
        records: N records that did not choose the thresholds.
        reference: Predictions of the reference for them `[N]`.
        combiner: How logits become answers.
        risk: What is bounded.
        chosen: The thresholds.
        delta: The probability that a bound is wrong.

    Returns:
        The operating point.
    """
    run = replay(records.logits, combiner, thresholds=chosen.candidate.thresholds, backbone=records.backbone)
    correct = risk.correct_answers(records, reference)
    loss, unknown = risk.loss(run.prediction == correct, reference == correct), correct < 0
    by_reference = records.on_demand and not risk.needs_labels  # it was asked for some answers alone
    if unknown.any():
        same = run.stage == records.stages - 1 if by_reference else run.prediction == reference
        loss = np.where(unknown, risk.open_losses(same)[0], loss)
    sample = Sample(len(records), records.group)
    labels = records.label if records.is_labelled and not by_reference else None
    right = loss == 0 if by_reference else run.prediction == (reference if labels is None else labels)
    stages = plan(np.array(chosen.candidate.thresholds, np.float32), records.backbone)
    needed = {b for s, b in enumerate(records.backbone) if stages.run[s] and s <= stages.deepest}
    drop = None if labels is None else sample.mean((reference == labels).astype(np.int8) - right)
    return OperatingPoint(
        name=chosen.name,
        thresholds=chosen.candidate.thresholds,
        backbones=tuple(sorted(needed)),
        target=chosen.target,
        risk=sample.mean(loss),
        bound=chosen.bound,
        delta=None if chosen.bound is None else delta,
        n=len(records),
        accuracy=Interval(*accuracy_interval(sample, right)),
        shares=shares(run.stage, records.stages),
        kind=risk.name,
        drop=drop,
    )


def why_excluded(
    point: OperatingPoint, reference: OperatingPoint, *, floor: float | None, risk_limit: float
) -> str | None:
    """The reason why a ladder excludes a measured point. None: it does not."""
    right = point.accuracy.mid
    if floor is not None and right < floor:
        return f"{point.name}: accuracy {right:.4f} is below the floor {floor:.4f}, left out"
    if floor is not None and point.target is None and point.bound is not None and point.bound > risk_limit:
        limit = f"{risk_limit:.4f}, which is what the floor {floor:.4f} allows"
        return f"{point.name}: its bound {point.bound:.4f} is above {limit}, left out"
    if point.name == "best" and right < reference.accuracy.mid:
        return f"best: measured {right:.4f}, below the reference's {reference.accuracy.mid:.4f}, left out"
    return None


def below_floor(cheapest: Candidate, stage_names: Sequence[str], floor: float | None) -> str:
    """The message on the cheapest thresholds, where they do not reach the floor."""
    thresholds = cheapest.thresholds
    stage = next((s for s, threshold in enumerate(thresholds) if threshold == -math.inf), len(thresholds))
    return (
        f"everyone at {stage_names[stage]!r}: risk {cheapest.risk:.4f} where thresholds were chosen does not reach the "
        f"floor {floor:.4f}, left out"
    )


def wilson(successes: int, count: int) -> tuple[float, float, float]:
    """(low, share, high): the 95% score interval of a binomial share (Wilson 1927)."""
    share, z2 = successes / count, _TWO_SIDED_95**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _TWO_SIDED_95 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return max(0.0, middle - half), share, min(1.0, middle + half)


def accuracy_interval(sample: Sample, right: NDArray[Any]) -> tuple[float, float, float]:
    """(low, share, high) of right answers, 95%. For groups it comes from betting on each side.

    Args:
        sample: N records, and their groups.
        right: Whether each answer is right `[N]`.

    Returns:
        Lower end, share and upper end.
    """
    if sample.group is None:
        return wilson(int(right.sum()), sample.count)
    means = sample.unit_means(right)
    low = 1 - upper_bound(lambda target: betting_p(1 - means, target), 0.025, high=1 - 1e-9)
    high = upper_bound(lambda target: betting_p(means, target), 0.025, high=1 - 1e-9)
    return low, float(means.mean()), high
