"""Thresholds for all stages at once: the cheapest that keep the accuracy.

For every set of exits switched on, each record is binned by its score at every one of them. Prefix sums over the
joint histogram then give cost and accuracy of *all* combinations of grid thresholds exactly; the winner is
refined at full resolution, one stage at a time. With "mean" the scores depend on which exits are on,
so every set is scored for itself.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.errors import CalibrationError
from dynamic.policies.plan import plan
from dynamic.policies.records import Records
from dynamic.policies.replay import cost_to, predictions
from dynamic.policies.scores import Combiner, Running

QUANTILES = 16
_MOST_COMBINATIONS = 2_000_000  # of all sets of exits of one size together: bounds time and memory
_ALL_SETS_UP_TO = 7  # stages; beyond, sets of exits are grown from the best smaller ones
_BEAM = 6
_ROUNDS = 6
_PROMISE = (0.0, 0.005, 0.01, 0.02, 0.05)  # drops that a set of exits is judged by before it is built on

Floats = NDArray[Any]  # float64, or float32 where it holds counts


@dataclass(frozen=True)
class Candidate:
    """Thresholds `[S-1]`, with mean `cost`, signed accuracy `drop` to the reference, and its standard error."""

    thresholds: tuple[float, ...]
    cost: float
    drop: float
    drop_se: float


@dataclass(frozen=True, eq=False)
class _Exit:
    """One exit, evaluated after those before it in its set.

    `score [N]` (NaN as -inf: never leaves), `gain [N]` = correct here minus correct by the reference, in {-1, 0, 1}.
    """

    stage: int
    score: NDArray[np.float32]
    gain: NDArray[np.int8]

    @cached_property
    def surest_first(self) -> NDArray[np.intp]:
        """Records in the order in which a falling threshold lets them go `[N]`."""
        return np.argsort(-self.score, kind="stable")


@dataclass(frozen=True, eq=False)
class _Exits:
    """One set of exits switched on: k of them and the last stage; `cost [k + 1]` of an input that leaves there."""

    stages: tuple[_Exit, ...]
    cost: Floats

    @cached_property
    def gain(self) -> NDArray[np.int8]:
        """`[k + 1, N]`."""
        return np.stack([stage.gain for stage in self.stages])

    def left_at(self, limits: Sequence[float]) -> NDArray[np.intp]:
        """The number of the exit, of this set, that each record leaves at under `limits [k]`: `[N]`."""
        passed = np.zeros(len(self.stages[0].score), np.int8)  # how many exits a record has not left at
        stays = np.ones(len(passed), bool)
        for limit, stage in zip(limits, self.stages, strict=False):
            stays &= stage.score <= np.float32(limit)
            passed += stays
        return passed.astype(np.intp)

    def gain_at(self, at: NDArray[np.intp]) -> NDArray[np.int8]:
        """Gain of each record where it leaves at exit `at [N]`."""
        return np.asarray(self.gain.ravel().take(at * len(at) + np.arange(len(at))), np.int8)


@dataclass(frozen=True, eq=False)
class _Grid:
    """Every combination of grid thresholds of one set of exits, as arrays `[Q] * k`.

    Mean `cost`; `gain` and `discordant` (gain not 0) count records.
    """

    exits: _Exits
    thresholds: tuple[NDArray[np.float32], ...]
    cost: Floats
    gain: Floats
    discordant: Floats
    count: int
    _bound: dict[float, Floats] = field(default_factory=dict, repr=False)

    def bound(self, margin: float) -> Floats:
        """The drop plus `margin` standard errors."""
        if margin not in self._bound:
            self._bound.clear()  # one margin is asked for again and again
            drop, error = drop_and_se(self.gain, self.discordant, self.count)
            self._bound[margin] = drop + margin * error
        return self._bound[margin]

    def cheapest(self, max_drop: float, margin: float) -> tuple[float, tuple[np.intp, ...]]:
        """(cost, place) of the cheapest combination that keeps to `max_drop`; infinite where none does.

        Of equals the one that loses least: it leaves most to refine.
        """
        bound = self.bound(margin)
        cost = np.where(_within(bound, max_drop), self.cost, np.inf)
        least = float(cost.min())
        equals = np.flatnonzero(cost <= least + 1e-12 * abs(least))
        best = int(equals[bound.ravel()[equals].argmin()]) if np.isfinite(least) else 0
        return least, np.unravel_index(best, cost.shape)

    def limits(self, at: Sequence[np.intp]) -> list[float]:
        """The thresholds at a place of the grid."""
        return [float(t[i]) for t, i in zip(self.thresholds, at, strict=True)]


def drop_and_se(gain: Any, discordant: Any, count: int) -> tuple[Floats, Floats]:
    """Drop and standard error of a mean paired difference in {-1, 0, 1}, from its sum and how often it is not 0."""
    mean = np.asarray(gain, np.float64) / count
    variance = np.asarray(discordant, np.float64) / count - mean**2
    return -mean, np.sqrt(np.maximum(variance, 0.0) / count)


def _within(bound: Floats, max_drop: float) -> NDArray[np.bool_]:
    return np.asarray(bound <= max_drop + 1e-12)


class Search:
    """All combinations of grid thresholds, ready to be asked for many targets.

    `records`: the ones that choose (part 0 of a calibration set). `body`, `head`: cost of each stage's body
    and head `[S]`, in any one unit; multiply-adds by default.

    Raises CalibrationError without records or labels.
    """

    def __init__(
        self,
        records: Records,
        combiner: Combiner,
        body: Sequence[float] | None = None,
        head: Sequence[float] | None = None,
        quantiles: int = QUANTILES,
    ) -> None:
        if records.label is None:
            raise CalibrationError("thresholds that keep accuracy need labels; give a loader of (inputs, labels)")
        if len(records) == 0:
            raise CalibrationError("no records to search on; give held-out inputs, or a larger search_share")
        self._records = records
        self._body = records.macs if body is None else tuple(body)
        self._head = records.head_macs if head is None else tuple(head)
        self._quantiles = quantiles
        self._combiner = combiner
        self.count = len(records)
        # class probabilities once for all sets of exits [S][N, C]; in memory class by class, which is many times as
        # fast to take the largest of, and the same to the last bit
        self._probability = [
            np.asfortranarray(combiner.probability(s, records.logits[:, s])) for s in range(records.stages)
        ]
        last = combiner.merge(combiner.start(), records.stages - 1, self._probability[-1])[0]
        self._reference = _correct(last, records.label)  # [N]
        self.reference_accuracy = float(self._reference.mean())
        self._path: list[tuple[_Exit, Running]] = []
        self._grids = self._all_grids() if records.stages <= _ALL_SETS_UP_TO else self._grown_grids()
        self._path.clear()
        self._probability.clear()

    def cheapest(self, max_drop: float, margin: float = 0.0) -> Candidate | None:
        """The cheapest thresholds whose drop, plus `margin` standard errors, is at most `max_drop`.

        None where there is none; never so for `max_drop >= 0`, which the reference itself meets.
        """
        found = [(*grid.cheapest(max_drop, margin), grid) for grid in self._grids]
        found = sorted((entry for entry in found if np.isfinite(entry[0])), key=lambda entry: entry[0])
        refined = [self._refine(grid.exits, grid.limits(at), max_drop, margin) for _, at, grid in found[:_BEAM]]
        return min(refined, key=lambda c: (c.cost, c.drop), default=None)

    def most_accurate(self, margin: float = 0.0) -> Candidate:
        """The thresholds of the smallest drop (plus `margin` standard errors), the cheapest of equals."""
        least = min(float(grid.bound(margin).min()) for grid in self._grids)
        _, at, grid = min(((*grid.cheapest(least, margin), grid) for grid in self._grids), key=lambda entry: entry[0])
        return self._candidate(grid.exits, grid.limits(at))

    def least_cost(self) -> Candidate:
        """The cheapest thresholds there are, whatever they lose: everybody leaves at the cheapest exit."""
        grid = min(self._grids, key=lambda g: float(g.cost.min()))
        return self._candidate(grid.exits, grid.limits(np.unravel_index(int(grid.cost.argmin()), grid.cost.shape)))

    def _all_grids(self) -> list[_Grid]:
        others = range(self._records.stages - 1)
        by_size = [list(itertools.combinations(others, size)) for size in range(len(others) + 1)]
        # in lexicographic order each set shares its beginning with the one before
        return [self._grid(chosen, len(by_size[len(chosen)])) for chosen in sorted(itertools.chain(*by_size))]

    def _grown_grids(self) -> list[_Grid]:
        """Every single exit, then the best sets with one exit more, while a grid of them can be paid."""
        others = range(self._records.stages - 1)
        grids = [self._grid((), 1)]
        level: list[tuple[int, ...]] = [(s,) for s in others]
        while level and len(level) * 3 ** len(level[0]) <= _MOST_COMBINATIONS:
            found = [(self._grid(chosen, len(level)), chosen) for chosen in level]
            grids += [grid for grid, _ in found]
            ranked = sorted(found, key=lambda entry: self._promise(entry[0]))
            level = sorted({tuple(sorted((*c, s))) for _, c in ranked[:_BEAM] for s in others if s not in c})
        return grids

    def _promise(self, grid: _Grid) -> float:
        """Mean cost over a few drops: how good a set of exits is to build on."""
        full = float(sum(self._body) + sum(self._head))
        return sum(min(full, grid.cheapest(drop, 0.0)[0]) for drop in _PROMISE)

    def _exits(self, chosen: tuple[int, ...]) -> _Exits:
        """Evaluate `chosen` in order, keeping what the set asked for last has in common with it.

        Only one path of states is held: with many classes each is as large as a stage's probabilities.
        """
        common = 0
        while common < min(len(chosen), len(self._path)) and self._path[common][0].stage == chosen[common]:
            common += 1
        del self._path[common:]
        for stage in chosen[common:]:
            self._path.append(self._evaluate(stage))
        last = self._records.stages - 1
        limits = np.array([0.0 if s in chosen else np.inf for s in range(last)], np.float32)
        cost = cost_to(plan(limits, self._records.backbone), self._body, self._head)
        stages = (*(exit_ for exit_, _ in self._path), self._evaluate(last)[0])
        return _Exits(stages, cost[[*chosen, last]])

    def _evaluate(self, stage: int) -> tuple[_Exit, Running]:
        """A stage after those on the path."""
        state = self._path[-1][1] if self._path else self._combiner.start()
        answer, sure, after = self._combiner.merge(state, stage, self._probability[stage])
        assert self._records.label is not None
        correct = _correct(answer, self._records.label)
        gain = correct.astype(np.int8) - self._reference.astype(np.int8)
        return _Exit(stage, np.where(np.isnan(sure), np.float32(-np.inf), sure), gain), after

    def _grid(self, chosen: tuple[int, ...], sets: int) -> _Grid:
        """The grid of one of so many `sets` of exits of its size."""
        exits, k = self._exits(chosen), len(chosen)
        most = int((_MOST_COMBINATIONS / sets) ** (1 / max(k, 1))) - 2
        thresholds = tuple(
            _grid_thresholds(exits.stages[j].score, max(1, min(self._quantiles, most))) for j in range(k)
        )
        # sums over records, were all to leave at the first exit; then, by stage, what those who stay change
        cost, gain = np.array(exits.cost[0] * self.count), exits.gain.astype(np.float32)
        total: Floats = np.array(gain[0].sum())
        discordant: Floats = np.array(np.abs(gain[0]).sum())
        flat: NDArray[np.int64] = np.zeros(self.count, np.int64)
        shape: tuple[int, ...] = ()
        for j in range(k):
            # a record stays under threshold number q exactly when its bin is at most q
            shape = (*shape, len(thresholds[j]))
            flat = flat * shape[-1] + np.searchsorted(thresholds[j], exits.stages[j].score, side="left")
            staying = _staying(flat, np.ones(self.count, np.float32), shape)
            dearer = exits.cost[j + 1] - exits.cost[j]
            cost = cost[..., None] + np.multiply(staying, dearer, dtype=np.float64)
            total = total[..., None] + _staying(flat, gain[j + 1] - gain[j], shape)
            discordant = discordant[..., None] + _staying(flat, np.abs(gain[j + 1]) - np.abs(gain[j]), shape)
        return _Grid(exits, thresholds, cost / self.count, total, discordant, self.count)

    def _candidate(self, exits: _Exits, limits: Sequence[float]) -> Candidate:
        at = exits.left_at(limits)
        gain = exits.gain_at(at)
        drop, error = drop_and_se(gain.sum(dtype=np.int64), np.count_nonzero(gain), self.count)
        cost = float(np.bincount(at, minlength=len(exits.cost)) @ exits.cost) / self.count
        full = np.full(self._records.stages - 1, np.inf, np.float32)
        full[[stage.stage for stage in exits.stages[:-1]]] = limits
        return Candidate(tuple(full.tolist()), cost, float(drop), float(error))

    def _refine(self, exits: _Exits, limits: list[float], max_drop: float, margin: float) -> Candidate:
        """Move one threshold at a time to the best of all its midpoints while that makes it cheaper."""
        best = self._candidate(exits, limits)
        for _ in range(_ROUNDS):
            before = best.cost
            for j in range(len(limits)):
                moved = _best_threshold(exits, limits, j, max_drop, margin)
                if moved is not None:
                    trial = self._candidate(exits, [*limits[:j], moved, *limits[j + 1 :]])
                    if trial.cost < best.cost and _within(np.array(trial.drop + margin * trial.drop_se), max_drop):
                        limits[j], best = moved, trial
            if best.cost >= before * (1 - 1e-6):
                break
        return best


def _correct(answer: NDArray[np.float32], label: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Where the prediction is the label `[N]`."""
    likeliest = answer == answer.max(axis=1, keepdims=True)
    if np.count_nonzero(likeliest) == len(label) and not np.isnan(answer.sum()):  # no ties
        return np.asarray(likeliest[np.arange(len(label)), label])
    return np.asarray(predictions(answer) == label)


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
    counted = np.flatnonzero(weight)  # gains change for few: most answers are the reference's
    table = np.zeros(int(np.prod(shape, dtype=np.int64)), np.float32)
    np.add.at(table, flat[counted], weight[counted])
    table = table.reshape(shape)
    for axis, size in enumerate(shape):
        slices = table.reshape(-1, size, int(np.prod(shape[axis + 1 :], dtype=np.int64)))
        for q in range(1, size):
            slices[:, q] += slices[:, q - 1]
    return table


