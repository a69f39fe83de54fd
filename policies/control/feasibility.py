"""Whether a budget can be kept at all on a device: what is known at once is told at once."""

import math

from dynamic.policies.budget import Budget
from dynamic.policies.errors import BudgetError
from dynamic.policies.frontier import Frontier
from dynamic.policies.ladder import OperatingPoint
from dynamic.policies.snapshot import Snapshot

# of a limit, the field of a snapshot that it follows
FOLLOWS = {
    "memory_mb": "memory_process_mb",
    "battery_floor": "battery",
    "battery_duration_s": "battery",
    "temperature_c": "temperature_c",
}
# and what is said where that is not measured, with the limit's value
NO_SENSOR = {
    "memory_mb": "memory_mb={:g} has no sensor: the process's memory is not measured",
    "battery_floor": "battery_floor={:g} has no sensor: the battery is not measured",
    "battery_duration_s": "battery_duration_s={:g} has no sensor: the battery is not measured",
    "temperature_c": "temperature_c={:g} has no sensor: the temperature is not measured",
}


def check_budget(budget: Budget, frontier: Frontier) -> None:
    """Raises BudgetError where the frontier's costs do not say what a limit is about."""
    costs = frontier.costs
    if budget.energy_mj is not None and costs.energy_mj is None:
        raise BudgetError(
            f"energy_mj={budget.energy_mj:g} cannot be kept: the costs of {costs.engine} on {costs.machine} hold no "
            f"energy (energy_source={costs.energy_source!r}); profile where there is a source (a meter, RAPL, or a "
            "model of the processor's power), or leave energy_mj out and limit latency_ms"
        )


def unmeasured(budget: Budget, snapshot: Snapshot) -> tuple[str, ...]:
    """The limits of a budget that no sensor of the device can follow now.

    Args:
        budget: The user's limits.
        snapshot: The newest readings.

    Returns:
        Names of the budget's fields. A device on the mains needs no battery for `battery_floor` and
        `battery_duration_s`.
    """
    names = []
    for name, field in FOLLOWS.items():
        reading = getattr(snapshot, field)
        is_measured = reading is not None and math.isfinite(reading)
        if getattr(budget, name) is not None and not is_measured and not (field == "battery" and snapshot.plugged):
            names.append(name)
    return tuple(names)


def covered(point: OperatingPoint, budget: Budget) -> bool:
    """Return whether the certificate of a point covers what the budget asks of its answers.

    Args:
        point: The operating point that answers. Without a bound it covers nothing.
        budget: The limits of the request. Where it has a `max_drop`, the drop that the point promises must be within
            it. Without one, any bound will do.
    """
    return point.bound is not None and (budget.max_drop is None or point.promised_drop <= budget.max_drop)
