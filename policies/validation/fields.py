"""Checks of values that were read from a file: type, range and length.

A file may hold anything: NaN, 10**400, a list where a number belongs. Each function returns the value as Python's own
type, or raises ValueError with its name, what it is and what it must be. The reader of a file turns that into the
error of that file.
"""

import math
from collections.abc import Callable, Collection
from typing import Any, TypeVar

MOST = 1e15  # of any measured figure, so that sums and products of some are finite
MOST_ITEMS = 1_000_000
_MOST_LETTERS = 10_000
T = TypeVar("T")


def number(value: Any, name: str, low: float = -MOST, high: float = MOST) -> float:
    """A finite number from `low` to `high`.

    Args:
        value: As it was read.
        name: What it is, for the error.
        low: The least.
        high: The largest. Infinite limits allow infinite values, and their names "inf" and "-inf".

    Returns:
        The number.

    Raises:
        ValueError: It is something else.
    """
    if value in ("inf", "-inf") and math.isinf(high):  # JSON has no infinite numbers
        value = float(value)
    # NaN fails every comparison. A whole number of 400 digits is compared without being converted
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name}={short(value)} must be a number from {low:g} to {high:g}")
    try:
        return float(value)
    except OverflowError as error:  # 10**400 under an infinite limit
        raise ValueError(f"{name}={short(value)} is too large") from error


def fraction(value: Any, name: str) -> float:
    """A number from 0 to 1. Raises ValueError on anything else."""
    return number(value, name, 0.0, 1.0)


def whole(value: Any, name: str, low: int = 0, high: int = 2**53) -> int:
    """A whole number from `low` to `high`.

    Args:
        value: As it was read.
        name: What it is, for the error.
        low: The least.
        high: The largest.

    Returns:
        The number.

    Raises:
        ValueError: It is something else, 3.0 and true included.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name}={short(value)} must be a whole number from {low} to {high}")
    return value


def text(value: Any, name: str, most: int = _MOST_LETTERS) -> str:
    """A text of at most so many letters. Raises ValueError on anything else."""
    if not isinstance(value, str) or len(value) > most:
        raise ValueError(f"{name}={short(value)} must be a text of at most {most} letters")
    return value


def word(value: Any, name: str, words: Collection[str]) -> str:
    """One of some words. Raises ValueError on anything else."""
    if not isinstance(value, str) or value not in words:
        raise ValueError(f"{name}={short(value)} must be one of {sorted(words)}")
    return value


def flag(value: Any, name: str) -> bool:
    """True or false. Raises ValueError on anything else, 0 and 1 included."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}={short(value)} must be true or false")
    return value


def items(
    value: Any,
    name: str,
    item: Callable[[Any, str], T],
    length: int | None = None,
    most: int = MOST_ITEMS,
) -> tuple[T, ...]:
    """A list, each of whose entries is checked.

    Args:
        value: As it was read.
        name: What it is, for the error.
        item: Checks one entry: a function of this file, or one like it.
        length: How many there must be. None: any number.
        most: How many there may be.

    Returns:
        The entries.

    Raises:
        ValueError: It is no list, of another length, or an entry is at fault.
    """
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name}={short(value)} must be a list")
    if len(value) > most or (length is not None and len(value) != length):
        raise ValueError(f"{name} has {len(value)} entries, not {f'at most {most}' if length is None else length}")
    return tuple(item(entry, f"{name}[{i}]") for i, entry in enumerate(value))


def maybe(value: Any, name: str, item: Callable[[Any, str], T]) -> T | None:
    """None, or what `item` gives. Raises ValueError where `item` does."""
    return None if value is None else item(value, name)


def mapping(
    value: Any, name: str, keys: Collection[str] | None = None, optional: Collection[str] = ()
) -> dict[str, Any]:
    """A mapping with text as keys.

    Args:
        value: As it was read.
        name: What it is, for the error.
        keys: Those that it must have, and no others. None: any.
        optional: Those that it may have beside them.

    Returns:
        The mapping.

    Raises:
        ValueError: It is something else.
    """
    if not isinstance(value, dict) or len(value) > MOST_ITEMS or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{name}={short(value)} must be a mapping")
    if keys is not None:
        missing, unknown = sorted(set(keys) - set(value)), sorted(set(value) - set(keys) - set(optional))
        if missing or unknown:
            raise ValueError(
                f"{name} lacks {missing[:3]}" if missing else f"{name} holds {short(unknown[:3])}, unknown"
            )
    return value


def texts(value: Any, name: str) -> dict[str, str]:
    """A mapping from text to text. Raises ValueError on anything else."""
    return {text(key, name): text(entry, f"{name}.{key:.80}") for key, entry in mapping(value, name).items()}


def short(value: Any) -> str:
    """The first letters of a value, for a message. Never fails, whatever its size."""
    try:
        return f"{value!r:.60}"
    except (ValueError, RecursionError):  # a number of more digits than Python writes
        return f"a {type(value).__name__}"
