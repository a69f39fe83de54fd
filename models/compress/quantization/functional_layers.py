"""Modules of torch.nn in the places of the operations that a trace wrote, so that int8 knows every layer as a module.

torch.export writes each layer as an operation on weights. torch.fx does so where a module calls torch.nn.functional,
as a batch norm with an activation inside does, or a convolution that computes its padding or its weights.
"""

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from dynamic.policies.errors import InputError

_ATEN = torch.ops.aten
_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_NORM = ("input", "weight", "bias", "running_mean", "running_var")
_PLAIN_NORM = _ATEN._native_batch_norm_legit_no_training.default  # gives a tuple whose first entry is read

# operation -> the names of its arguments, in order
_LINEAR: dict[Any, tuple[str, ...]] = dict.fromkeys((F.linear, _ATEN.linear.default), ("input", "weight", "bias"))
_CONVS: dict[Any, tuple[str, ...]] = {
    **dict.fromkeys((F.conv1d, _ATEN.conv1d.default, _ATEN.conv1d.padding), _CONV),
    **dict.fromkeys((F.conv2d, _ATEN.conv2d.default, _ATEN.conv2d.padding), _CONV),
    **dict.fromkeys((F.conv3d, _ATEN.conv3d.default, _ATEN.conv3d.padding), _CONV),
    _ATEN.convolution.default: (*_CONV[:-1], "transposed", "output_padding", "groups"),
}
_NORMS: dict[Any, tuple[str, ...]] = {
    F.batch_norm: ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    _ATEN.batch_norm.default: (*_NORM, "training", "momentum", "eps", "cudnn_enabled"),
    _PLAIN_NORM: (*_NORM, "momentum", "eps"),
}
_CLAMPS: dict[Any, tuple[str, ...]] = {
    **dict.fromkeys((F.hardtanh, _ATEN.hardtanh.default), ("input", "min_val", "max_val")),
    **dict.fromkeys((torch.clamp, _ATEN.clamp.default), ("input", "min", "max")),
}
_PADS: dict[Any, tuple[str, ...]] = {
    **dict.fromkeys((F.pad, _ATEN.pad.default), ("input", "pad", "mode", "value")),
    _ATEN.constant_pad_nd.default: ("input", "pad", "value"),
}
_TENSORS = ("weight", "bias", "running_mean", "running_var")


def layer_modules(root: nn.Module, graph: fx.Graph) -> dict[str, nn.Module]:
    """Rewrites layers that a graph computes by function into calls of modules, which are returned by name.

    Args:
        root: Holds the weights that the graph reads.
        graph: It changes. Weights that depend on no input are computed once. A layer whose weights depend on an input
            remains as it is, and so does a batch norm with the statistics of its batch.
    """
    writer = _Writer(root, graph)
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        for table, make in ((_LINEAR, _linear), (_CONVS, _convolution), (_NORMS, _norm)):
            if node.target in table:
                writer.replace(node, _named(node, table[node.target]), make)
        if node.target in _CLAMPS:
            _rectify(node, _named(node, _CLAMPS[node.target]))
    writer.erase_unused()
    return writer.layers


class FixedSize(nn.Module):
    """Passes an input `[B, *shape]` on. Raises InputError on another size, for which a traced graph would be wrong."""

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.name, self.shape = name, shape

    def forward(self, x: Tensor) -> Tensor:
        """`[B, *shape]` -> the same tensor."""
        return at_size(x, self.name, self.shape)


def at_size(x: Tensor, name: str, shape: tuple[int, ...]) -> Tensor:
    """`x [B, *shape]`. Raises InputError where it has another size."""
    if tuple(x.shape[1:]) != tuple(shape):
        raise InputError(
            f"input {name!r} is {list(x.shape)}: this int8 network was traced at {['B', *shape]} and is right at that "
            "size alone. Give inputs of that size, or quantize again with example inputs of this size"
        )
    return x


fx.wrap("at_size")


