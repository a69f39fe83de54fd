"""Products that read one rounded tensor: each gets a rounding of its own, where the scale is one number."""

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from dynamic.offline.onnx_export.onnxruntime_forms import separate_roundings

X = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
PRODUCTS = 3


def model(scale: NDArray[np.float32], constant: bool = False, axis: int | None = None) -> onnx.ModelProto:
    """`[5, 3]` is rounded, and three products read it."""
    settings = {} if axis is None else {"axis": axis}
    zeros = np.zeros(scale.shape, np.int8)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"], "quantize", **settings),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["rounded"], "dequantize", **settings),
        *(helper.make_node("MatMul", ["rounded", f"w{i}"], [f"y{i}"], f"product{i}") for i in range(PRODUCTS)),
    ]
    weights = np.random.default_rng(1).standard_normal((PRODUCTS, 3, 2)).astype(np.float32)
    initializers = [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)]
    initializers.append(numpy_helper.from_array(zeros, "zero"))
    if constant:
        nodes.insert(0, helper.make_node("Constant", [], ["scale"], value=numpy_helper.from_array(scale)))
    else:
        initializers.append(numpy_helper.from_array(scale, "scale"))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, 3])]
    outputs = [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, [5, 2]) for i in range(PRODUCTS)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def answers(whole: onnx.ModelProto) -> list[NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(whole.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": X})


@pytest.mark.parametrize("constant", [False, True])
def test_one_scale_gives_the_same_numbers_from_roundings_of_their_own(constant: bool) -> None:
    whole = model(np.array(0.05, np.float32), constant)
    before = answers(whole)
    separate_roundings(whole.graph)
    sources = [node.input[0] for node in whole.graph.node if node.op_type == "MatMul"]
    assert len(set(sources)) == PRODUCTS
    kinds = [node.op_type for node in whole.graph.node]
    assert kinds.count("QuantizeLinear") == kinds.count("DequantizeLinear") == PRODUCTS
    for one, other in zip(before, answers(whole), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("axis", [1, -1])
def test_a_scale_for_each_column_is_left_alone(axis: int, constant: bool) -> None:
    """Columns of another size than rows: a rounding along another axis would not even run."""
    whole = model(np.array([0.01, 0.05, 0.2], np.float32), constant, axis)
    before = whole.SerializeToString()
    separate_roundings(whole.graph)
    assert whole.SerializeToString() == before
    codes = np.clip(np.rint(X / [0.01, 0.05, 0.2]), -128, 127)  # one scale a column, by hand
    weights = np.random.default_rng(1).standard_normal((PRODUCTS, 3, 2))
    for answer, w in zip(answers(whole), weights, strict=True):
        np.testing.assert_allclose(answer, codes * [0.01, 0.05, 0.2] @ w.astype(np.float32), atol=1e-5)


def test_a_scale_of_unknown_shape_is_left_alone() -> None:
    whole = model(np.array(0.05, np.float32))
    whole.graph.initializer.pop()
    whole.graph.input.append(helper.make_tensor_value_info("scale", TensorProto.FLOAT, None))
    before = whole.SerializeToString()
    separate_roundings(whole.graph)
    assert whole.SerializeToString() == before
