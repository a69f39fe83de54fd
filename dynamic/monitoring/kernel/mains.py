"""The batteries and mains of the device together, and whether it is plugged in."""

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dynamic.monitoring.contract import LeftOut
from dynamic.monitoring.kernel.kernel_files import word
from dynamic.monitoring.kernel.members import ask
from dynamic.monitoring.kernel.power_supply import Supply

_RESTING = ("Full", "Not charging")  # nothing flows: mostly on the mains, though not on every phone
_CELLS = ("Battery", "UPS")
_MAINS = ("Mains", "Wireless", "BrickID")  # and every kind of USB
_PERIPHERALS = ("hid", "wacom", "sony_controller", "ps-controller", "nintendo", "xpad", "gip", "steam-controller")
# in a path: a human interface device on USB, Bluetooth or I2C
_HID = re.compile(r"(0003|0005|0018):[0-9A-F]{4}:[0-9A-F]{4}\.[0-9A-F]{4}")


@dataclass(frozen=True)
class Supplies:
    """The supplies of the device itself, without the battery of a mouse. `left_out` are entries that do not answer."""

    batteries: tuple[Supply, ...]
    mains: tuple[Supply, ...]
    left_out: tuple[LeftOut, ...] = ()

    def plugged(self) -> bool | None:
        """Whether the device is on the mains. A battery that charges or discharges decides, mains only where there is
        none.

        Mains may be stale or missing: USB-C and charging pads often are. Where one battery charges and another
        discharges, the second may charge the first.
        """
        status = {battery.status() for battery in self.batteries}
        charging, discharging = "Charging" in status, "Discharging" in status
        if charging != discharging:
            return charging
        online = [value for _, value in ask((supply.name, supply.online) for supply in self.mains).values]
        if online:
            return any(online)
        if discharging:
            return False
        return True if status.intersection(_RESTING) else None

    def contradictions(self) -> tuple[LeftOut, ...]:
        """Mains that contradict the batteries, which have precedence, or that do not answer."""
        plugged = self.plugged()
        online = ask((supply.name, supply.online) for supply in self.mains)
        if plugged is None or not online.values or any(value for _, value in online.values) == plugged:
            return online.left_out
        status = "/".join(sorted({one for battery in self.batteries if (one := battery.status())}))
        contrary = [(name, value) for name, value in online.values if value != plugged]
        return (
            *online.left_out,
            *(LeftOut(name, f"online={v:d}, while the battery says {status}", usual=True) for name, v in contrary),
        )


def find_supplies(root: Path) -> Supplies:
    """The supplies in the folder. Raises the first error where entries do not answer and no battery does."""
    batteries, mains = [], []
    folders = sorted((root / "sys/class/power_supply").glob("*"))
    answers = ask((folder.name, partial(word, folder / "type")) for folder in folders)
    kinds, left_out = dict(answers.values), list(answers.left_out)
    for folder in folders:
        kind = kinds.get(folder.name)
        if (
            kind is None
            or _is_peripheral(folder)
            or _says(folder / "scope", "Device")
            or _says(folder / "present", "0")
        ):
            continue
        if kind in _CELLS:
            battery = Supply(folder)
            if battery.is_empty_slot():
                left_out.append(LeftOut(battery.name, "has no charge and no voltage: an empty slot"))
            else:
                batteries.append(battery)
        elif kind in _MAINS or kind.startswith("USB"):
            mains.append(Supply(folder))
    if not batteries and answers.error is not None:
        raise answers.error
    return Supplies(tuple(batteries), tuple(mains), tuple(left_out))


def _is_peripheral(folder: Path) -> bool:
    """Whether it belongs to a mouse, a pen or a gamepad. Such a driver does not always say scope=Device."""
    if _says(folder / "scope", "Device") or folder.name.startswith(_PERIPHERALS):
        return True
    return any(_HID.fullmatch(part) for part in folder.resolve().parts)


def _says(path: Path, text: str) -> bool:
    try:
        return word(path) == text
    except OSError:
        return False