class _Writer:
    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        self.layers: dict[str, nn.Module] = {}
        self._root, self._graph = root, graph
        self._called = {str(node.target) for node in graph.find_nodes(op="call_module")}
        self._names: dict[Any, str] = {}  # a layer that is called again is one module
        self._values: dict[fx.Node, Tensor] = {}
        self._parameters: dict[int, nn.Parameter] = {}
        self._read: list[fx.Node] = []

    def replace(self, node: fx.Node, given: Mapping[str, Any], make: Any) -> None:
        """Calls a module in the place of `node`, where its weights depend on no input."""
        used = {name: given[name] for name in _TENSORS if given.get(name) is not None}
        readers = list(node.users) if node.target is _PLAIN_NORM else [node]
        if node.target is _PLAIN_NORM and any(r.target is not operator.getitem or r.args[1] != 0 for r in readers):
            return
        if not used or not all(isinstance(n, fx.Node) and self._is_constant(n) for n in used.values()):
            return
        if node.target in _CONVS:
            given = self._with_padding(given)
        options = {name: value for name, value in given.items() if name not in (*used, "input")}
        if any(isinstance(value, fx.Node) for value in options.values()):
            return
        tensors = {name: self._value(n) for name, n in used.items()}
        key = (node.target, str(options), tuple(id(t) for t in tensors.values()))
        layer = make(given["input"], tensors, options) if key not in self._names else None
        if key not in self._names and layer is None:
            return
        if layer is not None:
            for name, tensor in tensors.items():
                setattr(layer, name, tensor if name.startswith("running") else self._parameter(tensor))
            self._names[key] = self._free_name(next(iter(used.values())))
            self.layers[self._names[key]] = layer.eval()
        with self._graph.inserting_before(node):
            call = self._graph.call_module(self._names[key], (given["input"],))
        for reader in readers:
            reader.replace_all_uses_with(call)
            self._graph.erase_node(reader)
        if node not in readers:
            self._graph.erase_node(node)
        self._read.extend(used.values())

    def erase_unused(self) -> None:
        """Erases weights, and what computed them, where nothing reads them now."""
        waiting = [*self._read]
        while waiting:
            node = waiting.pop()
            if not node.users and not node._erased and node.op != "placeholder":
                waiting.extend(node.all_input_nodes)
                self._graph.erase_node(node)

    def _with_padding(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The arguments of a convolution, with zeros inside that an operation before puts equally on both sides."""
        source, padding = given["input"], given.get("padding", 0)
        if not isinstance(source, fx.Node) or source.target not in _PADS or len(source.users) > 1:
            return given
        pad = _named(source, _PADS[source.target])
        widths, zeros = pad["pad"], pad.get("mode", "constant") == "constant" and pad.get("value") in (None, 0)
        if not zeros or isinstance(padding, str) or not all(isinstance(w, int) and w >= 0 for w in widths):
            return given
        rank = self._value(given["weight"]).ndim - 2
        sides = tuple(reversed(widths[::2]))  # the last dimension comes first
        own = tuple(padding) * (rank if len(padding) == 1 else 1) if not isinstance(padding, int) else (padding,) * rank
        if len(sides) != rank or sides != tuple(reversed(widths[1::2])):
            return given
        self._read.append(source)
        return {**given, "input": pad["input"], "padding": tuple(a + b for a, b in zip(own, sides, strict=True))}

    def _is_constant(self, node: fx.Node) -> bool:
        """Whether it is a weight, or computed from weights alone without random numbers."""
        if node.op == "get_attr":
            return True
        if node.op not in ("call_function", "call_method") or not node.all_input_nodes:
            return False
        if str(node.target).endswith("_"):  # a method that changes the weight itself
            return False
        if not all(self._is_constant(n) for n in node.all_input_nodes):
            return False
        first, second = self._computed(node), self._computed(node)
        return isinstance(first, tuple) or (isinstance(first, Tensor) and torch.equal(first, second))

    def _computed(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self._root)
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._computed)
        with torch.no_grad():
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            return node.target(*args, **kwargs)  # type: ignore[operator]

    def _value(self, node: fx.Node) -> Tensor:
        if node not in self._values:
            self._values[node] = self._computed(node)
        return self._values[node]

    def _parameter(self, tensor: Tensor) -> nn.Parameter:
        if isinstance(tensor, nn.Parameter):
            return tensor
        return self._parameters.setdefault(id(tensor), nn.Parameter(tensor.detach(), requires_grad=False))

    def _free_name(self, weight: fx.Node) -> str:
        while weight.op != "get_attr":
            weight = weight.all_input_nodes[0]
        name = str(weight.target).rpartition(".")[0] or str(weight.target)
        number = 1
        while (free := name if number == 1 else f"{name}_{number}") in {*self.layers, *self._called}:
            number += 1
        return free


def _named(node: fx.Node, names: tuple[str, ...]) -> dict[str, Any]:
    given = {("input" if name == "self" else name): value for name, value in node.kwargs.items()}
    return {**dict(zip(names, node.args, strict=False)), **given}


def _linear(_: fx.Node, tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> nn.Module | None:
    outputs, inputs = tensors["weight"].shape
    return nn.Linear(inputs, outputs, bias="bias" in tensors, device="meta")


def _convolution(_: fx.Node, tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> nn.Module | None:
    if options.get("transposed"):
        return None
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[tensors["weight"].ndim - 3]
    outputs, inputs, *kernel = tensors["weight"].shape
    groups = options.get("groups", 1)
    settings = {name: options[name] for name in ("stride", "padding", "dilation") if name in options}
    tuples: dict[str, Any] = {
        name: tuple(value) if isinstance(value, (list, tuple)) else value for name, value in settings.items()
    }
    for name, value in tuples.items():  # torch.nn.functional also takes one number in a tuple
        tuples[name] = value * len(kernel) if isinstance(value, tuple) and len(value) == 1 else value
    size: Any = tuple(kernel)
    return kind(inputs * groups, outputs, size, groups=groups, bias="bias" in tensors, device="meta", **tuples)


def _norm(source: fx.Node, tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> nn.Module | None:
    if options.get("training") or not {"running_mean", "running_var"} <= set(tensors):
        return None
    affine = "weight" in tensors
    if affine != ("bias" in tensors):
        return None
    # evaluation with given statistics is the same for every rank, and only the type says the rank
    layer = _AnyNorm(len(tensors["running_mean"]), eps=options.get("eps", 1e-5), affine=affine, device="meta")
    layer.num_batches_tracked = None
    return layer


class _AnyNorm(nn.BatchNorm2d):
    """Batch norm of `[B, C, ...]`: an operation does not say the rank of its input."""

    def _check_input_dim(self, input: Tensor) -> None:
        return None


def _rectify(node: fx.Node, given: Mapping[str, Any]) -> None:
    """Names a clamp from 0, to 6 or without end, by the rectifier that it is."""
    if given.get("min", given.get("min_val")) != 0:
        return
    most = given.get("max", given.get("max_val"))
    if most is None or most == 6:
        node.target, node.args, node.kwargs = F.relu if most is None else F.relu6, (given["input"],), {}
