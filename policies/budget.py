"""The user's limits."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dynamic.policies.errors import BudgetError

ON_DRIFT = ("safest", "report")


@dataclass(frozen=True)
class Budget:
    """What inference may use and must keep; None is no limit.

    `latency_ms` of a request at `percentile` (0.95; None: the mean); `deadline_ms` hard, of each request: once it has
    passed and an exit has answered, no further stage begins, and the best answer so far stands, uncertified (a point
    with its early exits off is not cut before its first answer); `memory_mb` resident memory of this process (10^6
    bytes); `battery_floor` 0..1: at or below it, off the mains, only the cheapest point runs; `max_drop`: accuracy that
    may be given up against the reference for savings. `on_drift`, once inputs no longer look like those of the
    calibration: "safest" gives up savings, and of what the other limits allow the point of the least promised drop
    runs; "report" only tells.

    Raises BudgetError on a value out of range.
    """

    latency_ms: float | None = None
    percentile: float | None = 0.95
    deadline_ms: float | None = None
    memory_mb: float | None = None
    battery_floor: float | None = None
    max_drop: float | None = None
    on_drift: str = "safest"

    def __post_init__(self) -> None:
        for name in ("latency_ms", "deadline_ms", "memory_mb"):
            _check(name, getattr(self, name), 0.0, math.inf, "a positive number")
        _check("percentile", self.percentile, 0.0, 1.0, "a fraction below 1, 0.95 for the 95th percentile")
        for name in ("battery_floor", "max_drop"):
            value = getattr(self, name)
            if value != 0 or value is False:
                _check(name, value, 0.0, 1.0, "a fraction in [0, 1), 0.2 for 20%")
        if self.on_drift not in ON_DRIFT:
            raise BudgetError(f"on_drift={self.on_drift!r} must be one of {ON_DRIFT}")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Budget":
        """What `to_json` gave; raises BudgetError on an unknown field."""
        unknown = sorted(set(data) - set(cls.__dataclass_fields__))
        if unknown:
            raise BudgetError(f"a budget has no field {unknown[0]!r}; it has {sorted(cls.__dataclass_fields__)}")
        return cls(**data)


def _check(name: str, value: Any, low: float, high: float, wanted: str) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low < value < high:
        raise BudgetError(f"{name}={value!r} must be {wanted}, or None for no limit")
