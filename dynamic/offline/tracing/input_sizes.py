"""At which sizes of its inputs a traced network may run: those it was traced at, and those it was checked at."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from dynamic.engines.inputs.dimensions import Ranges, shape_text, size_fault
from dynamic.offline.tracing.sizes.dynamic_shapes import stretched
from dynamic.policies.errors import InputError

# dimensions that hold positions, by rank, in the usual orders: channels first, channels last
_ORDERS: tuple[dict[int, tuple[int, ...]], ...] = (
    {5: (2, 3, 4), 4: (2, 3), 3: (1,), 2: (1,)},
    {5: (1, 2, 3), 4: (1, 2), 3: (2,), 2: (1,)},
)
_TRIALS = 3  # sizes besides the example's at which network and backbone have to agree

Run = Callable[[Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class Sizes:
    """The inputs that a network was traced with.

    `network`: its class. `names` and `shapes`, without the batch, in the order of forward. `free`: for each input the
    dimensions, counted without the batch, that may have another size. `ranges`: for each input the sizes that were
    declared dynamic. Empty: none was, and `free` says all.
    """

    network: str
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    free: tuple[frozenset[int], ...]
    ranges: tuple[Ranges, ...] = ()

    @staticmethod
    def of(network: str, example: Mapping[str, Tensor], ranges: Mapping[str, Ranges] | None = None) -> "Sizes":
        """The sizes of an example, of which none may differ but those with a range."""
        shapes = tuple(tuple(tensor.shape[1:]) for tensor in example.values())
        listed = tuple((ranges or {}).get(name, ()) for name in example)
        free = tuple(frozenset(d for d, span in enumerate(spans) if span is not None) for spans in listed)
        return Sizes(network, tuple(example), shapes, free, listed if any(listed) else ())

    @property
    def by_name(self) -> dict[str, Ranges]:
        """The declared sizes of each input. Empty: none was declared."""
        return dict(zip(self.names, self.ranges, strict=True)) if self.ranges else {}

    def check_names(self, inputs: Mapping[str, object]) -> None:
        """Raises InputError where these are not the inputs that were traced."""
        if set(inputs) != set(self.names):
            raise InputError(
                f"inputs {sorted(inputs)}: the network was traced with {list(self.names)}. Give those, or wrap it "
                "again with example inputs of the others"
            )

    def bound(self, args: Sequence[Tensor], kwargs: Mapping[str, Tensor]) -> list[Tensor]:
        """The tensors of a call of forward, in order. Raises InputError on a missing or unknown name."""
        left = self.names[len(args) :]
        if not kwargs or left == ("input",):
            return [*args, *kwargs.values()]
        self.check_names({**dict.fromkeys(self.names[: len(args)]), **kwargs})
        return [*args, *(kwargs[name] for name in left)]

    def check(self, tensors: Sequence[Tensor]) -> None:
        """Raises InputError where tensors have other sizes than the network may run at."""
        if len(tensors) != len(self.shapes):
            raise InputError(f"{len(tensors)} inputs given. The network was traced with {list(self.names)}")
        if self.ranges:
            self._check_ranges(tensors)
            return
        for name, shape, free, tensor in zip(self.names, self.shapes, self.free, tensors, strict=True):
            size = tuple(tensor.shape[1:])
            if size == shape:  # nearly always
                continue
            if tensor.ndim == len(shape) + 1 and all(
                a == b or d in free for d, (a, b) in enumerate(zip(size, shape, strict=True))
            ):
                continue
            raise InputError(
                f"{self.network} does not run on input {name!r}, {str(tensor.dtype).removeprefix('torch.')} "
                f"{list(tensor.shape)}: it was traced at {shape_text(shape, ())} and is right at that size alone. Give "
                "batches of that size, resized or padded, or wrap the backbone again with example inputs of this size, "
                "or with dynamic_shapes="
            )

    def _check_ranges(self, tensors: Sequence[Tensor]) -> None:
        sizes = (tuple(tensor.shape) for tensor in tensors)
        fault = size_fault(zip(self.names, sizes, self.shapes, self.ranges, strict=True))
        if fault is not None:
            raise InputError(f"{self.network} does not run on these inputs: {fault}")


def checked(fixed: Sizes, example: Mapping[str, Tensor], own: Run, others: Sequence[Run], limit: float) -> Sizes:
    """The sizes of `example`, `fixed`, and the dimensions in which `others` give what `own` gives at other sizes too.

    Positions are tried at smaller and larger sizes, until `own`, the backbone, has run at three. A dimension is free
    where all agree within `limit` of the largest logit at all three. Otherwise, or where `own` takes fewer sizes, the
    size is that of the example.
    """
    inputs = list(example.values())
    for order in _ORDERS:
        dims = [order.get(tensor.ndim, ()) for tensor in inputs]
        agreed = list(islice(_agreements(inputs, dims, own, others, limit), _TRIALS))
        if not agreed:  # the backbone takes no other size in this order
            continue
        if len(agreed) < _TRIALS or not all(agreed):
            return fixed
        return replace(fixed, free=tuple(frozenset(d - 1 for d in own_dims) for own_dims in dims))
    return fixed


def _agreements(
    inputs: Sequence[Tensor], dims: Sequence[tuple[int, ...]], own: Run, others: Sequence[Run], limit: float
) -> Iterator[bool]:
    """For each size that the backbone takes, whether the others give its logits."""
    for sizes in zip(*(_sizes(tensor, own_dims) for tensor, own_dims in zip(inputs, dims, strict=True)), strict=True):
        if any(size < 1 for shape in sizes for size in shape) or sizes == tuple(tuple(t.shape) for t in inputs):
            continue
        tensors = [stretched(tensor, shape) for tensor, shape in zip(inputs, sizes, strict=True)]
        try:
            expected = own([t.clone() for t in tensors])
        except Exception:  # a network that takes one size raises errors of its own
            continue
        most = limit * max(1.0, float(expected.abs().max()))
        yield all(_agrees(run, tensors, expected, most) for run in others)


def _agrees(run: Run, tensors: Sequence[Tensor], expected: Tensor, most: float) -> bool:
    try:
        logits = run([t.clone() for t in tensors])
    except Exception:  # a size that was written into the graph, or a head for one size
        return False
    return logits.shape == expected.shape and bool(torch.allclose(logits, expected, rtol=0, atol=most, equal_nan=True))


def _sizes(tensor: Tensor, dims: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Shapes with other sizes in `dims`: larger ones first, each dimension differently, then smaller ones.

    From 32 on, in steps of 32, as strides and windows of the usual networks need.
    """
    shapes = []
    for change in range(5):
        shape = list(tensor.shape)
        for number, dim in enumerate(dims):
            size = shape[dim]
            step = 32 if size >= 32 else size
            more = (step * (number + 1), step * max(2 - number, 3 * (number > 1)))
            fewer = -32 if size >= 64 else -(size // 2)
            shape[dim] += (*more, fewer, number + 1, -1)[change]
        shapes.append(tuple(shape))
    return shapes
