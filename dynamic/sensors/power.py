"""What the device draws: by its battery, a power meter on the board, or the processor's own counter of energy."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dynamic.sensors.contract import AbsentError, Reading
from dynamic.sensors.files import Found, KernelFile, existing, word
from dynamic.sensors.supply import find_supplies

_SEARCH_S = 10.0
_LEAST_S = 0.05  # the counter moves once a millisecond
_METERS = (
    "ina",
    "power_meter",
    "ltc",
    "pac19",
)  # hwmon chips that measure a supply; a graphics card's is not the device


class Power:
    """`power_mw`, from the first that can tell: batteries while off the mains, a meter chip (hwmon), RAPL.

    RAPL counts the processor alone (the whole platform where it has a "psys" zone). Of a meter's channels the largest
    is taken: boards measure a total and parts of it. Raises AbsentError where there is none or it is root's alone.
    """

    def __init__(self, root: Path = Path("/"), clock: Callable[[], float] = time.monotonic) -> None:
        self._supplies = Found(lambda: find_supplies(root), _SEARCH_S, clock)
        self._meters = Found(lambda: _find_meters(root), 6 * _SEARCH_S, clock)
        self._rapl = Rapl(root, clock)

    def __call__(self) -> Reading:
        supplies = self._supplies()
        flows = [power for battery in supplies.batteries if (power := battery.power_mw()) is not None]
        if flows and supplies.plugged() is False:  # on the mains it is what charges the battery
            return Reading({"power_mw": sum(flows)}, "power_supply " + ", ".join(b.name for b in supplies.batteries))
        if meters := self._meters():
            value, origin = max((meter.power_mw(), str(meter.files[0].path)) for meter in meters)
            return Reading({"power_mw": value}, origin)
        return self._rapl()


class Rapl:
    """`power_mw` from Intel's and AMD's counters of energy: what they grew by over the time between two calls.

    Documentation/power/powercap/powercap.rst of the Linux kernel. None at the first call.
    """

    def __init__(self, root: Path = Path("/"), clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._zones = Found(lambda: _find_zones(root), 6 * _SEARCH_S, clock)
        self._before: dict[Path, int] = {}  # uJ
        self._read_at = 0.0
        self._power_mw: float | None = None

    def __call__(self) -> Reading:
        zones = self._zones()
        if not zones:
            raise AbsentError("no power meter that the system knows: give Monitor(power=function)")
        now = self._clock()
        try:
            counts = {zone.energy.path: zone.energy.number() for zone in zones}
        except PermissionError as error:
            raise AbsentError(
                f"{error.filename} is root's alone: make it readable (chmod a+r), or give Monitor(power=function)"
            ) from error
        elapsed_s = now - self._read_at
        if self._before.keys() != counts.keys() or elapsed_s < 0:
            self._power_mw = None
        elif elapsed_s < _LEAST_S:
            return self._reading(len(zones))
        else:
            grown_uj = sum(_grown(self._before[zone.energy.path], counts[zone.energy.path], zone) for zone in zones)
            self._power_mw = grown_uj / 1e3 / elapsed_s
        self._before, self._read_at = counts, now
        return self._reading(len(zones))

    def _reading(self, zones: int) -> Reading:
        return Reading({"power_mw": self._power_mw}, f"RAPL, {zones} of powercap/intel-rapl:*")


@dataclass(frozen=True)
class _Zone:
    energy: KernelFile
    range_uj: int | None


def _grown(before: int, after: int, zone: _Zone) -> int:
    if after >= before:
        return after - before
    if zone.range_uj is None:
        raise ValueError(f"{zone.energy.path} fell from {before} to {after} and does not say where it wraps around")
    return after - before + zone.range_uj


def _find_zones(root: Path) -> list[_Zone]:
    """The packages; what lies in a package (intel-rapl:0:0) is counted in it already, and psys holds them all."""
    folders = [
        folder
        for folder in sorted((root / "sys/class/powercap").glob("intel-rapl:*"))
        if re.fullmatch(r"intel-rapl:\d+", folder.name) and (folder / "energy_uj").exists()
    ]
    platform = [folder for folder in folders if word(folder / "name") == "psys"]
    zones = []
    for folder in platform or folders:
        most = word(folder / "max_energy_range_uj")
        zones.append(_Zone(KernelFile(folder / "energy_uj"), int(most) if most and most.isdigit() else None))
    return zones


@dataclass(frozen=True)
class _Channel:
    files: tuple[KernelFile, ...]  # power in uW, or voltage in mV and current in mA

    def power_mw(self) -> float:
        values = [file.number() for file in self.files]
        return (values[0] if len(values) == 1 else values[0] * abs(values[1])) / 1e3


def _find_meters(root: Path) -> list[_Channel]:
    """Documentation/hwmon/sysfs-interface.rst of the Linux kernel."""
    channels = []
    for chip in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if not (word(chip / "name") or "").startswith(_METERS):
            continue
        direct = existing(*sorted(chip.glob("power*_input"))) or existing(*sorted(chip.glob("power*_average")))
        channels += [_Channel((file,)) for file in direct]
        for current in [] if direct else existing(*sorted(chip.glob("curr*_input"))):
            number = current.path.name.removeprefix("curr").removesuffix("_input")
            if voltage := existing(chip / f"in{number}_input"):
                channels.append(_Channel((voltage[0], current)))
    return channels
