"""A memory control group with a limit, made for a benchmark where the machine allows it; v2 or v1."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_MOUNTS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
_V1 = Path("/sys/fs/cgroup/memory")
# takes memory a step at a time, when told to, and says so; negative numbers give steps back, the last first
_FILL = """
import sys
held = []
for line in sys.stdin:
    mb = int(line)
    if mb > 0:
        held.append(bytearray(b"x") * (mb * 1_000_000))
    while mb < 0 and held:
        mb += len(held.pop()) // 1_000_000
    print(sum(map(len, held)) // 1_000_000, flush=True)
"""


class Group:
    """A memory control group of its own with a limit in MB (10^6 bytes); gone with the block, its processes killed.

    `version` 1 or 2. Raises PermissionError, with the reasons, where none can be made.
    """

    def __init__(self, limit_mb: float) -> None:
        reasons = []
        for version, make in ((2, _make_v2), (1, _make_v1)):
            try:
                self.folder, self.version = make(limit_mb), version
                return
            except OSError as error:
                reasons.append(f"v{version}: {error}")
        raise PermissionError("no memory control group can be made here (" + "; ".join(reasons) + ")")

    def popen(self, command: Sequence[str], **options: Any) -> "subprocess.Popen[str]":
        """Start a process in the group: memory that it takes from its first instruction on counts."""
        joins = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
        return subprocess.Popen(["sh", "-c", joins, str(self.folder), *command], text=True, **options)

    def used_mb(self) -> float:
        """What counts against the limit, files that can be dropped included."""
        name = "memory.current" if self.version == 2 else "memory.usage_in_bytes"
        return int((self.folder / name).read_text()) / 1e6

    def room_mb(self) -> float:
        """What is left of the limit, files that can be dropped at once counted as free."""
        limit = "memory.max" if self.version == 2 else "memory.limit_in_bytes"
        inactive = "inactive_file" if self.version == 2 else "total_inactive_file"
        lines = (self.folder / "memory.stat").read_text().splitlines()
        dropped = next(int(line.split()[1]) for line in lines if line.startswith(f"{inactive} "))
        return (int((self.folder / limit).read_text()) + dropped) / 1e6 - self.used_mb()

    def killed(self) -> int:
        """How many processes the kernel killed in it because there was no memory left."""
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        for line in (self.folder / name).read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
        return 0

    def close(self) -> None:
        """Kill what runs in it and remove it."""
        for _ in range(100):
            members = (self.folder / "cgroup.procs").read_text().split()
            for pid in members:
                os.kill(int(pid), 9)
            try:
                self.folder.rmdir()
                return
            except OSError:
                time.sleep(0.05)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Filler:
    """Another process in a group, which takes memory by steps."""

    def __init__(self, group: Group) -> None:
        command = [sys.executable, "-S", "-c", _FILL]
        self._process = group.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=1)
        self.held_mb = 0

    def take(self, mb: int) -> bool:
        """So much more, or with a negative number so much less; whether the process is still alive afterwards."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(f"{mb}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return False
        said = self._process.stdout.readline()
        self.held_mb = int(said or 0)
        return bool(said)

    def close(self) -> None:
        """End it."""
        end(self._process)


def end(process: "subprocess.Popen[str]") -> None:
    """Kill it and close its pipes."""
    process.kill()
    with suppress(BrokenPipeError), process:  # closing sends what was written last, and nobody may be there to read it
        pass


def _make_v2(limit_mb: float) -> Path:
    for mount in _MOUNTS:
        controllers = mount / "cgroup.controllers"
        if controllers.is_file() and "memory" in controllers.read_text().split():
            if "memory" not in (mount / "cgroup.subtree_control").read_text().split():
                raise PermissionError(f"{mount}/cgroup.subtree_control does not hand on the memory controller")
            return _limited(mount, "memory.max", "memory.swap.max", "0", limit_mb)
    raise FileNotFoundError("no cgroup2 with a memory controller is mounted")


def _make_v1(limit_mb: float) -> Path:
    if not _V1.is_dir():
        raise FileNotFoundError(f"{_V1} is not mounted")
    return _limited(_V1, "memory.limit_in_bytes", "memory.swappiness", "0", limit_mb)


def _limited(parent: Path, limit: str, swap: str, no_swap: str, limit_mb: float) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="dynamic-benchmark-", dir=parent))
    try:
        (folder / limit).write_text(str(round(limit_mb * 1e6)))
        if (folder / swap).exists():
            (folder / swap).write_text(no_swap)
    except OSError:
        folder.rmdir()
        raise
    return folder
