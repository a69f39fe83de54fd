"""A file in a cascade answers as the file itself does in ONNX Runtime: stage by stage, and in both single graphs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
from support.onnx_files.classifier_files import (
    BIAS,
    CLASSES,
    SIZE,
    WEIGHT,
    batches,
    data,
    linear,
    own_answers,
    save,
    softmax,
    value,
)
from torch import nn

import dynamic
from dynamic.engines.engine_factory import open_engine
from dynamic.errors import EngineError
from dynamic.offline.build_steps.onnx_steps import OnnxSteps
from dynamic.offline.build_steps.record_collection import plain_combiner
from dynamic.offline.onnx_export.whole_graph import plain_ladder, write_graphs

LIMIT = 1e-5
CONSTANTS = {"w": WEIGHT, "b": BIAS}


@dataclass(frozen=True)
class Case:
    """A file, how many rows it takes itself, the output with its answers, and whether those are probabilities.

    `looped`: whether its rows run one at a time. `limit`: of the difference of probabilities.
    """

    path: Path
    rows: int | None = None
    output: str | None = None
    probabilities: bool = False
    looped: bool = False
    limit: float = LIMIT


def old_reduction(path: Path) -> Case:
    """Operators that later versions changed: axes as attributes, and a Softmax over all that follows."""
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["columns"], "reshape"),
        helper.make_node("ReduceMean", ["columns"], ["mean"], "mean", axes=[1], keepdims=0),
        helper.make_node("Gemm", ["mean", "w", "b"], ["z"], "gemm"),
        helper.make_node("Softmax", ["z"], ["p"], "softmax"),
    ]
    constants = {**CONSTANTS, "shape": np.array([-1, 1, SIZE])}
    return Case(
        save(path, nodes, [value("x", ["N", SIZE])], [value("p", ["N", CLASSES])], constants, opset=11, ir=5),
        probabilities=True,
    )


def listed_constants(path: Path) -> Case:
    """A file of the first versions, which list constants among the inputs."""
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["z"], "gemm")]
    inputs = [value("x", ["N", SIZE]), value("w", WEIGHT.shape), value("b", BIAS.shape)]
    return Case(save(path, nodes, inputs, [value("z", ["N", CLASSES])], CONSTANTS, opset=9, ir=3))


def fixed_reshape(path: Path) -> Case:
    """One row, and a reshape to one row."""
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["flat"], "reshape"),
        helper.make_node("Gemm", ["flat", "w", "b"], ["z"], "gemm"),
    ]
    constants = {**CONSTANTS, "shape": np.array([1, SIZE])}
    return Case(save(path, nodes, [value("x", [1, 2, 4])], [value("z", [1, CLASSES])], constants), rows=1)


def fixed_for_good(path: Path) -> Case:
    """One row, beside a constant of one row: no other number fits."""
    nodes = [
        helper.make_node("Concat", ["x", "more"], ["wide"], "concat", axis=1),
        helper.make_node("Gemm", ["wide", "w", "b"], ["z"], "gemm"),
    ]
    constants = {"w": np.vstack([WEIGHT, WEIGHT[:1]]), "b": BIAS, "more": np.ones((1, 1), np.float32)}
    file = save(path, nodes, [value("x", [1, SIZE])], [value("z", [1, CLASSES])], constants)
    return Case(file, rows=1, looped=True)


def fixed_four(path: Path) -> Case:
    """Four rows at a time."""
    return Case(linear(path, rows=4), rows=4)


def halves(path: Path) -> Case:
    """Inputs, weights and answers in float16, to which ONNX Runtime rounds the file's answers and not the stage's."""
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["z"], "gemm")]
    constants = {name: array.astype(np.float16) for name, array in CONSTANTS.items()}
    inputs, outputs = [value("x", ["N", SIZE], np.float16)], [value("z", ["N", CLASSES], np.float16)]
    return Case(save(path, nodes, inputs, outputs, constants), limit=2e-3)


def doubles(path: Path) -> Case:
    """The same in float64."""
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["z"], "gemm")]
    constants = {name: array.astype(np.float64) for name, array in CONSTANTS.items()}
    inputs, outputs = [value("x", ["N", SIZE], np.float64)], [value("z", ["N", CLASSES], np.float64)]
    return Case(save(path, nodes, inputs, outputs, constants))


def branches(path: Path) -> Case:
    """An If whose branches read a constant around them and have one of their own."""

    def branch(sign: float) -> Any:
        nodes = [
            helper.make_node("Mul", ["scaled", "sign"], ["signed"], "mul"),
            helper.make_node("Add", ["signed", "b"], ["answer"], "add"),
        ]
        own = [numpy_helper.from_array(np.array(sign, np.float32), "sign")]
        return helper.make_graph(nodes, "branch", [], [value("answer", ["N", CLASSES])], own)

    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["scaled"], "product"),
        helper.make_node("ReduceSum", ["b"], ["sum"], "sum", keepdims=0),
        helper.make_node("Less", ["sum", "zero"], ["negative"], "less"),
        helper.make_node("If", ["negative"], ["z"], "if", then_branch=branch(1.0), else_branch=branch(-1.0)),
    ]
    constants = {**CONSTANTS, "zero": np.array(0, np.float32)}
    return Case(save(path, nodes, [value("x", ["N", SIZE])], [value("z", ["N", CLASSES])], constants))


def function(path: Path) -> Case:
    """A layer that the file defines itself, in a domain of its own."""
    nodes = [helper.make_node("Gemm", ["a", "b", "c"], ["y"])]
    layer = helper.make_function("mine", "Layer", ["a", "b", "c"], ["y"], nodes, [helper.make_opsetid("", 18)])
    call = [helper.make_node("Layer", ["x", "w", "b"], ["z"], "layer", domain="mine")]
    outputs = [value("z", ["N", CLASSES])]
    inputs = [value("x", ["N", SIZE])]
    return Case(save(path, call, inputs, outputs, CONSTANTS, domains={"mine": 1}, functions=[layer]))


def external(path: Path) -> Case:
    """Weights in another file."""
    options = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
    return Case(linear(path, **options))


def two_outputs(path: Path) -> Case:
    """Logits beside features, of which logits have their name."""
    nodes = [
        helper.make_node("Relu", ["x"], ["features"], "relu"),
        helper.make_node("Gemm", ["x", "w", "b"], ["logits"], "gemm"),
    ]
    outputs = [value("features", ["N", SIZE]), value("logits", ["N", CLASSES])]
    return Case(save(path, nodes, [value("x", ["N", SIZE])], outputs, CONSTANTS), output="logits")


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Batches from which ranges of int8 are taken."""

    def __init__(self) -> None:
        self._batches = iter([{"x": inputs} for inputs, _ in batches()])

    def get_next(self) -> Any:
        return next(self._batches, None)


