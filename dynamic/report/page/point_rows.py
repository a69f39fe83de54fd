"""Operating points as rows of the report, each with a budget that picks it, and stages alone beside them."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dynamic.policies.budget import Budget
from dynamic.policies.control.budget_policy import BudgetPolicy
from dynamic.policies.costing.costed_point import with_costs
from dynamic.policies.frontier import CostedPoint, Frontier
from dynamic.policies.ladder import Interval, Ladder, OperatingPoint
from dynamic.policies.snapshot import Snapshot


@dataclass(frozen=True)
class PointRow:
    """One operating point. Costs are None where the bundle is not profiled.

    Args:
        name: Its name.
        meaning: What it is, in one sentence.
        accuracy: In calibration, with its 95% interval.
        risk: The measured risk.
        bound: The certified bound. None: not certified.
        thresholds: When inputs exit at each stage, as text `[S-1]`.
        shares: Shares of inputs that exit at each stage `[S]`.
        on_frontier: Whether no other point beats it here.
        mean_ms: Mean latency of one input.
        p95_ms: 95th percentile.
        cpu_ms: CPU time.
        memory_mb: Memory of its backbones.
        budget: A budget that picks it, as Python. None: none of one or two limits does.
    """

    name: str
    meaning: str
    accuracy: Interval
    risk: float
    bound: float | None
    thresholds: tuple[str, ...]
    shares: tuple[float, ...]
    on_frontier: bool
    mean_ms: float | None
    p95_ms: float | None
    cpu_ms: float | None
    memory_mb: float | None
    budget: str | None


def point_rows(ladder: Ladder, frontier: Frontier | None, meanings: Mapping[str, str]) -> tuple[PointRow, ...]:
    """All points of a ladder, in its order.

    Args:
        ladder: The ladder.
        frontier: Its costs here. None: not profiled.
        meanings: A sentence for each point, by name.

    Returns:
        The rows.
    """
    return tuple(_row(point, ladder, frontier, meanings[point.name]) for point in ladder.points)


def _row(point: OperatingPoint, ladder: Ladder, frontier: Frontier | None, meaning: str) -> PointRow:
    cost = None if frontier is None else with_costs(point, ladder, frontier.costs)
    own = None if frontier is None else next((p for p in frontier.points if p.name == point.name), None)
    return PointRow(
        name=point.name,
        meaning=meaning,
        accuracy=point.accuracy,
        risk=point.risk,
        bound=point.bound,
        thresholds=tuple(_threshold(value) for value in point.thresholds),
        shares=point.shares,
        on_frontier=own is not None,
        mean_ms=None if cost is None else cost.mean_ms[0],
        p95_ms=None if cost is None else cost.p95_ms[0],
        cpu_ms=None if cost is None else cost.cpu_ms[0],
        memory_mb=None if cost is None else cost.memory_mb,
        budget=None if frontier is None or own is None else _budget_text(budget_for(frontier, own)),
    )


def budget_for(frontier: Frontier, point: CostedPoint) -> Budget | None:
    """A budget under which the policy picks a point on an idle device. None: none that was tried does.

    Args:
        frontier: The frontier.
        point: One of its points.

    Returns:
        The budget with the fewest limits.
    """
    policy, idle = BudgetPolicy(), Snapshot(0.0)
    for budget in _candidates(point):
        decision, _ = policy.decide(frontier, budget, idle, policy.initial())
        if decision.point is point and decision.feasible:
            return budget
    return None


def _candidates(point: CostedPoint) -> Iterator[Budget]:
    """Budgets that may pick a point, simple ones first."""
    drop, limit_ms = _up(point.promised_drop), _up(point.p95_ms[0])
    yield Budget()
    if drop <= 1:
        yield Budget(max_drop=drop)
    yield Budget(latency_ms=limit_ms)
    yield Budget(cpu_ms=_up(point.cpu_ms[0]))
    yield Budget(memory_mb=math.ceil(point.memory_mb) + 1.0)
    if drop <= 1:
        yield Budget(latency_ms=limit_ms, max_drop=drop)


def _up(value: float) -> float:
    """The value with four digits, never below it, nor negative."""
    if value <= 0:
        return 0.0
    digits = 3 - math.floor(math.log10(value))
    return math.ceil(value * 10.0**digits - 1e-9) / 10.0**digits


def _budget_text(budget: Budget | None) -> str | None:
    return None if budget is None else f"dynamic.{budget!r}"


def _threshold(value: float) -> str:
    if math.isinf(value):
        return "exit is off" if value > 0 else "every input exits"
    return f"where the score is above {value:.4f}"
