"""Small files of /proc and /sys that are read again and again."""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")

_CHUNK = 1 << 16  # bytes of one read. The kernel gives less of some files, at most a page


class KernelFile:
    """A file that is opened once and read from its beginning each time. This takes a fifth of opening it again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle = -1

    def text(self) -> str:
        """Its content now. Raises OSError where it cannot be read."""
        if self._handle < 0:
            self._handle = os.open(self.path, os.O_RDONLY)
        try:
            return self._content().decode("utf-8", "replace")
        except OSError:
            self.close()  # another device may have taken the place of this one
            raise

    def number(self) -> int:
        """The integer in it. Raises OSError where it cannot be read, ValueError on anything else."""
        return integer(self.text(), self.path)

    def _content(self) -> bytes:
        """All of the file: a short read is not its end, only an empty one is (proc_pid_mountinfo(5), seq_file)."""
        parts, size = [], 0
        while part := os.pread(self._handle, _CHUNK, size):
            parts.append(part)
            size += len(part)
        return b"".join(parts)

    def is_set(self) -> bool:
        """Whether a flag is set. False where it cannot be read."""
        try:
            return self.number() != 0
        except (OSError, ValueError):
            return False

    def close(self) -> None:
        """Close the handle. The next reading opens the file again."""
        handle, self._handle = self._handle, -1
        if handle >= 0:
            with contextlib.suppress(OSError):
                os.close(handle)

    def __del__(self) -> None:
        self.close()


class CachedSearch(Generic[T]):
    """The result of a search of the file tree, repeated after `every_s`: devices come and go, but not often."""

    def __init__(self, search: Callable[[], T], every_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._search, self._every_s, self._clock = search, every_s, clock
        self._result: tuple[float, T] | None = None  # when, what

    def __call__(self) -> T:
        """The result. Raises what the search raises, and then the next call searches again."""
        now = self._clock()
        if self._result is None or not 0 <= now - self._result[0] < self._every_s:
            self._result = None
            self._result = (now, self._search())
        return self._result[1]


def integer(text: str, path: Path, base: int = 10) -> int:
    """The integer in a text. Raises ValueError with the file's name where there is none."""
    try:
        return int(text, base)
    except ValueError:
        raise ValueError(f"{path} holds {text[:40]!r}, which is no number") from None


def word(path: Path) -> str | None:
    """The content of a file, stripped. None where there is no such file, or nothing behind it."""
    try:
        return KernelFile(path).text().strip()
    except (FileNotFoundError, NotADirectoryError):
        return None


def existing(*paths: Path) -> list[KernelFile]:
    """The files that exist. A file in a forbidden folder counts as existing: reading it raises the reason."""
    return [KernelFile(path) for path in paths if is_there(path)]


def is_there(path: Path) -> bool:
    """Whether a file exists. A file in a forbidden folder counts as existing.

    Never raises, unlike `Path.exists`, which does where a folder above the file is forbidden.

    Args:
        path: The file.

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
