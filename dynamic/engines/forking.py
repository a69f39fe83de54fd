"""Engines in a forked child: everything of the parent is dropped, and made again on demand.

Threads do not survive a fork. A session of the parent would wait in the child for workers that do not exist. What is
dropped remains in memory, unused: its destruction would wait for the same workers.
"""

import logging
import os
import sys
import weakref
from typing import Any, Protocol

logger = logging.getLogger("dynamic")

_LIBRARIES = ("onnxruntime", "openvino")  # of engines, in C++, with threads and destructors of their own


class Forgets(Protocol):
    """Holds objects that do not survive a fork."""

    def forget(self) -> Any:
        """Drop them without destroying them, and return them."""


_holders: "weakref.WeakSet[Forgets]" = weakref.WeakSet()
_lost: list[Any] = []
_warned = False


def forget_after_fork(holder: Forgets) -> None:
    """Call `holder.forget()` in every child that this process forks, for as long as the holder exists."""
    _holders.add(holder)


def _before_fork() -> None:
    """Warn once where a child may hang at its end."""
    global _warned
    loaded = [name for name in _LIBRARIES if sys.modules.get(name) is not None]
    if _warned or not loaded or not _holders or _ends_by_itself():
        return
    _warned = True
    logger.warning(
        "this process forks after it has loaded %s: a child answers requests, but one that ends by sys.exit may hang "
        "or abort. Fork first: open the bundle in each child, or load(..., preload=False) and send no request before "
        "the fork (see docs/guides/servers.md)",
        " and ".join(loaded),
    )


def _ends_by_itself() -> bool:
    """Whether `multiprocessing` forks: its children end by os._exit. OpenVINO's telemetry forks so at its first use."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_globals.get("__name__") == "multiprocessing.popen_fork":
            return True
    return False


def _in_child() -> None:
    _lost.extend(holder.forget() for holder in tuple(_holders))


if hasattr(os, "register_at_fork"):  # systems without fork have no need of it
    os.register_at_fork(before=_before_fork, after_in_child=_in_child)
