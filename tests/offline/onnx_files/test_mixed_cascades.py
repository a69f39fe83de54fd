"""ONNX files among torch networks, and files alone: bundles of both run, and are the same by every way to make them."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import helper
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
from dynamic.errors import InputError
from dynamic.offline.build_steps.record_collection import plain_combiner
from dynamic.offline.onnx_files.stages.onnx_network import OnnxNetwork

LIMIT = 1e-5


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A worse file of one row with probabilities, and a good one in old operators."""
    folder = tmp_path_factory.mktemp("files")
    return {
        "small": linear(folder / "small.onnx", softmax=True, rows=1, bias=2.0),
        "large": linear(folder / "large.onnx", opset=12, ir=6),
    }


def network() -> nn.Module:
    """The good file in torch."""
    layer = nn.Linear(SIZE, CLASSES)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(WEIGHT.T.copy())), layer.bias.copy_(torch.from_numpy(BIAS))
    return nn.Sequential(nn.Identity(), layer).eval()


def tensors() -> list[Any]:
    return [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in batches()]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("order", ["file first", "file last", "files", "exits"])
def test_a_bundle_of_files_and_networks(files: dict[str, Path], order: str, engine: Any) -> None:
    networks: dict[str, list[Any]] = {
        "file first": [files["small"], network()],
        "file last": [network(), str(files["small"])],
        "files": [files["small"], dynamic.onnx_model(files["large"])],
        "exits": [files["small"], dynamic.wrap(_deep(), torch.zeros(1, SIZE), exits=1)],
    }
    bundle = dynamic.build(networks[order], tensors(), engine=engine, max_drops=(0.1,), progress=False)
    place = 1 if order == "file last" else 0
    assert bundle.spec.stages[place].name == "small"
    x = data(9)[0]
    truth = own_answers(files["small"], x, rows=1)
    opened = open_engine(engine, bundle.folder, bundle.spec, plain_combiner(bundle.spec))
    logits = opened.all_logits({"input": x})
    np.testing.assert_allclose(softmax(logits[:, place]), truth, rtol=0, atol=LIMIT)
    if order == "files":
        own = softmax(own_answers(files["large"], x))
        np.testing.assert_allclose(softmax(logits[:, 1]), own, rtol=0, atol=LIMIT)
    opened.close()
    with bundle.runtime(dynamic.Budget(max_drop=0.5)) as run:
        assert run(x[0]).label in range(CLASSES)
        assert len(list(run.map(x))) == 9


def _deep() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(SIZE, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, CLASSES)).eval()


def test_files_alone_and_in_a_cascade_are_the_same_bundle(files: dict[str, Path]) -> None:
    paths = [files["small"], files["large"]]
    alone = dynamic.build(paths, batches(), max_drops=(0.1,), progress=False)
    cascade = dynamic.Cascade([str(path) for path in paths])
    among = dynamic.build(cascade, tensors(), max_drops=(0.1,), progress=False)
    assert alone.cascade == among.cascade == cascade.fingerprint()
    assert alone.spec == among.spec
    np.testing.assert_array_equal(alone.records.logits, among.records.logits)
    assert alone.ladder.points == among.ladder.points
    records = dynamic.calibrate(paths, batches(), progress=False)
    assert dynamic.recertify(alone, (0.2,), records=records).ladder.points


def test_a_cascade_runs_files_itself(files: dict[str, Path]) -> None:
    x = data(5)[0]
    small, large = dynamic.Cascade([files["small"], files["large"]])(torch.from_numpy(x))
    np.testing.assert_allclose(softmax(small.numpy()), own_answers(files["small"], x, rows=1), rtol=0, atol=LIMIT)
    np.testing.assert_allclose(large.numpy(), own_answers(files["large"], x), rtol=0, atol=LIMIT)


def test_the_fingerprint_is_of_content_and_of_what_is_said(files: dict[str, Path], tmp_path: Path) -> None:
    def of(*networks: Any) -> str:
        return dynamic.Cascade(list(networks)).fingerprint()

    again = linear(tmp_path / "large.onnx", opset=12, ir=6)
    assert of(files["large"]) == of(again)
    assert of(files["large"]) != of(linear(tmp_path / "large.onnx", opset=12, ir=6, bias=0.1))
    assert of(files["large"]) != of(dynamic.onnx_model(files["large"], inputs={"input": "x"}))


def test_the_exported_file_holds_files(files: dict[str, Path], tmp_path: Path) -> None:
    x = data(6)[0]
    cascade = [files["small"], network()]
    path = dynamic.export(cascade, tmp_path / "whole.onnx", example_inputs=torch.from_numpy(x[:2]))
    session = onnxruntime.InferenceSession(path)
    logits, stage, _ = session.run(None, {"input": x, "thresholds": np.array([-np.inf], np.float32)})
    assert stage.tolist() == [0] * 6
    np.testing.assert_allclose(np.exp(logits), own_answers(files["small"], x, rows=1), rtol=0, atol=LIMIT)


