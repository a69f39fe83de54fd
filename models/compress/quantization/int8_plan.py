"""Which operations of a traced network become int8, and which tensors are rounded to which grid."""

import operator
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from dynamic.models.compress.argument_checks import is_skipped

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LAYERS = (*CONVS, nn.Linear)

_ATEN = torch.ops.aten  # what torch.export writes
_RECTIFIERS = {
    nn.ReLU, nn.ReLU6, F.relu, F.relu6, torch.relu, torch.relu_, "relu", "relu_", _ATEN.relu.default,
    _ATEN.relu6.default,
}  # fmt: skip
_ADDS = {operator.add, torch.add, "add", _ATEN.add.Tensor}
_ADDS_INTO = {operator.iadd, "add_"}
# operations that move, drop or pick values, so that values remain on their grid
_MOVES = {
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout2d, nn.Dropout3d,
    F.max_pool1d, F.max_pool2d, F.dropout, F.pad, torch.flatten, torch.permute, torch.transpose, torch.reshape,
    operator.getitem, "flatten", "view", "reshape", "permute", "transpose", "contiguous",
    nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, _ATEN.max_pool2d.default, _ATEN.max_pool3d.default, _ATEN.pad.default,
    _ATEN.constant_pad_nd.default, _ATEN.view.default, _ATEN.reshape.default, _ATEN.flatten.using_ints,
    _ATEN.permute.default, _ATEN.transpose.int, _ATEN.contiguous.default, _ATEN.clone.default, _ATEN.slice.Tensor,
    _ATEN.select.int, _ATEN.squeeze.dims, _ATEN.unsqueeze.default,
}  # fmt: skip


class Int8Plan:
    """Reads the stages of a network in order, with batch norms folded.

    `layers` and `sums`: operation -> the node of its result, after a rectifier that is its only reader. `grid_of`:
    tensor -> the tensor whose range makes its grid. `on_grid`: tensors that exist on their grid alone, since the
    operation before rounds, or moves rounded values. Other tensors are rounded for the layers that read them, and are
    floats for all others. A sum is int8 where one of its terms is on its grid. The residual stream of a transformer
    remains float, since linear layers write floats into it. `left_alone`: weight or layer -> why. `biases`: by `id` of
    a weight, (input, bias) of each layer that has it.
    """

    def __init__(self, skip: Iterable[str]) -> None:
        self.layers: dict[fx.Node, fx.Node] = {}
        self.sums: dict[fx.Node, fx.Node] = {}
        self.grid_of: dict[fx.Node, fx.Node] = {}
        self.on_grid: set[fx.Node] = set()
        self.left_alone: dict[str, str] = {}
        self.names: dict[fx.Node, str] = {}
        self.biases: dict[int, list[tuple[fx.Node, Tensor | None]]] = {}
        self._skip = tuple(skip)
        self._carry: list[Any] = []

    @property
    def watched(self) -> frozenset[fx.Node]:
        """The tensors whose range is needed."""
        return frozenset(self.grid_of.values())

    def rounds(self, node: fx.Node) -> bool:
        """Whether the operation of this tensor rounds it itself."""
        return node in self.on_grid and self.grid_of[node] is node

    def read(self, stage: fx.GraphModule) -> None:
        """Plan the next stage."""
        modules = dict(stage.named_modules())
        carry = iter(self._carry)
        for node in stage.graph.nodes:
            kind = type(modules[str(node.target)]) if node.op == "call_module" else node.target
            if kind in LAYERS and not node.args:  # layer(input=x)
                node.args, node.kwargs = (node.kwargs["input"],), {}
            source: Any = node.args[0] if node.args else None
            self.names[node] = str(node.target) if node.op == "call_module" else node.name
            if node.op == "placeholder":
                source = next(carry, None)
                if source in self.on_grid:
                    self._moved(node, source)
            elif node.op == "output":
                self._carry = list(source) if isinstance(source, (tuple, list)) else [source]
            elif kind in LAYERS:
                self._layer(node, modules[str(node.target)], modules)
            elif kind in _ADDS or (
                kind in _ADDS_INTO and len(source.users) == 1
            ):  # nothing else reads the overwritten tensor
                self._sum(node, modules)
            elif kind in _MOVES and source in self.on_grid:
                self._moved(node, source)
            else:
                self._leave(node, modules)

    def _layer(self, node: fx.Node, layer: Any, modules: Mapping[str, nn.Module]) -> None:
        name, source = str(node.target), node.args[0]
        if is_skipped(name, self._skip):
            self.left_alone[name] = "in skip"
            return
        padding = getattr(layer, "padding_mode", "zeros")
        if padding != "zeros":
            self.left_alone[name] = f"engines have no int8 kernel for padding_mode={padding!r}"
            return
        assert isinstance(source, fx.Node)
        self.grid_of.setdefault(source, source)
        self.biases.setdefault(id(layer.weight), []).append((source, layer.bias))
        self.layers[node] = node
        if not isinstance(layer, nn.Linear):  # engines return floats from linear layers at no cost
            self.layers[node] = self._rectified(node, modules)
            self._put_on_grid(self.layers[node])

    def _sum(self, node: fx.Node, modules: Mapping[str, nn.Module]) -> None:
        terms = [t for t in node.args if isinstance(t, fx.Node) and t.op != "get_attr"]
        if len(terms) != 2 or node.kwargs or not any(t in self.on_grid for t in terms):
            return
        for term in terms:
            self.grid_of.setdefault(term, term)
        self.sums[node] = self._rectified(node, modules)
        self._put_on_grid(self.sums[node])

    def _put_on_grid(self, node: fx.Node) -> None:
        self.grid_of[node] = node
        self.on_grid.add(node)

    def _moved(self, node: fx.Node, source: Any) -> None:
        if node not in self.on_grid:  # else it is an absorbed rectifier
            self.grid_of[node] = self.grid_of[source]
            self.on_grid.add(node)

    @staticmethod
    def _rectified(node: fx.Node, modules: Mapping[str, nn.Module]) -> fx.Node:
        """The rectifier that is the only reader of a node, or the node. A grid from 0 rectifies."""
        if len(node.users) != 1:
            return node
        (user,) = node.users
        kind = type(modules[str(user.target)]) if user.op == "call_module" else user.target
        return user if kind in _RECTIFIERS else node

    def _leave(self, node: fx.Node, modules: Mapping[str, nn.Module]) -> None:
        if node.op == "call_module":
            module = modules[str(node.target)]
            if any(p.ndim > 1 for p in module.parameters()):
                self.left_alone[str(node.target)] = f"a {type(module).__name__} has no int8 form here"
        elif node.op == "call_function":
            for source in node.all_input_nodes:
                if source.op == "get_attr" and str(source.target).endswith("weight"):
                    self.left_alone[str(source.target)] = f"{node.name} uses it, which is no module of torch.nn"
