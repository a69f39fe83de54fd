"""Scales of sums at which engines and torch round alike.

A sum of two int8 tensors is rounded to a third grid. For some pairs of codes the real sum lies almost exactly between
two codes of the result. Then the order of float32 operations decides. ONNX Runtime, OpenVINO and torch differ by one
code, and the next layers multiply that. There are only 65,536 pairs, so a scale can avoid it.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dynamic.models.compress.quantization.int8_arithmetic import Grid

_CANDIDATES, _STEP = 64, 2.0**-14  # the scale grows by 0.4% at most


def without_ties(result: Grid, first: Grid, second: Grid) -> Grid:
    """The grid of a sum, with the scale at which no pair of codes comes close to a tie.

    Args:
        result: The grid of the range of the sum.
        first: The grid of one term.
        second: The grid of the other term.

    Returns:
        `result` with a scale larger by at most 0.4%. Of 64 candidates it is the one whose closest pair of codes is
        farthest from a tie.
    """
    low, high = result.codes
    sums = _values(first)[:, None] + _values(second)[None, :]
    scales = [float(np.float32(result.scale * (1 + k * _STEP))) for k in range(_CANDIDATES)]

    def distance(scale: float) -> float:
        codes = sums / scale + result.zero_point
        inside = codes[(codes > low - 0.75) & (codes < high + 0.75)]
        return float(np.abs(inside - np.floor(inside) - 0.5).min(initial=0.5))

    return replace(result, scale=max(scales, key=distance))


def _values(grid: Grid) -> NDArray[np.float64]:
    low, high = grid.codes
    return np.arange(low - grid.zero_point, high + 1 - grid.zero_point, dtype=np.float64) * grid.scale