def test_several_inputs_are_matched_by_name_and_by_shape(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Mul", ["image", "gain"], ["scaled"], "mul"),
        helper.make_node("Gemm", ["scaled", "w", "b"], ["z"], "gemm"),
    ]
    inputs = [value("image", ["N", SIZE]), value("gain", ["N", 1])]
    path = save(tmp_path / "two.onnx", nodes, inputs, [value("z", ["N", CLASSES])], {"w": WEIGHT, "b": BIAS})
    x, y = data(60)
    gain = np.full((60, 1), 0.5, np.float32)
    own = own_answers(path, x, gain)
    named = dynamic.onnx_model(path, inputs={"a": "gain"})
    for network, batch in [
        (path, {"gain": gain, "image": x}),
        (path, {"a": gain, "b": x}),
        (path, (x, gain)),
        (named, {"a": gain, "b": x}),
        (path, {"unused": y.astype(np.float32), "gain": gain, "image": x}),
    ]:
        bundle = dynamic.build([network], [(batch, y)], progress=False, max_drops=(0.1,))
        np.testing.assert_allclose(bundle.records.logits[:, 0], own, rtol=0, atol=LIMIT)
        among = dynamic.build(dynamic.Cascade([network]), [(batch, y)], progress=False, max_drops=(0.1,))
        np.testing.assert_allclose(among.records.logits[:, 0], own, rtol=0, atol=LIMIT)
        assert [i.name for i in among.spec.inputs] == [i.name for i in bundle.spec.inputs]


class _Amplified(nn.Module):
    """Names the same inputs in another order than the file."""

    def forward(self, gain: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        return (gain * image) @ torch.from_numpy(WEIGHT) + torch.from_numpy(BIAS)


def test_positional_inputs_have_the_names_of_the_first_network(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Mul", ["image", "gain"], ["scaled"], "mul"),
        helper.make_node("Gemm", ["scaled", "w", "b"], ["z"], "gemm"),
    ]
    inputs = [value("image", ["N", SIZE]), value("gain", ["N", SIZE])]
    path = save(tmp_path / "two.onnx", nodes, inputs, [value("z", ["N", CLASSES])], {"w": WEIGHT, "b": BIAS})
    random = np.random.default_rng(0)
    gain, image = (random.normal(size=(4, SIZE)).astype(np.float32) for _ in range(2))
    own = own_answers(path, image, gain)
    tensors = {"gain": torch.from_numpy(gain), "image": torch.from_numpy(image)}
    for networks, order in [([_Amplified(), path], ("gain", "image")), ([path, _Amplified()], ("image", "gain"))]:
        cascade = dynamic.Cascade(networks)
        for answers in (cascade(*(tensors[name] for name in order)), cascade(**tensors)):
            for logits in answers:
                np.testing.assert_allclose(logits.numpy(), own, rtol=0, atol=LIMIT)


def test_a_bundle_holds_no_session_of_files(files: dict[str, Path]) -> None:
    cascade = dynamic.Cascade([files["small"], network()])
    bundle = dynamic.build(cascade, tensors(), max_drops=(0.1,), progress=False)
    assert bundle.modules is None
    file = cascade.networks[0]
    assert isinstance(file, OnnxNetwork)
    run = file.stage({"input": torch.from_numpy(data(2)[0])}).run
    assert not run.loaded
    dynamic.calibrate(cascade, tensors(), progress=False)
    assert not run.loaded
    cascade(torch.from_numpy(data(2)[0]))
    assert run.loaded


def test_names_that_numbers_make_equal(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
    paths = [linear(tmp_path / file) for file in ("x/a.onnx", "y/a.onnx", "a-0.onnx")]
    for make in (dynamic.Cascade, lambda listed: dynamic.build(listed, batches(), progress=False)):
        with pytest.raises(InputError, match=r"'a-0' is there twice: give each a name of its own"):
            make(list(paths))
    assert dynamic.Cascade([*paths[:2], linear(tmp_path / "b.onnx")]).names == ("a-0", "a-1", "b")


def test_a_dynamic_side_of_files_and_networks(tmp_path: Path) -> None:
    torch.manual_seed(0)
    parts = (nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    small, path = nn.Sequential(*parts).eval(), tmp_path / "sizes.onnx"
    example = torch.randn(2, 1, 12, 12)
    sides = {0: torch.export.Dim("rows"), 2: torch.export.Dim("height", min=8, max=32)}
    torch.onnx.export(small, (example,), path, dynamo=True, dynamic_shapes=(sides,), verbose=False)
    cascade = dynamic.Cascade([path, small], dynamic_shapes=({2: torch.export.Dim("height", min=8, max=32)},))
    x, y = torch.randn(60, 1, 12, 12), torch.arange(60) % 3
    bundle = dynamic.build(cascade, [(x, y)], progress=False, max_drops=(0.5,))
    other = np.random.default_rng(0).normal(size=(4, 1, 20, 12)).astype(np.float32)
    opened = open_engine("onnxruntime", bundle.folder, bundle.spec, plain_combiner(bundle.spec))
    np.testing.assert_allclose(opened.all_logits({"input": other})[:, 0], own_answers(path, other), rtol=0, atol=LIMIT)
    opened.close()
