"""Multiply-adds of an ONNX graph for one row, by the shapes of its tensors."""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, shape_inference

from dynamic.engines.contract import Array

_ROUNDED_COST = 0.5  # of a multiply-add of 8 bits beside one of 32, as for torch networks
_INT8 = ("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "QGemm")
_WEIGHT = {"QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3}  # where the weight stands, else behind the first input


def graph_macs(model: onnx.ModelProto, row: Mapping[str, Array]) -> float:
    """Multiply-adds of a model for one row of inputs by their names in the model. In 8 bits one counts half.

    Convolutions, products, linear classifiers and trees are counted, a comparison of a tree as one. Branches, loops and
    other operators count nothing.
    """
    sized = onnx.ModelProto()
    sized.CopyFrom(model)
    for value in sized.graph.input:
        if value.name in row:
            kind = helper.np_dtype_to_tensor_dtype(row[value.name].dtype)
            value.CopyFrom(helper.make_tensor_value_info(value.name, kind, row[value.name].shape))
    for value in sized.graph.output:
        value.type.tensor_type.ClearField("shape")
    del sized.graph.value_info[:]
    try:
        graph = shape_inference.infer_shapes(sized, data_prop=True).graph
    except Exception:  # beyond what protobuf holds, or shapes that contradict each other
        graph = sized.graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if value.type.HasField("tensor_type") and all(d.dim_value for d in dims):
            shapes[value.name] = tuple(d.dim_value for d in dims)
    makers = {name: node for node in graph.node for name in node.output}
    return float(sum(_node_macs(node, shapes, makers) for node in graph.node))


def _node_macs(
    node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]], makers: Mapping[str, onnx.NodeProto]
) -> float:
    attributes = {a.name: a for a in node.attribute}
    if node.op_type.startswith("TreeEnsemble") and "nodes_treeids" in attributes:
        ids = np.array(attributes["nodes_treeids"].ints)
        return float(
            np.log2(np.bincount(ids)[np.unique(ids)] + 1).sum()
        )  # the depth of a balanced tree of so many nodes
    if node.op_type in ("LinearClassifier", "SVMClassifier", "LinearRegressor"):
        return float(
            max((len(attributes[n].floats) for n in ("coefficients", "support_vectors") if n in attributes), default=0)
        )
    output = shapes.get(node.output[0])
    at = _WEIGHT.get(node.op_type, 1)
    weight = shapes.get(node.input[at]) if len(node.input) > at else None
    source = shapes.get(node.input[0]) if node.input else None
    if output is None or weight is None or source is None:
        return 0.0
    if node.op_type in ("Conv", "ConvInteger", "QLinearConv"):
        macs = float(np.prod(output) * np.prod(weight[1:]))  # weight [M, C / groups, ...]
    elif node.op_type == "ConvTranspose":
        macs = float(np.prod(source) * np.prod(weight[1:]))  # weight [C, M / groups, ...]
    elif node.op_type in ("Gemm", "QGemm"):
        transposed = "transA" in attributes and attributes["transA"].i
        macs = float(np.prod(output) * source[0 if transposed else -1])
    elif node.op_type in ("MatMul", "MatMulInteger", "QLinearMatMul"):
        macs = float(np.prod(output) * source[-1])
    else:
        return 0.0
    maker = makers.get(node.input[at])
    rounded = node.op_type in _INT8 or (maker is not None and maker.op_type == "DequantizeLinear")
    return macs * (_ROUNDED_COST if rounded else 1.0)
