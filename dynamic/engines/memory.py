"""What every engine asks of the system: cores to use, and memory to give back."""

import contextlib
import ctypes
import gc
import os
import sys
import threading
from collections.abc import Iterator


def available_cores() -> int:
    """Cores this process may use: its affinity mask where the system has one."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a sandbox may refuse the call
            return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_runs = threading.local()


@contextlib.contextmanager
def giving_back() -> Iterator[None]:
    """Inside the block, runs of this thread hand what they took back to the system, and the next take it anew.

    An engine keeps what its largest run took for the next one. Where memory is so short that a batch is split, this
    would count as used for ever.
    """
    _runs.give_back = True
    try:
        yield
    finally:
        _runs.give_back = False


def gives_back() -> bool:
    """Whether a run of this thread hands back what it took."""
    return getattr(_runs, "give_back", False)


def trim_memory(collect: bool = True) -> None:
    """Hand freed memory back to the system: glibc keeps it in its arenas otherwise (173 to 656 MB seen).

    Args:
        collect: Free what lies in reference cycles first. That stops every thread, 15 ms in a process that has loaded
            little more than an engine. Sessions and compiled models lie in none.
    """
    if collect:
        gc.collect()
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):  # musl and others have no such call, and do not need it
            return
