"""Tables of text that fit a terminal."""

import textwrap
from collections.abc import Iterable, Sequence

from dynamic.policies.words.short_repr import WIDTH

_LEAST = 12  # columns of the last one, where it is broken into lines


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, text_last: bool = False) -> str:
    """Columns in line: the first to the left, the others to the right.

    Args:
        head: Titles of the columns.
        rows: Their cells.
        text_last: The last column is text. It stands to the left, and is broken into lines where it leaves 80 columns.

    Returns:
        The lines.
    """
    lines = [tuple(head), *(tuple(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    room = max(WIDTH - sum(widths[:-1]) - 2 * len(widths[:-1]), _LEAST)
    texts = []
    for line in lines:
        cells = [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
        if text_last:
            first, *others = textwrap.wrap(line[-1], room) or [""]
            start = "  ".join(cells[:-1])
            texts += ["  ".join([start, first]).rstrip(), *(" " * (len(start) + 2) + other for other in others)]
        else:
            texts.append("  ".join(cells).rstrip())
    return "\n".join(texts)
