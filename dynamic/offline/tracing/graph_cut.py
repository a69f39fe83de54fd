"""From one graph to stages: what must cross a cut, and the pieces between cuts.

Tensors that a later stage still needs travel in the carry. Shapes and whatever else follows from shapes and
parameters alone is computed again where it is needed, from what the carry holds.
"""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import fx

from dynamic.engines.inputs.dimensions import Ranges
from dynamic.offline.tracing.dry_run import Observed, Shape
from dynamic.policies.errors import ExitError

Value = tuple[fx.Node, int | None]  # a node's tensor, or the i-th tensor of its tuple

_SHAPE_METHODS = ("size", "dim", "__len__", "numel")
_SHAPE_FUNCTIONS = {torch.ops.aten.sym_size.int, torch.ops.aten.sym_numel.default}
_INPLACE_FUNCTIONS = {
    operator.setitem, operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.iand, operator.ior,
}  # fmt: skip


def reads_shape(node: fx.Node) -> bool:
    """Whether a node reads only the shape of a tensor, its first argument."""
    if node.op == "call_method":
        return node.target in _SHAPE_METHODS
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in ("shape", "ndim", "dtype", "device")
    return node.op == "call_function" and node.target in _SHAPE_FUNCTIONS


class Cutter:
    """What crosses each cut of a traced network. A cut is named by the node before it.

    `holders`: see `put_holders`. They cross every cut.
    """

    def __init__(self, graph: fx.Graph, observed: Observed, holders: Sequence[fx.Node] = ()) -> None:
        self.graph = graph
        self.observed = observed
        self._holders = tuple(holders)
        self.nodes = list(graph.nodes)
        self.index = {node: i for i, node in enumerate(self.nodes)}
        self._writes = {node for node in self.nodes if _writes(node)}
        self._mutated = {node.args[0] for node in self._writes}
        self._data: dict[fx.Node, bool] = {}
        for node in self.nodes:
            self._data[node] = node.op == "placeholder" or (
                self._is_tensors(node) and any(self._data[a] for a in node.all_input_nodes)
            )
        self._needs: dict[fx.Node, frozenset[Value]] = {}

    def is_data(self, node: fx.Node) -> bool:
        """Whether a node gives tensors (or tuples of them) that depend on more than shapes and parameters."""
        return self._data[node]

    def carry(self, after: fx.Node) -> tuple[Value, ...]:
        """Tensors that cross a cut `after` this node, the node's own first, then in the graph's order."""
        at = self.index[after]
        alive = [v for v, last in self._last_use.items() if self.index[v[0]] <= at < last and v[0] is not after]
        return ((after, None), *sorted(alive, key=lambda v: (self.index[v[0]], v[1] or 0)))

    def obstacle(self, after: fx.Node) -> fx.Node | None:
        """The first value without rows that would have to cross a cut `after` this node. None: it can be made."""
        for node, part in self.carry(after):
            two, three = self.observed.two[node], self.observed.three[node]
            if part is not None:
                two, three = two[part], three[part]
            if not self.observed.has_rows(two, three):
                return node
        return None

    def stages(self, cuts: Sequence[fx.Node], clone: Mapping[int, set[int]]) -> list[fx.Graph]:
        """The graph of each piece: the carry (first the inputs) in, the next carry, or the logits, out.

        `clone`: for each piece, the entries of its carry that it must copy first since it changes them in place.
        """
        graphs, start = [], 0
        carried: tuple[Value, ...] = ()
        for number, cut in enumerate([*cuts, None]):
            last = cut is None
            stop = len(self.nodes) - 1 if cut is None else self.index[cut] + 1
            carry_out = self.carry(cut) if cut is not None else ()
            graphs.append(self._piece(start, stop, carried, carry_out, last, clone.get(number, set())))
            start, carried = stop, carry_out
        return graphs

    def _piece(
        self,
        start: int,
        stop: int,
        carried: tuple[Value, ...],
        carry_out: tuple[Value, ...],
        last: bool,
        clone: set[int],
    ) -> fx.Graph:
        graph = fx.Graph()
        env: dict[fx.Node, Any] = {}
        parts: dict[fx.Node, dict[int, fx.Node]] = {}
        entries: list[tuple[fx.Node, fx.Node]] = []  # (carried node, placeholder): where shapes can be read
        placeholders = [graph.placeholder(f"carry_{i}") for i in range(len(carried))]
        for i, (node, part) in enumerate(carried):
            value = graph.call_method("clone", (placeholders[i],)) if i in clone else placeholders[i]
            if part is None:
                env[node] = value
                entries.append((node, value))
            else:
                parts.setdefault(node, {})[part] = value
        for node, values in parts.items():  # parts that are not needed are never read
            env[node] = tuple(values.get(i) for i in range(max(values) + 1))
        resolve = self._resolver(graph, env, entries)
        for node in self.nodes[start:stop]:
            # checks of shapes are left out: engines check their inputs, and a carry has the right shapes
            if node.op == "placeholder" or self.is_data(node) or node in self._mutated or node in self._writes:
                env[node] = _copied(graph, node, resolve)
            if node.op == "placeholder" and len(graph.find_nodes(op="placeholder")) - 1 in clone:
                env[node] = graph.call_method("clone", (env[node],))
        if last:
            graph.output((resolve(self.nodes[-1].args[0]),))
        else:
            graph.output(tuple(_part(graph, env[node], part) for node, part in carry_out))
        graph.lint()
        return graph

    def _resolver(
        self, graph: fx.Graph, env: dict[fx.Node, Any], entries: Sequence[tuple[fx.Node, fx.Node]]
    ) -> Callable[[fx.Node], Any]:
        """Gives a value of the whole graph inside a piece: carried, computed there, or computed again."""

        def resolve(node: fx.Node) -> Any:
            if node in env:
                return env[node]
            if self.is_data(node):
                raise ExitError(f"{node.name!r} would have to be carried across an exit. Choose another place")
            if reads_shape(node) and self.is_data(node.args[0]) and node.args[0] not in env:  # type: ignore[arg-type]
                env[node] = self._shape_elsewhere(graph, node, entries)
            else:
                env[node] = self._computed_again(graph, node, env, entries, resolve)
            return env[node]

        return resolve

    def _computed_again(
        self,
        graph: fx.Graph,
        node: fx.Node,
        env: dict[fx.Node, Any],
        entries: Sequence[tuple[fx.Node, fx.Node]],
        resolve: Callable[[fx.Node], Any],
    ) -> Any:
        """A value that follows from shapes, from what it was computed from. Else a size that is equal in every dry run.

        The length of an input is not carried where a convolution has shortened it. What later reshapes compute from it
        is then the length of what is carried.
        """
        count, before = len(graph.nodes), set(env)
        try:
            return _copied(graph, node, resolve)
        except ExitError:
            values = self.observed.runs(node)
            if not all(type(value) is int for value in values):
                raise
            for unused in list(graph.nodes)[: count - 1 : -1]:
                graph.erase_node(unused)
            for other in set(env) - before:
                del env[other]
            try:
                return self._equal_dim(graph, list(values), entries)
            except ExitError:
                pass
            raise

    def _shape_elsewhere(self, graph: fx.Graph, node: fx.Node, entries: Sequence[tuple[fx.Node, fx.Node]]) -> Any:
        """A shape of a tensor that is not carried, read off one that is: equal in every dry run, or constant."""
        if node.args[1:] in (("dtype",), ("device",)):  # those of what is carried, wherever the network was moved
            two = self.observed.two
            same = [i for c, i in entries if node.args[1] == "device" or two[c].dtype == two[node]]
            if same:
                return graph.call_function(getattr, (same[0], node.args[1]))
        values = self.observed.runs(node)
        if isinstance(values[0], tuple):
            return tuple(self._equal_dim(graph, [v[d] for v in values], entries) for d in range(len(values[0])))
        return self._equal_dim(graph, list(values), entries)

    def _equal_dim(self, graph: fx.Graph, values: list[Any], entries: Sequence[tuple[fx.Node, fx.Node]]) -> Any:
        """A size from one of what is carried: equal in every dry run, or a whole multiple or part of it.

        Parts count only at sizes that were declared. They come in the steps that the network needs, such as 32, so that
        halves have no rest. Of any size a half may be rounded up or down.
        """
        if all(v == values[0] for v in values):
            return values[0]
        candidates = [
            (inside, d, [shape.size[d] for shape in shapes])
            for carried, inside in entries
            if isinstance((shapes := self.observed.runs(carried))[0], Shape)
            for d in range(len(shapes[0].size))
        ]
        for inside, d, sizes in candidates:
            if sizes == values:
                return graph.call_method("size", (inside, d))
        for inside, d, sizes in candidates if self.observed.is_declared else ():
            for scale, larger, smaller in ((operator.floordiv, sizes, values), (operator.mul, values, sizes)):
                factor = larger[0] // smaller[0] if smaller[0] else 0
                if factor > 1 and all(a == factor * b for a, b in zip(larger, smaller, strict=True)):
                    return graph.call_function(scale, (graph.call_method("size", (inside, d)), factor))
        raise ExitError(
            f"a size that was {values} in dry runs cannot be computed from what crosses the exit. Choose another place"
        )

    @cached_property
    def _last_use(self) -> dict[Value, int]:
        last: dict[Value, int] = {}
        for node in self.nodes:
            for value in self._needed_by(node):
                last[value] = self.index[node]
        return last | {(holder, None): len(self.nodes) for holder in self._holders}

    def _needed_by(self, node: fx.Node) -> frozenset[Value]:
        """The data that a node reads, also through what would be computed again."""
        if node not in self._needs:
            needs: set[Value] = set()
            if not (reads_shape(node) and not self.is_data(node)):
                for arg in node.all_input_nodes:
                    if self.is_data(arg) or arg in self._mutated:
                        needs.update(self._parts_read(arg, node))
                    else:
                        needs.update(self._needed_by(arg))
            self._needs[node] = frozenset(needs)
        return self._needs[node]

    def _parts_read(self, value: fx.Node, by: fx.Node) -> Iterable[Value]:
        two = self.observed.two[value]
        if not isinstance(two, tuple):
            return [(value, None)]
        if by.op == "call_function" and by.target is operator.getitem and isinstance(by.args[1], int):
            return [(value, by.args[1] % len(two))]
        return [(value, i) for i in range(len(two))]

    def _is_tensors(self, node: fx.Node) -> bool:
        two = self.observed.two.get(node)
        return isinstance(two, Shape) or (isinstance(two, tuple) and any(isinstance(x, Shape) for x in two))


