"""Batch norm in front of a linear layer, folded into it: engines fold it only into the layer before it.

A step for its own sake at batch 1: the norm of an exit head costs as much there as its layer.
"""

import numpy as np
import onnx
from onnx import numpy_helper

from dynamic.offline.onnx_export.node_names import read


def fold_norms(graph: onnx.GraphProto) -> None:
    """Fold each BatchNormalization of `[B, D]` that only a Gemm with constant weights reads into that Gemm, in place.

    `W (a x + c) + b = (W a) x + (W c + b)`, with `a = scale / sqrt(variance + epsilon)` and `c = bias - a mean`.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    outputs = {output.name for output in graph.output}
    spare: set[str] = set()
    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        users = [node for node in graph.node if norm.output[0] in node.input]
        if list(read(graph)).count(norm.output[0]) != 1 or norm.output[0] in outputs:
            continue
        if any(a.name == "training_mode" and a.i for a in norm.attribute):  # by the batch's own mean and variance
            continue
        if len(users) != 1 or users[0].op_type != "Gemm":
            continue
        layer = users[0]
        if layer.input[0] != norm.output[0] or not _foldable(graph, layer, constants):
            continue
        if not all(name in constants for name in norm.input[1:5]):
            continue
        scale, bias, mean, variance = (_array(constants[name]).astype(np.float64) for name in norm.input[1:5])
        epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
        factor = scale / np.sqrt(variance + epsilon)
        shift = bias - factor * mean
        weight = constants[layer.input[1]]
        w = _array(weight).astype(np.float64)
        by_row = any(a.name == "transB" and a.i for a in layer.attribute)  # [D', D]
        moved = w @ shift if by_row else shift @ w
        if len(layer.input) == 3:
            _set(constants[layer.input[2]], _array(constants[layer.input[2]]) + moved)
        else:
            layer.input.append(f"{norm.name}_shift")
            kind = _array(weight).dtype
            graph.initializer.append(numpy_helper.from_array(moved.astype(kind), layer.input[2]))
        _set(weight, w * factor if by_row else w * factor[:, None])
        layer.input[0] = norm.input[0]
        spare.update(norm.input[1:5])
        graph.node.remove(norm)
    for name in spare.difference(read(graph), outputs):
        graph.initializer.remove(constants[name])


def _foldable(graph: onnx.GraphProto, layer: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> bool:
    """Whether weights and bias of the layer are plain, and neither read by another node nor outputs themselves."""
    if any(a.name in ("alpha", "beta") and a.f != 1 for a in layer.attribute):
        return False
    if any(a.name == "transA" and a.i for a in layer.attribute):
        return False
    readers = [*read(graph), *(output.name for output in graph.output)]
    return all(name in constants and readers.count(name) == 1 for name in layer.input[1:3])


def _array(tensor: onnx.TensorProto) -> np.ndarray:
    return numpy_helper.to_array(tensor)


def _set(tensor: onnx.TensorProto, value: np.ndarray) -> None:
    kind = _array(tensor).dtype
    tensor.CopyFrom(numpy_helper.from_array(value.astype(kind), tensor.name))
