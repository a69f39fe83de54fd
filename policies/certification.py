"""From records to a ladder.

Thresholds are chosen jointly on the search part of the records and measured on the other. What stands here is search
and measurement: no bound is claimed, and the ladder says `certified=False`.
"""

import math
from collections.abc import Sequence

import numpy as np

from dynamic.policies.errors import BudgetError, CalibrationError
from dynamic.policies.ladder import Ladder, Point
from dynamic.policies.plan import plan
from dynamic.policies.records import CERTIFY, SEARCH, Records, check_usable
from dynamic.policies.replay import replay, shares
from dynamic.policies.scores import Combiner
from dynamic.policies.search import Candidate, Search
from dynamic.policies.temperature import fit_temperatures

MAX_DROPS = (0.0, 0.005, 0.01, 0.02, 0.05)
_TWO_SIDED_95 = 1.959964  # quantile of the normal distribution


def certify(
    records: Records,
    max_drops: Sequence[float] = MAX_DROPS,
    delta: float = 0.1,
    *,
    combine: str = "backbones",
    score: str = "max_probability",
    body_cost: Sequence[float] | None = None,
    head_cost: Sequence[float] | None = None,
    margin: float = 1.0,
) -> Ladder:
    """A ladder of operating points: the reference, the most accurate, one for each of `max_drops`, the cheapest.

    Drops are accuracy lost to the reference (the last backbone alone), in [0, 1). Temperatures and thresholds see
    part 0 of the records only; risk and accuracy are measured on part 1 (on part 0 where part 1 is empty). Costs
    `[S]` of stage bodies and heads are multiply-adds unless given. `margin`: standard errors of the paired
    difference kept between a point's drop and its target: thresholds that meet a target exactly where they were
    chosen miss it half of the time elsewhere. `delta` is kept for the bounds; **none is computed yet**.

    Raises CalibrationError without records, labels or a second class; BudgetError on a drop or delta out of range.
    """
    for drop in max_drops:
        if not 0 <= drop < 1:
            raise BudgetError(f"max_drops holds {drop}; a drop is a fraction of accuracy in [0, 1), 0.01 for one point")
    if not 0 < delta < 1:
        raise BudgetError(f"delta={delta} must lie in (0, 1), e.g. 0.1")
    check_usable(records)
    if records.label is None:
        raise CalibrationError("a drop in accuracy needs labels; give a loader of (inputs, labels)")
    temperature = fit_temperatures(records)
    combiner = Combiner(temperature, score, combine, records.backbone)
    search = Search(records.select(records.part == SEARCH), combiner, body_cost, head_cost)

    nobody = tuple([math.inf] * (records.stages - 1))
    chosen: list[tuple[str, float | None, tuple[float, ...]]] = [("reference", 0.0, nobody)]
    candidates: list[tuple[float, str, float | None, Candidate]] = []
    best = search.most_accurate(margin)
    if best.drop < 0:
        candidates.append((best.cost, "best", 0.0, best))
    for drop in sorted(set(max_drops)):
        found = search.cheapest(drop, margin)
        if found is not None:
            candidates.append((found.cost, f"drop {drop:g}", drop, found))
    least = search.least_cost()
    candidates.append((least.cost, "cheapest", None, least))
    for _, name, target, candidate in sorted(candidates, key=lambda c: -c[0]):
        if all(candidate.thresholds != known for _, _, known in chosen):
            chosen.append((name, target, candidate.thresholds))

    held_out = records.select(records.part == CERTIFY)
    measured = held_out if len(held_out) else records
    points = tuple(_measure(measured, combiner, *entry) for entry in chosen)
    return Ladder(
        temperature=temperature,
        score=score,
        combine=combine,
        backbone=records.backbone,
        stage_names=records.stage_names,
        points=points,
        fingerprint=records.fingerprint,
        certified=False,
    )


def _measure(
    records: Records, combiner: Combiner, name: str, target: float | None, thresholds: tuple[float, ...]
) -> Point:
    nobody = [math.inf] * (records.stages - 1)
    reference = replay(records.logits, combiner, nobody, records.backbone).prediction == records.label
    found = replay(records.logits, combiner, thresholds, records.backbone)
    correct = found.prediction == records.label
    todo = plan(np.array(thresholds, np.float32), records.backbone)
    needed = {b for s, b in enumerate(records.backbone) if todo.run[s] and s <= todo.deepest}
    return Point(
        name=name,
        thresholds=thresholds,
        backbones=tuple(sorted(needed)),
        target=target,
        risk=float(reference.mean() - correct.mean()),
        bound=None,
        delta=None,
        n=len(records),
        accuracy=wilson(int(correct.sum()), len(records)),
        shares=shares(found.stage, records.stages),
    )


def wilson(successes: int, count: int) -> tuple[float, float, float]:
    """(low, share, high): the 95% score interval of a binomial share (Wilson 1927)."""
    share, z2 = successes / count, _TWO_SIDED_95**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _TWO_SIDED_95 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return max(0.0, middle - half), share, min(1.0, middle + half)
