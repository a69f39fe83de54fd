"""Adaptive pooling of features that have no fixed size, in ONNX: the exporter writes the cells of the example."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnx import TensorProto


def _operators() -> Any:
    """The operators of ONNX, loaded where they are needed. Their types know tensors alone, not what is traced."""
    from onnxscript import opset18

    return opset18


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return what `torch.onnx.export` needs to write adaptive means for every size.

    Returns:
        Its `custom_translation_table`.
    """
    return {
        torch.ops.aten.adaptive_avg_pool1d.default: _means_1d,
        torch.ops.aten.adaptive_avg_pool2d.default: _means_2d,
    }


def _means_1d(self: Any, output_size: Sequence[int]) -> Any:
    """`[B, C, N]` -> `[B, C, cells]`."""
    op = _operators()
    return op.MatMul(self, op.Transpose(_cells(self, 2, output_size[0]), perm=[1, 0]))


def _means_2d(self: Any, output_size: Sequence[int]) -> Any:
    """`[B, C, H, W]` -> `[B, C, rows, columns]`."""
    op = _operators()
    if list(output_size) == [1, 1]:
        return op.GlobalAveragePool(self)
    rows, columns = (_cells(self, d, cells) for d, cells in zip((2, 3), output_size, strict=True))
    return op.MatMul(op.MatMul(rows, self), op.Transpose(columns, perm=[1, 0]))


def _cells(feature: Any, d: int, cells: int) -> Any:
    """The means over the cells along dimension `d` as a matrix `[cells, side]`.

    As in PyTorch, cell i has the positions from floor(i side / cells) to ceil((i + 1) side / cells).
    """
    op = _operators()
    side = op.Shape(feature, start=d, end=d + 1)
    number = op.Constant(value=_column(list(range(cells))))
    next_number = op.Constant(value=_column(list(range(1, cells + 1))))
    count, most_rest = (op.Constant(value_ints=[value]) for value in (cells, cells - 1))
    first = op.Div(op.Mul(number, side), count)
    end = op.Div(op.Add(op.Mul(next_number, side), most_rest), count)
    position = op.Range(op.Constant(value_int=0), op.Squeeze(side), op.Constant(value_int=1))
    inside = op.And(op.LessOrEqual(first, position), op.Less(position, end))
    return op.Div(op.Cast(inside, to=TensorProto.FLOAT), op.Cast(op.Sub(end, first), to=TensorProto.FLOAT))


def _column(values: list[int]) -> TensorProto:
    return TensorProto(data_type=TensorProto.INT64, dims=[len(values), 1], int64_data=values)
