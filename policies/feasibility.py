"""Whether a budget can be kept at all on a device: what is known at once is told at once."""

from dynamic.policies.budget import Budget
from dynamic.policies.errors import BudgetError
from dynamic.policies.frontier import Frontier
from dynamic.policies.ladder import Point


def check_budget(budget: Budget, frontier: Frontier) -> None:
    """Raises BudgetError where the frontier's costs do not say what a limit is about."""
    costs = frontier.costs
    if budget.energy_mj is not None and costs.energy_mj is None:
        raise BudgetError(
            f"energy_mj={budget.energy_mj:g} cannot be kept: the costs of {costs.engine} on {costs.machine} hold no "
            f"energy (energy_source={costs.energy_source!r}); profile where there is a source (a meter, RAPL, or a "
            "model of the processor's power), or leave energy_mj out and limit latency_ms"
        )


def covered(point: Point, budget: Budget) -> bool:
    """Return whether the certificate of a point covers what the budget asks of its answers.

    Args:
        point: The operating point that answers. Without a bound it covers nothing.
        budget: The limits of the request. Where it has a `max_drop`, the drop that the point promises must be within
            it. Without one, any bound will do.
    """
    return point.bound is not None and (budget.max_drop is None or point.promised_drop <= budget.max_drop)
