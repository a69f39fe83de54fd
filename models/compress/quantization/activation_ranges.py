"""From the values of tensors on calibration data to the grids that they are rounded to."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynamic.models.compress.quantization.int8_arithmetic import Grid
from dynamic.policies.errors import CalibrationError

RangeMethod = Literal["minmax", "percentile", "mse"]

_BINS = 4096
_TAIL = 5e-5  # of the values beyond either end, with "percentile"
_SHARES = np.linspace(1.0, 0.3, 71)  # of the whole range that "mse" tries
_SMALLEST = 1e-20  # of a scale: a tensor of zeros gets it

Observer = Callable[[Any, Tensor], None]
Pass = Callable[
    [Observer], int
]  # one pass over the data, which shows each tensor and returns how many inputs there were


@dataclass
class _Tally:
    """The range of one tensor, then how many values lie in each part of it."""

    low: float = 0.0  # zero is always inside: padding and rectified values are exactly 0
    high: float = 0.0
    counts: NDArray[np.float64] | None = None

    def widen(self, values: Tensor) -> None:
        low, high = torch.aminmax(values.detach())
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))

    def count(self, values: Tensor) -> None:
        histogram = torch.histc(values.detach().float().clamp(self.low, self.high), _BINS, self.low, self.high)
        counts = histogram.double().cpu().numpy()
        self.counts = counts if self.counts is None else self.counts + counts


def grids(show: Pass, method: RangeMethod, name_of: Callable[[Any], str]) -> dict[Any, Grid]:
    """The grid of every tensor that `show` shows, by its key.

    "minmax" is the whole range. "percentile" leaves out 0.005% of the values at either end. "mse" cuts the range on
    both sides by one share, the one with the least mean squared error of rounding and cutting. That is section 3 of
    Banner et al. 2018, "Post training 4-bit quantization of convolutional networks", by search instead of a formula.
    CalibrationError without data, and on a tensor that holds NaN or infinity.
    """
    tallies: dict[Any, _Tally] = {}

    def widen(key: Any, values: Tensor) -> None:
        tally = tallies.setdefault(key, _Tally())
        tally.widen(values)
        if not np.isfinite([tally.low, tally.high]).all() or bool(values.isnan().any()):
            raise CalibrationError(
                f"{name_of(key)} is not finite on calibration_loader (between {tally.low} and {tally.high}): "
                "look for NaN or infinity in the data and in the network's weights"
            )

    def count(key: Any, values: Tensor) -> None:
        if tallies[key].high > tallies[key].low:
            tallies[key].count(values)

    for number, observer in enumerate((widen, count)):
        if method == "minmax" and number:
            break
        if not show(observer):
            raise CalibrationError(
                "calibration_loader gave no input"
                + (" the second time: give one that can be read again, such as a list" if number else "")
                + (": a few hundred are enough, of the kind that the network will see" if not number else "")
            )
    return {key: _grid(*_ends(tally, method)) for key, tally in tallies.items()}


def _ends(tally: _Tally, method: RangeMethod) -> tuple[float, float]:
    if tally.counts is None:
        return tally.low, tally.high
    edges = np.linspace(tally.low, tally.high, _BINS + 1)
    if method == "percentile":
        share = np.cumsum(tally.counts) / tally.counts.sum()
        low, high = edges[np.searchsorted(share, _TAIL)], edges[np.searchsorted(share, 1 - _TAIL) + 1]
        return min(float(low), 0.0), max(float(high), 0.0)
    middles = (edges[1:] + edges[:-1]) / 2
    cuts = [(tally.low * float(share), tally.high * float(share)) for share in _SHARES]
    return min(cuts, key=lambda ends: _error(middles, tally.counts, _grid(*ends)))


def _error(values: NDArray[np.float64], counts: NDArray[np.float64] | None, grid: Grid) -> float:
    assert counts is not None
    low, high = grid.codes
    codes = np.clip(np.rint(values / grid.scale) + grid.zero_point, low, high)
    return float(counts @ (values - grid.scale * (codes - grid.zero_point)) ** 2)


def _grid(low: float, high: float) -> Grid:
    """From 0 where nothing is negative, else symmetric: engines then multiply without a correction for a zero point."""
    signed = low < 0
    width = max(-low / 128, high / 127) if signed else high / 255
    return Grid(float(np.float32(max(width, _SMALLEST))), 0, signed)
