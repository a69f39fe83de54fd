"""Load of the cores by other processes, and the cores that this process may use."""

import contextlib
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from dynamic.monitoring.contract import Reading
from dynamic.monitoring.kernel.kernel_files import KernelFile, existing

_LEAST_S = 0.1
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100  # a second


class OtherLoad:
    """`host_load`, 0 to 1: share of the usable cores' time that other processes used since the last call.

    It is the busy time of these cores minus the CPU time of this process. It is None until the system's clock ticks
    (often 10 ms) make a difference that can be divided. It is also None where a counter has fallen, and the difference
    starts there again. The source is proc/stat under `root`, or else psutil, which takes five times as long.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._stat = existing(root / "proc/stat")
        self._before: dict[int, _Times] = {}  # by core
        self._own_s = 0.0
        self._load: float | None = None

    def __call__(self) -> Reading:
        cores = usable_cores()
        now = _kernel_times(self._stat[0], cores) if self._stat else _core_times(cores)
        own_s = time.process_time()
        before = self._before
        if now.keys() != before.keys() or own_s < self._own_s or any(now[core].fell(before[core]) for core in now):
            self._load = None
            self._before, self._own_s = now, own_s
        elapsed_s = sum(times.total_s for times in now.values()) - sum(t.total_s for t in self._before.values())
        if elapsed_s >= _LEAST_S:  # of all cores together
            busy_s = sum(times.busy_s for times in now.values()) - sum(t.busy_s for t in self._before.values())
            self._load = min(1.0, max(0.0, (busy_s - (own_s - self._own_s)) / elapsed_s))
            self._before, self._own_s = now, own_s
        return Reading({"host_load": self._load}, str(self._stat[0].path) if self._stat else "psutil")


@dataclass(frozen=True)
class _Times:
    """Seconds of one core since the system started."""

    total_s: float
    busy_s: float

    def fell(self, before: "_Times") -> bool:
        """Whether a counter starts again: after a live migration, in a container, or for a core that comes back."""
        return self.total_s < before.total_s or self.busy_s < before.busy_s


def cores() -> Reading:
    """`cpu_cores` by affinity. A quota may be lower."""
    return Reading({"cpu_cores": float(len(usable_cores()))}, "affinity")


def usable_cores() -> tuple[int, ...]:
    """Numbers of the cores that this process may run on: its affinity mask, where the system has one."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a sandbox may refuse the call
            return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def _kernel_times(stat: KernelFile, cores: Sequence[int]) -> dict[int, _Times]:
    """Times by core, from proc_stat(5). A core whose line is damaged or missing is excluded."""
    wanted = {f"cpu{core}": core for core in cores}
    times = {}
    for line in stat.text().splitlines():
        if not line.startswith("cpu"):
            break  # they come first
        name, *ticks = line.split()
        if name in wanted:
            try:
                counts = [int(count) for count in ticks[:8]]  # guests, the last two, are counted in user and nice
            except ValueError:
                continue
            total = sum(counts)
            idle = sum(counts[3:5])  # idle, and waiting for a disk
            times[wanted[name]] = _Times(total / _TICKS, (total - idle) / _TICKS)
    if not times:
        raise ValueError(f"{stat.path} has no line for cores {list(cores)}")
    return times


def _core_times(cores: Sequence[int]) -> dict[int, _Times]:
    """Times by core, from psutil."""
    every = psutil.cpu_times(percpu=True)
    times = {}
    for core in cores:
        if core < len(every):
            named = every[core]._asdict()
            # guests are counted in user and nice already
            total = sum(value for name, value in named.items() if not name.startswith("guest"))
            times[core] = _Times(total, total - named.get("idle", 0.0) - named.get("iowait", 0.0))
    return times