def _best_threshold(exits: _Exits, limits: Sequence[float], j: int, max_drop: float, margin: float) -> float | None:
    """The threshold of stage j, of all that part the records, that is cheapest with the others held."""
    later = exits.left_at([*limits[:j], np.inf, *limits[j + 1 :]])  # nobody leaves at j
    order = exits.stages[j].surest_first
    order = order[later[order] > j]  # of those that get there, the surest leave first
    if len(order) == 0:
        return None
    score = exits.stages[j].score[order]
    fixed = exits.gain_at(later)
    own, other = exits.stages[j].gain[order], fixed[order]
    cost = np.cumsum((exits.cost[j] - exits.cost)[later[order]])  # but for a constant
    gain = fixed.sum(dtype=np.int64) + np.cumsum(own - other, dtype=np.int64)
    discordant = np.count_nonzero(fixed) + np.cumsum(np.abs(own) - np.abs(other), dtype=np.int64)
    drop, error = drop_and_se(gain, discordant, len(later))
    parts = np.append(score[:-1] > score[1:], True) & (score > -np.inf)  # a tie leaves together
    cost = np.where(parts & _within(drop + margin * error, max_drop), cost, np.inf)
    best = int(cost.argmin())
    if not np.isfinite(cost[best]):
        return None
    lower = score[best + 1] if best + 1 < len(score) else np.float32(-np.inf)
    return float(midpoints(np.array([lower]), score[best : best + 1])[0])
