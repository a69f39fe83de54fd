"""A stage that adds the image it starts from to what it convolves: laid out for ONNX Runtime, with the same answers."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

import dynamic
from dynamic.engines.contract import SINGLE_GRAPH
from dynamic.engines.openvino import new_core
from dynamic.offline.onnx_export.node_names import branches
from dynamic.offline.onnx_export.onnxruntime_forms import block_images
from dynamic.offline.onnx_export.stage_graphs import export_stages
from dynamic.offline.onnx_export.whole_graph import plain_ladder, write_graphs

C = 16


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(C, C, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x) + x)


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, C, 3, padding=1), nn.ReLU(), Block(), Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(C, 4)).eval()


def operators(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield node.op_type
        for branch in branches(node):
            yield from operators(branch)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By engine, the graphs of a network with an exit between its two blocks."""
    x = torch.randn(2, 3, 8, 8)
    cascade = dynamic.Cascade(dynamic.wrap(network(), x, exits=["2"]))
    by_engine = {}
    for engine in ("onnxruntime", "openvino"):
        folder = by_engine[engine] = tmp_path_factory.mktemp(engine)
        spec = export_stages(cascade, folder, x)
        write_graphs(folder, spec, replace(plain_ladder(spec, cascade.combine), temperature=(1.0, 1.0)), engine)
    return by_engine


def test_only_for_the_engine_that_gains(folders: dict[str, Path]) -> None:
    count = {
        name: list(operators(onnx.load(f / SINGLE_GRAPH).graph)).count("AveragePool") for name, f in folders.items()
    }
    assert count["onnxruntime"] == count["openvino"] + 1


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("poison", [None, np.nan, np.inf])
def test_the_same_answers(folders: dict[str, Path], rows: int, poison: float | None) -> None:
    """On both engines, whatever the graph was laid out for: a NaN in the image is one in the answer."""
    x = np.random.default_rng(0).standard_normal((rows, 3, 8, 8)).astype(np.float32)
    if poison is not None:
        x[0, :, 4, 4] = poison
    limits = np.array([np.inf], np.float32)
    answers = []
    for folder in folders.values():
        path = folder / (SINGLE_GRAPH if rows == 1 else "graph.onnx")
        answers.append(onnxruntime.InferenceSession(str(path)).run(["logits"], {"input": x, "thresholds": limits})[0])
    np.testing.assert_allclose(answers[0], answers[1], rtol=1e-6, atol=1e-6)
    assert np.isnan(answers[0][0]).any() == (poison is not None)
    if poison is None:
        with torch.no_grad():
            expected = torch.log_softmax(network()(torch.from_numpy(x)), 1)
        np.testing.assert_allclose(answers[0], expected, rtol=1e-4, atol=1e-5)
        options = {"INFERENCE_PRECISION_HINT": "f32"}
        for folder in folders.values():
            path = folder / (SINGLE_GRAPH if rows == 1 else "graph.onnx")
            logits = new_core().compile_model(str(path), "CPU", options)([x, limits])["logits"]
            np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def graph(readers: str, channels: int | str = C, rank: int = 4) -> onnx.GraphProto:
    """x is read by the operators of `readers`."""
    inputs = {"Conv": ["x", "w"], "Add": ["other", "x"], "Relu": ["x"]}
    nodes = [helper.make_node(op, inputs[op], [f"{op}_y"], op) for op in readers.split()]
    sizes = ["b", channels, 8, 8][:rank]
    return helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info(f"{op}_y", TensorProto.FLOAT, None) for op in readers.split()],
    )


@pytest.mark.parametrize(
    ("one", "blocked"),
    [
        (graph("Conv Add"), True),
        (graph("Add Conv Relu"), True),
        (graph("Conv"), False),
        (graph("Add"), False),
        (graph("Conv Relu"), False),
        (graph("Conv Add", channels=12), False),
        (graph("Conv Add", channels="c"), False),
        (graph("Conv Add", rank=3), False),
    ],
)
def test_which_images(one: onnx.GraphProto, blocked: bool) -> None:
    before = len(one.node)
    block_images(one)
    assert len(one.node) == before + blocked
    readers = [node.op_type for node in one.node if "x" in node.input]
    assert (readers == ["AveragePool"]) == blocked
