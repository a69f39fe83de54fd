"""What other processes take of the cores, and which cores those are."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from dynamic.sensors.contract import Reading
from dynamic.sensors.files import KernelFile, existing

_LEAST_S = 0.1
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100  # a second


class OtherLoad:
    """`host_load` 0..1: share of the usable cores' time that other processes took since the last call.

    What the system counts as busy on those cores, minus this process's own CPU time. None until the system's
    clock ticks (often 10 ms) give a difference worth dividing. From proc/stat under `root`; where that is not, from
    psutil, which takes five times as long.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._stat = existing(root / "proc/stat")
        self._cores: tuple[int, ...] = ()
        self._total_s = self._busy_s = self._own_s = 0.0
        self._load: float | None = None

    def __call__(self) -> Reading:
        cores = usable_cores()
        total_s, busy_s = _kernel_times(self._stat[0], cores) if self._stat else _core_times(cores)
        own_s = time.process_time()
        if cores != self._cores:
            self._cores, self._load = cores, None
            self._total_s, self._busy_s, self._own_s = total_s, busy_s, own_s
        elapsed_s = total_s - self._total_s  # of all cores together
        if elapsed_s >= _LEAST_S:
            others_s = (busy_s - self._busy_s) - (own_s - self._own_s)
            self._load = min(1.0, max(0.0, others_s / elapsed_s))
            self._total_s, self._busy_s, self._own_s = total_s, busy_s, own_s
        return Reading({"host_load": self._load}, str(self._stat[0].path) if self._stat else "psutil")


def cores() -> Reading:
    """`cpu_cores` by affinity; a quota may take from them."""
    return Reading({"cpu_cores": float(len(usable_cores()))}, "affinity")


def usable_cores() -> tuple[int, ...]:
    """Numbers of the cores this process may run on (its affinity mask, where the system has one)."""
    if sys.platform == "linux":
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def _kernel_times(stat: KernelFile, cores: Sequence[int]) -> tuple[float, float]:
    """(all, busy) seconds of these cores since the system started: proc_stat(5)."""
    wanted = {f"cpu{core}" for core in cores}
    total = idle = 0
    for line in stat.text().splitlines():
        if not line.startswith("cpu"):
            break  # they come first
        name, *ticks = line.split()
        if name in wanted:
            counts = [int(count) for count in ticks[:8]]  # guests, the last two, are counted in user and nice already
            total += sum(counts)
            idle += sum(counts[3:5])  # idle, and waiting for a disk
    if not total:
        raise ValueError(f"{stat.path} tells nothing of cores {list(cores)}")
    return total / _TICKS, (total - idle) / _TICKS


def _core_times(cores: Sequence[int]) -> tuple[float, float]:
    """(all, busy) seconds of these cores since the system started."""
    times = psutil.cpu_times(percpu=True)
    total = idle = 0.0
    for core in cores:
        if core < len(times):
            named = times[core]._asdict()
            # guests are counted in user and nice already
            total += sum(value for name, value in named.items() if not name.startswith("guest"))
            idle += named.get("idle", 0.0) + named.get("iowait", 0.0)
    return total, total - idle
