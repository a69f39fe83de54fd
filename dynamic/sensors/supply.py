"""Batteries and mains, as /sys/class/power_supply tells them (Documentation/ABI/testing/sysfs-class-power)."""

import sys
from dataclasses import dataclass
from pathlib import Path

from dynamic.sensors.contract import AbsentError, Reading
from dynamic.sensors.files import Found, KernelFile, word
from dynamic.sensors.frequency import from_psutil

_SEARCH_S = 10.0  # batteries are pulled out and put in
_CHARGED = ("Charging", "Full", "Not charging")
_CELLS = ("Battery", "UPS")


class Supply:
    """One entry of the folder, its files opened when first read."""

    def __init__(self, folder: Path) -> None:
        self.name, self._folder = folder.name, folder
        self._files: dict[str, KernelFile | None] = {}

    def text(self, attribute: str) -> str | None:
        """An attribute; None where it has none, or the device behind it does not answer now."""
        if attribute not in self._files:
            path = self._folder / attribute
            self._files[attribute] = KernelFile(path) if path.exists() else None
        file = self._files[attribute]
        try:
            return None if file is None else file.text().strip()
        except PermissionError:
            raise
        except OSError:  # ENODATA, ENODEV: a fuel gauge that cannot tell
            return None

    def number(self, attribute: str) -> int | None:
        """An attribute in millionths of its unit, or percent; raises ValueError where it is no number."""
        text = self.text(attribute)
        if text is None or text == "":
            return None
        try:
            return int(text)
        except ValueError:
            raise ValueError(f"{self._folder / attribute} holds {text[:40]!r}, which is no number") from None

    def energy_mwh(self, when: str = "now") -> float | None:
        """Left in it ("now"), or when full."""
        energy_uwh = self.number(f"energy_{when}")
        if energy_uwh is not None:
            return energy_uwh / 1e3
        charge_uah = self.number(f"charge_{when}")
        voltage_uv = self.number("voltage_now")
        return None if charge_uah is None or voltage_uv is None else charge_uah * voltage_uv / 1e9

    def power_mw(self) -> float | None:
        """What flows in or out; some drivers sign it."""
        power_uw = self.number("power_now")
        if power_uw is not None:
            return abs(power_uw) / 1e3
        current_ua, voltage_uv = self.number("current_now"), self.number("voltage_now")
        return None if current_ua is None or voltage_uv is None else abs(current_ua) * voltage_uv / 1e9

    def level(self) -> float | None:
        """Charge, 0..1."""
        percent = self.number("capacity")
        if percent is not None:
            return percent / 100 if not 100 < percent <= 105 else 1.0  # gauges that were never calibrated
        for kind in ("energy", "charge"):
            now, full = self.number(f"{kind}_now"), self.number(f"{kind}_full")
            if now is not None and full:
                return now / full
        return None


@dataclass(frozen=True)
class Supplies:
    """Those of the device itself: the battery of a mouse is not among them."""

    batteries: tuple[Supply, ...]
    mains: tuple[Supply, ...]

    def plugged(self) -> bool | None:
        """Whether on the mains."""
        online = [value for supply in self.mains if (value := supply.number("online")) is not None]
        if online:
            return any(online)
        status = [battery.text("status") for battery in self.batteries]
        if any(one in _CHARGED for one in status):
            return True
        return False if "Discharging" in status else None


def find_supplies(root: Path) -> Supplies:
    """What the folder holds."""
    batteries, mains = [], []
    for folder in sorted((root / "sys/class/power_supply").glob("*")):
        kind = word(folder / "type")
        if word(folder / "scope") == "Device" or word(folder / "present") == "0":
            continue
        if kind in _CELLS:
            batteries.append(Supply(folder))
        elif kind is not None and (kind == "Mains" or kind.startswith("USB")):
            mains.append(Supply(folder))
    return Supplies(tuple(batteries), tuple(mains))


class BatteryLevel:
    """`battery`, `battery_mwh` and `plugged`, of all batteries together.

    On Linux from the kernel, elsewhere by psutil. Raises AbsentError where there is none, PermissionError and
    ValueError where a file is forbidden or no number.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._found = Found(lambda: find_supplies(root), _SEARCH_S)

    def __call__(self) -> Reading:
        supplies = self._found()
        telling = [(battery, level) for battery in supplies.batteries if (level := battery.level()) is not None]
        if telling:
            energy = [battery.energy_mwh() for battery, _ in telling]
            known = [one for one in energy if one is not None]
            full = [one for battery, _ in telling if (one := battery.energy_mwh("full"))]
            level = sum(level for _, level in telling) / len(telling)
            if len(telling) > 1 and len(known) == len(full) == len(telling):  # a large one counts for more
                level = min(1.0, sum(known) / sum(full))
            fields = {
                "battery": level,
                "battery_mwh": sum(known) if len(known) == len(telling) else None,
                "plugged": supplies.plugged(),
            }
            return Reading(fields, "power_supply " + ", ".join(battery.name for battery, _ in telling))
        elsewhere = from_psutil("sensors_battery") if sys.platform != "linux" and self._root == Path("/") else None
        if elsewhere is None:
            raise AbsentError("no battery that the system knows: give Monitor(battery=function)")
        fields = {"battery": min(1.0, elsewhere.percent / 100), "battery_mwh": None, "plugged": elsewhere.power_plugged}
        return Reading(fields, "psutil")
