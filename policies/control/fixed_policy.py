"""The policy that never changes its mind: what others are compared with."""

from typing import Any

from dynamic.policies.budget import Budget
from dynamic.policies.decision import Decision, Policy
from dynamic.policies.errors import SettingError
from dynamic.policies.frontier import Frontier
from dynamic.policies.snapshot import Snapshot


class FixedPolicy(Policy):
    """Always the point of this name, whatever the budget and the device."""

    def __init__(self, point: str) -> None:
        self.point = point

    def decide(self, frontier: Frontier, budget: Budget, snapshot: Snapshot, state: Any) -> tuple[Decision, Any]:
        """The point; raises SettingError where the frontier has none of that name."""
        for point in frontier.points:
            if point.name == self.point:
                return Decision(point, reason=f"{self.point!r} always"), state
        names = [p.name for p in frontier.points]
        raise SettingError(f"no point {self.point!r} on this frontier: it has {names}")
