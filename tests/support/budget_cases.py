"""Three points of 100, 50 and 10 ms, two networks of 200 and 50 MB, and a device that answers what is decided."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from support.policy_cases import INF, make_costs, make_ladder, make_point

from dynamic.policies.budget import Budget
from dynamic.policies.control.budget_policy import BudgetPolicy, BudgetState
from dynamic.policies.decision import Decision, Feedback
from dynamic.policies.frontier import CostedPoint, Frontier
from dynamic.policies.snapshot import Snapshot

LADDER = make_ladder(
    [
        make_point("reference", (INF, INF), (0.0, 0.0, 1.0), accuracy=0.95, backbones=(1,)),
        make_point("middle", (INF, -INF), (0.0, 1.0, 0.0), accuracy=0.94, target=0.01, risk=0.01),
        make_point("quick", (-INF, INF), (1.0, 0.0, 0.0), accuracy=0.85, target=None, risk=0.1),
    ],
    (0, 0, 1),
)
# efforts of 200, 100 and 20 CPU-ms
COSTS = make_costs([[10], [40], [100]], memory_mb=(50.0, 200.0), cpu_ms=((20.0,), (80.0,), (200.0,)), threads=2)
FRONTIER = Frontier.of(LADDER, COSTS)
POLICY = BudgetPolicy()


def decide(budget: Budget | None = None, state: BudgetState | None = None, **snapshot: Any) -> Decision:
    """What is decided on this snapshot."""
    return POLICY.decide(FRONTIER, budget or Budget(), Snapshot(0, **snapshot), state or POLICY.initial())[0]


def after(*snapshots: Snapshot, budget: Budget | None = None) -> BudgetState:
    """The state after decisions on these."""
    state = POLICY.initial()
    for snapshot in snapshots:
        _, state = POLICY.decide(FRONTIER, budget or Budget(), snapshot, state)
    return state


def name(decision: Decision) -> str:
    """Of the point."""
    return decision.point.name


def feedback(
    latency_ms: float, expected_ms: float, drift: bool = False, point: CostedPoint = FRONTIER.points[0], **seen: Any
) -> Feedback:
    """A request of one input."""
    return Feedback(point, [2], [1], [latency_ms], [expected_ms], 2, Snapshot(0, **seen), drift)


def drifted(state: BudgetState | None = None) -> BudgetState:
    """The state after a request on which drift was noticed."""
    return POLICY.observe(state or POLICY.initial(), feedback(100, 100, drift=True))


def switches(chosen: Sequence[str]) -> int:
    """How often the choice changed."""
    return sum(a != b for a, b in pairwise(chosen))
