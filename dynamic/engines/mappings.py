"""Memory of its own for what an engine has mapped from files (Linux), so that the files may change afterwards.

ONNX Runtime maps weights. A file that is overwritten in place would change the answers of a loaded session, and one
that is cut short would end the process (SIGBUS). Both were seen with `cp new.weights old.weights`.
"""

import ctypes
import logging
import mmap
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynamic.engines.forking import forget_after_fork

_MAPS = "/proc/self/maps"
_MAY_MOVE, _FIXED = 1, 2  # of mremap(2)

logger = logging.getLogger("dynamic")


@dataclass(frozen=True)
class Mapping:
    """Addresses `first` to `end` show the file at `path` from `offset` on."""

    first: int
    end: int
    offset: int
    path: str


class _Loading:
    """One load at a time: what is mapped after it and was not before then belongs to it, and nobody unmaps it."""

    def __init__(self) -> None:
        self.forget()
        forget_after_fork(self)

    def forget(self) -> Any:
        """A lock that the parent held, perhaps, is no lock in a forked child."""
        self.lock = threading.Lock()


_LOADING = _Loading()


@contextmanager
def own_memory(paths: Sequence[Path]) -> Iterator[None]:
    """Copy what the block maps from these files into memory of the process, at the same addresses.

    Args:
        paths: The files. Other mappings stay as they are, and so do those that were there before.
    """
    if sys.platform != "linux":
        yield
        return
    names = {os.path.realpath(path) for path in paths}
    with _LOADING.lock:
        before = _mappings(names)
        yield
        for mapping in _mappings(names):
            for part in _without(mapping, before):
                _copy(part)


def _mappings(names: set[str]) -> list[Mapping]:
    """Private mappings of these files, by the paths that the kernel shows; none where it shows none."""
    try:
        with open(_MAPS, encoding="utf-8", errors="surrogateescape") as file:
            lines = [line.rstrip("\n").split(maxsplit=5) for line in file]
    except OSError as error:  # no /proc, as in some jails
        logger.debug("mappings cannot be listed (%s): they stay mapped", error)
        return []
    mappings = []
    for line in lines:
        if len(line) == 6 and line[5] in names and line[1].startswith("rw") and line[1].endswith("p"):
            first, end = (int(address, 16) for address in line[0].split("-"))
            mappings.append(Mapping(first, end, int(line[2], 16), line[5]))
    return mappings


def _without(mapping: Mapping, others: Sequence[Mapping]) -> list[Mapping]:
    """The parts of a mapping that no other covers: the kernel merges neighbours into one."""
    parts = [(mapping.first, mapping.end)]
    for other in others:
        cut = [((a, min(b, other.first)), (max(a, other.end), b)) for a, b in parts]
        parts = [(a, b) for pair in cut for a, b in pair if a < b]
    return [Mapping(a, b, mapping.offset + a - mapping.first, mapping.path) for a, b in parts]


def _copy(mapping: Mapping) -> None:
    """Put a copy at the addresses of a mapping; it stays as it is where the file has become too short."""
    size = mapping.end - mapping.first
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = library.mremap.restype = ctypes.c_void_p
    protection, kind = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    fresh = library.mmap(None, ctypes.c_size_t(size), protection, kind, -1, ctypes.c_long(0))
    if fresh in (None, ctypes.c_void_p(-1).value):
        raise MemoryError(f"{size} bytes of {mapping.path} do not fit into memory")
    address, length = ctypes.c_void_p(fresh), ctypes.c_size_t(size)
    # read from the file: from the mapping, a file that is cut short meanwhile would end the process
    with open(mapping.path, "rb", buffering=0) as file:
        content = memoryview((ctypes.c_ubyte * size).from_address(fresh)).cast("B")
        there = min(size, max(0, os.fstat(file.fileno()).st_size - mapping.offset))
        whole = there > size - mmap.PAGESIZE and _read(file.fileno(), content[:there], mapping.offset)
    flags = _MAY_MOVE | _FIXED
    if not whole or library.mremap(address, length, length, flags, ctypes.c_void_p(mapping.first)) != mapping.first:
        library.munmap(address, length)


def _read(handle: int, content: memoryview, offset: int) -> bool:
    """Fill `content` from a file; whether there was enough."""
    position = 0
    while position < len(content):
        count = os.preadv(handle, [content[position:]], offset + position)
        if count == 0:
            return False
        position += count
    return True
