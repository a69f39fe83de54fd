"""Small files of /proc and /sys, which are read again and again."""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")

_CHUNK = 1 << 16  # bytes of one read. The kernel gives less of some files, at most a page


class KernelFile:
    """Opened once and read from its beginning each time, which takes a fifth of opening it anew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle = -1

    def text(self) -> str:
        """What it holds now; raises OSError where it cannot be read."""
        if self._handle < 0:
            self._handle = os.open(self.path, os.O_RDONLY)
        try:
            return self._content().decode("utf-8", "replace")
        except OSError:
            self.close()  # what it belonged to may be gone, and another have taken its place
            raise

    def number(self) -> int:
        """The integer it holds; raises OSError where it cannot be read, ValueError on anything else."""
        return integer(self.text(), self.path)

    def _content(self) -> bytes:
        """All of the file: a short read is not its end, only an empty one is (proc_pid_mountinfo(5), seq_file)."""
        parts, size = [], 0
        while part := os.pread(self._handle, _CHUNK, size):
            parts.append(part)
            size += len(part)
        return b"".join(parts)

    def is_set(self) -> bool:
        """Whether a flag is set. One that cannot be read is not."""
        try:
            return self.number() != 0
        except (OSError, ValueError):
            return False

    def close(self) -> None:
        """Give the handle back; the next reading opens the file again."""
        handle, self._handle = self._handle, -1
        if handle >= 0:
            with contextlib.suppress(OSError):
                os.close(handle)

    def __del__(self) -> None:
        self.close()


class Found(Generic[T]):
    """What a search of the file tree gave, searched anew after `every_s`: devices come and go, but not often."""

    def __init__(self, search: Callable[[], T], every_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._search, self._every_s, self._clock = search, every_s, clock
        self._kept: tuple[float, T] | None = None  # when, what

    def __call__(self) -> T:
        """Raises what the search raises; the next call searches again then."""
        now = self._clock()
        if self._kept is None or not 0 <= now - self._kept[0] < self._every_s:
            self._kept = None
            self._kept = (now, self._search())
        return self._kept[1]


def integer(text: str, path: Path, base: int = 10) -> int:
    """The integer that a file holds; raises ValueError naming the file where it holds none."""
    try:
        return int(text, base)
    except ValueError:
        raise ValueError(f"{path} holds {text[:40]!r}, which is no number") from None


def word(path: Path) -> str | None:
    """What a file holds, stripped; None where there is no such file, or nothing behind it."""
    try:
        return KernelFile(path).text().strip()
    except (FileNotFoundError, NotADirectoryError):
        return None


def existing(*paths: Path) -> list[KernelFile]:
    """Those of the files that are there. One that may not be looked at is, and reading it says why it fails."""
    return [KernelFile(path) for path in paths if is_there(path)]


def is_there(path: Path) -> bool:
    """Whether there is such a file. One that may not be looked at is.

    Never raises: `Path.exists` does where a folder above the file is forbidden.

    Args:
        path: Of the file.

    Returns:
        False where there is none.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # EACCES, EIO: something is there that does not answer
        return True
    return True
