"""Progress with rate and remaining time: a bar on a terminal, and a line of the log every few seconds elsewhere."""

import logging
import sys
import time
from collections.abc import Callable, Generator, Iterable, Sized
from typing import TypeVar

T = TypeVar("T")

EVERY_S = 5.0  # between two lines of the log

logger = logging.getLogger("dynamic.progress")


def size_of(items: Iterable[object]) -> int | None:
    """The number of items, where they can be counted."""
    try:
        return len(items) if isinstance(items, Sized) else None
    except (TypeError, NotImplementedError):  # a DataLoader has a length, its stream of data none
        return None


def track(
    items: Iterable[T],
    label: str,
    total: int | None = None,
    shown: bool | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Generator[T, None, None]:
    """Iterate with a progress bar, or with lines of the log.

    tqdm draws the bar and is an extra on the device. Without it, and where stderr is no terminal, a line at level INFO
    goes to the logger "dynamic.progress" every five seconds. Commands print these lines.

    Args:
        items: The items.
        label: Text before the bar.
        total: Number of items. None: their length, if they have one.
        shown: Whether to show progress. None: a bar where stderr is a terminal, else lines.
        clock: Time in seconds.

    Yields:
        The items.
    """
    bar = sys.stderr.isatty() if shown is None else shown
    if bar:
        try:
            from tqdm import tqdm
        except ModuleNotFoundError:
            bar = False
    if bar:
        yield from tqdm(items, desc=label, total=total, leave=False)
    elif shown is False:
        yield from items
    else:
        yield from _with_lines(items, label, size_of(items) if total is None else total, clock)


def _with_lines(
    items: Iterable[T], label: str, total: int | None, clock: Callable[[], float]
) -> Generator[T, None, None]:
    began = last = clock()
    for count, item in enumerate(items):
        now = clock()
        if now - last >= EVERY_S:
            last, passed = now, now - began
            of = "" if total is None else f" of {total}"
            remains = f", about {passed / count * (total - count):.0f} s remain" if total and count else ""
            logger.info("%s: %d%s, %.0f s%s", label, count, of, passed, remains)
        yield item
