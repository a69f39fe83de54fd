"""Thresholds for all stages at once: the cheapest that keep the accuracy.

For every set of exits switched on, each record is binned by its score at every one of them. Prefix sums over the
joint histogram then give cost and accuracy of *all* combinations of grid thresholds exactly; the winner is
refined at full resolution, one stage at a time. With "mean" the scores depend on which exits are on,
so every set is scored for itself.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.certification.answers import Answers, Exits
from dynamic.policies.certification.risks import RISKS, Risk
from dynamic.policies.errors import CalibrationError
from dynamic.policies.records import Records
from dynamic.policies.scores import Combiner

QUANTILES = 16
_MOST_COMBINATIONS = 2_000_000  # of all sets of exits of one size together: bounds time and memory
_ALL_SETS_UP_TO = 7  # stages; beyond, sets of exits are grown from the best smaller ones
_BEAM = 6
_ROUNDS = 6
_RUNGS = 4000  # risks told apart on the way from the safest to the cheapest thresholds
_EQUAL = 1e-7  # less than one loss in a million records
_PROMISE = (0.0, 0.005, 0.01, 0.02, 0.05)  # risks that a set of exits is judged by before it is built on

Floats = NDArray[Any]  # float64, or float32 where it holds counts


@dataclass(frozen=True)
class Candidate:
    """Thresholds `[S-1]`, with mean `cost`, the `risk` where they were chosen, and its standard error."""

    thresholds: tuple[float, ...]
    cost: float
    risk: float
    risk_se: float


@dataclass(frozen=True, eq=False)
class _Grid:
    """Every combination of grid thresholds of one set of exits, as arrays `[Q] * k`.

    Mean `cost`; `loss` and `square` are sums over records.
    """

    exits: Exits
    thresholds: tuple[NDArray[np.float32], ...]
    cost: Floats
    loss: Floats
    square: Floats
    count: int
    _bound: dict[float, Floats] = field(default_factory=dict, repr=False)

    def bound(self, margin: float) -> Floats:
        """The risk plus `margin` standard errors."""
        if margin not in self._bound:
            self._bound.clear()  # one margin is asked for again and again
            risk, error = risk_and_se(self.loss, self.square, self.count)
            self._bound[margin] = risk + margin * error
        return self._bound[margin]

    def cheapest(self, target: float, margin: float) -> tuple[float, tuple[np.intp, ...]]:
        """(cost, place) of the cheapest combination that keeps to `target`; infinite where none does.

        Of equals the one that loses least: it leaves most to refine.
        """
        bound = self.bound(margin)
        cost = np.where(_within(bound, target), self.cost, np.inf)
        least = float(cost.min())
        equals = np.flatnonzero(cost <= least + 1e-12 * abs(least))
        best = int(equals[bound.ravel()[equals].argmin()]) if np.isfinite(least) else 0
        return least, np.unravel_index(best, cost.shape)

    def limits(self, at: Sequence[np.intp]) -> list[float]:
        """The thresholds at a place of the grid."""
        return [float(t[i]) for t, i in zip(self.thresholds, at, strict=True)]


def risk_and_se(loss: Any, square: Any, count: int) -> tuple[Floats, Floats]:
    """Mean and standard error of a loss, from the sums of it and of its square."""
    mean = np.asarray(loss, np.float64) / count
    variance = np.asarray(square, np.float64) / count - mean**2
    return mean, np.sqrt(np.maximum(variance, 0.0) / count)


def _within(bound: Floats, target: float) -> NDArray[np.bool_]:
    return np.asarray(bound <= target + 1e-12)


class Search:
    """All combinations of grid thresholds, ready to be asked for many targets.

    `records`: the ones that choose (part 0 of a calibration set). `body`, `head`: cost of each stage's body
    and head `[S]`, in any one unit; multiply-adds by default.

    Raises CalibrationError without records, or without labels where the `risk` needs them.
    """

    def __init__(
        self,
        records: Records,
        combiner: Combiner,
        body: Sequence[float] | None = None,
        head: Sequence[float] | None = None,
        quantiles: int = QUANTILES,
        risk: Risk = RISKS["drop"],
        expected: bool = False,
    ) -> None:
        if len(records) == 0:
            raise CalibrationError("no records to search on; give held-out inputs, or a larger search_share")
        self._answers = Answers(records, combiner, risk, body, head, expected)
        self.risk, self.stages = risk, records.stages
        self._quantiles = quantiles
        self.count = len(records)
        self._grids = self._all_grids() if records.stages <= _ALL_SETS_UP_TO else self._grown_grids()
        self.reference = self._candidate(self._answers.exits(()), ())  # the last backbone alone
        self._answers.forget()

    def cheapest(self, target: float, margin: float = 0.0) -> Candidate | None:
        """The cheapest thresholds whose risk, plus `margin` standard errors, is at most `target`.

        None where there is none; never so where the reference itself meets it.
        """
        found = [(*grid.cheapest(target, margin), grid) for grid in self._grids]
        found = sorted((entry for entry in found if np.isfinite(entry[0])), key=lambda entry: entry[0])
        refined = [self._refine(grid.exits, grid.limits(at), target, margin) for _, at, grid in found[:_BEAM]]
        return min(refined, key=lambda c: (c.cost, c.risk), default=None)

    def most_accurate(self, margin: float = 0.0) -> Candidate:
        """The thresholds of the smallest risk (plus `margin` standard errors), the cheapest of equals."""
        # expected losses are rounded: what differs by less is equal, and the cheapest of equals does not hang on it
        least = min(float(grid.bound(margin).min()) for grid in self._grids) + _EQUAL
        _, at, grid = min(((*grid.cheapest(least, margin), grid) for grid in self._grids), key=lambda entry: entry[0])
        return self._candidate(grid.exits, grid.limits(at))

    def least_cost(self) -> Candidate:
        """The cheapest thresholds there are, whatever they lose: everybody leaves at the cheapest exit."""
        grid = min(self._grids, key=lambda g: float(g.cost.min()))
        return self._candidate(grid.exits, grid.limits(np.unravel_index(int(grid.cost.argmin()), grid.cost.shape)))

    def path(self, margin: float, step: float = 0.01) -> list[Candidate]:
        """From about the safest thresholds to about the cheapest, by risk plus `margin` standard errors.

        None that is cheaper is known to risk as little. Each costs at least the share `step` less than the one before.
        Thresholds are those of the grids.
        """
        low = min(float(grid.bound(margin).min()) for grid in self._grids)
        least = min(self._grids, key=lambda g: float(g.cost.min()))
        high = float(least.bound(margin).ravel()[int(least.cost.argmin())])
        width = max(high - low, 1e-12) / _RUNGS
        cheapest = np.full(_RUNGS + 1, np.inf)
        places: list[tuple[_Grid, int]] = [(least, 0)] * (_RUNGS + 1)
        for grid in self._grids:
            rung = np.clip((grid.bound(margin).ravel() - low) / width, 0, _RUNGS).astype(np.intp)
            cost = np.where(grid.bound(margin).ravel() <= high + 1e-12, grid.cost.ravel(), np.inf)
            own = np.full(_RUNGS + 1, np.inf)
            np.minimum.at(own, rung, cost)
            for place in np.flatnonzero((cost == own[rung]) & (cost < cheapest[rung])).tolist():
                cheapest[rung[place]], places[rung[place]] = cost[place], (grid, place)
        found: list[Candidate] = []
        paid = np.inf
        for cost, (grid, place) in zip(cheapest.tolist(), places, strict=True):
            if cost < paid * (1 - step):
                found.append(self._candidate(grid.exits, grid.limits(np.unravel_index(place, grid.cost.shape))))
                paid = cost
        return found

    def _all_grids(self) -> list[_Grid]:
        others = range(self._answers.stages - 1)
        by_size = [list(itertools.combinations(others, size)) for size in range(len(others) + 1)]
        # in lexicographic order each set shares its beginning with the one before
        return [self._grid(chosen, len(by_size[len(chosen)])) for chosen in sorted(itertools.chain(*by_size))]

    def _grown_grids(self) -> list[_Grid]:
        """Every single exit, then the best sets with one exit more, while a grid of them can be paid."""
        others = range(self._answers.stages - 1)
        grids = [self._grid((), 1)]
        level: list[tuple[int, ...]] = [(s,) for s in others]
        while level and len(level) * 3 ** len(level[0]) <= _MOST_COMBINATIONS:
            found = [(self._grid(chosen, len(level)), chosen) for chosen in level]
            grids += [grid for grid, _ in found]
            ranked = sorted(found, key=lambda entry: self._promise(entry[0]))
            level = sorted({tuple(sorted((*c, s))) for _, c in ranked[:_BEAM] for s in others if s not in c})
        return grids

    def _promise(self, grid: _Grid) -> float:
        """Mean cost over a few risks: how good a set of exits is to build on."""
        full = float(sum(self._answers.body) + sum(self._answers.head))
        return sum(min(full, grid.cheapest(risk, 0.0)[0]) for risk in _PROMISE)

    def _grid(self, chosen: tuple[int, ...], sets: int) -> _Grid:
        """The grid of one of so many `sets` of exits of its size."""
        exits, k = self._answers.exits(chosen), len(chosen)
        most = int((_MOST_COMBINATIONS / sets) ** (1 / max(k, 1))) - 2
        thresholds = tuple(
            _grid_thresholds(exits.stages[j].score, max(1, min(self._quantiles, most))) for j in range(k)
        )
        # sums over records, were all to leave at the first exit; then, by stage, what those who stay change
        cost = np.array(exits.cost[0] * self.count)
        loss, square = exits.loss.astype(np.float32), exits.square.astype(np.float32)
        lost: Floats = np.array(loss[0].sum(dtype=np.float64))
        squared: Floats = np.array(square[0].sum(dtype=np.float64))
        flat: NDArray[np.int64] = np.zeros(self.count, np.int64)
        shape: tuple[int, ...] = ()
        for j in range(k):
            # a record stays under threshold number q exactly when its bin is at most q
            shape = (*shape, len(thresholds[j]))
            flat = flat * shape[-1] + np.searchsorted(thresholds[j], exits.stages[j].score, side="left")
            staying = _staying(flat, np.ones(self.count, np.float32), shape)
            dearer = exits.cost[j + 1] - exits.cost[j]
            cost = cost[..., None] + np.multiply(staying, dearer, dtype=np.float64)
            lost = lost[..., None] + _staying(flat, loss[j + 1] - loss[j], shape)
            squared = squared[..., None] + _staying(flat, square[j + 1] - square[j], shape)
        return _Grid(exits, thresholds, cost / self.count, lost, squared, self.count)

    def _candidate(self, exits: Exits, limits: Sequence[float]) -> Candidate:
        at = exits.left_at(limits)
        loss, square = (found.sum(dtype=np.float64) for found in exits.lost_at(at))
        risk, error = risk_and_se(loss, square, self.count)
        cost = float(np.bincount(at, minlength=len(exits.cost)) @ exits.cost) / self.count
        full = np.full(self._answers.stages - 1, np.inf, np.float32)
        full[[stage.stage for stage in exits.stages[:-1]]] = limits
        return Candidate(tuple(full.tolist()), cost, float(risk), float(error))

    def _refine(self, exits: Exits, limits: list[float], target: float, margin: float) -> Candidate:
        """Move one threshold at a time to the best of all its midpoints while that makes it cheaper."""
        best = self._candidate(exits, limits)
        for _ in range(_ROUNDS):
            before = best.cost
            for j in range(len(limits)):
                moved = _best_threshold(exits, limits, j, target, margin)
                if moved is not None:
                    trial = self._candidate(exits, [*limits[:j], moved, *limits[j + 1 :]])
                    if trial.cost < best.cost and _within(np.array(trial.risk + margin * trial.risk_se), target):
                        limits[j], best = moved, trial
            if best.cost >= before * (1 - 1e-6):
                break
        return best


def midpoints(low: NDArray[np.float32], high: NDArray[np.float32]) -> NDArray[np.float32]:
    """Thresholds halfway between `low < high`, so that `threshold < score` parts them in float32 too."""
    middle = ((low.astype(np.float64) + high.astype(np.float64)) / 2).astype(np.float32)
    # rounding may land on the upper neighbour: the lower one parts them as well
    return np.where(middle < high, middle, low)


def _grid_thresholds(score: NDArray[np.float32], quantiles: int) -> NDArray[np.float32]:
    """-inf (everybody leaves), midpoints next to evenly spaced quantiles, and the largest score (nobody does)."""
    ordered = np.sort(score)
    at = np.arange(1, quantiles + 1) * len(ordered) // (quantiles + 1)
    low = np.unique(ordered[at])
    above = np.searchsorted(ordered, low, side="right")
    inside = above < len(ordered)
    inner = midpoints(low[inside], ordered[above[inside]])
    return np.unique(np.concatenate([[np.float32(-np.inf)], inner, ordered[-1:]])).astype(np.float32)


def _staying(flat: NDArray[np.int64], weight: NDArray[np.float32], shape: tuple[int, ...]) -> Floats:
    """The weight of the binned records that stay at every stage, under each combination.

    Prefix sums along every axis, a slice at a time: several times as fast as `cumsum`, which walks an axis that is
    not the last in strides. float32 is exact for whole numbers to 2^24.
    """
    counted = np.flatnonzero(weight)  # losses change for few: most answers are the reference's
    table = np.zeros(int(np.prod(shape, dtype=np.int64)), np.float32)
    np.add.at(table, flat[counted], weight[counted])
    table = table.reshape(shape)
    for axis, size in enumerate(shape):
        slices = table.reshape(-1, size, int(np.prod(shape[axis + 1 :], dtype=np.int64)))
        for q in range(1, size):
            slices[:, q] += slices[:, q - 1]
    return table


def _best_threshold(exits: Exits, limits: Sequence[float], j: int, target: float, margin: float) -> float | None:
    """The threshold of stage j, of all that part the records, that is cheapest with the others held."""
    later = exits.left_at([*limits[:j], np.inf, *limits[j + 1 :]])  # nobody leaves at j
    order = exits.stages[j].surest_first
    order = order[later[order] > j]  # of those that get there, the surest leave first
    if len(order) == 0:
        return None
    score = exits.stages[j].score[order]
    fixed, fixed_square = exits.lost_at(later)
    changed = exits.stages[j].loss[order] - fixed[order]
    changed_square = exits.stages[j].square[order] - fixed_square[order]
    cost = np.cumsum((exits.cost[j] - exits.cost)[later[order]])  # but for a constant
    loss = fixed.sum(dtype=np.float64) + np.cumsum(changed, dtype=np.float64)
    square = fixed_square.sum(dtype=np.float64) + np.cumsum(changed_square, dtype=np.float64)
    risk, error = risk_and_se(loss, square, len(later))
    parts = np.append(score[:-1] > score[1:], True) & (score > -np.inf)  # a tie leaves together
    cost = np.where(parts & _within(risk + margin * error, target), cost, np.inf)
    best = int(cost.argmin())
    if not np.isfinite(cost[best]):
        return None
    lower = score[best + 1] if best + 1 < len(score) else np.float32(-np.inf)
    return float(midpoints(np.array([lower]), score[best : best + 1])[0])
