"""Adaptive pooling in ONNX. The exporter writes means of the cells of the example, and maxima of even cells alone."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnx import TensorProto


def _operators() -> Any:
    """The operators of ONNX, loaded where they are needed. Their types know tensors alone, not what is traced."""
    from onnxscript import opset18

    return opset18


def translations(any_size: bool) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return what `torch.onnx.export` needs to write adaptive pooling.

    Args:
        any_size: Whether features have no fixed size. Else the exporter's own means are smaller.

    Returns:
        Its `custom_translation_table`.
    """
    maxima: dict[Callable[..., Any], Callable[..., Any]] = {torch.ops.aten.adaptive_max_pool2d.default: _maxima_2d}
    if not any_size:
        return maxima
    return maxima | {
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


def _maxima_2d(self: Any, output_size: Sequence[int]) -> Any:
    """`[B, C, H, W]` -> the maxima `[B, C, rows, columns]`, and where they are: `row * W + column`.

    The first of equal ones counts. Places cost nothing where they are not used: the exporter removes them.
    """
    op = _operators()
    columns, column = _largest(self, 3, output_size[1])  # [B, C, H, columns]
    maxima, row = _largest(columns, 2, output_size[0])
    width = op.Shape(self, start=3, end=4)
    sides = [getattr(self.shape[d], "value", self.shape[d]) for d in (2, 3)]
    if all(isinstance(side, int) and side % cells == 0 for side, cells in zip(sides, output_size, strict=True)):
        kernel = [side // cells for side, cells in zip(sides, output_size, strict=True)]
        maxima, _ = op.MaxPool(self, kernel_shape=kernel, strides=kernel)
    return maxima, op.Add(op.Mul(row, width), op.GatherElements(column, row, axis=2))


def _largest(feature: Any, d: int, cells: int) -> tuple[Any, Any]:
    """The maxima over the cells along dimension `d` of four, and their positions."""
    op = _operators()
    if cells == 1:
        axes = op.Constant(value_ints=[d])
        return op.ReduceMax(feature, axes, keepdims=1), op.ArgMax(feature, axis=d, keepdims=1)
    first, end, position = _limits(feature, d, cells)
    inside = op.And(op.LessOrEqual(first, position), op.Less(position, end))  # [cells, side]
    if d == 2:
        inside = op.Unsqueeze(inside, op.Constant(value_ints=[2]))  # [cells, H, 1]
    each = op.Unsqueeze(feature, op.Constant(value_ints=[d]))  # [B, C, 1, H, W] or [B, C, H, 1, W]
    masked = op.Where(inside, each, op.Constant(value_float=float("-inf")))
    return op.ReduceMax(masked, op.Constant(value_ints=[d + 1]), keepdims=0), op.ArgMax(masked, axis=d + 1, keepdims=0)


def _cells(feature: Any, d: int, cells: int) -> Any:
    """The means over the cells along dimension `d` as a matrix `[cells, side]`."""
    op = _operators()
    first, end, position = _limits(feature, d, cells)
    inside = op.And(op.LessOrEqual(first, position), op.Less(position, end))
    return op.Div(op.Cast(inside, to=TensorProto.FLOAT), op.Cast(op.Sub(end, first), to=TensorProto.FLOAT))


def _limits(feature: Any, d: int, cells: int) -> tuple[Any, Any, Any]:
    """The first position of each cell along dimension `d`, the one after its last `[cells, 1]`, and positions `[side]`.

    As in PyTorch, cell i has the positions from floor(i side / cells) to ceil((i + 1) side / cells).
    """
    op = _operators()
    side = op.Shape(feature, start=d, end=d + 1)
    number = op.Constant(value=_column(list(range(cells))))
    next_number = op.Constant(value=_column(list(range(1, cells + 1))))
    count, most_rest = (op.Constant(value_ints=[value]) for value in (cells, cells - 1))
    first = op.Div(op.Mul(number, side), count)
    end = op.Div(op.Add(op.Mul(next_number, side), most_rest), count)
    return first, end, op.Range(op.Constant(value_int=0), op.Squeeze(side), op.Constant(value_int=1))


def _column(values: list[int]) -> TensorProto:
    return TensorProto(data_type=TensorProto.INT64, dims=[len(values), 1], int64_data=values)
