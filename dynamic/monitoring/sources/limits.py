"""Limits of a container: its memory limit and CPU quota count, not the memory and cores of the machine."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from dynamic.monitoring.contract import LIMITS, LeftOut, Reading, UnknownLimitError
from dynamic.monitoring.kernel.cgroup import Hierarchy, hierarchy, undetermined
from dynamic.monitoring.kernel.group_statistics import droppable_bytes, entries
from dynamic.monitoring.kernel.kernel_files import CachedSearch, KernelFile, integer, word
from dynamic.monitoring.kernel.members import Answers, ask

_SEARCH_S = 5.0  # limits are changed by hand, if at all
_UNLIMITED = 1 << 60  # bytes: v1 writes the largest multiple of a page for "no limit"
_LEAST_S = 0.1  # the kernel's clock ticks make loads over less time meaningless


@dataclass(frozen=True)
class Limit:
    """A limit of one group: `amount` in bytes or in cores, and the file that holds it."""

    amount: float
    path: Path


class MemoryLimit:
    """Memory that the groups of this process leave it: the least, over all levels, of the limit minus what cannot be
    dropped.

    What the kernel drops on demand counts as free, as in MemAvailable of a machine. These are reclaimable slabs, and
    file pages that need not be written first, recently used or not. A level that does not answer is excluded. Raises
    UnknownLimitError where limits cannot be determined, OSError or ValueError where no level answers.
    """

    def __init__(self, root: Path = Path("/"), clock: Callable[[], float] = time.monotonic) -> None:
        self._levels = CachedSearch(lambda: _memory_levels(root), _SEARCH_S, clock)

    def __call__(self) -> Reading:
        levels = self._levels()
        answers = ask((str(level.limit.path), level.room) for _, level in levels.needed())
        left_out = (*levels.left_out, *answers.left_out)
        rooms = [(room, path) for path, room in answers.needed()]
        if not rooms:
            return Reading({}, "no memory limit", left_out)
        room, path = min(rooms)
        return Reading({"memory_available_mb": max(0.0, room) / 1e6}, path, left_out)

    def tightest(self) -> Limit | None:
        """The smallest limit in bytes. None without any."""
        return min((level.limit for _, level in self._levels().needed()), key=lambda limit: limit.amount, default=None)


class CpuLimit:
    """The smallest quota in cores, and the use of it by other processes of that group.

    Whether the quota has stopped the group is ignored: this is no heat, and the latency of requests shows it.
    `quota_load` is None until enough time has passed, and where a counter or the clock has fallen. Raises as
    `MemoryLimit` does.
    """

    def __init__(
        self,
        root: Path = Path("/"),
        clock: Callable[[], float] = time.monotonic,
        own_s: Callable[[], float] = time.process_time,
    ) -> None:
        self._clock, self._own_s = clock, own_s
        self._levels = CachedSearch(lambda: _cpu_levels(root), _SEARCH_S, clock)
        self._before: tuple[Path, float, float, float] | None = None  # whose, and clock, group and own seconds
        self._load: float | None = None

    def __call__(self) -> Reading:
        levels = self._levels()
        if not levels.needed():
            return Reading({}, "no CPU quota", levels.left_out)
        tightest = min((level for _, level in levels.values), key=lambda level: level.limit.amount)
        load = ask([(str(tightest.stat.path), lambda: self._others(tightest))])
        fields = {
            "quota_cores": tightest.limit.amount,
            "quota_load": load.values[0][1] if load.values else None,
        }
        return Reading(fields, str(tightest.limit.path), (*levels.left_out, *load.left_out))

    def tightest(self) -> Limit | None:
        """The smallest quota in cores. None without any."""
        return min((level.limit for _, level in self._levels().needed()), key=lambda limit: limit.amount, default=None)

    def _others(self, level: "_CpuLevel") -> float | None:
        used_s = level.used_s()
        if used_s is None:
            return None
        now = (level.limit.path, self._clock(), used_s, self._own_s())
        before = self._before
        if (
            before is None
            or before[0] != now[0]
            or any(new < old for new, old in zip(now[1:], before[1:], strict=True))
        ):
            before, self._before, self._load = now, now, None
        elapsed_s = now[1] - before[1]
        if elapsed_s >= _LEAST_S:
            others_s = (now[2] - before[2]) - (now[3] - before[3])
            self._load = min(1.0, max(0.0, others_s / (elapsed_s * level.limit.amount)))
            self._before = now
        return self._load


L = TypeVar("L")


def _levels(groups: Hierarchy, names: Sequence[str], level: Callable[[int, Path], L | None]) -> Answers[L]:
    """Groups with a limit in a file of these `names`, each made by `level(place of the group, file)`.

    Raises UnknownLimitError where none has one, and these may not be the groups of this process.
    """
    paths = [(place, folder / name) for place, folder in enumerate(groups.levels) for name in names]
    answers = ask((str(path), partial(level, place, path)) for place, path in paths)
    if groups.doubt is None:
        answers.needed()
        return answers
    if not answers.values:
        raise UnknownLimitError(undetermined(groups.doubt))
    return replace(answers, left_out=(*answers.left_out, LeftOut("own group", undetermined(groups.doubt))))


@dataclass(frozen=True)
class _MemoryLevel:
    limit: Limit
    used: KernelFile
    stat: KernelFile
    version: int

    def room(self) -> float:
        try:
            droppable = droppable_bytes(self.stat, self.version)
        except (OSError, ValueError):
            droppable = 0  # unknown, and then all used memory counts
        return self.limit.amount - max(0, self.used.number() - droppable)


def _memory_levels(root: Path) -> Answers[_MemoryLevel]:
    groups = hierarchy(root, "memory")
    if groups is None:
        return Answers(())
    v1, version = groups.version == 1, groups.version

    def level(_: int, path: Path) -> _MemoryLevel | None:
        amount = _bytes(path)
        if amount is None:
            return None
        used = KernelFile(path.parent / ("memory.usage_in_bytes" if v1 else "memory.current"))
        return _MemoryLevel(Limit(amount, path), used, KernelFile(path.parent / "memory.stat"), version)

    return _levels(groups, ("memory.limit_in_bytes",) if v1 else ("memory.max", "memory.high"), level)


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
            used_us = entries(self.stat, frozenset({"usage_usec"})).get("usage_usec")
        except FileNotFoundError:
            return None
        return None if used_us is None else used_us / 1e6


def _cpu_levels(root: Path) -> Answers[_CpuLevel]:
    groups = hierarchy(root, "cpu")
    if groups is None:
        return Answers(())
    v1 = groups.version == 1
    accounts = _accounts(root, groups) if v1 else None

    def level(place: int, path: Path) -> _CpuLevel | None:
        limit = _quota_v1(path.parent) if v1 else _quota_v2(path.parent)
        if limit is None:
            return None
        account = None if accounts is None else KernelFile(accounts.levels[place] / "cpuacct.usage")
        return _CpuLevel(limit, KernelFile(path.parent / "cpu.stat"), account)

    return _levels(groups, ("cpu.cfs_quota_us",) if v1 else ("cpu.max",), level)


def _accounts(root: Path, groups: Hierarchy) -> Hierarchy | None:
    """For v1, the hierarchy that counts CPU time of the same groups. None where it cannot be read."""
    try:
        accounts = hierarchy(root, "cpuacct")
    except (OSError, ValueError):
        return None
    same = accounts is not None and accounts.version == 1 and len(accounts.levels) == len(groups.levels)
    return accounts if same else None


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
    if quota_us / period_us > LIMITS["quota_cores"][1]:
        raise ValueError(f"{path}: {quota_us / period_us:g} cores are impossible")
    return Limit(quota_us / period_us, path)
