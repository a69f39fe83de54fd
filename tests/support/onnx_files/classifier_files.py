"""Classifiers of 3 clusters in 8 dimensions as ONNX files, made node by node, and their own answers."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

CLASSES, SIZE = 3, 8
CENTERS = np.random.default_rng(0).normal(size=(CLASSES, SIZE)).astype(np.float32)
WEIGHT, BIAS = np.ascontiguousarray(CENTERS.T), -0.5 * (CENTERS**2).sum(1)  # the logits that are right


def data(count: int = 300) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Inputs `[N, 8]` and labels `[N]`."""
    random, labels = np.random.default_rng(1), np.arange(count) % CLASSES
    return (CENTERS[labels] + random.normal(size=(count, SIZE))).astype(np.float32), labels


def batches(count: int = 300) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """The same in batches of 50."""
    inputs, labels = data(count)
    return [(inputs[i : i + 50], labels[i : i + 50]) for i in range(0, count, 50)]


def value(name: str, shape: Sequence[Any] | None, dtype: Any = np.float32) -> onnx.ValueInfoProto:
    """An input or output of a graph."""
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)


def save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: Mapping[str, Any] | None = None,
    *,
    opset: int = 18,
    ir: int = 8,
    domains: Mapping[str, int] | None = None,
    functions: Sequence[onnx.FunctionProto] = (),
    **options: Any,
) -> Path:
    """Write a file of these nodes. `options`: of `onnx.save`."""
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(list(nodes), "classifier", list(inputs), list(outputs), initializers)
    sets = [helper.make_opsetid(domain, version) for domain, version in {"": opset, **(domains or {})}.items()]
    model = helper.make_model(graph, opset_imports=sets, ir_version=ir, functions=list(functions))
    onnx.save(model, path, **options)
    return path


def linear(
    path: Path,
    *,
    softmax: bool = False,
    rows: int | str = "N",
    bias: float = 0.0,
    classes: int = CLASSES,
    source: str = "x",
    products: int = 0,
    **options: Any,
) -> Path:
    """A file of one linear layer, which gives "scores".

    `bias`: of the first class, which makes it worse. `products`: with the identity before it, which make it slower.
    """
    names = [source, *(f"x_{i}" for i in range(products))]
    nodes = [helper.make_node("MatMul", [a, "eye"], [b], b) for a, b in pairwise(names)]
    nodes += [helper.make_node("Gemm", [names[-1], "w", "b"], ["z" if softmax else "scores"], "gemm")]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["z"], ["scores"], "softmax", axis=1))
    w = np.resize(WEIGHT, (SIZE, classes)).astype(np.float32)
    b = np.resize(BIAS, classes).astype(np.float32) + np.eye(classes, dtype=np.float32)[0] * np.float32(bias)
    constants = {"w": w, "b": b} | ({"eye": np.eye(SIZE, dtype=np.float32)} if products else {})
    return save(path, nodes, [value(source, [rows, SIZE])], [value("scores", [rows, classes])], constants, **options)


def own_answers(path: Path, *arrays: NDArray[Any], output: str | None = None, rows: int | None = None) -> NDArray[Any]:
    """What ONNX Runtime gives for a file: its output, of `rows` at a time. A ZipMap's dicts as columns."""
    session = onnxruntime.InferenceSession(path)
    names = [one.name for one in session.get_inputs()]
    name = output or session.get_outputs()[-1].name
    step, parts = rows or len(arrays[0]), []
    for start in range(0, len(arrays[0]), step):
        feed = {n: a[start : start + step] for n, a in zip(names, arrays, strict=True)}
        (part,) = session.run([name], feed)
        parts.append(np.array([list(row.values()) for row in part]) if isinstance(part, list) else part)
    return np.concatenate(parts).astype(np.float32)


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Probabilities `[B, C]` of logits."""
    wide = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(wide / wide.sum(axis=1, keepdims=True))
