"""Branches that sizes decide, such as `if x.shape[2] > 14:`, `max(height, width)` and `range(windows)`.

torch.fx stops at them, since it knows no values. Here the sizes are computed where the code asks for one, at one size
of the inputs and in batches of several numbers of rows. No numbers of tensors are computed for that.
"""

import linecache
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.proxy import Attribute

from dynamic.engines.inputs.dimensions import DimRange, Ranges
from dynamic.offline.tracing.sizes.dynamic_shapes import numbers_of, resized, sizes_text
from dynamic.policies.errors import TraceError

_ROWS = {False: (1, 2, 3), True: (2, 3, 4)}  # in train mode batch norm refuses one row
_MOST_SIZES, _LEAST_SIZES, _MOST_NODES = 64, 8, 8_000  # at which decisions are made again: 0.4 ms a node
_MOST_PATTERNS = 8  # sizes with other decisions at which logits are compared
_OWN_FOLDERS = (os.path.dirname(torch.__file__), os.path.dirname(os.path.dirname(os.path.dirname(__file__))), "<")


@dataclass(frozen=True, eq=False)
class Decision:
    """`value`: a number or truth value that the code of a network asked for, at `place`. `node`: what gives it."""

    node: fx.Node
    value: Any
    place: str


@dataclass(frozen=True, eq=False)
class Decisions:
    """All decisions of a trace. `graph`: gives their values for inputs."""

    graph: fx.Graph
    values: tuple[Any, ...]
    places: tuple[str, ...]

    def at(self, root: nn.Module, inputs: Sequence[Tensor], device: torch.device) -> tuple[Any, ...]:
        """The values for inputs of these shapes, whose numbers are not read. Raises what the graph raises."""
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        with mode, torch.no_grad():
            empty = [torch.empty(t.shape, dtype=t.dtype, device=device) for t in inputs]
            return tuple(fx.Interpreter(root, graph=self.graph).run(*empty))


class SizeReader:
    """Gives the sizes that a traced network asks for. `decisions`: what it asked for, in order."""

    def __init__(self, root: nn.Module, inputs: Mapping[str, Tensor], training: bool) -> None:
        self._root, self._mode = root, FakeTensorMode(allow_non_fake_inputs=True)
        self._batches: list[dict[str, Tensor]] = []
        with self._mode:
            for rows in _ROWS[training]:
                self._batches.append(
                    {n: torch.empty((rows, *t.shape[1:]), dtype=t.dtype, device=t.device) for n, t in inputs.items()}
                )
        self._node_values: list[dict[fx.Node, Any]] = [{} for _ in self._batches]
        self.decisions: list[Decision] = []

    def number(self, node: fx.Node) -> Any:
        """The number or truth value of a node, which the code now depends on.

        Raises TraceError where it has none without numbers of tensors, or where it depends on how many rows there are.
        """
        values = self._values(node)
        place = _place()
        if not isinstance(values[0], (bool, int, float)):
            raise TraceError(f"{place}: the code depends on the numbers of a tensor")
        if any(value != values[0] for value in values):
            raise TraceError(f"{place}: the code depends on the number of rows")
        self.decisions.append(Decision(node, values[0], place))
        return values[0]

    def length(self, node: fx.Node) -> int:
        """How many entries a shape or tuple has. Raises TraceError on a tensor, whose length is its number of rows."""
        value = self._values(node)[0]
        if not isinstance(value, (tuple, list)):
            raise TraceError(f"{_place()}: the code takes the length of a {type(value).__name__}")
        return len(value)

    def of_graph(self, graph: fx.Graph) -> Decisions | None:
        """The decisions whose nodes are in the graph, which loses what only they need. None: there are none."""
        left = set(graph.nodes)
        decisions = [decision for decision in self.decisions if decision.node in left]
        if not decisions:
            return None
        needed: set[fx.Node] = set()
        waiting = [decision.node for decision in decisions]
        while waiting:
            node = waiting.pop()
            if node not in needed:
                needed.add(node)
                waiting.extend(node.all_input_nodes)
        copy, env = fx.Graph(), dict[fx.Node, fx.Node]()
        for node in graph.nodes:
            if node.op == "placeholder" or node in needed:
                env[node] = copy.node_copy(node, env.__getitem__)
        copy.output(tuple(env[decision.node] for decision in decisions))
        for node in reversed(list(graph.nodes)):
            if node in needed and not node.users and not isinstance(self._node_values[0][node], Tensor):
                graph.erase_node(node)
        return Decisions(copy, tuple(d.value for d in decisions), tuple(d.place for d in decisions))

    def _values(self, node: fx.Node) -> list[Any]:
        """What the node gives in each batch."""
        values = []
        with self._mode, torch.no_grad():
            for batch, node_values in zip(self._batches, self._node_values, strict=True):
                for earlier in _order(node, node_values):
                    node_values[earlier] = self._value(earlier, batch, node_values)
                values.append(node_values[node])
        return values

    def _value(self, node: fx.Node, batch: Mapping[str, Tensor], node_values: Mapping[fx.Node, Any]) -> Any:
        args = fx.node.map_arg(node.args, node_values.__getitem__)
        kwargs = fx.node.map_arg(node.kwargs, node_values.__getitem__)
        name = str(node.target)
        if node.op == "placeholder":
            return batch[name] if name in batch or len(batch) > 1 else next(iter(batch.values()))
        if node.op == "call_function":
            return node.target(*args, **kwargs)  # type: ignore[operator]
        if node.op == "call_method":
            return getattr(args[0], name)(*args[1:], **kwargs)
        target: Any = self._root
        for part in name.split("."):
            target = getattr(target, part)
        return target(*args, **kwargs) if node.op == "call_module" else target


