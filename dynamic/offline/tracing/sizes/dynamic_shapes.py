"""Dynamic dimensions in the words of torch.export: `Dim("length", min=1, max=512)`, `Dim.AUTO`, `Dim.DYNAMIC`."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

from dynamic.engines.inputs.dimensions import DimRange, Ranges, size_fault
from dynamic.policies.errors import InputError

# by argument name or position, for each dimension a Dim, a hint, or None: what torch.export calls dynamic_shapes
DynamicShapes = Mapping[str, Any] | Sequence[Any]

BATCH = "batch"  # name of dimension 0

_Hint = type(Dim.AUTO)
_STATIC = getattr(Dim, "STATIC", None)
_LARGEST = 2**31  # from here on torch means no limit
_LARGER = 4  # times the example: a size at which graphs are tried where the limits allow it

Infer = Callable[[dict[str, dict[int, Any]]], Mapping[str, Sequence[Any]]]


def read_shapes(words: DynamicShapes, example: Mapping[str, Tensor], argument: str, infer: Infer) -> dict[str, Ranges]:
    """The ranges of every input, without the batch.

    Args:
        words: `dynamic_shapes` as torch.export takes it. The batch is dynamic whatever it says.
        example: The inputs by name.
        argument: The name of the network's first argument, which a single input has too.
        infer: Traces the network under torch's own dimensions, `{input: {dimension: hint}}`. Gives for each input the
            size of each dimension: a number, or `(name, min, max)`.

    Returns:
        For each input the ranges of its dimensions.

    Raises:
        InputError: A word is not known, or does not fit the example.
    """
    entries = _by_name(words, example, argument)
    spans: dict[str, dict[int, DimRange | None]] = {}
    hints: dict[str, dict[int, Any]] = {}
    for name, tensor in example.items():
        spans[name] = {}
        for d, word in _by_dimension(name, entries[name], tensor).items():
            if isinstance(word, _Hint) and word != _STATIC:
                if d:
                    hints.setdefault(name, {})[d] = word
            else:
                span = _span(name, d, word, tensor)
                if d:
                    spans[name][d] = span
    if hints:
        for name, sizes in infer(hints).items():
            for d in hints.get(name, {}):
                inferred = sizes[d]
                spans[name][d] = None if isinstance(inferred, int) else DimRange(*inferred)
    ranges = {n: tuple(spans[n].get(d) for d in range(1, tensor.ndim)) for n, tensor in example.items()}
    _check_example(ranges, example)
    return {name: own if any(own) else () for name, own in ranges.items()}


def torch_shapes(ranges: Mapping[str, Ranges], batch: Any) -> list[dict[int, Any]]:
    """The same as torch.export takes it, by input in order, with a dynamic batch."""
    dims: dict[str, Any] = {}
    shapes = []
    for spans in ranges.values():
        shape: dict[int, Any] = {0: batch}
        for d, span in enumerate(spans, 1):
            if span is not None:
                limits = {} if span.max is None else {"max": span.max}
                dim = dims.setdefault(span.name, Dim(span.name, min=span.min, **limits))
                scaled = dim if span.factor == 1 else span.factor * dim
                shape[d] = scaled + span.offset if span.offset else scaled
        shapes.append(shape)
    return shapes


def common_ranges(declared: Sequence[Mapping[str, Ranges]], names: Sequence[str]) -> dict[str, Ranges]:
    """The sizes that several networks take, for inputs of these `names`, under the names of the first network's.

    Sizes in steps are those that all steps meet: their step is the least common multiple.

    Raises InputError where limits or steps exclude each other.
    """
    if not declared:
        return {}
    first = dict(zip(names, declared[0].values(), strict=True))
    common: dict[str, DimRange] = {}  # by the first network's names of dimensions: the numbers n of its own that remain
    for ranges in declared:
        for own, spans in zip(first.values(), ranges.values(), strict=True):
            for mine, span in zip(own, spans, strict=False):
                if mine is not None and span is not None:
                    numbers = common.setdefault(mine.name, DimRange(mine.name, mine.min, mine.max))
                    common[mine.name] = _met(numbers, mine, span)
    return {name: tuple(span and _scaled(common[span.name], span) for span in spans) for name, spans in first.items()}


def _scaled(numbers: DimRange, span: DimRange) -> DimRange:
    """The sizes of those numbers n of a range that are the sizes of `numbers`."""
    factor, offset = span.factor * numbers.factor, span.factor * numbers.offset + span.offset
    return DimRange(span.name, numbers.min, numbers.max, factor, offset)


def _met(numbers: DimRange, mine: DimRange, span: DimRange) -> DimRange:
    """Those `numbers` n of the range `mine` whose sizes another network takes too, as a range of numbers."""
    sizes = _scaled(numbers, mine)
    step = math.lcm(sizes.factor, span.factor)
    # the steps repeat after `step`: one of these sizes is common, or none is
    rest = [sizes.size(n) for n in range(step // sizes.factor) if (sizes.size(n) - span.offset) % span.factor == 0]
    both = f"no {mine.name} fits all networks: one takes {sizes.words}, another {span.words}"
    if not rest:
        raise InputError(f"{both}, and no size is in both steps. Wrap them with steps that share a size")
    least = max(sizes.size(sizes.min), span.size(span.min))
    limits = [one.size(one.max) for one in (sizes, span) if one.max is not None]
    low = -((rest[0] - least) // step)
    high = (min(limits) - rest[0]) // step if limits else None
    if high is not None and low > high:
        raise InputError(f"{both}. Wrap them with limits that share a size")
    factor, offset = step // mine.factor, (rest[0] - mine.offset) // mine.factor
    return DimRange(mine.name, low, high, factor, offset)


def numbers_of(ranges: Mapping[str, Ranges], inputs: Mapping[str, Tensor]) -> dict[str, int]:
    """The number n of each name of a dynamic dimension in inputs of an allowed size."""
    return {
        span.name: (size - span.offset) // span.factor
        for name, spans in ranges.items()
        for span, size in zip(spans, inputs[name].shape[1:], strict=False)
        if span is not None
    }


def range_of(
    sizes: Sequence[int], numbers: Sequence[Mapping[str, int]], spans: Mapping[str, DimRange]
) -> DimRange | None:
    """The sizes of a dimension inside the network, `factor * n + offset` of one name n of a dynamic dimension.

    Args:
        sizes: The size in each of several runs.
        numbers: n by name in each of them.
        spans: A range by name, whose limits of n hold inside too.

    Returns:
        The range. None: fewer than three sizes, or no name explains them.
    """
    for name, span in spans.items():
        points = sorted({(own[name], size) for own, size in zip(numbers, sizes, strict=True)})
        if len(points) < 3 or len({n for n, _ in points}) < len(points):
            continue
        (first, low), (second, high) = points[:2]
        factor, rest = divmod(high - low, second - first)
        offset = low - factor * first
        if factor > 0 and not rest and all(size == factor * n + offset for n, size in points):
            return DimRange(name, span.min, span.max, factor, offset)
    return None


def trial_inputs(ranges: Mapping[str, Ranges], example: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The example at other sizes: the least, the largest, four times its own, and such that all dimensions differ.

    Where the limits are too narrow for that, sizes around their middle differ.
    """
    own = numbers_of(ranges, example)
    spans = {span.name: span for listed in ranges.values() for span in listed if span is not None}
    if not spans:
        return

    def capped(name: str, number: int) -> int:
        span = spans[name]
        return max(span.min, number if span.max is None else min(number, span.max))

    names = list(spans)
    trials = [
        {name: capped(name, 2 * own[name] + 1 + i) for i, name in enumerate(names)},
        {name: capped(name, _LARGER * own[name]) for name in names},
        {name: capped(name, own[name] // 2 + i) for i, name in enumerate(names)},
        {name: spans[name].min for name in names},
        {
            name: capped(name, _LARGER * own[name] if spans[name].max is None else spans[name].max or 0)
            for name in names
        },
    ]
    if any(span.max is not None and span.max < 2 * own[name] + len(names) for name, span in spans.items()):
        middle = {
            name: (span.min + (2 * own[name] if span.max is None else span.max)) // 2 for name, span in spans.items()
        }
        trials.insert(1, {name: capped(name, middle[name] + i) for i, name in enumerate(names)})
        trials.insert(2, {name: capped(name, middle[name] + 1 - i) for i, name in enumerate(names)})
    tried = [own]
    for trial in trials:
        if trial not in tried:
            tried.append(trial)
            yield resized(ranges, example, trial)


def traceable(ranges: Mapping[str, Ranges], example: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The example, at larger sizes where a dynamic dimension is 1: torch.export takes 1 for a constant."""
    numbers = numbers_of(ranges, example)
    for spans in ranges.values():
        for span in spans:
            while span is not None and span.size(numbers[span.name]) < 2 and numbers[span.name] != span.max:
                numbers[span.name] += 1
    return resized(ranges, example, numbers)


def resized(
    ranges: Mapping[str, Ranges], example: Mapping[str, Tensor], numbers: Mapping[str, int]
) -> dict[str, Tensor]:
    """The example at other sizes, its values repeated or cut, and no longer periodic."""
    inputs = {}
    for name, tensor in example.items():
        shape = [len(tensor)]
        for size, span in zip(tensor.shape[1:], ranges.get(name) or (None,) * (tensor.ndim - 1), strict=True):
            shape.append(size if span is None else span.size(numbers[span.name]))
        inputs[name] = stretched(tensor, shape)
    return inputs


def stretched(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """The tensor repeated or cut to a shape, its values no longer periodic."""
    for dim, size in enumerate(shape):
        before = tensor.shape[dim]
        if size == before:
            continue
        tensor = torch.cat([tensor] * -(-size // before), dim=dim).narrow(dim, 0, size)
        if tensor.is_floating_point():
            ramp = torch.linspace(0.5, 1.5, size, dtype=tensor.dtype, device=tensor.device)
            tensor = tensor * ramp.reshape(-1, *[1] * (tensor.ndim - dim - 1))
        else:  # whole numbers may stand for words of a list
            tensor = tensor.flip(dim)
    return tensor


def sizes_text(ranges: Mapping[str, Ranges], inputs: Mapping[str, Tensor]) -> str:
    """The dynamic dimensions of inputs in words, such as `length=512`."""
    sizes: dict[str, int] = {}
    for name, spans in ranges.items():
        for size, span in zip(inputs[name].shape[1:], spans, strict=False):
            if span is not None:
                sizes.setdefault(span.name, size)
    return ", ".join(f"{name}={size}" for name, size in sizes.items())


def _by_name(words: DynamicShapes, example: Mapping[str, Tensor], argument: str) -> dict[str, Any]:
    names = list(example)
    label = f"dynamic_shapes={words!r:.200}"
    if isinstance(words, Mapping):
        entries = {str(name): value for name, value in words.items()}
        if names == ["input"] and set(entries) == {argument}:
            entries = {"input": entries[argument]}
        if set(entries) != set(names):
            raise InputError(
                f"{label} names {sorted(entries)}, the inputs are {names}: name each, None for a fixed one"
            )
        return entries
    if isinstance(words, (str, bytes)) or not isinstance(words, Sequence):
        raise InputError(
            f"{label} is a {type(words).__name__}: give a dict by argument name, or a tuple, as torch.export"
        )
    if len(words) != len(names):
        raise InputError(f"{label} has {len(words)} entries, the inputs are {names}: give one for each, None for fixed")
    return dict(zip(names, words, strict=True))


def _by_dimension(name: str, entry: Any, tensor: Tensor) -> dict[int, Any]:
    if entry is None:
        return {}
    if isinstance(entry, Mapping):
        wrong = [d for d in entry if type(d) is not int or not 0 <= d < tensor.ndim]
        if wrong:
            raise InputError(
                f"dynamic_shapes of input {name!r} has dimension {wrong[0]!r}, it has 0 to {tensor.ndim - 1}, the "
                "batch first"
            )
        return dict(entry)
    if isinstance(entry, (tuple, list)):
        if len(entry) != tensor.ndim:
            raise InputError(
                f"dynamic_shapes of input {name!r} has {len(entry)} entries, the input {tensor.ndim} dimensions with "
                "the batch: give one for each, None for a fixed one"
            )
        return dict(enumerate(entry))
    raise InputError(
        f"dynamic_shapes of input {name!r} is a {type(entry).__name__}: give {{1: torch.export.Dim('length')}}, a "
        "tuple with an entry for each dimension, or None"
    )


def _span(name: str, d: int, word: Any, tensor: Tensor) -> DimRange | None:
    """The range of one dimension. None: it is fixed."""
    where = f"dimension {d} of input {name!r}"
    if word is None or word == _STATIC:
        return None
    if isinstance(word, int):
        if d == 0:
            raise InputError(f"dynamic_shapes fixes the batch at {word}: it is always dynamic. Leave dimension 0 out")
        if word != tensor.shape[d]:
            raise InputError(f"dynamic_shapes has {word} for {where}, the example has {tensor.shape[d]}: give one size")
        return None
    if d and getattr(getattr(word, "root", word), "__name__", None) == BATCH:
        raise InputError(
            f"dynamic_shapes has Dim({BATCH!r}) for {where}: that is the name of the batch, dimension 0. Give another "
            "name, such as 'length'"
        )
    root, function = getattr(word, "root", word), getattr(word, "fn", None)
    if not hasattr(root, "min") or not hasattr(root, "__name__"):
        raise InputError(
            f"dynamic_shapes has {word!r:.80} for {where}: give torch.export.Dim('length', min=1, max=512), Dim.AUTO, "
            "Dim.DYNAMIC, or None for a fixed size"
        )
    factor, offset = (1, 0) if function is None else (int(function(1)) - int(function(0)), int(function(0)))
    least = max(int(root.min), 0)
    if factor * least + offset < 1:  # no size is 0
        least += -(-(1 - factor * least - offset) // factor)
    most = root.max if isinstance(root.max, int) and root.max < _LARGEST else None
    return DimRange(root.__name__, least, most, factor, offset)


def _check_example(ranges: Mapping[str, Ranges], example: Mapping[str, Tensor]) -> None:
    """Raises InputError where the example has a size that the ranges exclude."""
    fault = size_fault((n, tuple(t.shape), tuple(t.shape[1:]), ranges[n]) for n, t in example.items())
    if fault is not None:
        raise InputError(f"the example does not fit dynamic_shapes: {fault}")
