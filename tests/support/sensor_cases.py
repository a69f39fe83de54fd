"""A file tree of a made-up device, and clocks that tests move."""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest


class Tree:
    """Kernel files under a folder: write them again to make them change."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, files: Mapping[str, str | int]) -> None:
        for name, content in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{content}\n" if isinstance(content, int) else content)


class Clock:
    """Seconds that pass by `now` alone, on top of real ones where `real`."""

    def __init__(self, real: bool = False) -> None:
        self.now, self._real = 100.0, real

    def __call__(self) -> float:
        return self.now + (time.monotonic() if self._real else 0.0)


def forbid(monkeypatch: pytest.MonkeyPatch, *paths: Path) -> None:
    """Make these files unreadable, for root as well, whom permissions do not stop."""
    kept, forbidden = os.open, {str(path) for path in paths}

    def guarded(path: Any, *more: Any, **named: Any) -> int:
        if str(path) in forbidden:
            raise PermissionError(13, "Permission denied", str(path))
        return kept(path, *more, **named)

    monkeypatch.setattr("dynamic.monitoring.kernel.kernel_files.os.open", guarded)


V2_MOUNT = "30 23 0:28 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNTS = (
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
)


def wait_until(condition: Callable[[], bool], limit_s: float = 60.0) -> bool:
    """Whether it came true; the limit is for a machine on which other processes keep all cores busy."""
    end = time.monotonic() + limit_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()
