"""Cells of uneven size are pooled by a product: the means that torch's own pooling gives, without a gather."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from dynamic.offline.cascade import Cascade
from dynamic.offline.onnx_export.stage_graphs import export_stages
from dynamic.offline.tracing.exit_heads import ExitHead, Room

ROOM = Room(1e9, 1e9)


def head(*shape: int, channel: int = 1, any_size: bool = False) -> ExitHead:
    return ExitHead(shape, channel, 5, None, ROOM, any_size=any_size).eval()


@pytest.mark.parametrize(("height", "width"), [(14, 14), (7, 9), (8, 6), (5, 4), (8, 8), (3, 3), (2, 7)])
def test_means_over_the_cells(height: int, width: int) -> None:
    torch.manual_seed(0)
    own, x = head(3, height, width), torch.randn(2, 3, height, width)
    grid = 4 if min(height, width) >= 4 else 2
    expected = np.zeros((2, 3, grid, grid), np.float32)
    for row in range(grid):
        for column in range(grid):
            rows = slice(row * height // grid, -(-(row + 1) * height // grid))
            columns = slice(column * width // grid, -(-(column + 1) * width // grid))
            expected[:, :, row, column] = x[:, :, rows, columns].mean((2, 3))
    np.testing.assert_allclose(own.pool(x), expected.reshape(2, -1), rtol=1e-5, atol=1e-6)
    last = head(height, width, 3, channel=3)
    np.testing.assert_allclose(last.pool(x.permute(0, 2, 3, 1)), expected.reshape(2, -1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(9, 7), (21, 3), (8, 8), (10, 12)])
def test_images_of_another_size(size: tuple[int, int]) -> None:
    """7 x 9 pixels are as many as 9 x 7, and their cells lie elsewhere."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size)
    expected = nn.AdaptiveAvgPool2d(4)(x).flatten(1)
    torch.testing.assert_close(head(3, 7, 9).pool(x), expected)


def test_weights_travel_and_precisions_change() -> None:
    """The cells are no weights: the state of a head has the same names as before."""
    own = head(3, 7, 7)
    assert not any("cells" in name for name in own.state_dict())
    assert not any("cells" in name for name, _ in own.named_parameters())
    x = torch.randn(2, 3, 7, 7, dtype=torch.float64)
    pooled = own.double().pool(x)
    torch.testing.assert_close(pooled, nn.AdaptiveAvgPool2d(4)(x).flatten(1), rtol=1e-6, atol=1e-6)


def test_no_gather_is_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, x = head(3, 14, 14), torch.randn(2, 3, 14, 14)
    spec = export_stages(Cascade(network), tmp_path, x)
    path = tmp_path / spec.stages[0].graph
    operators = [node.op_type for node in onnx.load(path).graph.node]
    assert "MatMul" in operators
    assert not {"Gather", "GatherND", "Transpose", "ReduceMean"}.intersection(operators)
    (logits,) = onnxruntime.InferenceSession(str(path)).run(["logits"], {spec.inputs[0].name: x.numpy()})
    with torch.no_grad():
        expected = network.classify(nn.AdaptiveAvgPool2d(4)(x).flatten(1))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (3, 9), (4, 4), (8, 6), (14, 30), (64, 2)])
@pytest.mark.parametrize("channel", [1, 3])
def test_a_head_for_any_size_pools_as_torch_does(size: tuple[int, int], channel: int) -> None:
    torch.manual_seed(0)
    own, x = head(*((3, 8, 8) if channel == 1 else (8, 8, 3)), channel=channel, any_size=True), torch.randn(2, 3, *size)
    assert own.grid == 4
    expected = nn.functional.adaptive_avg_pool2d(x, 4).flatten(1)
    pooled = own.pool(x if channel == 1 else x.permute(0, 2, 3, 1))
    torch.testing.assert_close(pooled, expected, rtol=1e-5, atol=1e-6)
