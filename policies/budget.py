"""The user's limits."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from dynamic.policies.errors import BudgetError
from dynamic.policies.validation.numbers import plain
from dynamic.policies.words.short_repr import fields_repr

OnDrift = Literal["safest", "report"]
# the limit that is violated last comes first
LimitName = Literal["memory", "deadline", "battery", "temperature", "latency", "energy", "drop"]
ON_DRIFT: tuple[OnDrift, ...] = get_args(OnDrift)
PRIORITY: tuple[LimitName, ...] = get_args(LimitName)

_POSITIVE = ("latency_ms", "deadline_ms", "energy_mj", "memory_mb", "battery_duration_s", "cpu_ms")
_FRACTIONS = ("battery_floor", "max_drop", "min_accuracy")
_COLDEST_C, _HOTTEST_C = -50.0, 150.0  # beyond these it is no temperature of a device, or not in degrees Celsius


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The limits on time, memory, energy, heat and accuracy of inference.

    None means that there is no limit. Fractions lie in [0, 1], and both ends are included. Where no point meets all
    limits, `priority` decides which of them are violated.

    Args:
        latency_ms: Of a request from its arrival to its answer, the wait in a queue included, at `percentile`.
        percentile: The share of requests that `latency_ms` is about, 0.95 for the 95th percentile. None: the mean.
        deadline_ms: Limit of each request. Once an exit has answered, no stage starts that would end later by its 95th
            percentile. The best answer so far counts then, and it is not certified. The first stage always runs to its
            end, and so does a stage that has started. So an answer can still be late.
        energy_mj: Energy of one inference on average. It needs costs with energy.
        memory_mb: Resident memory of this process, in units of 10^6 bytes.
        battery_floor: Charge from 0 to 1. At or below it, without mains power, only the cheapest point runs.
        battery_duration_s: The battery must remain above `battery_floor` for so long. The time counts from the first
            decision with this value.
        temperature_c: Inference takes less effort before the device reaches this temperature.
        max_drop: Accuracy that may be lost against the reference, 0.01 for one percentage point. With it, the fastest
            point runs instead of the most accurate.
        min_accuracy: The least accuracy in calibration. It also selects the fastest point.
        on_drift: What happens once inputs differ from those of the calibration. "safest" runs the point of the least
            promised drop that the other limits allow. "report" changes no decision.
        priority: Names of limits. The first is violated last. Limits without a name here follow in the usual order.
        cpu_ms: CPU time of one inference on average. Every profile has it. It has the priority of "energy".

    Raises:
        BudgetError: when a value is out of range, or when `priority` has an unknown or repeated name.

    Example:
        >>> budget = dynamic.Budget(latency_ms=80, max_drop=0.01)
        >>> budget.latency_ms, budget.percentile, budget.memory_mb
        (80, 0.95, None)
        >>> dynamic.Budget(priority=("drop", "latency")).priority[:3]
        ('drop', 'latency', 'memory')
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
    on_drift: OnDrift = "safest"
    priority: tuple[LimitName, ...] = PRIORITY
    cpu_ms: float | None = None

    def __post_init__(self) -> None:
        for name in (*_POSITIVE, "percentile", *_FRACTIONS, "temperature_c"):
            object.__setattr__(self, name, plain(getattr(self, name)))
        for name in _POSITIVE:
            _check(name, getattr(self, name), 0.0, math.inf, "a positive number")
        _check("percentile", self.percentile, 0.0, 1.0, "a fraction below 1, 0.95 for the 95th percentile")
        for name in _FRACTIONS:
            value = getattr(self, name)
            if isinstance(value, bool) or value not in (0, 1):  # calibration may measure the ends
                _check(name, value, 0.0, 1.0, "a fraction in [0, 1], 0.2 for 20%")
        _check("temperature_c", self.temperature_c, _COLDEST_C, _HOTTEST_C, "degrees Celsius")
        check_on_drift(self.on_drift)
        object.__setattr__(self, "priority", _ordered(self.priority))

    def __repr__(self) -> str:
        return fields_repr(self)

    def to_json(self) -> dict[str, Any]:
        """All fields as plain JSON types."""
        return asdict(self) | {"priority": list(self.priority)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Budget":
        """The budget that `to_json` described.

        Args:
            data: Values by the name of their field. A field that is absent has its default.

        Returns:
            The budget.

        Raises:
            BudgetError: when a field is unknown or a value is out of range.

        Example:
            >>> dynamic.Budget.from_json({"latency_ms": 20.0}).latency_ms
            20.0
        """
        unknown = sorted(set(data) - set(cls.__dataclass_fields__))
        if unknown:
            raise BudgetError(f"a budget has no field {unknown[0]!r}, it has {sorted(cls.__dataclass_fields__)}")
        return cls(**data)


def check_on_drift(on_drift: str) -> OnDrift:
    """The option. Raises BudgetError where there is none of that name."""
    if on_drift not in ON_DRIFT:
        raise BudgetError(f"on_drift={on_drift!r} must be one of {ON_DRIFT}")
    return on_drift


def _ordered(priority: Any) -> tuple[LimitName, ...]:
    """All limits, those with a name in `priority` first."""
    if isinstance(priority, str) or not isinstance(priority, (tuple, list)):
        raise BudgetError(
            f"priority={priority!r} must be a tuple of names from {PRIORITY}, the limit that is violated last first"
        )
    for name in priority:
        if name not in PRIORITY:
            raise BudgetError(f"priority names {name!r}, which is none of the limits {PRIORITY}")
    if len(set(priority)) < len(priority):
        raise BudgetError(f"priority={tuple(priority)} names a limit twice: give each name once")
    return (*priority, *(name for name in PRIORITY if name not in priority))


def _check(name: str, value: Any, low: float, high: float, expected: str) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low < value < high:
        raise BudgetError(f"{name}={value!r} must be {expected}, or None for no limit")
