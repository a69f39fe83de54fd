"""An entry of /sys/class/power_supply (Documentation/ABI/testing/sysfs-class-power): a battery, or mains."""

from dataclasses import dataclass
from pathlib import Path

from dynamic.monitoring.contract import LIMITS, LeftOut
from dynamic.monitoring.kernel.kernel_files import KernelFile, is_there
from dynamic.monitoring.kernel.members import ask

_MOST = 1.25  # of what a gauge calls full: gauges that were never calibrated exceed it, psutil#1785
_MOST_MW = 1e7  # 10 kW: no battery gives more
_EMPTY = 0.05  # of the charge, above which a battery cannot be without energy


@dataclass(frozen=True)
class Charge:
    """The charge of one battery.

    Args:
        level: Charge, 0 to 1.
        energy_mwh: Energy in it. None: unknown.
        full_mwh: Energy when full. None: unknown.
        remarks: Figures that are excluded, while others count.
    """

    level: float
    energy_mwh: float | None
    full_mwh: float | None
    remarks: tuple[LeftOut, ...] = ()


class Supply:
    """An entry of the folder. Its files are opened when they are first read."""

    def __init__(self, folder: Path) -> None:
        self.name, self._folder = folder.name, folder
        self._files: dict[str, KernelFile | None] = {}

    def text(self, attribute: str) -> str | None:
        """An attribute. None where there is none, or the device behind it does not answer now."""
        if attribute not in self._files:
            path = self._folder / attribute
            self._files[attribute] = KernelFile(path) if is_there(path) else None
        file = self._files[attribute]
        try:
            return None if file is None else file.text().strip()
        except PermissionError:
            raise
        except OSError:  # ENODATA, ENODEV: a fuel gauge without an answer
            return None

    def number(self, attribute: str) -> int | None:
        """An attribute in millionths of its unit, or percent. Raises ValueError where it is no number."""
        text = self.text(attribute)
        if text is None or text == "":
            return None
        try:
            return int(text)
        except ValueError:
            raise ValueError(f"{self._folder / attribute} holds {text[:40]!r}, which is no number") from None

    def status(self) -> str | None:
        """Its status ("Charging", "Discharging", ...). None where it does not answer."""
        try:
            return self.text("status")
        except PermissionError:
            return None

    def online(self) -> bool | None:
        """For mains, whether they supply. Raises ValueError where the attribute is no number."""
        value = self.number("online")
        return None if value is None else value > 0

    def energy_mwh(self, when: str = "now") -> float | None:
        """Energy in it ("now"), or when full. Raises ValueError on an impossible value."""
        amount_uwh = self.number(f"energy_{when}")
        if amount_uwh is not None:
            energy = amount_uwh / 1e3
        else:
            charge_uah = self.number(f"charge_{when}")
            voltage_uv = self.number("voltage_now")
            if charge_uah is None or voltage_uv is None:
                return None
            energy = charge_uah * voltage_uv / 1e9
        low, high = LIMITS["battery_mwh"]
        if not low <= energy <= high:
            raise ValueError(f"energy_{when}: {energy:g} mWh is impossible")
        return energy

    def power_mw(self) -> float | None:
        """Power in or out, without the sign that some drivers add. Raises ValueError on an impossible value."""
        power_uw = self.number("power_now")
        if power_uw is not None:
            power = abs(power_uw) / 1e3
        else:
            current_ua, voltage_uv = self.number("current_now"), self.number("voltage_now")
            if current_ua is None or voltage_uv is None:
                return None
            power = abs(current_ua) * voltage_uv / 1e9
        if power == 0 and self.status() == "Discharging":
            raise ValueError("status is Discharging, and no current flows")
        if not power <= _MOST_MW:
            raise ValueError(f"{power:g} mW is impossible")
        return power

    def charge(self) -> Charge | None:
        """Its charge. None where it has no such attribute.

        Raises ValueError where all its values are impossible, PermissionError where it may not be read.
        """
        answers = ask([("capacity", self._percent), ("energy", self._ratio)])
        levels = dict(answers.needed())
        if not levels:
            return None
        remarks = [LeftOut(f"{self.name} {item.name}", item.reason) for item in answers.left_out]
        level = levels.get("capacity", levels.get("energy", 0.0))
        if level == 0 and levels.get("energy", 0.0) > _EMPTY:
            remarks.append(LeftOut(f"{self.name} capacity", f"0%, while its energy is {levels['energy']:.0%} of full"))
            level = levels["energy"]
        energy = ask([("energy", self.energy_mwh), ("full", lambda: self.energy_mwh("full"))])
        remarks += [LeftOut(f"{self.name} {item.name}", item.reason) for item in energy.left_out]
        amounts = dict(energy.values)
        now = amounts.get("energy")
        if now == 0 and level > _EMPTY:
            remarks.append(LeftOut(f"{self.name} energy", f"0 mWh at {level:.0%}"))
            now = None
        return Charge(level, now, amounts.get("full") or None, tuple(dict.fromkeys(remarks)))

    def figures(self) -> tuple[str | None, ...]:
        """All attributes that change in a battery in use."""
        names = ("capacity", "energy_now", "charge_now", "voltage_now", "current_now", "power_now")
        return tuple(self.text(name) for name in names)

    def is_empty(self) -> bool:
        """Whether its capacity is 0."""
        try:
            return self.number("capacity") == 0
        except (OSError, ValueError):
            return False

    def is_empty_slot(self) -> bool:
        """Whether it is an empty slot, which the kernel shows as a battery without charge and without voltage."""
        try:
            return self.number("voltage_now") == 0 and self.number("capacity") in (0, None)
        except (OSError, ValueError):
            return False

    def _percent(self) -> float | None:
        percent = self.number("capacity")
        return None if percent is None else _level(percent / 100, f"capacity {percent}%")

    def _ratio(self) -> float | None:
        for kind in ("energy", "charge"):
            now, full = self.number(f"{kind}_now"), self.number(f"{kind}_full")
            if now is not None and full:
                return _level(now / full, f"{kind}_now {now} of {full}")
        return None


def _level(share: float, what: str) -> float:
    """A share of full, 0 to 1. Raises ValueError on an impossible one."""
    if not 0 <= share <= _MOST:
        raise ValueError(f"{what} is impossible")
    return min(1.0, share)
