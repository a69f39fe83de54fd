"""Adaptive means in graphs of any size: those of torch at every size, on both engines."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import dynamic
from dynamic.engines.openvino import new_core
from dynamic.offline.onnx_export.stage_graphs import export_stages

SIZES = [(12, 12), (6, 40), (17, 25), (7, 9)]  # the example's first
SIDES = {2: Dim("height", min=6, max=40), 3: Dim("width", min=6, max=40)}


def pooled(grid: tuple[int, int] | int) -> nn.Sequential:
    torch.manual_seed(0)
    cells = grid * grid if isinstance(grid, int) else grid[0] * grid[1]
    pool = nn.AdaptiveAvgPool2d(grid)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), pool, nn.Flatten(), nn.Linear(4 * cells, 5)).eval()


def on_both_engines(path: Path, feeds: dict[str, Any], output: str) -> list[Any]:
    session = onnxruntime.InferenceSession(str(path))
    compiled = new_core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [session.run([output], feeds)[0], compiled(feeds)[output]]


@pytest.mark.parametrize("grid", [(3, 2), 4, 1])
def test_means_at_every_size(grid: tuple[int, int] | int, tmp_path: Path) -> None:
    network, example = pooled(grid), torch.randn(2, 3, *SIZES[0])
    spec = export_stages(dynamic.Cascade(network, dynamic_shapes=(SIDES,)), tmp_path, example)
    for height, width in SIZES:
        x = torch.randn(2, 3, height, width)
        expected = network(x).detach()
        for logits in on_both_engines(tmp_path / spec.stages[0].graph, {"input": x.numpy()}, "logits"):
            np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


class Maxima(nn.Module):
    """Adaptive maxima, and where they are."""

    def __init__(self, grid: tuple[int, int] | int, places: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        cells = grid * grid if isinstance(grid, int) else grid[0] * grid[1]
        self.pool, self.classifier = nn.AdaptiveMaxPool2d(grid, return_indices=places), nn.Linear(3 * cells, 5)
        self.places = places

    def forward(self, x: Tensor) -> Tensor:
        if not self.places:
            return self.classifier(self.pool(x).flatten(1))  # type: ignore[no-any-return]
        maxima, places = self.pool(x)
        return self.classifier((maxima + places / 10).flatten(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("grid", [(3, 2), 4, 1])
@pytest.mark.parametrize("places", [False, True])
def test_maxima_at_every_size(grid: tuple[int, int] | int, places: bool, tmp_path: Path) -> None:
    """Of uneven cells, and so of any size, the exporter knew none."""
    network, example = Maxima(grid, places).eval(), torch.randn(2, 3, *SIZES[0])
    spec = export_stages(dynamic.Cascade(network, dynamic_shapes=(SIDES,)), tmp_path, example)
    for height, width in SIZES:
        x = torch.randn(2, 3, height, width).round(decimals=1)  # with equal ones, of which the first counts
        expected = network(x).detach()
        for logits in on_both_engines(tmp_path / spec.stages[0].graph, {"input": x.numpy()}, "logits"):
            np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("size", "operator"), [((13, 9), "ReduceMax"), ((12, 8), "MaxPool")])
def test_maxima_at_one_size(size: tuple[int, int], operator: str, tmp_path: Path) -> None:
    network, x = Maxima(4, places=False).eval(), torch.randn(2, 3, *size)
    spec = export_stages(dynamic.Cascade(network), tmp_path, x)
    nodes = {node.op_type: node for node in onnx.load(tmp_path / spec.stages[0].graph).graph.node}
    assert len(nodes[operator].output) == 1
    assert "ArgMax" not in nodes
    for logits in on_both_engines(tmp_path / spec.stages[0].graph, {"input": x.numpy()}, "logits"):
        np.testing.assert_allclose(logits, network(x).detach(), rtol=0, atol=1e-5)


def test_means_along_a_sequence(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv1d(3, 4, 3, padding=1), nn.AdaptiveAvgPool1d(5), nn.Flatten(), nn.Linear(20, 5))
    cascade = dynamic.Cascade(network.eval(), dynamic_shapes=({2: Dim("length", min=5, max=99)},))
    spec = export_stages(cascade, tmp_path, torch.randn(2, 3, 20))
    for length in (5, 20, 33, 99):
        x = torch.randn(1, 3, length)
        for logits in on_both_engines(tmp_path / spec.stages[0].graph, {"input": x.numpy()}, "logits"):
            np.testing.assert_allclose(logits, network(x).detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(12, 12), (14, 9)])  # cells of the example are even, or are not
def test_an_exit_that_pools_cells_answers_alike_at_every_size(size: tuple[int, int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 128, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(128, 128, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 5)),
    ).eval()
    net = dynamic.wrap(backbone, torch.randn(2, 3, *size), exits=["1"], dynamic_shapes=(SIDES,)).eval()
    head: Any = net.heads[0]
    assert head.grid > 1
    path = dynamic.export(dynamic.Cascade(net), tmp_path / "whole.onnx", example_inputs=torch.randn(2, 3, *size))
    everyone_exits = np.full(1, -np.inf, np.float32)
    for height, width in SIZES:
        x = torch.randn(2, 3, height, width)
        with torch.no_grad():
            expected: Tensor = torch.log_softmax(net(x)[0], dim=1)
        for logits in on_both_engines(path, {"input": x.numpy(), "thresholds": everyone_exits}, "logits"):
            np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


def test_a_network_of_one_size_is_exported_as_before(tmp_path: Path) -> None:
    spec = export_stages(dynamic.Cascade(pooled(4)), tmp_path, torch.randn(2, 3, 12, 12))
    operators = [node.op_type for node in onnx.load(tmp_path / spec.stages[0].graph).graph.node]
    assert "Range" not in operators
    assert "AveragePool" in operators
