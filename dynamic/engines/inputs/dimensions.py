"""Dimensions of an input that may have more than one size, and whether given sizes are allowed."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class DimRange:
    """The sizes of a dynamic dimension: `factor * n + offset`, for whole numbers n from `min` to `max`.

    Dimensions of one name have the same n in a request, as the tokens of a text and their mask have.

    Args:
        name: Name of n, such as "length".
        min: Least n.
        max: Largest n. None: no limit.
        factor: Sizes between two that follow each other, such as 32 for a network that halves an image five times.
        offset: Size at n = 0.

    Example:
        >>> from dynamic.engines.inputs.dimensions import DimRange
        >>> height = DimRange("height", min=1, max=7, factor=32)
        >>> height.number(64), height.number(65), height.words
        (2, None, '32 to 224 in steps of 32')
    """

    name: str
    min: int
    max: int | None
    factor: int = 1
    offset: int = 0

    def size(self, number: int) -> int:
        """The size of a number n."""
        return self.factor * number + self.offset

    def number(self, size: int) -> int | None:
        """The number n of a size. None: the size is not allowed."""
        number, rest = divmod(size - self.offset, self.factor)
        return number if not rest and self.min <= number and (self.max is None or number <= self.max) else None

    def __contains__(self, size: object) -> bool:
        """Whether a size is allowed."""
        return isinstance(size, int) and self.number(size) is not None

    def __str__(self) -> str:
        """The name, with the sizes in words."""
        return f"{self.name} from {self.words}"

    @property
    def words(self) -> str:
        """The sizes in words."""
        most = "" if self.max is None else f" to {self.size(self.max)}"
        steps = "" if self.factor == 1 else f" in steps of {self.factor}"
        return f"{self.size(self.min)}{most or ' or more'}{steps}"


Ranges = tuple[DimRange | None, ...]  # of an input, without the batch. None: a fixed dimension. Empty: all are fixed
Sized = tuple[str, Sequence[int], Sequence[int], Ranges]  # name, actual shape, shape of the example, ranges


def _pairs(shape: Sequence[int], ranges: Ranges) -> Iterator[tuple[int, DimRange | None]]:
    """Each size of the example, with its range."""
    return zip(shape, ranges or (None,) * len(shape), strict=True)


def shape_text(shape: Sequence[int], ranges: Ranges) -> str:
    """What an input has to look like, such as `[B, length, 8]`."""
    words = [str(side) if span is None else span.name for side, span in _pairs(shape, ranges)]
    return f"[{', '.join(['B', *words])}]"


def size_fault(inputs: Iterable[Sized]) -> str | None:
    """What is wrong with the sizes of inputs, in words. None: nothing.

    Args:
        inputs: Each with its name, its shape with the batch, the shape of the example without, and its ranges.

    Returns:
        The size, the limit and the remedy.

    Example:
        >>> from dynamic.engines.inputs.dimensions import DimRange, size_fault
        >>> span = DimRange("length", 1, 512)
        >>> size_fault([("tokens", (1, 600), (12,), (span,))])[:70]
        "input 'tokens' has shape [1, 600], expected [B, length] with length from"
    """
    numbers: dict[str, tuple[int, str, int]] = {}  # by name of a dimension: n, input, size
    for name, actual_shape, shape, ranges in inputs:
        what = f"input {name!r} has shape {list(actual_shape)}, expected {shape_text(shape, ranges)}"
        if len(actual_shape) != len(shape) + 1:
            return what
        for actual, (own, span) in zip(actual_shape[1:], _pairs(shape, ranges), strict=True):
            if span is None:
                if actual != own:
                    return what
                continue
            number = span.number(actual)
            if number is None:
                return f"{what} with {span}. {_remedy(actual, span)}"
            before = numbers.setdefault(span.name, (number, name, actual))
            if before[0] != number:
                return (
                    f"input {name!r} has {span.name}={actual}, input {before[1]!r} {span.name}={before[2]}, expected "
                    "the same: pad or cut both alike"
                )
    return None


def _remedy(size: int, span: DimRange) -> str:
    again = f"or build the bundle with another Dim({span.name!r}, min=..., max=...) where the network allows it"
    if span.max is not None and size > span.size(span.max):
        return f"{size} is beyond the limit of {span.size(span.max)}: cut, split or resize the input, {again}"
    if size < span.size(span.min):
        return f"{size} is below the limit of {span.size(span.min)}: pad or resize the input, {again}"
    return f"{size} is none of these sizes: pad or resize the input, {again}"


def dynamic_places(ranges: Mapping[str, Ranges]) -> tuple[tuple[str, int], ...]:
    """(input, dimension with the batch counted) of each name of a dynamic dimension, where it occurs first."""
    places: dict[str, tuple[str, int]] = {}
    for name, spans in ranges.items():
        for d, span in enumerate(spans, 1):
            if span is not None:
                places.setdefault(span.name, (name, d))
    return tuple(places.values())


def request_size(places: Sequence[tuple[str, int]], shapes: Mapping[str, Sequence[int]]) -> int:
    """The product of the dynamic dimensions of a request, each name once: tokens of a text, pixels of an image.

    Args:
        places: As `dynamic_places` gives them.
        shapes: By input, with the batch.

    Returns:
        The size of one row. 1 where nothing is dynamic.
    """
    return math.prod(shapes[name][d] for name, d in places)
