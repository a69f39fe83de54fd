"""Which dimension of a feature holds its channels: from a dry run at another size or from the graph, no guess."""

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from dynamic.offline.tracing.dry_run import Observed, Shape
from dynamic.policies.errors import LayoutError

LAYOUTS = {"BD": 1, "BCN": 1, "BND": 2, "BCHW": 1, "BHWC": 3, "BCTHW": 1, "BTHWC": 4}

_FIRST_MODULES = (
    nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.PixelShuffle, nn.LocalResponseNorm,
    nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd, nn.Upsample, nn.Dropout2d,
)  # fmt: skip
_LAST_MODULES = (nn.Linear, nn.LayerNorm, nn.Embedding, nn.RMSNorm, nn.MultiheadAttention, nn.TransformerEncoderLayer)
_aten = torch.ops.aten
_FIRST_FUNCTIONS = {
    F.conv1d, F.conv2d, F.conv3d, F.batch_norm, F.group_norm, F.instance_norm, F.max_pool1d, F.max_pool2d, F.avg_pool1d,
    F.avg_pool2d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.interpolate, F.pixel_shuffle,
    torch.conv1d, torch.conv2d, torch.conv3d, torch.batch_norm, torch.group_norm, torch.max_pool2d,
    _aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default, _aten.convolution.default,
    _aten.batch_norm.default, _aten._native_batch_norm_legit_no_training.default, _aten.group_norm.default,
    _aten.max_pool2d.default, _aten.avg_pool2d.default, _aten.adaptive_avg_pool2d.default, _aten.conv2d.padding,
    _aten.conv1d.padding,
}  # fmt: skip
_LAST_FUNCTIONS = {
    F.linear, F.layer_norm, F.rms_norm, F.embedding, torch.layer_norm,
    _aten.linear.default, _aten.layer_norm.default, _aten.embedding.default, _aten.rms_norm.default,
}  # fmt: skip
_INT8_FUNCTIONS = {"convolution": 1, "linear": -1}  # of `models/compress/quantization/int8_arithmetic.py`, by name
_PERMUTE = {torch.permute, "permute", _aten.permute.default}
_TRANSPOSE = {torch.transpose, "transpose", "swapaxes", torch.swapaxes, _aten.transpose.int}
# names of operations that leave every dimension where it is
_ELEMENTWISE = (
    "add", "sub", "mul", "div", "truediv", "iadd", "isub", "imul", "itruediv", "relu", "relu6", "gelu", "silu",
    "sigmoid", "tanh", "hardswish",
    "hardsigmoid", "hardtanh", "leaky_relu", "elu", "mish", "softplus", "dropout", "stochastic_depth", "contiguous",
    "clone", "float", "to", "type_as", "clamp", "softmax", "neg", "exp", "sqrt", "pow", "cat", "alias",
    "detach", "identity",
    "roll", "pad",
    "round_to_grid", "total", "at_size",  # of int8 networks
)  # fmt: skip
_ELEMENTWISE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.LeakyReLU,
    nn.ELU,
    nn.PReLU, nn.Mish, nn.Softplus, nn.Dropout, nn.Identity, nn.Softmax,
)  # fmt: skip


