"""The clock of the cores over its maximum."""

import statistics
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from dynamic.monitoring.contract import LIMITS, AbsentError, Reading
from dynamic.monitoring.kernel.kernel_files import CachedSearch, KernelFile, existing
from dynamic.monitoring.kernel.members import Answers, ask

_SEARCH_S = 60.0
_MOST = 8  # of the groups of cores that are read: a server has hundreds, and each reading may ask another core


class Frequency:
    """`frequency_ratio`: the mean over the groups of cores that share a clock, from the kernel or else from psutil.

    A group that does not answer is excluded. Raises AbsentError where neither source has a clock, OSError or ValueError
    where no group answers.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._groups = CachedSearch(self._find, _SEARCH_S)

    def __call__(self) -> Reading:
        groups = self._groups()
        answers = ask((name, group.ratio) for name, group in groups.values)
        if ratios := [ratio for _, ratio in answers.needed()]:
            left_out = (*groups.left_out, *answers.left_out)
            return Reading({"frequency_ratio": statistics.fmean(ratios)}, f"{len(ratios)} of cpufreq/policy*", left_out)
        clock = from_psutil("cpu_freq") if self._root == Path("/") else None
        if clock is None or not clock.max:
            raise AbsentError("the system has no CPU frequency: give Monitor(frequency=function)")
        return Reading({"frequency_ratio": clock.current / clock.max}, "psutil")

    def _find(self) -> Answers["_Group"]:
        policies = sorted((self._root / "sys/devices/system/cpu/cpufreq").glob("policy*"))
        groups = ask(
            (policy.name, partial(_group, policy)) for policy in policies[:: max(1, -(-len(policies) // _MOST))]
        )
        groups.needed()  # where none answers, the next reading searches again
        return groups


@dataclass(frozen=True)
class _Group:
    now: KernelFile
    fastest: int

    def ratio(self) -> float:
        ratio = self.now.number() / self.fastest
        low, high = LIMITS["frequency_ratio"]
        if not low < ratio <= high:  # a core that runs has a clock
            raise ValueError(f"{ratio:g} of the maximum is impossible")
        return ratio


def _group(policy: Path) -> _Group | None:
    """The group of a folder. None where it has no clock to read."""
    now, fastest = existing(policy / "scaling_cur_freq"), existing(policy / "cpuinfo_max_freq")
    if not now or not fastest:
        return None
    highest = fastest[0].number()
    if highest <= 0:
        raise ValueError(f"a maximum clock of {highest} kHz is impossible")
    return _Group(now[0], highest)


def from_psutil(name: str) -> Any:
    """The result of a function of psutil. None where this system does not have it."""
    try:
        return getattr(psutil, name)()
    except (AttributeError, NotImplementedError, FileNotFoundError):
        return None
