"""All limits by name, and those that matter under a budget."""

from collections.abc import Sequence

from dynamic.policies.budget import Budget, LimitName
from dynamic.policies.control.limits.accuracy import drop
from dynamic.policies.control.limits.battery import battery
from dynamic.policies.control.limits.candidate_filter import Limit
from dynamic.policies.control.limits.energy import energy
from dynamic.policies.control.limits.memory import memory
from dynamic.policies.control.limits.temperature import temperature
from dynamic.policies.control.limits.time import deadline, latency

LIMITS: dict[LimitName, Limit] = {
    "memory": memory,
    "deadline": deadline,
    "battery": battery,
    "temperature": temperature,
    "latency": latency,
    "energy": energy,
    "drop": drop,
}
SLOW = frozenset({battery, temperature})  # they control a store of charge or heat, and follow it up and down
_FIELDS: dict[LimitName, tuple[str, ...]] = {
    "deadline": ("deadline_ms",),
    "battery": ("battery_floor", "battery_duration_s"),
    "temperature": ("temperature_c",),
    "latency": ("latency_ms",),
    "energy": ("energy_mj", "cpu_ms"),
}


def active(budget: Budget, names: Sequence[LimitName]) -> tuple[Limit, ...]:
    """The limits of these names that can bind under a budget, in the order of its priority.

    Memory may always be short, and inputs may always drift.
    """
    return tuple(
        LIMITS[name]
        for name in budget.priority
        if name in names and (name not in _FIELDS or any(getattr(budget, field) is not None for field in _FIELDS[name]))
    )
