"""The charge of all real batteries together."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from dynamic.monitoring.contract import AbsentError, LeftOut, Reading
from dynamic.monitoring.kernel.kernel_files import CachedSearch
from dynamic.monitoring.kernel.mains import Supplies, find_supplies
from dynamic.monitoring.kernel.members import ask
from dynamic.monitoring.kernel.power_supply import Charge
from dynamic.monitoring.sources.frequency import from_psutil

_SEARCH_S = 10.0  # batteries are pulled out and put in
# A battery that feeds the device, and shows the same figures for longer, is none: at 1% in two hours it would last for
# eight days, and at 0% nothing runs for long.
_STILL_S, _STILL_EMPTY_S = 7200.0, 900.0


class BatteryLevel:
    """`battery`, `battery_mwh` and `plugged` of all batteries together.

    A battery that does not answer, or has impossible values, is excluded. So is one that is no battery: an empty slot,
    or one that is said to feed the device and does not change for two hours. Once the last battery is removed, the
    device is on the mains.

    The source is the kernel on Linux, else psutil. Raises AbsentError where there is no battery. Raises PermissionError
    or ValueError where every battery is forbidden or has impossible values.
    """

    def __init__(self, root: Path = Path("/"), clock: Callable[[], float] = time.monotonic) -> None:
        self._root, self._clock = root, clock
        self._supplies = CachedSearch(lambda: find_supplies(root), _SEARCH_S, clock)
        self._since: dict[str, tuple[tuple[str | None, ...], float]] = {}  # by battery: figures, and when they changed
        self._has_read_charge = False  # whether there has been a charge to read

    def __call__(self) -> Reading:
        supplies = self._supplies()
        none = self._without_change(supplies)
        supplies = replace(supplies, batteries=tuple(b for b in supplies.batteries if b.name not in none))
        answers = ask((battery.name, battery.charge) for battery in supplies.batteries)
        left_out = (*supplies.left_out, *(LeftOut(name, why) for name, why in none.items()), *answers.left_out)
        charges = answers.needed()
        if charges:
            self._has_read_charge = True
            names = [name for name, _ in charges]
            # a battery without a valid charge has no valid status either
            supplies = replace(supplies, batteries=tuple(b for b in supplies.batteries if b.name in names))
            left_out += (*(remark for _, charge in charges for remark in charge.remarks), *supplies.contradictions())
            fields = _together([charge for _, charge in charges]) | {"plugged": supplies.plugged()}
            return Reading(fields, "power_supply " + ", ".join(names), left_out)
        if self._has_read_charge:  # what runs without a battery runs on the mains
            fields = {"battery": None, "battery_mwh": None, "plugged": True}
            return Reading(fields, "power_supply, without a battery by now", left_out)
        elsewhere = from_psutil("sensors_battery") if sys.platform != "linux" and self._root == Path("/") else None
        if elsewhere is None:
            remedy = "give Monitor(battery=function)"
            raise AbsentError(
                f"no battery on this system: {remedy}"
                if not left_out
                else f"no valid battery ({', '.join(map(str, left_out))}): {remedy}"
            )
        fields = {"battery": min(1.0, elsewhere.percent / 100), "battery_mwh": None, "plugged": elsewhere.power_plugged}
        return Reading(fields, "psutil")

    def _without_change(self, supplies: Supplies) -> dict[str, str]:
        """Batteries that are none, with the reason.

        Of two batteries one may be idle for hours. It is none only where it says Discharging, or where the other does
        not change either.
        """
        now, on_mains = self._clock(), supplies.plugged() is True
        since, still = {}, {}
        for battery in supplies.batteries:
            try:
                figures = battery.figures()
            except OSError:  # reading its charge reports why
                continue
            before = self._since.get(battery.name)
            same = before is not None and before[0] == figures and before[1] <= now and not on_mains
            since[battery.name] = before if before is not None and same else (figures, now)
            still_s = now - since[battery.name][1]
            if still_s >= (_STILL_EMPTY_S if battery.is_empty() else _STILL_S):
                still[battery] = still_s
        self._since = since
        every = len(still) == len(supplies.batteries)
        return {
            battery.name: f"its figures have not changed for {still_s / 3600:.2g} h, while it is said to be in use"
            for battery, still_s in still.items()
            if every or battery.status() == "Discharging"
        }


def _together(charges: Sequence[Charge]) -> dict[str, float | None]:
    """Fields of several batteries. They are weighted by their size where all sizes are available."""
    energy = [charge.energy_mwh for charge in charges if charge.energy_mwh is not None]
    full = [charge.full_mwh for charge in charges if charge.full_mwh is not None]
    weights = full if len(full) == len(charges) else [1.0] * len(charges)
    level = sum(charge.level * weight for charge, weight in zip(charges, weights, strict=True)) / sum(weights)
    return {"battery": level, "battery_mwh": sum(energy) if len(energy) == len(charges) else None}
