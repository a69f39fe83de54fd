"""The processor's temperature."""

import sys
from collections.abc import Iterable
from pathlib import Path

from dynamic.sensors.contract import LIMITS, AbsentError, Reading
from dynamic.sensors.files import Found, KernelFile, existing, word
from dynamic.sensors.frequency import from_psutil

_SEARCH_S = 60.0
_PROCESSORS = ("coretemp", "k10temp", "zenpower", "cpu", "soc", "pkg", "core")  # parts of the names of their sensors
_OTHERS = ("nvme", "drive", "bat", "wifi", "phy", "gpu")  # and of what else gets warm


class Temperature:
    """`temperature_c` of the processor's hottest sensor; where none is known as such, of the hottest of the board.

    On Linux from hwmon and, where that has none, thermal zones (psutil searches for them at every call, which takes
    a hundred times as long); elsewhere from psutil. Raises AbsentError where there is none, OSError and ValueError
    where none can be read.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._found = Found(self._find, _SEARCH_S)

    def __call__(self) -> Reading:
        if found := self._found():
            return _hottest(found)
        if sys.platform != "linux" and self._root == Path("/") and (known := from_psutil("sensors_temperatures")):
            value, name = max((entry.current, name) for name, entries in known.items() for entry in entries)
            return Reading({"temperature_c": value}, f"psutil, {name}")
        raise AbsentError("no temperature sensor that the system knows: give Monitor(temperature=function)")

    def _find(self) -> list[KernelFile]:
        sensors: list[tuple[str, KernelFile]] = []
        for chip in sorted((self._root / "sys/class/hwmon").glob("hwmon*")):
            files = existing(*sorted(chip.glob("temp*_input")))
            sensors += [((word(chip / "name") or "").lower(), file) for file in files]
        zones = []
        for zone in sorted((self._root / "sys/class/thermal").glob("thermal_zone*")):
            zones += [((word(zone / "type") or "").lower(), file) for file in existing(zone / "temp")]
        for group in (sensors, zones):
            if chosen := [file for name, file in group if _has(name, _PROCESSORS)]:
                return chosen
        return [file for name, file in (*sensors, *zones) if not _has(name, _OTHERS)]


def _hottest(files: Iterable[KernelFile]) -> Reading:
    low, high = LIMITS["temperature_c"]
    values, problem = [], ""
    for file in files:
        try:
            value = file.number() / 1e3
        except (OSError, ValueError) as error:  # a sensor that sleeps: the others go on
            problem = str(error)
            continue
        if low <= value <= high:
            values.append((value, str(file.path)))
        else:
            problem = f"{file.path}: {value:g} degrees are no temperature of a device"
    if not values:
        raise ValueError(problem)
    value, origin = max(values)
    return Reading({"temperature_c": value}, origin)


def _has(name: str, parts: Iterable[str]) -> bool:
    return any(part in name for part in parts)
