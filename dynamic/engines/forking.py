"""What an engine does in a forked child: everything made by the parent is forgotten, and made anew when wanted.

Threads do not survive a fork, so a session of the parent would wait in the child for workers that are not there. What
is forgotten is kept alive, unused: to destroy it would wait for the same workers.
"""

import os
import weakref
from typing import Any, Protocol


class Forgets(Protocol):
    """Holds what does not survive a fork."""

    def forget(self) -> Any:
        """Drop it without destroying it: give it back."""


_holders: "weakref.WeakSet[Forgets]" = weakref.WeakSet()
_lost: list[Any] = []


def forget_after_fork(holder: Forgets) -> None:
    """Call `holder.forget()` in every child that this process forks, for as long as the holder lives."""
    _holders.add(holder)


def _in_child() -> None:
    _lost.extend(holder.forget() for holder in tuple(_holders))


if hasattr(os, "register_at_fork"):  # systems without fork have no need of it
    os.register_at_fork(after_in_child=_in_child)
