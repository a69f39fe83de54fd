"""Whether heat or a weak supply slows the device down: counters that grow, or the firmware of a Raspberry Pi."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from dynamic.monitoring.contract import AbsentError, Reading
from dynamic.monitoring.kernel.kernel_files import CachedSearch, KernelFile, existing, integer
from dynamic.monitoring.kernel.members import ask

_HOLD_S = 1.0  # counters grow in steps: throttling continues so long after the last one
_SEARCH_S = 60.0
_ASK_S = 10.0  # the Pi's own command is a process each time
_PATIENCE_S = 2.0
_NOW = 0b1111  # bits of get_throttled: under-voltage, frequency capped, throttled, soft temperature limit


class Growth:
    """Whether a counter has grown recently. None for the first value, which has nothing to compare with."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._count: int | None = None
        self._grew_at: float | None = None

    def __call__(self, count: int) -> bool | None:
        before, self._count = self._count, count
        if before is None:
            return None
        if count > before:  # a smaller one starts again: a core went off, or a group was replaced
            self._grew_at = self._clock()
            return True
        return self._grew_at is not None and 0 <= self._clock() - self._grew_at < _HOLD_S


class Throttling:
    """`throttled` from the thermal counters of x86 cores, or from the firmware of a Raspberry Pi.

    `vcgencmd` is the Pi's command, called every 10 s where the kernel has no file for it. Raises AbsentError where
    there is neither.
    """

    def __init__(
        self,
        root: Path = Path("/"),
        vcgencmd: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root = root
        self._counters = CachedSearch(self._find_counters, _SEARCH_S, clock)
        self._firmware = CachedSearch(self._find_firmware, _SEARCH_S, clock)
        self._command = vcgencmd
        self._asked = CachedSearch(self._ask, _ASK_S, clock)
        self._clock = clock
        self._grown: dict[str, Growth] = {}  # by counter

    def __call__(self) -> Reading:
        if counters := self._counters():
            answers = ask((str(file.path), file.number) for file in counters)
            # each by itself: a falling counter must not hide a growing one
            growth = [self._grown.setdefault(name, Growth(self._clock))(count) for name, count in answers.needed()]
            flags = [flag for flag in growth if flag is not None]
            return Reading(
                {"throttled": any(flags) if flags else None},
                f"{len(growth)} counters cpu*/thermal_throttle",
                answers.left_out,
            )
        if firmware := self._firmware():
            file = firmware[0]
            return Reading({"throttled": bool(integer(file.text(), file.path, 16) & _NOW)}, str(file.path))
        if self._command is not None:
            return Reading({"throttled": bool(self._asked() & _NOW)}, self._command)
        raise AbsentError("no throttle counter in the kernel and no vcgencmd: give Monitor(throttled=function)")

    def _find_counters(self) -> list[KernelFile]:
        folder = self._root / "sys/devices/system/cpu"
        return existing(*sorted(folder.glob("cpu[0-9]*/thermal_throttle/*_throttle_count")))

    def _find_firmware(self) -> list[KernelFile]:
        return existing(*sorted((self._root / "sys/devices/platform").glob("soc*/soc*:firmware/get_throttled")))

    def _ask(self) -> int:
        assert self._command is not None
        done = subprocess.run(
            [self._command, "get_throttled"], capture_output=True, text=True, timeout=_PATIENCE_S, check=True
        )
        return integer(done.stdout.strip().removeprefix("throttled="), Path(self._command), 16)


def pi_command(root: Path) -> str | None:
    """The path of the Pi's command. None where it is missing, or where `root` is not this machine's."""
    # only absolute folders: an empty entry of PATH is the working folder
    folders = os.pathsep.join(p for p in os.environ.get("PATH", os.defpath).split(os.pathsep) if os.path.isabs(p))
    return shutil.which("vcgencmd", path=folders) if root == Path("/") else None
