"""The graphs of a network before and after: batch norms folded, then int8 operations in place of float ones."""

import copy
import operator
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dynamic.models.compress.quantization.activation_ranges import Observer
from dynamic.models.compress.quantization.functional_layers import FixedSize, layer_modules
from dynamic.models.compress.quantization.int8_arithmetic import Grid, Int8Conv, Int8Linear, Rounded, Total
from dynamic.models.compress.quantization.int8_plan import CONVS, Int8Plan
from dynamic.models.compress.quantization.weight_codes import (
    WeightRange,
    bias_floor,
    saturating_channels,
    weight_codes,
    weight_scales,
)
from dynamic.offline.batches import Batch, named_tensors
from dynamic.offline.staged_network import StagedNetwork
from dynamic.offline.tracing.trace import Captured, capture_fx, input_names
from dynamic.policies.errors import WrapError

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_IDENTITIES = {nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout}
_DROPOUTS = {F.dropout, torch.dropout, torch.ops.aten.dropout.default}


def float_stages(network: nn.Module, example_inputs: Batch) -> list[fx.GraphModule]:
    """The graphs of a network in eval mode, one for each stage, with batch norms folded.

    The network changes, so give a copy. TraceError where torch.fx cannot trace it, WrapError on stages without graphs.
    """
    roots: list[tuple[nn.Module, fx.Graph]]
    if isinstance(network, StagedNetwork):
        bodies = [stage.body for stage in network.exit_stages]
        roots = [(body, copy.deepcopy(body.graph)) for body in bodies if isinstance(body, fx.GraphModule)]
        if len(roots) < len(bodies):
            raise WrapError(
                f"the stages of this {type(network).__name__} are no graphs, as those of dynamic.wrap are: "
                "quantize the plain network, then put exits on that with dynamic.wrap"
            )
    else:
        captured = capture_fx(network, named_tensors(network, example_inputs), training=False)
        roots = [(_root(network, captured), captured.graph)]
    return [_alone(root, graph, type(network).__name__) for root, graph in roots]


def exported_stage(network: nn.Module, captured: Captured, example: Mapping[str, Tensor]) -> fx.GraphModule:
    """The one graph of a plain network that torch.export captured, as `float_stages` gives it. It has one size.

    The network changes, so give a copy.
    """
    graph, root = captured.graph, _root(network, captured)
    placeholders = list(graph.find_nodes(op="placeholder"))
    names = input_names(network, example)
    for node, name, tensor in zip(placeholders, names, example.values(), strict=True):
        node.target = name  # as forward names it
        root.add_module(f"size_of_{name}", FixedSize(name, tuple(tensor.shape[1:])))
        with graph.inserting_after(placeholders[-1]):
            fixed = graph.call_module(f"size_of_{name}", (node,))
        node.replace_all_uses_with(fixed, delete_user_cb=lambda user, own=fixed: user is not own)
    for node in graph.nodes:
        node.meta = {}  # shapes of the trace, which a copy of the network would copy too
    return _alone(root, graph, type(network).__name__)


def _root(network: nn.Module, captured: Captured) -> nn.Module:
    root = nn.Module()
    root.backbone, root.constants = network, nn.Module()
    for name, tensor in captured.constants.items():
        root.constants.register_buffer(name, tensor)
    return root


def _alone(root: nn.Module, graph: fx.Graph, name: str) -> fx.GraphModule:
    """The graph as a module that holds what it uses, under the names of the plain network. Batch norms are folded."""
    layers = layer_modules(root, graph)
    plain = not isinstance(root, fx.GraphModule)  # the stages of a network with exits keep their names
    members: dict[str, Any] = {}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            target = str(node.target)
            member = layers[target] if target in layers else operator.attrgetter(target)(root)
            node.target = target.removeprefix("backbone.") if plain else target
            members[node.target] = member
    stage = fx.GraphModule(members, graph, name)
    _without_identities(stage)
    _fold(stage)
    return stage


def _without_identities(stage: fx.GraphModule) -> None:
    """Remove what passes its input on in eval mode, so that a rectifier is seen to follow its convolution."""
    modules = dict(stage.named_modules())
    for node in list(stage.graph.nodes):
        kind = type(modules[str(node.target)]) if node.op == "call_module" else node.target
        off = node.kwargs.get("training", node.args[2] if len(node.args) > 2 else None) is False
        if kind in _IDENTITIES or (kind in _DROPOUTS and off):
            source = node.args[0] if node.args else next(iter(node.kwargs.values()))
            if isinstance(source, fx.Node) and source.op != "placeholder":
                node.replace_all_uses_with(source)
                stage.graph.erase_node(node)


