"""The user's limits."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dynamic.policies.errors import BudgetError
from dynamic.policies.validation.numbers import plain

ON_DRIFT = ("safest", "report")
# what gives way last comes first
PRIORITY = ("memory", "deadline", "battery", "temperature", "latency", "energy", "drop")

_POSITIVE = ("latency_ms", "deadline_ms", "energy_mj", "memory_mb", "battery_duration_s", "cpu_ms")
_FRACTIONS = ("battery_floor", "max_drop", "min_accuracy")
_COLDEST_C, _HOTTEST_C = -50.0, 150.0  # beyond these it is no temperature of a device, or not in degrees Celsius


@dataclass(frozen=True)
class Budget:
    """What inference may use and must keep; None is no limit.

    `latency_ms` of a request at `percentile` (0.95; None: the mean), from arrival to answer, the wait in a queue
    included; `deadline_ms` hard, of each request: a stage that would end later is not begun once an exit has answered,
    and the best answer so far stands, uncertified (a point with its early exits off is not cut before its first
    answer); `energy_mj` of an inference on average; `memory_mb` resident memory of this process (10^6 bytes);
    `battery_floor` 0..1: at or below it, off the mains, only the cheapest point runs; `battery_duration_s`: so long
    from when the policy first sees a budget with this `battery_duration_s`, the battery must not fall to the floor;
    `temperature_c`: inference backs off before it is reached; `max_drop`: accuracy that may be given up against the
    reference for savings; `min_accuracy` measured in calibration; `cpu_ms` of CPU time of an inference on average,
    which every profile holds, where energy needs a meter. It has the priority of energy.

    `on_drift`, once inputs no longer look like those of the calibration: "safest" gives up savings, and of what the
    other limits allow the point of the least promised drop runs; "report" only tells. `priority`: limits of which what
    comes first gives way last, where not all can be met; those that are not named follow in the order of `PRIORITY`.

    Fractions lie in [0, 1], both ends included. Raises BudgetError on a value out of range.
    """

    latency_ms: float | None = None
    percentile: float | None = 0.95
    deadline_ms: float | None = None
    energy_mj: float | None = None
    memory_mb: float | None = None
    battery_floor: float | None = None
    battery_duration_s: float | None = None
    temperature_c: float | None = None
    max_drop: float | None = None
    min_accuracy: float | None = None
    on_drift: str = "safest"
    priority: tuple[str, ...] = PRIORITY
    cpu_ms: float | None = None

    def __post_init__(self) -> None:
        for name in (*_POSITIVE, "percentile", *_FRACTIONS, "temperature_c"):
            object.__setattr__(self, name, plain(getattr(self, name)))
        for name in _POSITIVE:
            _check(name, getattr(self, name), 0.0, math.inf, "a positive number")
        _check("percentile", self.percentile, 0.0, 1.0, "a fraction below 1, 0.95 for the 95th percentile")
        for name in _FRACTIONS:
            value = getattr(self, name)
            if isinstance(value, bool) or value not in (0, 1):  # the ends are what calibration may measure
                _check(name, value, 0.0, 1.0, "a fraction in [0, 1], 0.2 for 20%")
        _check("temperature_c", self.temperature_c, _COLDEST_C, _HOTTEST_C, "degrees Celsius")
        if self.on_drift not in ON_DRIFT:
            raise BudgetError(f"on_drift={self.on_drift!r} must be one of {ON_DRIFT}")
        object.__setattr__(self, "priority", _ordered(self.priority))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self) | {"priority": list(self.priority)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Budget":
        """What `to_json` gave; raises BudgetError on an unknown field."""
        unknown = sorted(set(data) - set(cls.__dataclass_fields__))
        if unknown:
            raise BudgetError(f"a budget has no field {unknown[0]!r}; it has {sorted(cls.__dataclass_fields__)}")
        return cls(**data)


def _ordered(priority: Any) -> tuple[str, ...]:
    """All limits, those that are named first."""
    if isinstance(priority, str) or not isinstance(priority, (tuple, list)):
        raise BudgetError(f"priority={priority!r} must be a tuple of limits, of {PRIORITY}: what gives way last first")
    for name in priority:
        if name not in PRIORITY:
            raise BudgetError(f"priority names {name!r}, which is none of the limits {PRIORITY}")
    if len(set(priority)) < len(priority):
        raise BudgetError(f"priority={tuple(priority)} names a limit twice: it can give way only once")
    return (*priority, *(name for name in PRIORITY if name not in priority))


def _check(name: str, value: Any, low: float, high: float, wanted: str) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low < value < high:
        raise BudgetError(f"{name}={value!r} must be {wanted}, or None for no limit")