def put_holders(graph: fx.Graph, ranges: Sequence[Ranges]) -> list[fx.Node]:
    """Put a tensor `[B, N]` into a graph for each input dimension N that is dynamic: numbers of the input.

    A feature `[B, H * W, C]` shows neither H nor W. Later stages read them off what holds them, which crosses the cuts
    beside the feature.
    """
    holders: list[fx.Node] = []
    named: set[str] = set()
    for placeholder, spans in zip(graph.find_nodes(op="placeholder"), ranges, strict=True):
        for own, span in enumerate(spans, 1):
            if span is None or span.name in named:
                continue
            named.add(span.name)
            holder = placeholder
            for dim in reversed(range(1, len(spans) + 1)):
                if dim != own:
                    with graph.inserting_after(_last(holder, graph)):
                        holder = graph.call_method("select", (holder, dim, 0))
            holders.append(holder)
    return holders


def _last(holder: fx.Node, graph: fx.Graph) -> fx.Node:
    """The node after which what reads `holder` may stand."""
    return graph.find_nodes(op="placeholder")[-1] if holder.op == "placeholder" else holder


def _writes(node: fx.Node) -> bool:
    """Whether an operation changes its first argument."""
    if not node.args:
        return False
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    return node.op == "call_function" and node.target in _INPLACE_FUNCTIONS


def _copied(graph: fx.Graph, node: fx.Node, resolve: Callable[[fx.Node], Any]) -> fx.Node:
    if node.op == "placeholder":
        return graph.placeholder(str(node.target))
    return graph.create_node(
        node.op,
        node.target,
        fx.node.map_arg(node.args, resolve),
        fx.node.map_arg(node.kwargs, resolve),
        node.name,
    )


def _part(graph: fx.Graph, value: Any, part: int | None) -> Any:
    if part is None:
        return value
    return value[part] if isinstance(value, tuple) else graph.call_function(operator.getitem, (value, part))
