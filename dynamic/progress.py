"""Progress with rate and remaining time on a terminal, and nothing elsewhere."""

import sys
from collections.abc import Generator, Iterable, Sized
from typing import TypeVar

T = TypeVar("T")


def size_of(items: Iterable[object]) -> int | None:
    """The number of items, where they can be counted."""
    try:
        return len(items) if isinstance(items, Sized) else None
    except (TypeError, NotImplementedError):  # a DataLoader has a length, its stream of data none
        return None


def track(
    items: Iterable[T], label: str, total: int | None = None, shown: bool | None = None
) -> Generator[T, None, None]:
    """Iterate with a progress bar.

    tqdm draws it and is an extra on the device. Without it there is no bar.

    Args:
        items: The items.
        label: Text before the bar.
        total: Number of items. None: their length, if they have one.
        shown: Whether to show the bar. None: where stderr is a terminal.

    Yields:
        The items.
    """
    if shown is None:
        shown = sys.stderr.isatty()
    if shown:
        try:
            from tqdm import tqdm
        except ModuleNotFoundError:
            shown = False
    if not shown:
        yield from items
        return
    yield from tqdm(items, desc=label, total=total, leave=False)
