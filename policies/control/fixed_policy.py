"""A policy that always chooses the same point. Other policies are compared with it."""

from typing import Any

from dynamic.policies.budget import Budget
from dynamic.policies.decision import Decision, Policy
from dynamic.policies.errors import SettingError
from dynamic.policies.frontier import Frontier
from dynamic.policies.snapshot import Snapshot


class FixedPolicy(Policy):
    """Runs the point of one name, whatever the budget and the device are.

    Args:
        point: Name of the point, such as "reference" or "cheapest".

    Example:
        >>> policy = dynamic.policies.FixedPolicy("reference")
        >>> policy.point
        'reference'
    """

    def __init__(self, point: str) -> None:
        self.point = point

    def decide(self, frontier: Frontier, budget: Budget, snapshot: Snapshot, state: Any) -> tuple[Decision, Any]:
        """Choose the point of that name.

        Args:
            frontier: The points and their costs on this device.
            budget: Has no influence.
            snapshot: Has no influence.
            state: Has no influence.

        Returns:
            The decision, and the state as it was.

        Raises:
            SettingError: when the frontier has no point of that name.

        Example:
            >>> policy = dynamic.policies.FixedPolicy("reference")
            >>> decision, _ = policy.decide(frontier, dynamic.Budget(), dynamic.Snapshot(0.0), None)
            >>> decision.point.name, decision.reason
            ('reference', "'reference' always runs")
        """
        for point in frontier.points:
            if point.name == self.point:
                return Decision(point, reason=f"{self.point!r} always runs"), state
        names = [p.name for p in frontier.points]
        raise SettingError(f"no point {self.point!r} on this frontier, it has {names}: use one of these names")
