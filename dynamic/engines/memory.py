"""Resources of the system that every engine uses: cores, and memory to return."""

import contextlib
import ctypes
import gc
import os
import sys
import threading
from collections.abc import Iterator


def available_cores() -> int:
    """Number of cores that this process may use: its affinity mask where the system has one."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a sandbox may refuse the call
            return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_runs = threading.local()


@contextlib.contextmanager
def giving_back() -> Iterator[None]:
    """Inside the block, runs of this thread return their memory to the system afterwards.

    An engine keeps the memory of its largest run for the next one. Where memory is so short that a batch is split, this
    would count as used for ever.
    """
    _runs.give_back = True
    try:
        yield
    finally:
        _runs.give_back = False


def gives_back() -> bool:
    """Whether runs of this thread return their memory."""
    return getattr(_runs, "give_back", False)


@contextlib.contextmanager
def own_buffers() -> Iterator[None]:
    """Inside the block, runs of this thread have buffers of their own.

    An engine keeps the outputs of a run in buffers of its thread, until the caller has copied them. A signal handler
    that runs a request in the middle of another must not overwrite them.
    """
    _runs.depth = buffer_depth() + 1
    try:
        yield
    finally:
        _runs.depth -= 1


def buffer_depth() -> int:
    """How many runs of this thread have been interrupted by the present one. Each has its own buffers."""
    depth: int = getattr(_runs, "depth", 0)
    return depth


def trim_memory(collect: bool = True) -> None:
    """Return freed memory to the system. Otherwise glibc keeps it in its arenas (173 to 656 MB measured).

    Args:
        collect: Free what is in reference cycles first. This stops every thread, 15 ms in a process that has loaded
            little more than an engine. Sessions and compiled models are in none.
    """
    if collect:
        gc.collect()
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):  # musl and others have no such call, and do not need it
            return
