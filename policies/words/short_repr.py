"""`repr` that says what a person wants, in lines of at most 80 columns."""

import textwrap
from collections.abc import Iterable
from dataclasses import MISSING, fields
from typing import Any

WIDTH = 80


def short_repr(name: str, parts: Iterable[str]) -> str:
    """`name(part, part, ...)`, on further lines where it does not fit one.

    Args:
        name: The name of the class.
        parts: What stands between the parentheses.

    Returns:
        Lines of at most 80 columns.
    """
    line = f"{name}({', '.join(parts)})"
    return line if len(line) <= WIDTH else wrapped(line, "    ")


def fields_repr(value: Any) -> str:
    """The fields of a dataclass that differ from their defaults, as Python writes them.

    Args:
        value: The object.

    Returns:
        Lines of at most 80 columns. They evaluate to an equal object where all fields are plain values.
    """
    parts = []
    for field in fields(value):
        own = getattr(value, field.name)
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if field.repr and not (type(own) is type(default) and own == default):
            parts.append(f"{field.name}={own!r}")
    return short_repr(type(value).__name__, parts)


def wrapped(text: str, indent: str = "", width: int = WIDTH) -> str:
    """Text in lines of at most `width` columns, broken at spaces. A longer word, such as a path, stays whole.

    Args:
        text: One or several lines. Each is broken alone.
        indent: Before each line that continues another.
        width: Columns.

    Returns:
        The lines.
    """
    lines = (
        textwrap.wrap(line, width, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False) or [""]
        for line in text.splitlines()
    )
    return "\n".join("\n".join(some) for some in lines)
