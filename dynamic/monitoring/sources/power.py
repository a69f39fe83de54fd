"""Power of the device: from its battery, a power meter on the board, or the energy counter of the processor."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from dynamic.monitoring.contract import LIMITS, AbsentError, LeftOut, Reading
from dynamic.monitoring.kernel.kernel_files import CachedSearch, KernelFile, existing, is_there, word
from dynamic.monitoring.kernel.mains import find_supplies
from dynamic.monitoring.kernel.members import Answers, ask

_SEARCH_S = 10.0
_LEAST_S = 0.05  # the counter moves once a millisecond
_MOST_UW = 1e9  # 1 kW: more than any processor draws
_METERS = (
    "ina",
    "power_meter",
    "ltc",
    "pac19",
)  # hwmon chips that measure a supply. A graphics card is not the device


class Power:
    """`power_mw`, from the first of these that answers: batteries off the mains, a meter chip (hwmon), RAPL.

    RAPL counts the processor alone, or the whole platform where it has a "psys" zone. The largest channel of the meters
    counts, since boards measure a total and parts of it. What does not answer, or has an impossible value, is excluded.
    Raises AbsentError where there is none, or root alone may read it.
    """

    def __init__(self, root: Path = Path("/"), clock: Callable[[], float] = time.monotonic) -> None:
        self._supplies = CachedSearch(lambda: find_supplies(root), _SEARCH_S, clock)
        self._meters = CachedSearch(lambda: _find_meters(root), 6 * _SEARCH_S, clock)
        self._rapl = Rapl(root, clock)

    def __call__(self) -> Reading:
        supplies = self._supplies()
        left_out: tuple[LeftOut, ...] = ()
        if supplies.plugged() is False:  # on the mains it is what charges the battery
            flows = ask((battery.name, battery.power_mw) for battery in supplies.batteries)
            left_out += flows.left_out
            if flows.values:
                names = ", ".join(name for name, _ in flows.values)
                return Reading({"power_mw": sum(flow for _, flow in flows.values)}, f"power_supply {names}", left_out)
        meters = self._meters()
        powers = ask((name, meter.power_mw) for name, meter in meters.values)
        left_out += (*meters.left_out, *powers.left_out)
        if powers.values:
            value, origin = max((power, name) for name, power in powers.values)
            return Reading({"power_mw": value}, origin, left_out)
        try:
            reading = self._rapl()
        except AbsentError:
            powers.needed()  # a meter that is there and fails is no absence
            raise
        return replace(reading, left_out=(*left_out, *reading.left_out))


class Rapl:
    """`power_mw` from the energy counters of Intel and AMD: their growth over the time between two calls.

    See Documentation/power/powercap/powercap.rst of the Linux kernel. It is None at the first call, and where a counter
    or the clock has fallen: the difference starts there again. A counter that wraps around at its range continues.
    """

    def __init__(self, root: Path = Path("/"), clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._zones = CachedSearch(lambda: _find_zones(root), 6 * _SEARCH_S, clock)
        self._before: dict[str, int] = {}  # uJ by zone
        self._read_at = 0.0
        self._power_mw: float | None = None

    def __call__(self) -> Reading:
        zones = dict(self._zones())
        if not zones:
            raise AbsentError("no power meter on this system: give Monitor(power=function)")
        now = self._clock()
        answers = ask((name, zone.energy.number) for name, zone in zones.items())
        try:
            counts = dict(answers.needed())
        except PermissionError as error:
            raise AbsentError(
                f"{error.filename} is root's alone: make it readable (chmod a+r), or give Monitor(power=function)"
            ) from error
        elapsed_s = now - self._read_at
        if self._before.keys() != counts.keys() or elapsed_s < 0:
            self._power_mw = None
        elif elapsed_s < _LEAST_S:
            return self._reading(len(counts), answers.left_out)
        else:
            growth = [_grown(self._before[name], counts[name], zones[name], elapsed_s) for name in counts]
            amounts = [amount for amount in growth if amount is not None]
            self._power_mw = sum(amounts) / 1e3 / elapsed_s if len(amounts) == len(growth) else None
        self._before, self._read_at = counts, now
        return self._reading(len(counts), answers.left_out)

    def _reading(self, zones: int, left_out: tuple[LeftOut, ...]) -> Reading:
        return Reading({"power_mw": self._power_mw}, f"RAPL, {zones} of powercap/intel-rapl:*", left_out)


@dataclass(frozen=True)
class _Zone:
    energy: KernelFile
    range_uj: int | None


def _grown(before: int, after: int, zone: _Zone, elapsed_s: float) -> int | None:
    """Growth of a counter in uJ. None where it starts again.

    It has wrapped around where the resulting power is possible for a processor. After a live migration or a sleep it
    would be kilowatts.
    """
    if after >= before:
        return after - before
    if zone.range_uj is None:
        return None
    wrapped = after - before + zone.range_uj
    return wrapped if 0 <= wrapped <= _MOST_UW * elapsed_s else None


def _find_zones(root: Path) -> tuple[tuple[str, _Zone], ...]:
    """The zones of packages. Zones inside a package (intel-rapl:0:0) are part of it, and psys includes all packages."""
    folders = [
        folder
        for folder in sorted((root / "sys/class/powercap").glob("intel-rapl:*"))
        if re.fullmatch(r"intel-rapl:\d+", folder.name) and is_there(folder / "energy_uj")
    ]
    names = dict(ask((folder.name, partial(word, folder / "name")) for folder in folders).values)
    platform = [folder for folder in folders if names.get(folder.name) == "psys"]
    ranges = dict(ask((f.name, partial(word, f / "max_energy_range_uj")) for f in platform or folders).values)
    return tuple(
        (folder.name, _Zone(KernelFile(folder / "energy_uj"), _whole(ranges.get(folder.name))))
        for folder in platform or folders
    )


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


@dataclass(frozen=True)
class _Channel:
    files: tuple[KernelFile, ...]  # power in uW, or voltage in mV and current in mA
    faults: tuple[KernelFile, ...]

    def power_mw(self) -> float:
        for fault in self.faults:
            if fault.is_set():
                raise ValueError(f"{fault.path.name} reports a fault")
        values = [file.number() for file in self.files]
        power = (values[0] if len(values) == 1 else values[0] * abs(values[1])) / 1e3
        low, high = LIMITS["power_mw"]
        if not low <= power <= high:
            raise ValueError(f"{power:g} mW is impossible")
        return power


def _channel(*files: KernelFile) -> tuple[str, _Channel]:
    """A channel by the path of its first file."""
    faults = [f.path.with_name(f"{f.path.name.partition('_')[0]}_fault") for f in files]
    return str(files[0].path), _Channel(files, tuple(existing(*faults)))


def _find_meters(root: Path) -> Answers[_Channel]:
    """The channels of power meters. See Documentation/hwmon/sysfs-interface.rst of the Linux kernel."""
    chips = sorted((root / "sys/class/hwmon").glob("hwmon*"))
    answers = ask((str(chip), partial(word, chip / "name")) for chip in chips)
    names = dict(answers.values)
    channels = []
    for chip in chips:
        if not names.get(str(chip), "").startswith(_METERS):
            continue
        direct = existing(*sorted(chip.glob("power*_input"))) or existing(*sorted(chip.glob("power*_average")))
        channels += [_channel(file) for file in direct]
        for current in [] if direct else existing(*sorted(chip.glob("curr*_input"))):
            number = current.path.name.removeprefix("curr").removesuffix("_input")
            if voltage := existing(chip / f"in{number}_input"):
                channels.append(_channel(voltage[0], current))
    return Answers(tuple(channels), answers.left_out)
