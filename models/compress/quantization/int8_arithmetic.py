"""int8 arithmetic in full: torch rounds as an engine does, and an engine reads integers.

Every operation takes and returns floats on a grid of 256 values. Between them are torch's own operators
`quantized_decomposed.quantize_*` and `dequantize_*`. torch's exporter writes them as QuantizeLinear and
DequantizeLinear. Weights are int8 parameters behind a dequantize. ONNX Runtime and OpenVINO fuse
dequantize-operate-quantize into one integer kernel.

Each operation is a function that torch.fx takes as one (`fx.wrap`), rounding included. So no exit of `dynamic.wrap`,
and no boundary between graphs, lies inside it and breaks such a kernel apart.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # it registers the operators
from torch import Tensor, fx, nn
from torch.nn import functional as F

from dynamic.policies.errors import WrapError

_OPS = torch.ops.quantized_decomposed

Sides = tuple[float, int, bool]  # a grid as torch.fx writes it into code


@dataclass(frozen=True)
class Grid:
    """256 values `scale * (code - zero_point)`. Codes start at -128 where `signed`, else at 0."""

    scale: float
    zero_point: int
    signed: bool

    @property
    def sides(self) -> Sides:
        """The same, as plain numbers."""
        return self.scale, self.zero_point, self.signed

    @property
    def codes(self) -> tuple[int, int]:
        """The least and the largest code."""
        return (-128, 127) if self.signed else (0, 255)

    @property
    def values(self) -> tuple[float, float]:
        """The least and the largest value."""
        low, high = self.codes
        return self.scale * (low - self.zero_point), self.scale * (high - self.zero_point)


def round_to_grid(x: Tensor, grid: Sides) -> Tensor:
    """`x` on a grid: the nearest value, half to even. Beyond an end it is that end."""
    scale, zero_point, signed = grid
    low, high, kind = (-128, 127, torch.int8) if signed else (0, 255, torch.uint8)
    codes = _OPS.quantize_per_tensor.default(x, scale, zero_point, low, high, kind)
    values: Tensor = _OPS.dequantize_per_tensor.default(codes, scale, zero_point, low, high, kind)
    return values


def convolution(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    bias_scales: Tensor | None,
    zeros: Tensor,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    grid: Sides,
) -> Tensor:
    """Convolution of `x [B, C, ...]` with `codes [K, C / groups, ...]`, rounded to a grid."""
    convolve = (F.conv1d, F.conv2d, F.conv3d)[codes.ndim - 3]
    weight, shift = _floats(codes, scales, zeros), _bias(bias, bias_scales, zeros)
    return round_to_grid(convolve(x, weight, shift, stride, padding, dilation, groups), grid)


def linear(
    x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None, bias_scales: Tensor | None, zeros: Tensor
) -> Tensor:
    """Linear layer `[..., D] -> [..., K]` with `codes [K, D]`. Its result is not rounded."""
    return F.linear(x, _floats(codes, scales, zeros), _bias(bias, bias_scales, zeros))


def total(a: Tensor, b: Tensor, grid: Sides) -> Tensor:
    """The sum, rounded to a grid. A grid from 0 rectifies."""
    return round_to_grid(a + b, grid)


for _name in ("round_to_grid", "convolution", "linear", "total"):
    fx.wrap(_name)


def _bias(bias: Tensor | None, scales: Tensor | None, zeros: Tensor) -> Tensor | None:
    return None if bias is None or scales is None else _floats(bias, scales, zeros.to(bias.dtype))


def _floats(codes: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    # zero points of 0 are needed: without them ONNX Runtime runs no linear layer in int8
    ends = torch.iinfo(codes.dtype)
    values: Tensor = _OPS.dequantize_per_channel.default(codes, scales, zeros, 0, ends.min, ends.max, codes.dtype)
    return values


class _Untrainable(nn.Module):
    rounds = True  # engines agree with torch up to one code, not up to the precision of float32

    def _check(self) -> None:
        if self.training:
            raise WrapError(
                "a quantized network cannot be trained, since rounding has no gradient: train it before, or call eval()"
            )


class Rounded(_Untrainable):
    """Rounds to `grid`. Like all modules here it raises WrapError in train mode, since rounding has no gradient."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        """`[...]` -> the same shape."""
        self._check()
        return round_to_grid(x, self.grid.sides)

    def get_extra_state(self) -> Tensor:
        """The grid, so that it is saved with the weights."""
        return torch.tensor(self.grid.sides, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Take the grid that `get_extra_state` returned."""
        scale, zero_point, signed = state.tolist()
        self.grid = Grid(scale, int(zero_point), bool(signed))

    def extra_repr(self) -> str:
        """The grid."""
        return str(self.grid)