def rounded(path: Path) -> Case:
    """int8 as ONNX Runtime's tools write it: QuantizeLinear and DequantizeLinear."""
    quantize_static(linear(path.with_name("f32.onnx")), path, Reader(), quant_format=QuantFormat.QDQ)
    return Case(path)


def unnamed(path: Path) -> Case:
    """Nodes without names, in a branch too."""

    def branch(sign: float) -> Any:
        nodes = [helper.make_node("Mul", ["z", "sign"], ["signed"]), helper.make_node("Neg", ["signed"], ["answer"])]
        own = [numpy_helper.from_array(np.array(sign, np.float32), "sign")]
        return helper.make_graph(nodes, "branch", [], [value("answer", ["N", CLASSES])], own)

    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["products"]),
        helper.make_node("Add", ["products", "b"], ["z"]),
        helper.make_node("If", ["yes"], ["scores"], then_branch=branch(-1.0), else_branch=branch(1.0)),
    ]
    constants = {**CONSTANTS, "yes": np.array(True)}
    return Case(save(path, nodes, [value("x", ["N", SIZE])], [value("scores", ["N", CLASSES])], constants))


def rounded_by_batch(path: Path, rows: int | str = "N") -> Case:
    """int8 whose scales are those of the whole batch."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["z"], "product")]
    plain = path.with_name("f32.onnx")
    save(plain, nodes, [value("x", [rows, SIZE])], [value("z", [rows, CLASSES])], {"w": WEIGHT})
    quantize_dynamic(plain, path)
    return Case(path, rows=1, looped=True)


FILES: dict[str, Callable[[Path], Case]] = {
    "logits": lambda path: Case(linear(path)),
    "probabilities": lambda path: Case(linear(path, softmax=True), probabilities=True),
    "another version": lambda path: Case(linear(path, opset=21, ir=10)),
    "old reduction": old_reduction,
    "constants among inputs": listed_constants,
    "one row": lambda path: Case(linear(path, rows=1), rows=1),
    "one row, reshaped": fixed_reshape,
    "one row for good": fixed_for_good,
    "four rows": fixed_four,
    "float16": halves,
    "float64": doubles,
    "If": branches,
    "function": function,
    "external data": external,
    "two outputs": two_outputs,
    "int8": rounded,
    "int8 by batch": rounded_by_batch,
    "int8 by batch of one": lambda path: rounded_by_batch(path, 1),
    "unnamed nodes": unnamed,
}


def expected(case: Case, inputs: NDArray[np.float32]) -> NDArray[np.float64]:
    """The probabilities of the file itself."""
    dtype = {"tensor(float16)": np.float16, "tensor(double)": np.float64}
    kind = onnxruntime.InferenceSession(case.path).get_inputs()[0].type
    own = own_answers(case.path, inputs.astype(dtype.get(kind, np.float32)), output=case.output, rows=case.rows)
    return own.astype(np.float64) if case.probabilities else softmax(own)


def check(case: Case, inputs: NDArray[np.float32], folder: Path, **setting: Any) -> OnnxSteps:
    """Compare the file as first and as last stage with its own answers, by every route of ONNX Runtime."""
    model = dynamic.onnx_model(case.path, **setting)
    steps = OnnxSteps([model, model], "backbones")
    steps.describe(None, inputs, None)
    spec, _ = steps.export(folder, inputs, "onnxruntime", False)
    write_graphs(folder, spec, plain_ladder(spec, "backbones"), "onnxruntime")
    engine = open_engine("onnxruntime", folder, spec, plain_combiner(spec)).stages
    truth = expected(case, inputs)
    logits = engine.all_logits({"input": inputs})
    for stage in range(2):
        np.testing.assert_allclose(softmax(logits[:, stage]), truth, rtol=0, atol=case.limit)
    if not case.probabilities:
        np.testing.assert_allclose(softmax(logits[:, 0]), softmax(logits[:, 1]), rtol=0, atol=0)
    single, graph = (onnxruntime.InferenceSession(folder / f) for f in ("graph_single.onnx", "graph.onnx"))
    for threshold, stage in ((-np.inf, 0), (np.inf, 1)):
        thresholds = np.array([threshold], np.float32)
        answers = [graph.run(None, {"input": inputs, "thresholds": thresholds})]
        answers += [single.run(None, {"input": inputs[i : i + 1], "thresholds": thresholds}) for i in range(3)]
        assert {int(s) for answer in answers for s in answer[1]} == {stage}
        np.testing.assert_allclose(np.exp(answers[0][0]), truth, rtol=0, atol=case.limit)
        np.testing.assert_allclose(
            np.concatenate([np.exp(a[0]) for a in answers[1:]]), truth[:3], rtol=0, atol=case.limit
        )
    return steps


@pytest.mark.parametrize("name", FILES)
def test_files_made_node_by_node(name: str, tmp_path: Path) -> None:
    case = FILES[name](tmp_path / "file.onnx")
    inputs = data(12)[0]
    if name == "one row, reshaped":
        inputs = inputs.reshape(12, 2, 4)
    steps = check(case, inputs, tmp_path / "graphs")
    (described, _), spec = steps.file_stages, steps.describe(None, inputs, None)
    assert described.kind == ("probabilities" if case.probabilities else "logits")
    assert described.batch.each_row == case.looped
    assert spec.classes == CLASSES
    if name not in ("If", "int8 by batch", "int8 by batch of one", "unnamed nodes"):
        assert spec.stages[0].macs in (WEIGHT.size, WEIGHT.size + CLASSES, WEIGHT.size / 2)


@pytest.mark.parametrize("rows", ["dynamic", "one"])
def test_a_file_that_torch_exported(tmp_path: Path, rows: str) -> None:
    torch.manual_seed(0)
    pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = nn.Sequential(nn.Conv2d(1, 40, 3), nn.BatchNorm2d(40), nn.ReLU(), *pool, nn.Linear(40, 3)).eval()
    path, inputs = tmp_path / "torch.onnx", torch.randn(7, 1, 6, 6)
    shapes = ({0: torch.export.Dim("rows")},) if rows == "dynamic" else None
    count = 2 if rows == "dynamic" else 1
    torch.onnx.export(network, (inputs[:count],), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    steps = check(Case(path, rows=None if rows == "dynamic" else 1), inputs.numpy(), tmp_path / "graphs")
    macs = 16 * 40 * 9 + 40 * 3
    assert steps.file_stages[0].macs == macs
    assert not steps.file_stages[0].batch.each_row


def test_what_was_recognized_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "dynamic")
    inputs = data(12)[0]
    check(fixed_for_good(tmp_path / "one.onnx"), inputs, tmp_path / "a")
    assert (
        "one.onnx: input 'x' takes 'input'. output 'z' holds logits, since a Gemm makes them. its fixed" in caplog.text
    )
    assert {r.levelname for r in caplog.records if "one at a time" in r.message} == {"WARNING"}
    caplog.clear()
    check(halves(tmp_path / "halves.onnx"), inputs, tmp_path / "b")
    assert "input 'x' is cast from float32 to float16" in caplog.text
    path = tmp_path / "mean.onnx"
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["z"], "gemm"),
        helper.make_node("Softmax", ["z"], ["p"], "softmax", axis=1),
        helper.make_node("Mean", ["p", "p"], ["answers"], "mean"),
    ]
    save(path, nodes, [value("x", ["N", SIZE])], [value("answers", ["N", CLASSES])], CONSTANTS)
    check(Case(path, probabilities=True), inputs, tmp_path / "c")
    assert "output 'answers' holds probabilities, since those of calibration inputs sum to 1" in caplog.text
    text = str(dynamic.onnx_model(path))
    assert "input 'x' float32 [?, 8]" in text
    assert "answers in output 'answers': logits or probabilities, calibration inputs decide" in text


def test_a_product_of_probabilities_may_be_probabilities(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["z"], "gemm"),
        helper.make_node("Softmax", ["z"], ["p"], "softmax", axis=1),
        helper.make_node("MatMul", ["p", "mixing"], ["answers"], "mix"),
    ]
    mixing = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]], np.float32)
    outputs = [value("answers", ["N", CLASSES])]
    for name, matrix, mixed in (("mixed", mixing, True), ("logits", 5 * mixing, False)):
        path = tmp_path / f"{name}.onnx"
        save(path, nodes, [value("x", ["N", SIZE])], outputs, {**CONSTANTS, "mixing": matrix})
        steps = check(Case(path, probabilities=mixed), data(12)[0], tmp_path / name)
        assert steps.file_stages[0].kind == ("probabilities" if mixed else "logits")


def test_weights_in_constant_nodes_are_stored_once(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    constants = {"wide": random.normal(size=(SIZE, 512)), "narrow": random.normal(size=(512, CLASSES)) / 512}
    nodes = [
        helper.make_node("Constant", [], [name], name, value=numpy_helper.from_array(array.astype(np.float32)))
        for name, array in constants.items()
    ]
    nodes += [helper.make_node("MatMul", [a, b], [c], c) for a, b, c in (("x", "wide", "h"), ("h", "narrow", "z"))]
    inputs, outputs = [value("x", ["N", SIZE])], [value("z", ["N", CLASSES])]
    path = save(tmp_path / "constants.onnx", nodes, inputs, outputs, opset=9, ir=3)
    check(Case(path), data(12)[0], tmp_path / "graphs")
    size = 4 * 512 * (SIZE + CLASSES)
    assert path.stat().st_size > size
    assert all(file.stat().st_size < size / 2 for file in (tmp_path / "graphs").rglob("*.onnx"))


def test_graphs_are_compared_where_rows_are_finite(tmp_path: Path) -> None:
    """A row of NaN does not end the comparison, and has to be one in both."""
    nodes = [
        helper.make_node("IsNaN", ["x"], ["nan"], "nan"),
        helper.make_node("Where", ["nan", "zero", "x"], ["known"], "known"),
        helper.make_node("Gemm", ["known", "w", "b"], ["scores"], "gemm"),
    ]
    inputs, outputs = [value("x", ["N", SIZE])], [value("scores", ["N", CLASSES])]
    constants = {**CONSTANTS, "zero": np.array(0, np.float32)}
    paths = {
        "same": linear(tmp_path / "same.onnx"),
        "other": linear(tmp_path / "other.onnx", bias=1.0),
        "known": save(tmp_path / "known.onnx", nodes, inputs, outputs, constants),
    }
    x = data(5)[0]
    x[1, 3] = np.nan
    steps = {name: OnnxSteps([dynamic.onnx_model(path)] * 2, "backbones") for name, path in paths.items()}
    for one in steps.values():
        one.describe(None, x, None)
    spec, _ = steps["same"].export(tmp_path / "graphs", x, "onnxruntime", False)
    write_graphs(tmp_path / "graphs", spec, plain_ladder(spec, "backbones"), "onnxruntime")
    engine = open_engine("onnxruntime", tmp_path / "graphs", spec, plain_combiner(spec))
    steps["same"].check_parity(engine, spec, x)
    with pytest.raises(EngineError, match="is off the file's logits by 1 for 2 rows"):
        steps["other"].check_parity(engine, spec, x)
    with pytest.raises(EngineError, match="gives NaN in 1 of 2 rows, the file in 0"):
        steps["known"].check_parity(engine, spec, x)
    engine.close()


def test_an_input_of_whole_numbers(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["embedded"], "gather"),
        helper.make_node("ReduceMean", ["embedded", "axes"], ["z"], "mean", keepdims=0),
    ]
    constants = {"table": WEIGHT, "axes": np.array([1])}
    inputs = [value("tokens", ["N", 4], np.int32)]
    path = save(tmp_path / "tokens.onnx", nodes, inputs, [value("z", ["N", CLASSES])], constants)
    tokens = np.random.default_rng(0).integers(0, SIZE, (6, 4))
    model = dynamic.onnx_model(path)
    steps = OnnxSteps([model], "last")
    steps.describe(None, {"input_ids": tokens}, None)
    own = own_answers(path, tokens.astype(np.int32))
    np.testing.assert_allclose(steps.file_stages[0].logits({"input_ids": tokens}), own, rtol=0, atol=LIMIT)
    spec, _ = steps.export(tmp_path / "graphs", None, "onnxruntime", False)
    engine = open_engine("onnxruntime", tmp_path / "graphs", spec, plain_combiner(spec))
    np.testing.assert_allclose(engine.all_logits({"input_ids": tokens})[:, 0], own, rtol=0, atol=LIMIT)
