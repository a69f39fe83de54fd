"""What a container may use: in it, its memory limit and its CPU quota count, not the machine's memory and cores."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dynamic.sensors.cgroup import Hierarchy, hierarchy
from dynamic.sensors.contract import Reading
from dynamic.sensors.files import Found, KernelFile, integer, word

_SEARCH_S = 5.0  # limits are changed by hand, if at all
_UNLIMITED = 1 << 60  # bytes; v1 writes the largest multiple of a page for "no limit"
_LEAST_S = 0.1  # the kernel's clock ticks make loads over less time meaningless


@dataclass(frozen=True)
class Limit:
    """Of one group: `amount` in bytes of memory or in cores, and the file that says so."""

    amount: float
    path: Path


class MemoryLimit:
    """What the groups of this process leave it: the least, over all levels, of limit less working set.

    The working set is what a group uses less what the kernel drops without being asked twice (inactive file pages),
    as kubelet and cadvisor count it. Raises OSError and ValueError where a file is forbidden or no number.
    """

    def __init__(self, root: Path = Path("/"), clock: Callable[[], float] = time.monotonic) -> None:
        self._found = Found(lambda: _memory_levels(hierarchy(root, "memory")), _SEARCH_S, clock)

    def __call__(self) -> Reading:
        rooms = [(level.room(), level.limit.path) for level in self._found()]
        if not rooms:
            return Reading({}, "no memory limit")
        room, path = min(rooms)
        return Reading({"memory_available_mb": max(0.0, room) / 1e6}, str(path))

    def tightest(self) -> Limit | None:
        """The smallest limit, in bytes; None without any."""
        return min((level.limit for level in self._found()), key=lambda limit: limit.amount, default=None)


class CpuLimit:
    """The tightest quota in cores, and what others in that group use of it.

    Whether it has stopped the group is left out: that is no heat, and shows in what requests take. `quota_load` is None
    until there is time to divide by. Raises as `MemoryLimit` does.
    """

    def __init__(
        self,
        root: Path = Path("/"),
        clock: Callable[[], float] = time.monotonic,
        own_s: Callable[[], float] = time.process_time,
    ) -> None:
        self._clock, self._own_s = clock, own_s
        self._found = Found(lambda: _cpu_levels(root), _SEARCH_S, clock)
        self._before: tuple[Path, float, float, float] | None = None  # whose, and clock, group and own seconds
        self._load: float | None = None

    def __call__(self) -> Reading:
        levels = self._found()
        if not levels:
            return Reading({}, "no CPU quota")
        tightest = min(levels, key=lambda level: level.limit.amount)
        fields = {
            "quota_cores": tightest.limit.amount,
            "quota_load": self._others(tightest),
        }
        return Reading(fields, str(tightest.limit.path))

    def tightest(self) -> Limit | None:
        """The smallest quota, in cores; None without any."""
        return min((level.limit for level in self._found()), key=lambda limit: limit.amount, default=None)

    def _others(self, level: "_CpuLevel") -> float | None:
        used_s = level.used_s()
        if used_s is None:
            return None
        path, now, own_s = level.limit.path, self._clock(), self._own_s()
        if self._before is None or self._before[0] != path:
            self._before, self._load = (path, now, used_s, own_s), None
        elapsed_s = now - self._before[1]
        if elapsed_s >= _LEAST_S:
            others_s = (used_s - self._before[2]) - (own_s - self._before[3])
            self._load = min(1.0, max(0.0, others_s / (elapsed_s * level.limit.amount)))
            self._before = (path, now, used_s, own_s)
        return self._load


@dataclass(frozen=True)
class _MemoryLevel:
    limit: Limit
    used: KernelFile
    stat: KernelFile
    reclaimable: str

    def room(self) -> float:
        try:
            dropped = _entry(self.stat, self.reclaimable) or 0
        except FileNotFoundError:
            dropped = 0  # then all that is used counts
        return self.limit.amount - (self.used.number() - dropped)


def _memory_levels(found: Hierarchy | None) -> list[_MemoryLevel]:
    levels = []
    for folder in found.levels if found is not None else ():
        v1 = found is not None and found.version == 1
        names = ("memory.limit_in_bytes",) if v1 else ("memory.max", "memory.high")
        limits = [Limit(amount, folder / name) for name in names if (amount := _bytes(folder / name)) is not None]
        if limits:
            limit = min(limits, key=lambda limit: limit.amount)
            used = KernelFile(folder / ("memory.usage_in_bytes" if v1 else "memory.current"))
            reclaimable = "total_inactive_file" if v1 else "inactive_file"  # v1 counts groups below apart
            levels.append(_MemoryLevel(limit, used, KernelFile(folder / "memory.stat"), reclaimable))
    return levels


def _bytes(path: Path) -> float | None:
    text = word(path)
    if text is None or text == "max":
        return None
    amount = integer(text, path)
    return None if amount >= _UNLIMITED else float(amount)


@dataclass(frozen=True)
class _CpuLevel:
    limit: Limit
    stat: KernelFile
    used: KernelFile | None  # of v1, where it is another controller's

    def used_s(self) -> float | None:
        """CPU seconds of the group so far."""
        try:
            if self.used is not None:
                return self.used.number() / 1e9
            used_us = _entry(self.stat, "usage_usec")
        except FileNotFoundError:
            return None
        return None if used_us is None else used_us / 1e6


def _cpu_levels(root: Path) -> list[_CpuLevel]:
    found = hierarchy(root, "cpu")
    if found is None:
        return []
    accounts = hierarchy(root, "cpuacct") if found.version == 1 else None
    levels = []
    for place, folder in enumerate(found.levels):
        limit = _quota_v1(folder) if found.version == 1 else _quota_v2(folder)
        if limit is not None:
            account = None
            if accounts is not None and accounts.version == 1 and len(accounts.levels) == len(found.levels):
                account = KernelFile(accounts.levels[place] / "cpuacct.usage")
            levels.append(_CpuLevel(limit, KernelFile(folder / "cpu.stat"), account))
    return levels


def _quota_v2(folder: Path) -> Limit | None:
    path = folder / "cpu.max"
    text = word(path)
    if text is None or text.split()[:1] == ["max"]:
        return None
    quota, _, period = text.partition(" ")
    return _cores(integer(quota, path), integer(period or "100000", path), path)


def _quota_v1(folder: Path) -> Limit | None:
    path = folder / "cpu.cfs_quota_us"
    quota, period = word(path), word(folder / "cpu.cfs_period_us")
    if quota is None or period is None or quota == "-1":
        return None
    return _cores(integer(quota, path), integer(period, folder / "cpu.cfs_period_us"), path)


def _cores(quota_us: int, period_us: int, path: Path) -> Limit:
    if quota_us <= 0 or period_us <= 0:
        raise ValueError(f"{path}: {quota_us} us in {period_us} us is no quota")
    return Limit(quota_us / period_us, path)


def _entry(file: KernelFile, name: str) -> int | None:
    """A line's number in a file of `name number` lines; None where it has no such line."""
    for line in file.text().splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return integer(value, file.path)
    return None
