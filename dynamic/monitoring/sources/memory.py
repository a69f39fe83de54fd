"""Available memory of the machine and resident memory of this process, from the kernel's files or else from psutil."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import psutil

from dynamic.monitoring.contract import Reading
from dynamic.monitoring.kernel.kernel_files import existing, integer
from dynamic.monitoring.kernel.members import ask

_AVAILABLE = "MemAvailable:"  # since Linux 3.14
_TOTAL = "MemTotal:"
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096  # bytes


class Available:
    """`memory_available_mb` of the machine. The limit of a container may be lower."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._file = existing(root / "proc/meminfo")

    def __call__(self) -> Reading:
        for file in self._file:
            lines = file.text().splitlines()
            kib = _kib(lines, _AVAILABLE, file.path)
            total_kib = dict(ask([("total", partial(_kib, lines, _TOTAL, file.path))]).values).get("total")
            if kib is not None and total_kib is not None and kib > total_kib:
                raise ValueError(f"{file.path}: MemAvailable of {kib} kB is more than MemTotal, {total_kib} kB")
            if kib is not None:
                return Reading({"memory_available_mb": kib * 1024 / 1e6}, str(file.path))
        return Reading({"memory_available_mb": psutil.virtual_memory().available / 1e6}, "psutil")


class ProcessMemory:
    """`memory_process_mb`: resident memory of this process."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._file = existing(root / "proc/self/statm")

    def __call__(self) -> Reading:
        for file in self._file:
            resident = file.text().split()[1:2]  # in pages
            return Reading({"memory_process_mb": integer("".join(resident), file.path) * _PAGE / 1e6}, str(file.path))
        return Reading({"memory_process_mb": psutil.Process().memory_info().rss / 1e6}, "psutil")


def _kib(lines: Sequence[str], name: str, path: Path) -> int | None:
    """The number of a line in KiB. None without such a line."""
    for line in lines:
        if line.startswith(name):
            return integer(line.removeprefix(name).removesuffix("kB"), path)
    return None
