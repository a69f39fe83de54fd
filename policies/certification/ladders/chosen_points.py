"""Thresholds that were chosen for a ladder, before they are measured."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dynamic.policies.certification.threshold_search import Candidate, Search


@dataclass(frozen=True)
class ChosenPoint:
    """Thresholds on their way to the ladder.

    Args:
        name: Of the point.
        candidate: The thresholds.
        target: The risk that they were chosen for. None: for no target.
        bound: Upper bound of the risk. None: there is none.
    """

    name: str
    candidate: Candidate
    target: float | None = None
    bound: float | None = None


def in_order(reference: ChosenPoint, others: Sequence[ChosenPoint]) -> list[ChosenPoint]:
    """The reference, then from expensive to cheap. Equal thresholds are one point of the least target and bound."""
    points: dict[tuple[float, ...], ChosenPoint] = {}
    for point in sorted(others, key=lambda p: math.inf if p.target is None else p.target):
        thresholds = point.candidate.thresholds
        first = points.setdefault(thresholds, point)
        if first.bound is not None and point.bound is not None:
            points[thresholds] = replace(first, bound=min(first.bound, point.bound))
    points.pop(reference.candidate.thresholds, None)
    return [reference, *sorted(points.values(), key=lambda p: -p.candidate.cost)]


def cheapest_within(search: Search, risk_limit: float, margin: float) -> Candidate:
    """The cheapest thresholds whose risk, plus `margin` standard errors, is within a limit."""
    cheapest = search.least_cost()
    if cheapest.risk + margin * cheapest.risk_se <= risk_limit:
        return cheapest
    return search.cheapest(risk_limit, margin) or search.reference


def uncertified_points(
    search: Search, targets: Sequence[float], *, margin: float, risk_limit: float
) -> list[ChosenPoint]:
    """The points that a search alone gives. Their risk is an estimate, without a bound."""
    chosen: list[ChosenPoint] = []
    best = search.most_accurate(margin)
    if best.risk < search.reference.risk:
        chosen.append(ChosenPoint("best", best, 0.0))
    for target in targets:
        cheapest = search.cheapest(target, margin)
        if cheapest is not None:
            chosen.append(ChosenPoint(f"{search.risk.name} {target:g}", cheapest, target))
    chosen.append(ChosenPoint("cheapest", cheapest_within(search, risk_limit, margin)))
    return in_order(ChosenPoint("reference", search.reference, None if search.risk.of_reference else 0.0), chosen)
