"""What stages cost at another size of input than the example's: more tokens, more pixels."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynamic.policies.errors import InputError
from dynamic.policies.validation.fields import items, mapping, number, whole

Row = tuple[float, ...]
Table = tuple[Row, ...]
TABLES = ("latency_ms", "latency_p95_ms", "head_ms", "cpu_ms")
ROWS = ("call_ms", "call_cpu_ms")


@dataclass(frozen=True)
class SizeCosts:
    """Times of every stage for inputs of one size, at the batch sizes of the costs that hold them.

    Args:
        size: Size of one row: the product of its dynamic dimensions, such as tokens of a text or pixels of an image.
        latency_ms: Median latency `[S][K]` of a stage, head included.
        latency_p95_ms: Its 95th percentile `[S][K]`.
        head_ms: Median latency `[S][K]` of the head alone.
        cpu_ms: Mean CPU time `[S][K]`.
        call_ms: Overhead of a request `[K]`.
        call_cpu_ms: CPU time of the overhead `[K]`. Empty: not measured, or part of the first stage.

    Example:
        >>> from dynamic.policies.costing.size_costs import SizeCosts
        >>> SizeCosts(64, ((2.0,),), ((2.5,),), ((0.1,),), ((4.0,),), (0.2,)).size
        64
    """

    size: int
    latency_ms: Table
    latency_p95_ms: Table
    head_ms: Table
    cpu_ms: Table
    call_ms: Row
    call_cpu_ms: Row = ()

    @classmethod
    def from_json(cls, data: Any, name: str) -> "SizeCosts":
        """What `dataclasses.asdict` described. Raises ValueError where it does not read."""
        fields: Mapping[str, Any] = mapping(data, name, cls.__dataclass_fields__)
        read: dict[str, Any] = {table: items(fields[table], f"{name}.{table}", _row) for table in TABLES}
        read |= {row: _row(fields[row], f"{name}.{row}") for row in ROWS}
        return cls(size=whole(fields["size"], f"{name}.size", 1), **read)


def check_sizes(size: int | None, sizes: Sequence[SizeCosts], stages: int, batches: int) -> None:
    """Raises InputError where a size is none, sizes do not rise, or a table is not of so many stages and batches."""
    if size is not None:
        check_size(size)
    if not sizes:
        return
    if size is None:
        raise InputError(f"costs at sizes {[s.size for s in sizes]} need the size of the others: give size=")
    listed = [s.size for s in sizes]
    if size in listed or listed != sorted(set(listed)) or listed[0] < 1:
        raise InputError(f"sizes {listed} must rise from 1 and not repeat {size}, whose figures stand beside them")
    for entry in sizes:
        for name in TABLES:
            table = getattr(entry, name)
            if len(table) != stages or any(len(row) != batches for row in table):
                raise InputError(f"{name} at size {entry.size} must have a row for each stage and batch size")
        if len(entry.call_ms) != batches or len(entry.call_cpu_ms) not in (0, batches):
            raise InputError(f"the overhead at size {entry.size} must have an entry for each batch size")


def check_size(size: Any) -> None:
    """Raises InputError where this is no size of a row: a whole number of 1 or more."""
    if isinstance(size, (bool, np.bool_)) or not isinstance(size, (int, np.integer)) or size < 1:
        raise InputError(
            f"size={size!r:.40} is no size of an input: give the product of its dynamic dimensions, 1 or more"
        )


def between(measured: Sequence[SizeCosts], size: int) -> SizeCosts:
    """The costs at a size, linear between those of two measured ones and beyond the largest.

    Below the smallest they are those of the smallest. Beyond the largest no figure falls: where it does before, that is
    noise.

    Args:
        measured: Rising sizes, two or more.
        size: The size.

    Returns:
        The costs.
    """
    at = min(max(bisect_right([entry.size for entry in measured], size), 1), len(measured) - 1)
    low, high = measured[at - 1], measured[at]
    share = max((size - low.size) / (high.size - low.size), 0.0)

    def row(a: Row, b: Row) -> Row:
        pairs = zip(a, b, strict=True)
        return tuple(x + share * (y - x) if share <= 1.0 else y + (share - 1.0) * max(y - x, 0.0) for x, y in pairs)

    figures: dict[str, Any] = {
        name: tuple(row(a, b) for a, b in zip(getattr(low, name), getattr(high, name), strict=True)) for name in TABLES
    }
    figures |= {name: row(getattr(low, name), getattr(high, name)) for name in ROWS}
    return SizeCosts(size, **figures)


def _row(value: Any, name: str) -> Row:
    return items(value, name, lambda entry, what: number(entry, what, 0.0))
