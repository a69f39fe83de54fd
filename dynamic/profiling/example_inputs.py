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
    spans: dict[str, DimRange] = {}
    for i in spec.inputs:
        for size, side in zip(i.shape, i.sides, strict=True):
            if not isinstance(side, int) and side.name not in spans:
                spans[side.name], own[side.name] = side, (size - side.offset) // side.factor
    example = spec.example_size
    if example is None:
        return {}
    more = {n: max(span.min, min(_LARGER * own[n], span.max or _LARGER * own[n])) for n, span in spans.items()}
    most = {n: more[n] if span.max is None else span.max for n, span in spans.items()}
    found: dict[int, dict[str, int]] = {}
    for numbers in ({n: span.min for n, span in spans.items()}, more, most):
        size = math.prod(span.size(numbers[n]) for n, span in spans.items())
        if size != example and size <= _MOST * example:
            found.setdefault(size, numbers)
    return dict(sorted(found.items()))
