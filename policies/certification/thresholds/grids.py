"""Cost and loss of every combination of grid thresholds of one set of exits, from prefix sums over a histogram."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.certification.answers import Exits

Floats = NDArray[Any]  # float64, or float32 where it holds counts


@dataclass(frozen=True, eq=False)
class ThresholdGrid:
    """Every combination of grid thresholds of one set of k exits, as arrays `[Q] * k`.

    Args:
        exits: The set.
        thresholds: Those of each exit `[k][Q]`.
        cost: Mean cost.
        loss: Sum of losses over the records.
        square: Sum of squared losses over the records.
        count: Number of records N.
    """

    exits: Exits
    thresholds: tuple[NDArray[np.float32], ...]
    cost: Floats
    loss: Floats
    square: Floats
    count: int
    _bound: dict[float, Floats] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, exits: Exits, count: int, *, quantiles: int) -> "ThresholdGrid":
        """The grid of a set of exits, with at most so many thresholds inside the range of scores of each exit."""
        k = len(exits.stages) - 1
        thresholds = tuple(grid_thresholds(exits.stages[j].score, quantiles) for j in range(k))
        # sums over records as if all exited at the first exit, then for each stage the change by those that continue
        cost = np.array(exits.cost[0] * count)
        loss, square = exits.loss.astype(np.float32), exits.square.astype(np.float32)
        losses: Floats = np.array(loss[0].sum(dtype=np.float64))
        squares: Floats = np.array(square[0].sum(dtype=np.float64))
        flat: NDArray[np.int64] = np.zeros(count, np.int64)
        shape: tuple[int, ...] = ()
        for j in range(k):
            # a record continues under threshold number q exactly where its bin is at most q
            shape = (*shape, len(thresholds[j]))
            flat = flat * shape[-1] + np.searchsorted(thresholds[j], exits.stages[j].score, side="left")
            continuing = _continuing(flat, np.ones(count, np.float32), shape)
            extra_cost = exits.cost[j + 1] - exits.cost[j]
            cost = cost[..., None] + np.multiply(continuing, extra_cost, dtype=np.float64)
            losses = losses[..., None] + _continuing(flat, loss[j + 1] - loss[j], shape)
            squares = squares[..., None] + _continuing(flat, square[j + 1] - square[j], shape)
        return cls(exits, thresholds, cost / count, losses, squares, count)

    def bound(self, margin: float) -> Floats:
        """The risk plus `margin` standard errors."""
        if margin not in self._bound:
            self._bound.clear()  # callers use one margin many times
            risk, error = risk_and_se(self.loss, self.square, self.count)
            self._bound[margin] = risk + margin * error
        return self._bound[margin]

    def cheapest(self, target: float, margin: float) -> tuple[float, tuple[np.intp, ...]]:
        """(cost, place) of the cheapest combination within `target`. The cost is infinite where there is none.

        Of equals it is the one with the least loss, because it can be refined most.
        """
        bound = self.bound(margin)
        cost = np.where(is_within(bound, target), self.cost, np.inf)
        least = float(cost.min())
        equals = np.flatnonzero(cost <= least + 1e-12 * abs(least))
        best = int(equals[bound.ravel()[equals].argmin()]) if np.isfinite(least) else 0
        return least, np.unravel_index(best, cost.shape)

    def limits(self, at: Sequence[np.intp]) -> list[float]:
        """The thresholds at a place of the grid."""
        return [float(t[i]) for t, i in zip(self.thresholds, at, strict=True)]


def risk_and_se(loss: Any, square: Any, count: int) -> tuple[Floats, Floats]:
    """Mean and standard error of a loss, from the sums of losses and of squared losses."""
    mean = np.asarray(loss, np.float64) / count
    variance = np.asarray(square, np.float64) / count - mean**2
    return mean, np.sqrt(np.maximum(variance, 0.0) / count)


def is_within(bound: Floats, target: float) -> NDArray[np.bool_]:
    """Where a bound is at most the target, up to rounding."""
    return np.asarray(bound <= target + 1e-12)


def midpoints(low: NDArray[np.float32], high: NDArray[np.float32]) -> NDArray[np.float32]:
    """Thresholds halfway between `low < high`, so that `threshold < score` separates them in float32 too."""
    middle = ((low.astype(np.float64) + high.astype(np.float64)) / 2).astype(np.float32)
    # rounding may give the upper neighbour, and the lower one separates them as well
    return np.where(middle < high, middle, low)


def grid_thresholds(score: NDArray[np.float32], quantiles: int) -> NDArray[np.float32]:
    """-inf (all exit), midpoints next to evenly spaced quantiles, and the largest score (none exits)."""
    ordered = np.sort(score)
    at = np.arange(1, quantiles + 1) * len(ordered) // (quantiles + 1)
    low = np.unique(ordered[at])
    above = np.searchsorted(ordered, low, side="right")
    inside = above < len(ordered)
    inner = midpoints(low[inside], ordered[above[inside]])
    return np.unique(np.concatenate([[np.float32(-np.inf)], inner, ordered[-1:]])).astype(np.float32)


def _continuing(flat: NDArray[np.int64], weight: NDArray[np.float32], shape: tuple[int, ...]) -> Floats:
    """The weight of the binned records that continue at every stage, under each combination.

    It uses prefix sums along every axis, a slice at a time. That is several times as fast as `cumsum`, which walks
    every axis but the last in strides. In float32, whole numbers up to 2^24 are exact.
    """
    nonzero = np.flatnonzero(weight)  # few losses change, because most answers equal those of the reference
    table = np.zeros(int(np.prod(shape, dtype=np.int64)), np.float32)
    np.add.at(table, flat[nonzero], weight[nonzero])
    table = table.reshape(shape)
    for axis, size in enumerate(shape):
        slices = table.reshape(-1, size, int(np.prod(shape[axis + 1 :], dtype=np.int64)))
        for q in range(1, size):
            slices[:, q] += slices[:, q - 1]
    return table