class Total(Rounded):
    """The sum of two tensors, rounded to `grid`."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:  # type: ignore[override]
        """The shape that both broadcast to."""
        self._check()
        return total(a, b, self.grid.sides)


class Int8Linear(_Untrainable):
    """A linear layer with `codes [K, D]` int8, `scales [K]`, `bias [K]` int32 and `bias_scales [K]`.

    Codes and bias are parameters, so that a count of parameters includes them. The bias is in the unit of the products
    of codes, `scales * input_scale`: an engine adds it to its accumulators as it is.
    """

    scales: Tensor
    bias_scales: Tensor | None
    zeros: Tensor

    def __init__(self, codes: nn.Parameter, scales: Tensor, bias: Tensor | None, input_scale: float) -> None:
        super().__init__()
        self.codes = codes
        self.register_buffer("scales", scales)
        steps = scales * input_scale
        counts = None if bias is None else (bias.double() / steps.double()).round().to(torch.int32)
        self.bias = None if counts is None else nn.Parameter(counts, requires_grad=False)
        self.register_buffer("bias_scales", None if counts is None else steps)
        self.register_buffer("zeros", torch.zeros_like(scales, dtype=torch.int8), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., D]` -> `[..., K]`."""
        self._check()
        return linear(x, self.codes, self.scales, self.bias, self.bias_scales, self.zeros)


class RoundedLinear(_Untrainable):
    """A linear layer and the rounding of its input to `grid`, in the place of an `nn.Linear` (see `Int8Linear`)."""

    def __init__(self, grid: Grid, codes: nn.Parameter, scales: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = codes.shape
        self.rounded = Rounded(grid)
        self.weights = Int8Linear(codes, scales, bias, grid.scale)

    @property
    def weight(self) -> Tensor:
        """The weights `[K, D]` as floats: networks read their type."""
        w = self.weights
        return _floats(w.codes, w.scales, w.zeros)

    @property
    def bias(self) -> Tensor | None:
        """The bias `[K]` as floats."""
        w = self.weights
        return _bias(w.bias, w.bias_scales, w.zeros)

    def forward(self, input: Tensor) -> Tensor:
        """`[..., D]` -> `[..., K]`. The parameter is named as that of `nn.Linear`."""
        self._check()
        output: Tensor = self.weights(self.rounded(input))
        return output


class Int8Conv(Rounded):
    """A convolution, its rectifier, and the rounding of the result to `grid`, see `Int8Linear`.

    `conv` is the float layer, with the same stride, padding, dilation and groups.
    """

    def __init__(
        self, conv: Any, codes: nn.Parameter, scales: Tensor, bias: Tensor | None, input_scale: float, grid: Grid
    ) -> None:
        super().__init__(grid)
        self.weights = Int8Linear(codes, scales, bias, input_scale)
        self.options = (conv.stride, conv.padding, conv.dilation, conv.groups)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, ...]` -> `[B, K, ...]`."""
        self._check()
        w = self.weights
        return convolution(x, w.codes, w.scales, w.bias, w.bias_scales, w.zeros, *self.options, grid=self.grid.sides)
