"""The contract of sources: one is called now and then, and tells a few fields of a Snapshot, or raises."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

# what no device can be beyond; a value outside is refused
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
    # of which `merging` makes cpu_load and cpu_cores
    "host_load": (0.0, 1.0),
    "quota_load": (0.0, 1.0),
    "quota_cores": (0.0, 1e5),
}
FLAGS = ("plugged", "throttled")
NO_ANSWER = "no answer yet"  # the problem of a source that was not read so far


class AbsentError(Exception):
    """This machine has no such sensor, or keeps it from this user; the message names the remedy."""


class UnknownLimitError(ValueError):
    """A container may have limits that cannot be determined. The message says why and names the remedy."""


@dataclass(frozen=True)
class Battery:
    """For a battery function that knows more than the charge.

    `level` 0..1; `plugged`: whether on the mains; `energy_mwh` left in it.
    """

    level: float
    plugged: bool | None = None
    energy_mwh: float | None = None


@dataclass(frozen=True)
class LeftOut:
    """A member of a source that does not count: its `name` (a battery, a file) and the `reason`.

    `usual`: so it is on sound hardware, and nobody needs a warning.
    """

    name: str
    reason: str
    usual: bool = False

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass(frozen=True)
class Reading:
    """Fields of a Snapshot, None where it cannot be told now, and `origin`: where they came from, in words.

    `left_out`: members of the source that were not believed, or did not answer, while others did.
    """

    fields: Mapping[str, Any]
    origin: str
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True)
class Source:
    """`read` tells `fields`; it is called once in `period_s`, though never more often than the monitor refreshes.

    `read` raises AbsentError where there is nothing to read, and anything at all where that fails. `apart`: it may
    take its time, so it gets a thread of its own from the start.
    """

    name: str
    read: Callable[[], Reading]
    fields: tuple[str, ...]
    period_s: float = 0.0
    apart: bool = False


@dataclass(frozen=True)
class SourceReport:
    """How a source is doing: the `reading` that counts now, or the `problem`; how often it has failed so far."""

    name: str
    fields: tuple[str, ...]
    reading: Reading | None
    problem: str | None
    failures: int


def checked(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields as plain numbers; raises ValueError on a value that cannot be."""
    return {name: None if value is None else _plain(name, value) for name, value in fields.items()}


def sound(reading: Reading) -> Reading:
    """The reading with plain numbers: a field that cannot be is None and left out, while others are believed.

    Args:
        reading: What a source read.

    Returns:
        A reading whose fields are in range.

    Raises:
        ValueError: Nothing is left to believe.
        TypeError: Nothing is left to believe, since a value is no number.
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
    """A field's value as a number or a flag. Raises ValueError where it cannot be."""
    if name in FLAGS:
        if value not in (True, False):
            raise ValueError(f"{name}={value!r} must be True or False")
        return bool(value)
    low, high = LIMITS[name]
    if not low <= float(value) <= high:  # False for NaN
        raise ValueError(f"{name}={value!r} is not between {low:g} and {high:g}")
    return float(value)