def _fold(stage: fx.GraphModule) -> None:
    """Fold each batch norm that is the only reader of a convolution into that convolution."""
    modules = dict(stage.named_modules())
    calls = [str(n.target) for n in stage.graph.nodes if n.op == "call_module"]
    for norm in list(stage.graph.nodes):
        if norm.op != "call_module" or not isinstance(modules[norm.target], _NORMS):
            continue
        conv = norm.args[0]
        if conv.op != "call_module" or type(modules[conv.target]) not in CONVS or len(conv.users) > 1:
            continue
        if calls.count(conv.target) > 1 or getattr(modules[norm.target], "running_mean", None) is None:
            continue
        fused = fuse_conv_bn_eval(modules[conv.target].eval(), modules[norm.target].eval())
        stage.set_submodule(conv.target, fused)
        norm.replace_all_uses_with(conv)
        stage.graph.erase_node(norm)
    stage.delete_all_unused_submodules()
    stage.recompile()


class Watcher(fx.Interpreter):
    """Runs a stage and shows the tensors that are watched to an observer."""

    def __init__(self, stage: fx.GraphModule, watched: frozenset[fx.Node], observer: Observer) -> None:
        super().__init__(stage)
        self._watched, self._observer = watched, observer

    def run_node(self, n: fx.Node) -> Any:
        """As the interpreter does."""
        result = super().run_node(n)
        if n in self._watched:
            self._observer(n, result)
        return result


class Rewriter:
    """Writes stages again with the int8 operations of a plan, on the grids of its tensors.

    `saturating`: of each layer, the output channels whose sums can saturate on x86 processors without VNNI.
    """

    def __init__(self, plan: Int8Plan, grids: Mapping[fx.Node, Grid], weight_range: WeightRange) -> None:
        self._plan, self._grids, self._weight_range = plan, grids, weight_range
        self.saturating: dict[str, int] = {}
        self._weights: dict[int, tuple[nn.Parameter, Tensor]] = {}  # shared weights stay shared
        self._env: dict[fx.Node, fx.Node] = {}
        self._rounded: dict[fx.Node, fx.Node] = {}

    def write(self, stage: fx.GraphModule) -> fx.GraphModule:
        """The int8 form of a stage."""
        plan, graph = self._plan, fx.Graph()
        members: dict[str, Any] = {}
        absorbed = {r for o, r in (*plan.layers.items(), *plan.sums.items()) if o is not r}
        for node in stage.graph.nodes:
            if node in absorbed:
                continue
            result = plan.layers.get(node) or plan.sums.get(node) or node
            if node in plan.layers:
                name = _free(str(node.target), members)
                members[name] = self._layer(node, stage.get_submodule(str(node.target)), node.args[0], result)
                new_node = graph.call_module(name, (self._on_grid(graph, members, node.args[0]),))
            elif node in plan.sums:
                name = _free(f"{node.name}_total", members)
                members[name] = Total(self._grid(result))
                new_node = graph.call_module(name, tuple(self._on_grid(graph, members, t) for t in node.args[:2]))
            else:
                if node.op in ("call_module", "get_attr"):
                    members[str(node.target)] = operator.attrgetter(str(node.target))(stage)
                new_node = graph.node_copy(node, lambda n: self._env[n])
            self._env[node] = self._env[result] = new_node
        return fx.GraphModule(members, graph, type(stage).__name__)

    def _grid(self, node: fx.Node) -> Grid:
        return self._grids[self._plan.grid_of[node]]

    def _on_grid(self, graph: fx.Graph, members: dict[str, Any], node: Any) -> fx.Node:
        """A node on its grid. Behind a move it is rounded again, so that engines see integers on both sides."""
        if self._plan.rounds(node):
            return self._env[node]
        if node not in self._rounded:
            name = _free(f"{node.name}_rounded", members)
            members[name] = Rounded(self._grid(node))
            self._rounded[node] = graph.call_module(name, (self._env[node],))
        return self._rounded[node]

    def _layer(self, node: fx.Node, layer: Any, source: Any, result: fx.Node) -> nn.Module:
        codes, scales = self._weight(layer.weight)
        count = saturating_channels(codes)
        if count:
            self.saturating[self._plan.names[node]] = count
        bias = None if layer.bias is None else layer.bias.detach()
        step = self._grid(source).scale
        if isinstance(layer, nn.Linear):
            return Int8Linear(codes, scales, bias, step)
        return Int8Conv(layer, codes, scales, bias, step, self._grid(result))

    def _weight(self, weight: nn.Parameter) -> tuple[nn.Parameter, Tensor]:
        """Codes, and scales `[K]`."""
        if id(weight) not in self._weights:
            scales = weight_scales(weight, self._weight_range)
            for source, bias in self._plan.biases[id(weight)]:
                if bias is not None:
                    scales = torch.maximum(scales, bias_floor(bias.detach(), self._grid(source).scale))
            codes = weight_codes(weight, scales, self._weight_range)
            self._weights[id(weight)] = nn.Parameter(codes, requires_grad=False), scales
        return self._weights[id(weight)]


def _free(name: str, members: Mapping[str, Any]) -> str:
    """`name`, numbered where a layer is called again: it shares its weights and has another grid."""
    return next(n for n in _numbered(name) if n not in members)


def _numbered(name: str) -> Iterator[str]:
    yield name
    number = 1
    while True:
        number += 1
        yield f"{name}_{number}"
