"""Example inputs of a cascade for measurements."""

import math
from collections.abc import Mapping

import numpy as np

from dynamic.engines.contract import Array, CascadeSpec
from dynamic.engines.inputs.dimensions import DimRange

_LARGER = 4  # times the example: a size that is measured where the limits allow it
_MOST = 64  # times the example's size: larger ones are not measured
_RATIO_STEP = 1e-6


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


def other_sizes(spec: CascadeSpec) -> tuple[dict[int, dict[str, int]], int | None]:
    """Sizes besides the example's at which costs are measured: the least, four times its own, and the largest.

    Of a dimension without a limit four times its own is the largest that is measured, and of all together 64 times the
    example. Requests may be larger.

    Returns:
        By rising size of one row, the number n of each dynamic dimension. And the largest of these sizes, where larger
        requests are allowed. None: it is the largest that is allowed.
    """
    own: dict[str, int] = {}
    spans: dict[str, DimRange] = {}
    for i in spec.inputs:
        for size, side in zip(i.shape, i.sides, strict=True):
            if not isinstance(side, int) and side.name not in spans:
                spans[side.name], own[side.name] = side, (size - side.offset) // side.factor
    example = spec.example_size
    if example is None:
        return {}, None

    def size_at(numbers: Mapping[str, int]) -> int:
        return math.prod(span.size(numbers[name]) for name, span in spans.items())

    def numbers_at(ratio: float) -> dict[str, int]:
        """Every dimension at so many times its own size, as far as its limits allow."""
        numbers = {}
        for name, span in spans.items():
            own_size = span.size(own[name])
            most = own_size * (ratio if span.max is not None else min(ratio, _LARGER))
            if span.max is not None:
                most = min(most, span.size(span.max))
            numbers[name] = max(span.min, own[name], (int(most) - span.offset) // span.factor)
        return numbers

    most = numbers_at(math.inf)
    if size_at(most) > _MOST * example:
        low, high = 1.0, float(_MOST)  # the example fits, and each dimension alone at 64 times its own just so
        while high - low > _RATIO_STEP:
            middle = (low + high) / 2
            low, high = (middle, high) if size_at(numbers_at(middle)) <= _MOST * example else (low, middle)
        most = numbers_at(high if size_at(numbers_at(high)) <= _MOST * example else low)
    more = numbers_at(_LARGER)
    more = more if size_at(more) <= size_at(most) else most
    sizes: dict[int, dict[str, int]] = {}
    for numbers in ({name: span.min for name, span in spans.items()}, more, most):
        if size_at(numbers) != example:
            sizes.setdefault(size_at(numbers), numbers)
    whole = all(span.max == most[name] for name, span in spans.items())
    return dict(sorted(sizes.items())), None if whole else max(example, size_at(most))
