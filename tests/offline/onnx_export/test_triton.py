"""`dynamic.export(..., format="triton")`: a model that Triton's own schema reads, with thresholds by default."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from google.protobuf import text_format
from torch import nn
from tritonclient.grpc import model_config_pb2

import dynamic
from dynamic.errors import InputError

CLASSES = ("cat", 'dog "barks"', "ship", "frog")
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (9, 4, 4, 3), np.uint8)


@pytest.fixture(scope="module")
def bundle() -> dynamic.Bundle:
    torch.manual_seed(0)
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(48, w), nn.ReLU(), nn.Linear(w, 4)) for w in (2, 16)]
    held_out = [(torch.randn(300, 3, 4, 4), torch.arange(300) % 4)]
    return dynamic.build(networks, held_out, preprocess=dynamic.Preprocess.of(), classes=CLASSES, progress=False)


def config(folder: Path) -> Any:
    """The configuration, read by Triton's schema: an unknown field or word is an error."""
    return text_format.Parse((folder / "config.pbtxt").read_text("utf-8"), model_config_pb2.ModelConfig())


def session(folder: Path) -> Any:
    return onnxruntime.InferenceSession(str(folder / "1" / "model.onnx"), providers=["CPUExecutionProvider"])


def tensors(fields: Any) -> dict[str, tuple[str, list[int], bool]]:
    kinds = model_config_pb2.DataType.Name
    return {one.name: (kinds(one.data_type), list(one.dims), getattr(one, "optional", False)) for one in fields}


def test_thresholds_are_an_optional_input(bundle: dynamic.Bundle, tmp_path: Path) -> None:
    point = bundle.ladder.points[-1]
    folder = dynamic.export(bundle, tmp_path / "photos", format="triton", point=point.name)
    assert folder == tmp_path / "photos"
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")) == [
        "1",
        "1/model.onnx",
        "config.pbtxt",
        "labels.txt",
    ]
    settings = config(folder)
    assert (settings.name, settings.backend, settings.max_batch_size) == ("photos", "onnxruntime", 0)
    assert tensors(settings.input) == {
        "input": ("TYPE_UINT8", [-1, 4, 4, 3], False),
        "thresholds": ("TYPE_FP32", [1], True),
    }
    assert tensors(settings.output) == {
        "logits": ("TYPE_FP32", [-1, 4], False),
        "stage": ("TYPE_INT64", [-1], False),
        "score": ("TYPE_FP32", [-1], False),
    }
    assert settings.output[0].label_filename == "labels.txt"
    assert (folder / "labels.txt").read_text("utf-8").splitlines() == list(CLASSES)
    assert not settings.HasField("dynamic_batching")
    assert [group.kind for group in settings.instance_group] == [model_config_pb2.ModelInstanceGroup.KIND_CPU]


def test_the_graph_takes_the_thresholds_of_a_request_or_those_of_the_point(
    bundle: dynamic.Bundle, tmp_path: Path
) -> None:
    plain = dynamic.export(bundle, tmp_path / "plain.onnx")
    reference = onnxruntime.InferenceSession(str(plain), providers=["CPUExecutionProvider"])
    points = {point.name: np.array(point.thresholds, np.float32) for point in bundle.ladder.points}
    for name, limits in points.items():
        run = session(dynamic.export(bundle, tmp_path / "photos", format="triton", point=name))
        assert [one.name for one in run.get_inputs()] == ["input"]
        assert [one.name for one in run.get_overridable_initializers()] == ["thresholds"]
        others = [limits, np.array([-np.inf], np.float32), np.array([np.inf], np.float32)]
        answers = [run.run(None, {"input": IMAGES, "thresholds": other}) for other in others]
        answers.append(run.run(None, {"input": IMAGES}))
        for answer, thresholds in zip(answers, [*others, limits], strict=True):
            expected = reference.run(None, {"input": IMAGES, "thresholds": thresholds})
            for ours, theirs in zip(answer, expected, strict=True):
                np.testing.assert_array_equal(ours, theirs)


def test_with_batches_the_thresholds_are_fixed(bundle: dynamic.Bundle, tmp_path: Path) -> None:
    """Triton has no optional inputs in batches (onnxruntime_backend, `ValidateInputs`), and adds the rows itself."""
    point = bundle.ladder.points[-1].name
    folder = dynamic.export(bundle, tmp_path / "photos", format="triton", point=point, max_batch=16)
    settings = config(folder)
    assert settings.max_batch_size == 16
    assert settings.HasField("dynamic_batching")
    assert tensors(settings.input) == {"input": ("TYPE_UINT8", [4, 4, 3], False)}
    assert tensors(settings.output) == {
        "logits": ("TYPE_FP32", [4], False),
        "stage": ("TYPE_INT64", [1], False),
        "score": ("TYPE_FP32", [1], False),
    }
    assert [one.HasField("reshape") for one in settings.output] == [False, True, True]
    assert [list(one.reshape.shape) for one in settings.output] == [[], [], []]
    optional = session(dynamic.export(bundle, tmp_path / "optional", format="triton", point=point))
    run = session(folder)
    assert [one.name for one in run.get_inputs()] == ["input"]
    assert run.get_overridable_initializers() == []
    for ours, theirs in zip(run.run(None, {"input": IMAGES}), optional.run(None, {"input": IMAGES}), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_one_row_at_a_time(bundle: dynamic.Bundle, tmp_path: Path) -> None:
    point = bundle.ladder.points[-1].name
    folder = dynamic.export(bundle, tmp_path / "photos", format="triton", point=point, batch="single")
    assert tensors(config(folder).input)["input"] == ("TYPE_UINT8", [1, 4, 4, 3], False)
    assert session(folder).run(None, {"input": IMAGES[:1]})[0].shape == (1, 4)


@pytest.mark.parametrize(
    ("path", "options", "words"),
    [
        ("photos", {}, "needs point=, whose thresholds hold: one of"),
        ("photos", {"point": "nothing"}, "'nothing' is not on this ladder"),
        ("photos.onnx", {"point": "reference"}, "is a folder in a repository of Triton: name it photos"),
        ("photos", {"point": "reference", "max_batch": 0}, "max_batch=0 must be a whole number"),
        ("photos", {"point": "reference", "max_batch": 8, "batch": "single"}, 'needs batch="dynamic"'),
        ("photos", {"point": "reference", "format": "tensorrt"}, "format='tensorrt' is not known"),
        ("photos.onnx", {"format": "onnx", "max_batch": 8}, 'is for format="triton"'),
    ],
)
def test_options_that_do_not_go_together(
    bundle: dynamic.Bundle, tmp_path: Path, path: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError) as error:
        dynamic.export(bundle, tmp_path / path, **({"format": "triton"} | options))
    assert words in str(error.value)
    assert not (tmp_path / path).exists()


def test_networks_without_points(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="takes a bundle"):
        dynamic.export(nn.Flatten(), tmp_path / "photos", format="triton", point="reference")
