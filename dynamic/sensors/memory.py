"""Memory that the machine has left, and what this process holds; from the kernel's files where they are."""

import os
from pathlib import Path

import psutil

from dynamic.sensors.contract import Reading
from dynamic.sensors.files import existing, integer

_AVAILABLE = "MemAvailable:"  # since Linux 3.14
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096  # bytes


class Available:
    """`memory_available_mb` of the machine; a container's limit may leave less."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._file = existing(root / "proc/meminfo")

    def __call__(self) -> Reading:
        for file in self._file:
            for line in file.text().splitlines():
                if line.startswith(_AVAILABLE):
                    kib = integer(line.removeprefix(_AVAILABLE).removesuffix("kB"), file.path)
                    return Reading({"memory_available_mb": kib * 1024 / 1e6}, str(file.path))
        return Reading({"memory_available_mb": psutil.virtual_memory().available / 1e6}, "psutil")


class ProcessMemory:
    """`memory_process_mb`: this process, resident."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._file = existing(root / "proc/self/statm")
        self._process = psutil.Process()

    def __call__(self) -> Reading:
        for file in self._file:
            resident = file.text().split()[1:2]  # in pages
            return Reading({"memory_process_mb": integer("".join(resident), file.path) * _PAGE / 1e6}, str(file.path))
        return Reading({"memory_process_mb": self._process.memory_info().rss / 1e6}, "psutil")
