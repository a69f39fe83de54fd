"""The contract of sources: a function that reads a few fields of a `Snapshot`, or raises."""

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

# the fields of a Snapshot that sensors read
SensorField = Literal[
    "cpu_load",
    "cpu_cores",
    "cpu_pressure",
    "memory_pressure",
    "frequency_ratio",
    "memory_available_mb",
    "memory_process_mb",
    "battery",
    "battery_mwh",
    "plugged",
    "power_mw",
    "temperature_c",
    "throttled",
]

# ranges of possible values: a value outside is rejected
LIMITS = {
    "cpu_load": (0.0, 1.0),
    "cpu_cores": (0.0, 1e5),
    "cpu_pressure": (0.0, 1.0),
    "memory_pressure": (0.0, 1.0),
    "frequency_ratio": (0.0, 10.0),
    "memory_available_mb": (0.0, 1e12),
    "memory_process_mb": (0.0, 1e12),
    "battery": (0.0, 1.0),
    "battery_mwh": (0.0, 1e9),
    "power_mw": (0.0, 1e9),
    "temperature_c": (-50.0, 150.0),
    # from which `reading_merge` computes cpu_load and cpu_cores
    "host_load": (0.0, 1.0),
    "quota_load": (0.0, 1.0),
    "quota_cores": (0.0, 1e5),
}
FLAGS = ("plugged", "throttled")
NO_ANSWER = "no answer yet"  # the problem of a source that was not read so far


class AbsentError(Exception):
    """This machine has no such sensor, or denies it to this user. The message names the remedy."""


class UnknownLimitError(ValueError):
    """A container may have limits that cannot be determined. The message names the reason and the remedy."""


@dataclass(frozen=True)
class Battery:
    """The result of a battery function that has more than the charge.

    Args:
        level: Charge, 0 to 1.
        plugged: Whether the device is on the mains. None: unknown.
        energy_mwh: Energy in the battery, in milliwatt hours. None: unknown.

    Example:
        >>> monitor = dynamic.Monitor(battery=lambda: dynamic.Battery(0.8, plugged=False, energy_mwh=14_000))
    """

    level: float
    plugged: bool | None = None
    _: KW_ONLY
    energy_mwh: float | None = None


@dataclass(frozen=True)
class LeftOut:
    """A member of a source that is excluded.

    Args:
        name: The member: a battery, a file.
        reason: Why it is excluded.
        usual: Whether this is normal on sound hardware and needs no warning.
    """

    name: str
    reason: str
    usual: bool = False

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass(frozen=True)
class Reading:
    """The result of a source.

    Args:
        fields: Values by field of `Snapshot`. None: unknown for now.
        origin: Where the values come from, in words.
        left_out: Members of the source that are excluded.
    """

    fields: Mapping[str, Any]
    origin: str
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True)
class Source:
    """A source of readings, called once in each period, though not more often than the monitor refreshes.

    Args:
        name: Its name in `Snapshot.missing`.
        read: Reads the fields. Raises AbsentError where there is no sensor, and anything else where reading fails.
        fields: The fields that it reads.
        period_s: Seconds between two calls.
        apart: Whether it may be slow and has its own thread from the start.
    """

    name: str
    read: Callable[[], Reading]
    fields: tuple[str, ...]
    period_s: float = 0.0
    apart: bool = False


@dataclass(frozen=True)
class SourceReport:
    """The state of a source.

    Args:
        name: The source.
        fields: The fields that it reads.
        reading: The current reading. None: there is none.
        problem: Why there is no reading. None where there is one.
        failures: Number of failures so far.
    """

    name: str
    fields: tuple[str, ...]
    reading: Reading | None
    problem: str | None
    failures: int


def checked(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields as plain numbers. Raises ValueError on an impossible value."""
    return {name: None if value is None else _plain(name, value) for name, value in fields.items()}


def sound(reading: Reading) -> Reading:
    """Exclude impossible values from a reading.

    Args:
        reading: The reading of a source.

    Returns:
        A reading of plain numbers. Impossible fields are None and in `left_out`.

    Raises:
        ValueError: No field is left.
        TypeError: No field is left, since a value is no number.
    """
    fields: dict[str, Any] = {}
    bad: list[tuple[LeftOut, Exception]] = []
    for name, value in reading.fields.items():
        try:
            fields[name] = None if value is None else _plain(name, value)
        except (ValueError, TypeError) as error:
            fields[name] = None
            bad.append((LeftOut(name, str(error)), error))
    if bad and all(value is None for value in fields.values()):
        raise bad[0][1]
    return Reading(fields, reading.origin, (*reading.left_out, *(item for item, _ in bad)))


def _plain(name: str, value: Any) -> float | bool:
    """The value of a field as a number or a flag. Raises ValueError on an impossible one."""
    if name in FLAGS:
        if value not in (True, False):
            raise ValueError(f"{name}={value!r} must be True or False")
        return bool(value)
    low, high = LIMITS[name]
    if not low <= float(value) <= high:  # False for NaN
        raise ValueError(f"{name}={value!r} is not between {low:g} and {high:g}")
    return float(value)
