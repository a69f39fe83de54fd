"""Example inputs of a cascade for measurements."""

import math
from collections.abc import Mapping

import numpy as np

from dynamic.engines.contract import Array, CascadeSpec
from dynamic.engines.inputs.dimensions import DimRange

_LARGER = 4  # times the example: a size that is measured where the limits allow it
_MOST = 64  # times the example's size: larger ones are not measured


def example_arrays(spec: CascadeSpec, rows: int, numbers: Mapping[str, int] | None = None) -> dict[str, Array]:
    """Inputs of the right shape and dtype: normal noise for floating point, zeros for everything else.

    `numbers`: the number n of each dynamic dimension by name (see `DimRange`). None: the size of the example.
    """
    random = np.random.default_rng(0)
    arrays = {}
    for i in spec.inputs:
        shape = [
            size if numbers is None or isinstance(side, int) else side.size(numbers[side.name])
            for size, side in zip(i.shape, i.sides, strict=True)
        ]
        arrays[i.name] = (
            random.standard_normal((rows, *shape)).astype(i.dtype)
            if np.issubdtype(np.dtype(i.dtype), np.floating)
            else np.zeros((rows, *shape), i.dtype)
        )
    return arrays


def other_sizes(spec: CascadeSpec) -> dict[int, dict[str, int]]:
    """Sizes besides the example's at which costs are measured: the least, four times its own, and the largest.

    Of a dimension without a limit four times its own is the largest, and no request is larger than 64 times the
    example.

    Returns:
        By rising size of one row, the number n of each dynamic dimension.
    """
    own: dict[str, int] = {}
    spans = {}
    for i in spec.inputs:
        for size, side in zip(i.shape, i.sides, strict=True):
            if not isinstance(side, int):
                spans[side.name], own[side.name] = side, (size - side.offset) // side.factor
    if not spans:
        return {}
    example = spec.example_size or 1
    more = {
        name: max(span.min, min(_LARGER * own[name], span.max or _LARGER * own[name])) for name, span in spans.items()
    }
    most = {name: more[name] if span.max is None else span.max for name, span in spans.items()}
    found: dict[int, dict[str, int]] = {}
    for numbers in ({name: span.min for name, span in spans.items()}, more, most):
        arrays = example_arrays(spec, 1, numbers) if _fits(spans, numbers, example) else None
        size = None if arrays is None else spec.size_of(arrays)
        if size is not None and size != example:
            found.setdefault(size, numbers)
    return dict(sorted(found.items()))


def _fits(spans: Mapping[str, DimRange], numbers: Mapping[str, int], example: int) -> bool:
    """Whether inputs of these numbers are at most 64 times as large as the example."""
    return math.prod(span.size(numbers[name]) for name, span in spans.items()) <= _MOST * example