class _Sized:
    """What Python asks of a number or a tuple. `tracer`: gives it."""

    tracer: Any

    def __int__(self) -> int:
        return int(self.tracer.number(self))

    def __index__(self) -> int:
        return int(self.tracer.number(self))

    def __float__(self) -> float:
        return float(self.tracer.number(self))

    def __len__(self) -> int:
        return int(self.tracer.length(self))


class SizedProxy(_Sized, fx.Proxy):
    """A proxy that code may take for a number where sizes give one, and for a tuple where it is a shape."""

    def __getattr__(self, k: str) -> "_SizedAttribute":
        return _SizedAttribute(self, k)


class _SizedAttribute(_Sized, Attribute):
    """The same of what `x.shape` gives."""


def other_decisions(
    root: nn.Module, decisions: Decisions, ranges: Mapping[str, Ranges], example: Mapping[str, Tensor]
) -> Iterator[tuple[dict[str, Tensor], str]]:
    """Inputs of allowed sizes at which the code decides otherwise, one for each set of answers, and where it does.

    Up to 64 sizes are looked at: all, or those between the least and the largest of each dimension and of all together.
    """
    patterns = {decisions.values}
    count = max(_LEAST_SIZES, min(_MOST_SIZES, _MOST_NODES // max(1, len(decisions.graph.nodes))))
    shapes = {name: tensor.to("meta") for name, tensor in example.items()}
    device = next(iter(example.values())).device
    for numbers in _grid(ranges, numbers_of(ranges, example), count):
        sized = resized(ranges, shapes, numbers)
        try:
            values = decisions.at(root, list(sized.values()), device)
        except Exception as error:  # code that runs at the traced size alone may raise anything here
            raise TraceError(
                f"in the captured graph, which does not run at {sizes_text(ranges, sized)}: {error}"
            ) from error
        if values not in patterns:
            patterns.add(values)
            pairs = zip(values, decisions.values, decisions.places, strict=True)
            yield resized(ranges, example, numbers), next(place for value, traced, place in pairs if value != traced)
            if len(patterns) > _MOST_PATTERNS:
                return


def _grid(ranges: Mapping[str, Ranges], own: Mapping[str, int], count: int) -> Iterator[dict[str, int]]:
    """Up to `count` numbers of the names of dimensions: each alone, the others in their middle, and all together."""
    spans = {span.name: span for listed in ranges.values() for span in listed if span is not None}
    each = max(2, count // (len(spans) + 1 if len(spans) > 1 else 1))
    listed = {name: _spread(span, own[name], each) for name, span in spans.items()}
    middle = {name: numbers[len(numbers) // 2] for name, numbers in listed.items()}
    for name, numbers in listed.items():
        for number in numbers:
            yield {**middle, name: number}
    longest = max(len(numbers) for numbers in listed.values())
    for i in range(longest if len(listed) > 1 else 0):
        yield {name: numbers[i * len(numbers) // longest] for name, numbers in listed.items()}


def _spread(span: DimRange, own: int, count: int) -> list[int]:
    """Up to `count` numbers from the least to the largest, which is 4 times the example's where there is no limit."""
    most = max(span.min, 4 * own) if span.max is None else span.max
    count = min(count, most - span.min + 1)
    return [span.min + i * (most - span.min) // max(1, count - 1) for i in range(count)]


def _order(node: fx.Node, node_values: Mapping[fx.Node, Any]) -> list[fx.Node]:
    """The node and what it is computed from, as far as it has no value yet, each behind what it needs."""
    order: dict[fx.Node, None] = {}
    waiting = [node]
    while waiting:
        last = waiting[-1]
        missing = [n for n in last.all_input_nodes if n not in node_values and n not in order]
        if missing:
            waiting.extend(missing)
            continue
        waiting.pop()
        if last not in node_values:
            order[last] = None
    return list(order)


def _place() -> str:
    """The innermost line of the user's code."""
    frame: Any = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_OWN_FOLDERS):
        frame = frame.f_back
    if frame is None:
        return "a line of torch"
    file, line = frame.f_code.co_filename, frame.f_lineno
    return f"{os.path.basename(file)} line {line}: `{linecache.getline(file, line).strip()}`"