class Layouts:
    """The channel dimension of the values of one traced network, whose modules stand under `root`."""

    def __init__(self, root: nn.Module, observed: Observed) -> None:
        self._root = root
        self._observed = observed
        self._channels: dict[fx.Node, int | None] = {}

    def channel(self, node: fx.Node) -> int | None:
        """The dimension, from 1 up. None: it cannot be determined."""
        size = self._size(node)
        if size is None:
            return None
        if len(size) == 2:
            return 1
        by_size = self._by_size(node)
        by_graph = self._by_graph(node)
        if by_size is not None and by_graph is not None and by_size != by_graph:
            return None
        return by_size if by_size is not None else by_graph

    def explain(self, name: str, node: fx.Node) -> LayoutError:
        """The error to raise where `channel` returns None."""
        size = self._size(node)
        shape = "no tensor" if size is None else f"[B, {', '.join(map(str, size[1:]))}]"
        fitting = [k for k in LAYOUTS if size is not None and len(k) == len(size)]
        return LayoutError(
            f"exit {name!r} reads {shape}, and which dimension holds the channels cannot be read from the graph or "
            f"from another input size: give layout={{{name!r}: one of {fitting}}}"
        )

    def _size(self, node: fx.Node) -> tuple[int, ...] | None:
        shape = self._observed.two.get(node)
        return shape.size if isinstance(shape, Shape) else None

    def _by_size(self, node: fx.Node) -> int | None:
        """Dimensions that grow with the input are positions. The one that does not grow holds the channels."""
        if self._observed.other is None:
            return None
        two, other = self._size(node), self._observed.other[node]
        if two is None or not isinstance(other, Shape) or len(other.size) != len(two):
            return None
        same = [d for d in range(1, len(two)) if two[d] == other.size[d]]
        return same[0] if len(same) == 1 else None

    def _by_graph(self, node: fx.Node) -> int | None:
        """From the operation that makes the value, or from those that read it."""
        source = self._source_channel(node, 0)
        if source is not None:
            return source
        taken = set(self._taken(node, 0))
        return taken.pop() if len(taken) == 1 else None

    def _source_channel(self, node: fx.Node, depth: int) -> int | None:
        if node in self._channels:
            return self._channels[node]
        size = self._size(node)
        channel: int | None = None
        if size is not None and depth < 200:
            own = self._own(node)
            if own is not None:
                channel = own % len(size)
            elif self._moves(node) is not None:
                before = self._source_channel(node.all_input_nodes[0], depth + 1)
                order = self._order(node, len(size))
                channel = order.index(before) if before is not None and order is not None else None
            elif self._elementwise(node):
                sources = {
                    self._source_channel(a, depth + 1)
                    for a in node.all_input_nodes
                    if len(self._size(a) or ()) == len(size)
                } - {None}
                channel = sources.pop() if len(sources) == 1 else None
        self._channels[node] = channel
        return channel

    def _taken(self, node: fx.Node, depth: int) -> Iterator[int]:
        size = self._size(node)
        if size is None or depth > 20:
            return
        for user in node.users:
            if not user.args or user.args[0] is not node:
                if self._elementwise(user) and self._size(user) == size:
                    yield from self._taken(user, depth + 1)
                continue
            own = self._own(user)
            if own is not None:
                yield own % len(size)
            elif self._moves(user) is not None:
                order = self._order(user, len(size))
                if order is not None:
                    yield from (order[d] for d in self._taken(user, depth + 1))
            elif self._elementwise(user) and self._size(user) == size:
                yield from self._taken(user, depth + 1)

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self._root.get_submodule(str(node.target)) if node.op == "call_module" else None

    def _own(self, node: fx.Node) -> int | None:
        """1 or -1 where the operation itself fixes where channels are."""
        module = self._module(node)
        if _target_in(node, {operator.getitem}) and node.args[1] == 0:  # the sequence that a recurrent layer gives
            maker = node.args[0]
            recurrent = isinstance(maker, fx.Node) and isinstance(self._module(maker), nn.RNNBase)
            return -1 if recurrent else None
        if isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and len(module.normalized_shape) != 1:
            return None
        if isinstance(module, _FIRST_MODULES) or _target_in(node, _FIRST_FUNCTIONS):
            return 1
        if isinstance(module, _LAST_MODULES) or _target_in(node, _LAST_FUNCTIONS):
            return -1
        return _INT8_FUNCTIONS.get(_name(node.target)) if node.op == "call_function" else None

    def _elementwise(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(self._module(node), _ELEMENTWISE_MODULES)
        return node.op in ("call_function", "call_method") and _name(node.target).strip("_") in _ELEMENTWISE

    def _moves(self, node: fx.Node) -> bool | None:
        moves = _target_in(node, _PERMUTE | _TRANSPOSE) or node.target in ("permute", "transpose", "swapaxes")
        return True if moves and node.op in ("call_function", "call_method") else None

    def _order(self, node: fx.Node, rank: int) -> list[int] | None:
        """For each dimension of the result, the one of the input that it was."""
        rest = node.args[1:]
        if _target_in(node, _PERMUTE) or node.target == "permute":
            dims: Any = rest[0] if len(rest) == 1 else rest
            if not isinstance(dims, (tuple, list)) or not all(isinstance(d, int) for d in dims):
                dims = node.kwargs.get("dims")
            return [int(d) % rank for d in dims] if isinstance(dims, (tuple, list)) and len(dims) == rank else None
        if len(rest) != 2 or not all(isinstance(d, int) for d in rest):
            return None
        order = list(range(rank))
        a, b = (int(d) % rank for d in rest)  # type: ignore[arg-type]
        order[a], order[b] = order[b], order[a]
        return order


def _target_in(node: fx.Node, targets: set[Any]) -> bool:
    return node.op == "call_function" and node.target in targets


def _name(target: str | Callable[..., Any]) -> str:
    if isinstance(target, str):
        return target
    packet = getattr(target, "overloadpacket", None)
    return str(getattr(packet or target, "__name__", ""))
