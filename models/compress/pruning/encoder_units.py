"""Attention heads and hidden neurons of an encoder, found in the graph of its operations.

The graph shows which rows of which linear layers make a head, and which columns read it, whatever the modules are
called. A head is removed only where the code infers the number of heads, as `view(B, N, -1, head_size)` does.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, fx, nn

from dynamic.models.compress.pruning.head_trial import FIXED, why_fixed

_ATEN = torch.ops.aten
_VIEWS = {_ATEN.view.default, _ATEN.reshape.default}
_SAME_ORDER = {"transpose", "reshape", "view", "contiguous", "clone", "dropout", "to", "permute"}
_ELEMENTWISE = {
    "gelu", "relu", "relu6", "leaky_relu", "elu", "silu", "mish", "hardswish", "hardtanh", "tanh", "sigmoid",
    "softplus", "erf", "dropout", "mul", "add", "sub", "rsub", "div", "pow", "square", "neg", "to", "clone",
    "contiguous",
}  # fmt: skip

UNREAD = "what it gives is not read by one linear layer alone, nor by F.scaled_dot_product_attention"


@dataclass(frozen=True, eq=False)
class Layer:
    """A linear layer and, for each unit, its rows or columns `[units, M]` there."""

    name: str
    module: nn.Linear
    at: Tensor


@dataclass(frozen=True, eq=False)
class Units:
    """Heads of an attention, or hidden neurons of an MLP: the layers that make them, and the one that reads them.

    `batch`: which dimension of what the reader takes is the batch. None: no dimension is the batch alone.
    """

    kind: Literal["heads", "neurons"]
    name: str
    makers: tuple[Layer, ...]
    reader: Layer
    batch: int | None

    def lies_in(self, module: str) -> bool:
        """Whether the unit, or one of its layers, is the module of that name or inside it."""
        names = (self.name, self.reader.name, *(maker.name for maker in self.makers))
        return not module or any(f"{name}.".startswith(f"{module}.") for name in names)

    @property
    def width(self) -> int:
        """How many units there are."""
        return len(self.reader.at)

    def keep(self, numbers: Sequence[int]) -> None:
        """Remove all other units from the layers."""
        with torch.no_grad():
            for layer in self.makers:
                rows = layer.at[list(numbers)].flatten().sort().values
                weight, bias = layer.module.weight, layer.module.bias
                layer.module.weight = nn.Parameter(weight[rows.to(weight.device)], weight.requires_grad)
                if bias is not None:
                    layer.module.bias = nn.Parameter(bias[rows.to(bias.device)], bias.requires_grad)
                layer.module.out_features = len(rows)
            columns = self.reader.at[list(numbers)].flatten().sort().values
            weight = self.reader.module.weight
            self.reader.module.weight = nn.Parameter(weight[:, columns.to(weight.device)], weight.requires_grad)
            self.reader.module.in_features = len(columns)


class UnitFinder:
    """Finds the units of a network in its graph.

    Args:
        network: What was traced.
        graph: Its operations, of torch.export.

    Attributes:
        units: In the order of the graph.
        left_alone: Name of a linear layer -> why its units remain.
    """

    def __init__(self, network: nn.Module, graph: fx.Graph) -> None:
        self._network = network
        self._nodes = list(graph.nodes)
        self._uses = Counter(id(p) for module in network.modules() for p in module.parameters(recurse=False))
        self.left_alone: dict[str, str] = {}
        self.units: list[Units] = []
        self._linear = {node: name for node in self._nodes if (name := self._name(node)) is not None}
        runs = Counter(self._linear.values())
        self._shared = {name for name in runs if runs[name] > 1 or self._is_tied(name)}
        for node in self._nodes:
            if node.target is _ATEN.scaled_dot_product_attention.default:
                self._add(
                    self._heads(node), [self._linear[n] for n in self._sources(node.args[:3]) if n in self._linear]
                )
        self._name_apart()
        for node, name in self._linear.items():
            if name not in self._names_inside():
                self._add(self._neurons(node), [name])

    def _add(self, result: Units | str, names: Sequence[str]) -> None:
        if isinstance(result, Units):
            self.units.append(result)
        else:
            self.left_alone |= dict.fromkeys(names, result)

    def _name_apart(self) -> None:
        """Call attentions whose layers lie in one module by their first layers."""
        names = Counter(units.name for units in self.units)
        self.units = [
            replace(units, name=units.makers[0].name) if names[units.name] > 1 else units for units in self.units
        ]

    def _batch(self, reader: fx.Node) -> int | None:
        """Which dimension of what a linear operation reads is the batch, None where none is that alone."""
        placeholder = next(node for node in self._nodes if node.op == "placeholder")
        batch = _symbol(_shape(placeholder)[0])
        at = [d for d, size in enumerate(_shape(reader.args[0])[:-1]) if batch is not None and _symbol(size) == batch]
        return at[0] if len(at) == 1 else None

    def _names_inside(self) -> set[str]:
        layers = (layer for units in self.units for layer in (*units.makers, units.reader))
        return {*self.left_alone, *(layer.name for layer in layers)}

    def _name(self, node: fx.Node) -> str | None:
        """The path of the `nn.Linear` whose weight a node multiplies by."""
        if node.target is not _ATEN.linear.default or not isinstance(node.args[1], fx.Node):
            return None
        path, _, weight = str(node.args[1].target).partition("backbone.")[2].rpartition(".")
        try:
            module = self._network.get_submodule(path)
        except AttributeError:
            return None
        return path if type(module) is nn.Linear and weight == "weight" else None

    def _is_tied(self, name: str) -> bool:
        return any(self._uses[id(p)] > 1 for p in self._network.get_submodule(name).parameters())

    def _layer(self, node: fx.Node, at: Tensor) -> Layer:
        name = self._linear[node]
        module = self._network.get_submodule(name)
        assert isinstance(module, nn.Linear)
        return Layer(name, module, at)

    def _sources(self, nodes: Sequence[object]) -> list[fx.Node]:
        """The linear operations that these values come from, without a linear operation between."""
        waiting = [node for node in nodes if isinstance(node, fx.Node)]
        sources: dict[fx.Node, None] = {}
        visited: set[fx.Node] = set()
        while waiting:
            node = waiting.pop(0)
            if node in visited:
                continue
            visited.add(node)
            if node.target is _ATEN.linear.default:
                sources[node] = None
            else:
                waiting.extend(node.all_input_nodes)
        return list(sources)

    def _heads(self, attention: fx.Node) -> Units | str:
        """The heads of an attention, or why they remain."""
        shapes = [_shape(value) for value in attention.args[:3]]
        if any(len(shape) != 4 or shape[1] != shapes[0][1] for shape in shapes):
            return "query, key and value have different numbers of heads"
        heads, size = int(shapes[0][1]), int(shapes[2][3])
        mask = attention.args[3] if len(attention.args) > 3 else attention.kwargs.get("attn_mask")
        if isinstance(mask, fx.Node) and len(_shape(mask)) > 2 and _shape(mask)[-3] != 1:
            return "its mask differs from head to head"
        makers: dict[fx.Node, Layer] = {}
        for value in attention.args[:3]:
            sources = self._sources([value])
            if len(sources) != 1 or sources[0] not in self._linear:
                return "query, key or value is not made by one linear layer"
            (source,) = sources
            rows = self._rows(source, heads)
            if isinstance(rows, str):
                return rows
            makers[source] = self._layer(source, rows)
        flat, reader = self._flattened(attention)
        if reader is None or reader not in self._linear:
            return UNREAD
        if flat is None or _shape(flat.args[0])[-2:] != [heads, size]:
            return "its heads are not put together by one view"
        if _sizes(flat)[-1] != -1 or _fixes(attention, flat, heads):
            return FIXED
        names = {*(layer.name for layer in makers.values()), self._linear[reader]}
        if names & self._shared:
            return "weights that are shared, or run several times"
        if (why := why_fixed(self._nodes, list(makers), attention, reader, heads)) is not None:
            return why
        first = next(iter(makers.values())).name
        columns = torch.arange(heads * size).reshape(heads, size)
        name, read = first.rpartition(".")[0] or first, self._layer(reader, columns)
        return Units("heads", name, tuple(makers.values()), read, self._batch(reader))

    def _rows(self, source: fx.Node, heads: int) -> Tensor | str:
        """The rows `[heads, M]` of the linear layer that make each head, or why they remain."""
        users = [user for user in source.users if user.target in _VIEWS]
        if len(users) != len(source.users) or len({tuple(map(str, _sizes(user))) for user in users}) != 1:
            return "its features are not made into heads by one view"
        sizes, shape, rank = _sizes(users[0]), _shape(users[0]), len(_shape(source)) - 1
        parts = [int(s) for s in shape[rank:]]
        if -1 not in sizes[rank:]:
            return FIXED
        axis = sizes[rank:].index(-1)
        if parts[axis] != heads and heads in parts:
            return FIXED
        if parts[axis] != heads or math.prod(parts) != _shape(source)[-1]:
            return "its features are not made into heads by one view"
        return torch.arange(math.prod(parts)).reshape(parts).movedim(axis, 0).reshape(heads, -1)

    def _flattened(self, attention: fx.Node) -> tuple[fx.Node | None, fx.Node | None]:
        """The view that puts heads together, and the linear operation that reads it."""
        flat, node = None, attention
        while len(node.users) == 1:
            (node,) = node.users
            if node.target is _ATEN.linear.default:
                return flat, node
            if _operation(node) not in _SAME_ORDER:
                break
            flat = node if node.target in _VIEWS else flat
        return None, None

    def _neurons(self, source: fx.Node) -> Units | str:
        """The hidden neurons that a linear layer makes, or why they remain."""
        if len(_shape(source)) < 3:
            return "it is not a layer on tokens"
        inside: dict[fx.Node, None] = {source: None}
        reader: fx.Node | None = None
        gates = 1
        for node in self._nodes[self._nodes.index(source) + 1 :]:
            if not any(value in inside for value in node.all_input_nodes):
                continue
            others = [v for v in node.all_input_nodes if v not in inside and len(_shape(v)) > 0]
            if node in self._linear and node.args[0] in inside and reader is None:
                reader = node
            elif node.target is _ATEN.chunk.default and node.args[0] is source and _is_last(node, source):
                gates = int(node.args[1])
                inside[node] = None
            elif not others and (_operation(node) in _ELEMENTWISE or _operation(node) == "getitem"):
                inside[node] = None
            else:
                return UNREAD
        if reader is None:
            return UNREAD
        width, features = int(_shape(source)[-1]) // gates, int(_shape(reader.args[0])[-1])
        if width != features:
            return UNREAD
        if {self._linear[source], self._linear[reader]} & self._shared:
            return "weights that are shared, or run several times"
        rows = torch.arange(width * gates).reshape(gates, width).T
        columns = torch.arange(width).reshape(width, 1)
        maker, read = self._layer(source, rows), self._layer(reader, columns)
        return Units("neurons", self._linear[source], (maker,), read, self._batch(reader))


def _shape(value: object) -> list[int | torch.SymInt]:
    tensor = value.meta.get("val") if isinstance(value, fx.Node) else None
    return list(tensor.shape) if isinstance(tensor, Tensor) else []


def _symbol(size: object) -> object:
    """The expression of a symbolic size, None of a number."""
    return size.node.expr if isinstance(size, torch.SymInt) else None


def _sizes(view: fx.Node) -> list[object]:
    """The sizes that the code gives a view. An inferred one is -1."""
    sizes = view.args[1]
    return list(sizes) if isinstance(sizes, Sequence) else []


def _fixes(start: fx.Node, stop: fx.Node, heads: int) -> bool:
    """Whether a view between two nodes is given the number of heads."""
    node = start
    while node is not stop:
        (node,) = node.users
        if node.target in _VIEWS and node is not stop:
            sizes = list(zip(_sizes(node), _shape(node), strict=True))
            if (heads, heads) in sizes and (-1, heads) not in sizes:
                return True
    return False


def _operation(node: fx.Node) -> str:
    """The name of an operation without its overload."""
    packet = getattr(node.target, "overloadpacket", node.target)
    return str(getattr(packet, "__name__", packet))


def _is_last(chunk: fx.Node, source: fx.Node) -> bool:
    """Whether the last dimension is split."""
    return len(chunk.args) > 2 and chunk.args[2] in (-1, len(_shape(source)) - 1)
