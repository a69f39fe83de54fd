"""How fast the cores run against the fastest they can."""

import statistics
from pathlib import Path
from typing import Any

import psutil

from dynamic.sensors.contract import AbsentError, Reading
from dynamic.sensors.files import Found, KernelFile, existing

_SEARCH_S = 60.0
_MOST = 8  # of the groups of cores that are read: a server has hundreds, and each reading may ask another core


class Frequency:
    """`frequency_ratio`: the mean over the groups of cores that share a clock; from the kernel, or else by psutil.

    Raises AbsentError where neither knows.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._found = Found(self._find, _SEARCH_S)

    def __call__(self) -> Reading:
        if found := self._found():
            ratio = statistics.fmean(now.number() / fastest for now, fastest in found)
            return Reading({"frequency_ratio": ratio}, f"{len(found)} of cpufreq/policy*")
        known = from_psutil("cpu_freq") if self._root == Path("/") else None
        if known is None or not known.max:
            raise AbsentError("the system does not tell the CPU's frequency: give Monitor(frequency=function)")
        return Reading({"frequency_ratio": known.current / known.max}, "psutil")

    def _find(self) -> list[tuple[KernelFile, int]]:
        policies = sorted((self._root / "sys/devices/system/cpu/cpufreq").glob("policy*"))
        found = []
        for policy in policies[:: max(1, -(-len(policies) // _MOST))]:
            now, fastest = existing(policy / "scaling_cur_freq"), existing(policy / "cpuinfo_max_freq")
            if now and fastest and (most := fastest[0].number()) > 0:
                found.append((now[0], most))
        return found


def from_psutil(name: str) -> Any:
    """What psutil tells under this name, or None where this system has no such thing."""
    try:
        return getattr(psutil, name)()
    except (AttributeError, NotImplementedError, FileNotFoundError):
        return None
