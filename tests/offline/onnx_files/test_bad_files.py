"""Files that are no sub-model of a cascade: each error names the value, the limit and the remedy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnxruntime.quantization import quantize_dynamic
from support.onnx_files.classifier_files import BIAS, CLASSES, SIZE, WEIGHT, batches, data, linear, save, value

import dynamic
from dynamic.errors import CorruptError, DynamicError, EngineError, InputError, SettingError

CONSTANTS = {"w": WEIGHT, "b": BIAS}
IN, OUT = [value("x", ["N", SIZE])], [value("z", ["N", CLASSES])]


def gemm(*more: onnx.NodeProto) -> list[onnx.NodeProto]:
    return [helper.make_node("Gemm", ["x", "w", "b"], ["z"], "gemm"), *more]


def text(path: Path) -> None:
    path.write_text("this is a list of weights")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def short(path: Path) -> None:
    linear(path)
    path.write_bytes(path.read_bytes()[:100])


def no_weights(path: Path) -> None:
    linear(path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (path.parent / "weights.bin").unlink()


def unknown_operator(path: Path) -> None:
    save(
        path,
        [helper.make_node("Magic", ["x"], ["z"], "trick", domain="my.company")],
        IN,
        OUT,
        domains={"my.company": 1},
    )


def features_alone(path: Path) -> None:
    nodes = [helper.make_node("Unsqueeze", ["x", "axes"], ["z"], "unsqueeze")]
    save(path, nodes, IN, [value("z", ["N", 1, SIZE])], {"axes": np.array([1])})


def two_candidates(path: Path) -> None:
    save(
        path,
        gemm(helper.make_node("Relu", ["z"], ["positive"], "relu")),
        IN,
        [*OUT, value("positive", ["N", CLASSES])],
        CONSTANTS,
    )


def independent(path: Path) -> None:
    save(path, gemm(helper.make_node("Sigmoid", ["z"], ["p"], "sigmoid")), IN, [value("p", ["N", CLASSES])], CONSTANTS)


def one_logit(path: Path) -> None:
    linear(path, classes=1)


def texts(path: Path) -> None:
    inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.STRING, ["N", SIZE])]
    save(path, [helper.make_node("StringNormalizer", ["x"], ["z"], "normalizer")], inputs, OUT)


READING: list[tuple[Callable[[Path], Any], type[DynamicError], str]] = [
    (lambda path: None, CorruptError, "file.onnx does not exist or is no file. Give the path of an ONNX file"),
    (text, CorruptError, "file.onnx is no ONNX file .*Export the model to ONNX again"),
    (empty, CorruptError, "file.onnx is no ONNX file: it holds no graph with outputs"),
    (short, CorruptError, "file.onnx is no ONNX file .*copy it again"),
    (no_weights, CorruptError, r"keeps weights in other files.*weights\.bin.*Copy the files"),
    (
        unknown_operator,
        InputError,
        "'trick' is operator 'Magic' of domain 'my.company'.*ai.onnx.ml.*standard operators",
    ),
    (
        features_alone,
        InputError,
        r"no output of numbers \[B, C\].*'z' float32 \[N, 1, 8\].*Export the model with its logits",
    ),
    (two_candidates, InputError, r"outputs \['z', 'positive'\] may each be.*onnx_model\('file.onnx', output='z'\)"),
    (independent, InputError, "a Sigmoid makes output 'p'.*kind='logits'"),
    (texts, InputError, "input 'x' is no tensor of numbers.*without the steps"),
]


@pytest.mark.parametrize(("write", "error", "words"), READING, ids=[words[:30] for *_, words in READING])
def test_what_does_not_read(
    write: Callable[[Path], Any], error: type[DynamicError], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "file.onnx"
    write(path)
    with pytest.raises(error, match=words):
        dynamic.onnx_model(path)
    with pytest.raises(error, match=words):
        dynamic.build([str(path), linear(tmp_path / "large.onnx")], batches(), progress=False)
    with pytest.raises(error, match=words):
        dynamic.Cascade([str(path), linear(tmp_path / "large.onnx")])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"output": "logits"}, InputError, r"has no output 'logits': give output= as one of \['scores'\]"),
        ({"inputs": {"input": "pixels"}}, InputError, r"has no input 'pixels': give inputs= of \['x'\]"),
        ({"kind": "scores"}, SettingError, "kind='scores' is not known. Use one of logits, probabilities"),
    ],
)
def test_what_is_said_of_a_file_has_to_fit_it(
    options: dict[str, Any], error: type[DynamicError], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        dynamic.onnx_model(linear(tmp_path / "file.onnx"), **options)


def built(*networks: Any, inputs: Any = None, **options: Any) -> dynamic.Bundle:
    """A bundle of these and a large file."""
    loader: Any = batches()
    if inputs is not None:
        loader = [(inputs(x), y) for x, y in loader]
    return dynamic.build(list(networks), loader, progress=False, **options)


def test_one_number_for_each_input(tmp_path: Path) -> None:
    one_logit(tmp_path / "one.onnx")
    with pytest.raises(InputError, match=r"output 'scores' has 1 number for each input.*at least 2 classes.*Export"):
        built(tmp_path / "one.onnx")


def test_another_number_of_classes(tmp_path: Path) -> None:
    small, large = linear(tmp_path / "small.onnx", classes=4), linear(tmp_path / "large.onnx")
    with pytest.raises(InputError, match=r"large.onnx has 3 classes, .*small.onnx 4: all networks of a cascade need"):
        built(small, large)
    with pytest.raises(InputError, match="2 class names for 3 classes"):
        built(large, classes=("a", "b"))
    with pytest.raises(InputError, match=r"labels run from 0 to 2. The network has 2 classes"):
        built(linear(tmp_path / "two.onnx", classes=2))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x[:, :5], r"input 'x' float32 \[\?, 8\] takes another shape than the batch's float32 \[B, 5\]"),
        (lambda x: x[:, None], r"input 'x' float32 \[\?, 8\] has 2 dimensions, and the batch has float32 \[B, 1, 8\]"),
        (lambda x: x.astype(np.int64), r"takes floating point, and the batch has int64 \[B, 8\]"),
        (lambda x: x.astype(np.uint8), r"takes floating point, and the batch has uint8 \[B, 8\]"),
        (
            lambda x: {"a": x, "b": x},
            r"inputs \['a', 'b'\] fit input 'x'.*as well.*inputs=\{'NAME OF THE CASCADE': 'x'\}",
        ),
        (lambda x: {"a": x[:, :3], "b": x[:, :4]}, r"no input of the cascade fits input 'x'.*'a' float32 \[B, 3\]"),
    ],
)
def test_inputs_that_do_not_fit(change: Callable[[Any], Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        built(linear(tmp_path / "file.onnx"), inputs=change)


def test_a_batch_that_is_none(tmp_path: Path) -> None:
    path = linear(tmp_path / "file.onnx")
    with pytest.raises(InputError, match=r"input 'input' has shape \[\], expected \[B"):
        built(path, inputs=lambda x: np.float32(1))
    with pytest.raises(InputError, match="a batch holds no input"):
        built(path, inputs=lambda x: {"x": None})
    with pytest.raises(InputError, match=r"a batch has \[49, 50\] rows of inputs and labels"):
        built(path, inputs=lambda x: x[1:])
    with pytest.raises(InputError, match="input 'stage' has a name that exported graphs use"):
        built(path, inputs=lambda x: {"stage": x})


def test_probabilities_that_do_not_sum_to_one(tmp_path: Path) -> None:
    path = linear(tmp_path / "file.onnx")
    with pytest.raises(
        InputError, match=r"'scores' is taken as probabilities, and those of a calibration input sum to .*kind='logits'"
    ):
        built(dynamic.onnx_model(path, kind="probabilities"))


def test_probabilities_that_do_not_sum_to_one_in_a_later_batch(tmp_path: Path) -> None:
    """Those of the first batch do: what a file has is seen in all calibration inputs."""
    nodes = [
        *gemm(helper.make_node("Softmax", ["z"], ["p"], "softmax", axis=1)),
        helper.make_node("ReduceMax", ["x", "axes"], ["most"], "most"),
        helper.make_node("Max", ["most", "limit"], ["factor"], "factor"),
        helper.make_node("Mul", ["p", "factor"], ["answers"], "mul"),
    ]
    constants = {**CONSTANTS, "axes": np.array([1]), "limit": np.array([[1.0]], np.float32)}
    path = save(tmp_path / "file.onnx", nodes, IN, [value("answers", ["N", CLASSES])], constants)
    x, y = data(200)
    tame = 0.5 * x / np.abs(x).max(axis=1, keepdims=True)
    wild = np.where(np.arange(100)[:, None] == 99, 4 * tame[:100], tame[:100]).astype(np.float32)
    loader = [(tame[100:].astype(np.float32), y[100:]), (wild, y[:100])]
    for network in (path, dynamic.onnx_model(path, kind="probabilities"), dynamic.Cascade([path])):
        with pytest.raises(InputError, match="taken as probabilities, and those of a calibration input sum to 2"):
            dynamic.build(network, loader, progress=False)
        with pytest.raises(InputError, match="taken as probabilities, and those of a calibration input sum to 2"):
            dynamic.calibrate(network, loader, progress=False)


def test_a_fixed_batch_that_neither_fits_nor_is_one(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Concat", ["x", "more"], ["wide"], "concat", axis=1),
        helper.make_node("Gemm", ["wide", "w", "b"], ["z"], "gemm"),
    ]
    constants = {"w": np.vstack([WEIGHT, WEIGHT[:1]]), "b": BIAS, "more": np.ones((4, 1), np.float32)}
    save(tmp_path / "four.onnx", nodes, [value("x", [4, SIZE])], [value("z", [4, CLASSES])], constants)
    with pytest.raises(InputError, match=r"takes 4 rows at a time and does not run with another number.*batch of 1"):
        built(tmp_path / "four.onnx")


def test_scales_of_a_fixed_batch(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["z"], "product")]
    plain = save(tmp_path / "f32.onnx", nodes, [value("x", [4, SIZE])], [value("z", [4, CLASSES])], {"w": WEIGHT})
    quantize_dynamic(plain, tmp_path / "four.onnx")
    with pytest.raises(InputError, match=r"takes 4 rows at a time, and its int8 scales.*export it with a batch of 1"):
        built(tmp_path / "four.onnx")


def test_a_file_that_onnx_runtime_refuses(tmp_path: Path) -> None:
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["z"], "gemm")]
    save(tmp_path / "odd.onnx", nodes, IN, OUT, {"w": WEIGHT[:5], "b": BIAS})
    with pytest.raises(EngineError, match=r"ONNX Runtime .*odd\.onnx"):
        built(tmp_path / "odd.onnx")


def test_engine_torch_runs_no_file(tmp_path: Path) -> None:
    words = "engine='torch' runs modules, and 'file' is an ONNX file: use engine='onnxruntime' or 'openvino'"
    path = linear(tmp_path / "file.onnx")
    with pytest.raises(EngineError, match=words):
        built(path, engine="torch")
    with pytest.raises(EngineError, match=words):
        dynamic.build(dynamic.Cascade([path]), batches(), engine="torch", progress=False)
    with pytest.raises(EngineError, match=words):
        dynamic.calibrate([path], batches(), engine="torch", progress=False)


def test_what_is_neither_module_nor_file(tmp_path: Path) -> None:
    path = linear(tmp_path / "file.onnx")
    with pytest.raises(InputError, match=r"network 1 of the cascade is a int, neither an nn.Module nor the path"):
        dynamic.build([path, 7], batches())  # type: ignore[list-item]
