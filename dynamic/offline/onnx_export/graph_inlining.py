"""The stages' own graphs, as they are written into another."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from dynamic.offline.onnx_export.if_nodes import Body
from dynamic.offline.onnx_export.node_names import captured, rename
from dynamic.offline.onnx_export.onnxruntime_forms import block_images


@dataclass(frozen=True)
class StageGraph:
    """A stage's graph as it is written into another: nodes of body and head apart.

    `versions`: of each operator set. That of ONNX itself is called "".
    """

    logits: str
    carry: list[str]
    body: list[onnx.NodeProto]
    head: list[onnx.NodeProto]
    initializers: dict[str, onnx.TensorProto]
    versions: dict[str, int]


def load_stage(path: Path, prefix: str, inputs: Sequence[str], blocks: bool = False) -> StageGraph:
    """The graph with `prefix` before every name, but for its inputs: they are called `inputs`.

    `blocks`: with `block_images`.
    """
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    if blocks:
        block_images(graph)
    named = dict(zip([i.name for i in graph.input], inputs, strict=True))
    for node in graph.node:
        rename(node, lambda name: named.get(name, prefix + name))
    for tensor in graph.initializer:
        tensor.name = prefix + tensor.name
        for entry in tensor.external_data:
            if entry.key == "location":  # relative to the file that refers to it
                entry.value = f"{path.parent.name}/{entry.value}"
    logits, *carry = [prefix + output.name for output in graph.output]
    needed = set(carry)
    body: list[onnx.NodeProto] = []
    head: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        in_body = needed.intersection(node.output)
        (body if in_body else head).append(node)
        if in_body:
            needed.update(node.input)
            needed.update(captured(node))
    return StageGraph(
        logits=logits,
        carry=carry,
        body=body[::-1],
        head=head[::-1],
        initializers={tensor.name: tensor for tensor in graph.initializer},
        versions={o.domain if o.domain != "ai.onnx" else "": o.version for o in model.opset_import},
    )


def inline(body: Body, nodes: Sequence[onnx.NodeProto], initializers: dict[str, onnx.TensorProto]) -> None:
    """Put the nodes, and the initializers they use, into `body`."""
    have = {tensor.name for tensor in body.initializers}
    for node in nodes:
        body.nodes.append(node)
        for name in (*node.input, *captured(node)):
            if name in initializers and name not in have:
                body.initializers.append(initializers[name])
                have.add(name)


def fold_factor(
    nodes: Sequence[onnx.NodeProto], initializers: dict[str, onnx.TensorProto], output: str, scale: float
) -> bool:
    """Whether the layer that gives `output` took the factor in itself: where it does, that costs no operation."""
    if scale == 1:
        return True
    users = sum(output in node.input for node in nodes)
    layer = next((node for node in nodes if output in node.output), None)
    if layer is None or layer.op_type != "Gemm" or users:
        return False
    if _fold_into_steps(nodes, initializers, layer, scale):
        return True
    factors = {a.name: a for a in layer.attribute if a.name in ("alpha", "beta")}
    for name in ("alpha", "beta"):
        if name in factors:
            factors[name].f *= scale
        else:
            layer.attribute.append(helper.make_attribute(name, scale))
    return True


def _fold_into_steps(
    nodes: Sequence[onnx.NodeProto], initializers: dict[str, onnx.TensorProto], layer: onnx.NodeProto, scale: float
) -> bool:
    """The same for a layer in int8: whether the steps of its weights and bias, the layer's own, took the factor.

    ONNX Runtime computes a Gemm in int8 only where it has no factors of its own.
    """
    sources = {name: node for node in nodes for name in node.output}
    parts = [sources.get(name) for name in layer.input[1:]]
    steps: list[onnx.TensorProto] = []
    for name, part in zip(layer.input[1:], parts, strict=True):
        if part is None or part.op_type != "DequantizeLinear" or part.input[1] not in initializers:
            return False
        if sum(name in node.input for node in nodes) > 1:
            return False
        steps.append(initializers[part.input[1]])
    if not parts:
        return False
    for part, step in zip(parts, steps, strict=True):
        assert part is not None
        own = numpy_helper.from_array(
            (numpy_helper.to_array(step) * np.float32(scale)).astype(np.float32), f"{layer.output[0]}/{step.name}"
        )
        initializers[own.name] = own
        part.input[1] = own.name
    return True
