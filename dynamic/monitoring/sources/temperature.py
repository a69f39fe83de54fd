"""The temperature of the processor."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dynamic.monitoring.contract import AbsentError, LeftOut, Reading
from dynamic.monitoring.kernel.kernel_files import CachedSearch, KernelFile, existing, word
from dynamic.monitoring.kernel.members import Answers, ask
from dynamic.monitoring.sources.frequency import from_psutil

_SEARCH_S = 60.0
_PROCESSORS = ("coretemp", "k10temp", "zenpower", "cpu", "soc", "pkg", "core")  # parts of the names of their sensors
_OTHERS = ("nvme", "drive", "bat", "wifi", "phy", "gpu")  # and of what else gets warm
_LABELS = (
    "cpu",
    "peci",
    "package",
    "core",
    "tdie",
    "tctl",
    "tccd",
)  # a board's chip: of what the processor's is called

# A chip with nothing attached to it shows the end of its range: -128, -40 or 127 degrees. Processors stop before.
_COLDEST_C, _HOTTEST_C = -40.0, 126.0
_LEAST_C = 0.2  # a smaller number is in whole degrees, or a percentage, or nothing at all
_OVER_C = 20.0  # above what the chip calls critical nothing runs any more
_CRITICAL_C = (60.0, 125.0)  # other critical values are registers that were never written


@dataclass(frozen=True)
class _Sensor:
    """A file in thousandths of a degree. `label` is the name of a chip's channel. It may have a fault flag and critical
    value.
    """

    file: KernelFile
    label: str = ""
    fault: KernelFile | None = None
    critical_c: float | None = None

    def temperature_c(self) -> float:
        """The temperature. Raises OSError where the sensor does not answer, ValueError on an impossible value."""
        if self.fault is not None and self.fault.is_set():
            raise ValueError(f"{self.fault.path.name} reports a fault")
        return possible(self.file.number() / 1e3, self.critical_c)


_Named = tuple[str, _Sensor]
_Groups = tuple[tuple[_Named, ...], ...]


class Temperature:
    """`temperature_c` of the hottest sensor of the processor. Where none is named so, of the hottest of the board.

    Sensors with a fault or an impossible value are excluded. The source on Linux is hwmon or else thermal zones. psutil
    searches for them at every call, which takes a hundred times as long. Elsewhere the source is psutil. Raises
    AbsentError where there is no sensor, OSError or ValueError where none can be read.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._sensors = CachedSearch(self._find, _SEARCH_S)

    def __call__(self) -> Reading:
        groups, left_out = self._sensors()
        error: OSError | ValueError | None = None
        for group in groups:  # the best first: the next only where it has no valid value
            answers = ask((name, sensor.temperature_c) for name, sensor in group)
            left_out = (*left_out, *answers.left_out)
            error = error or answers.error
            if answers.values:
                value, origin = max((value, name) for name, value in answers.values)
                return Reading({"temperature_c": value}, origin, tuple(dict.fromkeys(left_out)))
        if error is not None:
            raise error
        if sys.platform != "linux" and self._root == Path("/") and (chips := from_psutil("sensors_temperatures")):
            entries = [(name, entry.current) for name, entries in chips.items() for entry in entries]
            answers = ask((name, partial(possible, current)) for name, current in entries)
            value, name = max((value, name) for name, value in answers.needed())
            return Reading({"temperature_c": value}, f"psutil, {name}", answers.left_out)
        raise AbsentError("no temperature sensor on this system: give Monitor(temperature=function)")

    def _find(self) -> tuple[_Groups, tuple[LeftOut, ...]]:
        """Sensors in groups, the best first, and what is excluded."""
        chips = _names((self._root / "sys/class/hwmon").glob("hwmon*"), "name")
        zones = _names((self._root / "sys/class/thermal").glob("thermal_zone*"), "type")
        if not chips.values and not zones.values and (error := chips.error or zones.error) is not None:
            raise error
        left_out = [*chips.left_out, *zones.left_out]
        sensors: list[tuple[str, _Named]] = []
        for folder, kind in chips.values:
            channels = [_channel(file) for file in existing(*sorted(Path(folder).glob("temp*_input")))]
            dies = [s for s in channels if s.label == "tdie"]
            for sensor in channels:
                # on some processors Tctl is 10, 20 or 27 degrees more, to make the fans run faster
                if dies and sensor.label == "tctl":
                    left_out.append(LeftOut(f"{sensor.file.path} (Tctl)", "the chip shows Tdie too", usual=True))
                else:
                    sensors.append((kind, (str(sensor.file.path), sensor)))
        places = [
            (kind, (str(file.path), _Sensor(file)))
            for folder, kind in zones.values
            for file in existing(Path(folder) / "temp")
        ]
        board = [(kind, named) for kind, named in (*sensors, *places) if not _has(kind, _OTHERS)]
        groups = (
            tuple(named for kind, named in sensors if _has(kind, _PROCESSORS)),
            tuple(named for kind, named in places if _has(kind, _PROCESSORS)),
            tuple(named for _, named in board if _has(named[1].label, _LABELS)),
            tuple(named for _, named in board),
        )
        return groups, tuple(left_out)


def possible(value_c: float, critical_c: float | None = None) -> float:
    """Check that a running device can have a temperature.

    Args:
        value_c: The value of a sensor.
        critical_c: The critical value of its chip. None: unknown.

    Returns:
        The same value.

    Raises:
        ValueError: No running device has such a temperature.
    """
    if not _COLDEST_C < value_c < _HOTTEST_C:
        raise ValueError(f"{value_c:g} degrees are impossible for a device: the sensor may not be connected")
    if abs(value_c) < _LEAST_C:
        raise ValueError(f"{value_c:g} degrees: the unit is not a thousandth of a degree, or it does not measure")
    if critical_c is not None and value_c > critical_c + _OVER_C:
        raise ValueError(f"{value_c:g} degrees, while {critical_c:g} are critical: no device would run")
    return value_c


def _names(folders: Iterable[Path], file: str) -> Answers[str]:
    """The name of each folder in its `file`, in lower case. Without a file the name is empty."""
    return ask((str(folder), partial(_name, folder / file)) for folder in sorted(folders))


def _name(path: Path) -> str:
    return (word(path) or "").lower()


def _channel(file: KernelFile) -> _Sensor:
    """A channel of a chip, without the attributes that do not answer."""
    name = file.path.name.removesuffix("_input")
    texts = dict(ask((part, partial(word, file.path.with_name(f"{name}_{part}"))) for part in ("label", "crit")).values)
    fault = existing(file.path.with_name(f"{name}_fault"))
    critical = texts.get("crit", "")
    critical_c = int(critical) / 1e3 if critical.isdigit() else None
    if critical_c is not None and not _CRITICAL_C[0] <= critical_c <= _CRITICAL_C[1]:
        critical_c = None
    return _Sensor(file, texts.get("label", "").lower(), fault[0] if fault else None, critical_c)


def _has(name: str, parts: Sequence[str]) -> bool:
    return any(part in name for part in parts)
