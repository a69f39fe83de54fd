"""Dry runs of a traced network: what every node gives, at several sizes, and what it costs."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from dynamic.offline.tracing.multiply_adds import Counter, counting
from dynamic.policies.errors import TraceError

logger = logging.getLogger("dynamic")


@dataclass(frozen=True)
class Shape:
    """Of a tensor."""

    size: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class Observed:
    """What each node gave, a `Shape` for a tensor, in tuples where it gave tuples, everything else as it was.

    `two`, `three`: with that many rows. `other`: two rows at another image size or length (None where the network
    takes one size only). `macs`: multiply-adds of each node for one row. `more`: two rows at further sizes.
    `is_declared`: whether the other sizes are some of those that `dynamic_shapes` allows, in its steps.
    """

    two: Mapping[fx.Node, Any]
    three: Mapping[fx.Node, Any]
    other: Mapping[fx.Node, Any] | None
    macs: Mapping[fx.Node, float]
    more: Sequence[Mapping[fx.Node, Any]] = ()
    is_declared: bool = False

    def runs(self, node: fx.Node) -> tuple[Any, ...]:
        """The node's value in every run."""
        return tuple(run[node] for run in (self.two, self.three, self.other, *self.more) if run is not None)

    def has_rows(self, value: Any, again: Any) -> bool:
        """Whether a value of `two` and `three` is a tensor with the batch, and nothing but it, as dimension 0."""
        return (
            isinstance(value, Shape)
            and isinstance(again, Shape)
            and len(value.size) > 0
            and (value.size[0], again.size[0]) == (2, 3)
            and value.size[1:] == again.size[1:]
        )


def observe(
    root: nn.Module, graph: fx.Graph, inputs: Mapping[str, Tensor], others: Iterable[Mapping[str, Tensor]] = ()
) -> Observed:
    """Run `graph`, whose names are looked up on `root`, in eval mode on rows like `inputs`.

    `others`: two rows at each of the other sizes that the graph has to take. Without, some are tried. Raises TraceError
    where it does not run.
    """
    two, three = (list(rows(inputs, n).values()) for n in (2, 3))
    first = _Recorder(root, graph)
    first.counter = Counter()
    try:
        with counting(first.counter):
            first.run(*two)
    except Exception as uncounted:  # an operator that supports no dispatch mode may raise anything
        first = _Recorder(root, graph)
        try:
            with torch.no_grad():
                first.run(*two)
        except Exception as error:
            raise TraceError(f"in the captured graph, which does not run: {_first_line(error)}") from error
        logger.warning("multiply-adds are not counted, exits are placed by operations: %s", _first_line(uncounted))
    second = _Recorder(root, graph)
    with torch.no_grad():
        second.run(*three)
    declared = [_at_declared_size(root, graph, other) for other in others]
    if declared:
        return Observed(first.values, second.values, declared[0], first.macs, declared[1:], True)
    return Observed(first.values, second.values, _at_another_size(root, graph, two), first.macs)


def _at_declared_size(root: nn.Module, graph: fx.Graph, inputs: Mapping[str, Tensor]) -> dict[fx.Node, Any]:
    recorder = _Recorder(root, graph)
    try:
        with torch.no_grad():
            recorder.run(*inputs.values())
    except Exception as error:  # a size that was written into the graph, or one that the network does not take
        shapes = {name: list(tensor.shape) for name, tensor in inputs.items()}
        raise TraceError(f"in the captured graph, which does not run on {shapes}: {_first_line(error)}") from error
    return recorder.values


def rows(inputs: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """`count` rows of the inputs, repeated where there are fewer."""
    return {name: torch.cat([t.detach()] * -(-count // len(t)))[:count] for name, t in inputs.items()}


class _Recorder(fx.Interpreter):
    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        super().__init__(root, graph=graph)
        self.values: dict[fx.Node, Any] = {}
        self.macs: dict[fx.Node, float] = {}
        self.counter: Counter | None = None

    def run_node(self, n: fx.Node) -> Any:
        before = self.counter.get_total_flops() if self.counter else 0
        value = super().run_node(n)
        if self.counter:
            self.macs[n] = (self.counter.get_total_flops() - before) / 2 / 2  # two rows
        self.values[n] = _described(value)
        return value


def _described(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Shape(tuple(value.shape), value.dtype)
    if isinstance(value, (tuple, list)):
        return tuple(_described(x) for x in value)
    return value


def _at_another_size(root: nn.Module, graph: fx.Graph, two: list[Tensor]) -> dict[fx.Node, Any] | None:
    """A run with other positions and the same channels, tried in the usual orders of dimensions."""
    for images, sequences in (((2, 3), (1,)), ((1, 2), (2,))):
        changed = [_grown(t, {4: images, 3: sequences, 2: (1,)}.get(t.ndim, ())) for t in two]
        if all(a.shape == b.shape for a, b in zip(changed, two, strict=True)):
            continue
        recorder = _Recorder(root, graph)
        try:
            with torch.no_grad():
                recorder.run(*changed)
        except Exception:  # a network that takes one size raises errors of its own
            continue
        return recorder.values
    return None


def _grown(tensor: Tensor, dims: tuple[int, ...]) -> Tensor:
    for number, d in enumerate(dims):
        size = tensor.shape[d]
        # whole strides of the usual networks, different for each dimension, so that height and width differ
        more = 32 * (number + 1) if size >= 32 else size * (number + 1)
        tensor = torch.cat([tensor, *[tensor] * -(-more // size)], dim=d).narrow(d, 0, size + more)
    return tensor


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
