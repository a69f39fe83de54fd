"""Whether a budget can be checked on a device at all. It is reported when the budget is set."""

import math

from dynamic.policies.budget import Budget
from dynamic.policies.errors import BudgetError
from dynamic.policies.frontier import Frontier
from dynamic.policies.ladder import OperatingPoint
from dynamic.policies.snapshot import Snapshot

# the field of a snapshot that a limit depends on
FOLLOWS = {
    "memory_mb": "memory_process_mb",
    "battery_floor": "battery",
    "battery_duration_s": "battery",
    "temperature_c": "temperature_c",
}
# the message where that field is not measured, with the limit's value
NO_SENSOR = {
    "memory_mb": "memory_mb={:g} has no sensor: the process's memory is not measured",
    "battery_floor": "battery_floor={:g} has no sensor: the battery is not measured",
    "battery_duration_s": "battery_duration_s={:g} has no sensor: the battery is not measured",
    "temperature_c": "temperature_c={:g} has no sensor: the temperature is not measured",
}


def check_budget(budget: Budget, frontier: Frontier) -> None:
    """Raise BudgetError where the costs of a frontier lack what a limit is about.

    Args:
        budget: The user's limits.
        frontier: The points and their costs on this device.

    Raises:
        BudgetError: when `energy_mj` is set and the costs have no energy.
    """
    costs = frontier.costs
    if budget.energy_mj is not None and costs.energy_mj is None:
        raise BudgetError(
            f"energy_mj={budget.energy_mj:g} cannot be kept: the costs of {costs.engine} on {costs.machine} hold no "
            f"energy (energy_source={costs.energy_source!r}). Profile with a meter, RAPL or active_mw, or limit cpu_ms "
            "instead"
        )


def unmeasured(budget: Budget, snapshot: Snapshot) -> tuple[str, ...]:
    """The limits of a budget that no sensor of the device measures now.

    Args:
        budget: The user's limits.
        snapshot: The newest readings.

    Returns:
        Names of the budget's fields. `battery_floor` and `battery_duration_s` need no battery on mains power.
    """
    names = []
    for name, field in FOLLOWS.items():
        reading = getattr(snapshot, field)
        is_measured = reading is not None and math.isfinite(reading)
        if getattr(budget, name) is not None and not is_measured and not (field == "battery" and snapshot.plugged):
            names.append(name)
    return tuple(names)


def covered(point: OperatingPoint, budget: Budget) -> bool:
    """Whether the certificate of a point covers what the budget requires of its answers.

    Args:
        point: The operating point that answers. Without a bound it covers nothing.
        budget: The limits of the request. A `max_drop` must not be below the promised drop of the point. Without it,
            any bound suffices.

    Returns:
        Whether it does.
    """
    return point.bound is not None and (budget.max_drop is None or point.promised_drop <= budget.max_drop)


def saves(budget: Budget) -> bool:
    """Whether the user accepts a loss of accuracy for savings."""
    return budget.max_drop is not None or budget.min_accuracy is not None
