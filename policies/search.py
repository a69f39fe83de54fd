"""Thresholds for all stages at once: the cheapest that keep the accuracy.

For every set of exits switched on, each record is binned by its score at every one of them. Cumulative sums over the
joint histogram then give cost and accuracy of *all* combinations of grid thresholds exactly; the winner is
refined at full resolution, one stage at a time. With "mean" the scores depend on which exits are on,
so every set is scored for itself.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.errors import CalibrationError
from dynamic.policies.plan import plan
from dynamic.policies.records import Records
from dynamic.policies.replay import cost_to, predictions
from dynamic.policies.scores import Combiner, Running

QUANTILES = 16
_MOST_COMBINATIONS = 2_000_000  # of one set of exits: bounds time and memory
_ALL_SETS_UP_TO = 7  # stages; beyond, sets of exits are grown from the best smaller ones
_BEAM = 6
_ROUNDS = 6

Floats = NDArray[Any]  # float64, or float32 where it holds counts


@dataclass(frozen=True)
class Candidate:
    """Thresholds `[S-1]`, with mean `cost`, signed accuracy `drop` to the reference, and its standard error."""

    thresholds: tuple[float, ...]
    cost: float
    drop: float
    drop_se: float


@dataclass(frozen=True, eq=False)
class _Exits:
    """One set of exits switched on, the last stage included: k + 1 stages, N records.

    `score [k, N]` (NaN as -inf: never leaves), `gain [k + 1, N]` = correct here minus correct by the
    reference, in {-1, 0, 1}; `cost [k + 1]` of an input that leaves there.
    """

    stages: tuple[int, ...]
    score: NDArray[np.float32]
    gain: NDArray[np.int8]
    cost: Floats


@dataclass(frozen=True, eq=False)
class _Step:
    """One exit evaluated after those before it: the state after it, `score [N]`, `gain [N]`."""

    stage: int
    state: Running
    score: NDArray[np.float32]
    gain: NDArray[np.int8]


@dataclass(frozen=True, eq=False)
class _Grid:
    """Every combination of grid thresholds of one set of exits, as arrays `[Q] * k`."""

    exits: _Exits
    thresholds: tuple[NDArray[np.float32], ...]
    cost: Floats
    gain: Floats
    discordant: Floats

    def drop_and_se(self, count: int) -> tuple[Floats, Floats]:
        return -self.gain, standard_error(self.gain, self.discordant, count)


def standard_error(gain: Floats, discordant: Floats, count: int) -> Floats:
    """Of a mean paired difference in {-1, 0, 1}, given that mean and the share that is not 0."""
    return np.asarray(np.sqrt(np.maximum(discordant - gain**2, 0.0) / count))


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
        # class probabilities once for all sets of exits [S][N, C]
        self._probability = [combiner.probability(s, records.logits[:, s]) for s in range(records.stages)]
        last = combiner.merge(combiner.start(), self._probability[-1])[0]
        self._reference = predictions(last) == records.label  # [N]
        self.reference_accuracy = float(self._reference.mean())
        self._path: list[_Step] = []
        self._grids = [self._grid(self._exits(chosen)) for chosen in self._sets()]
        self._path.clear()
        self._probability.clear()

    def cheapest(self, max_drop: float, margin: float = 0.0) -> Candidate | None:
        """The cheapest thresholds whose drop, plus `margin` standard errors, is at most `max_drop`.

        None where there is none; never so for `max_drop >= 0`, which the reference itself meets.
        """
        found = []
        for grid in self._grids:
            drop, error = grid.drop_and_se(self.count)
            cost = np.where(drop + margin * error <= max_drop + 1e-12, grid.cost, np.inf)
            at = np.unravel_index(int(cost.argmin()), cost.shape)
            if np.isfinite(cost[at]):
                found.append((float(cost[at]), grid, at))
        found.sort(key=lambda entry: entry[0])
        refined = [self._refine(grid, at, max_drop, margin) for _, grid, at in found[:_BEAM]]
        return min(refined, key=lambda c: (c.cost, c.drop), default=None)

    def most_accurate(self, margin: float = 0.0) -> Candidate:
        """The thresholds of the smallest drop (plus `margin` standard errors), the cheapest of equals."""
        best = None
        for grid in self._grids:
            drop, error = grid.drop_and_se(self.count)
            bound = np.round(drop + margin * error, 12)
            equal = np.where(bound == bound.min(), grid.cost, np.inf)
            at = np.unravel_index(int(equal.argmin()), equal.shape)
            key = (float(bound[at]), float(equal[at]))
            if best is None or key < best[0]:
                best = (key, grid, at)
        assert best is not None
        _, grid, at = best
        return self._candidate(grid.exits, [t[i] for t, i in zip(grid.thresholds, at, strict=True)])

    def least_cost(self) -> Candidate:
        """The cheapest thresholds there are, whatever they lose: everybody leaves at the cheapest exit."""
        grid = min(self._grids, key=lambda g: float(g.cost.min()))
        at = np.unravel_index(int(grid.cost.argmin()), grid.cost.shape)
        return self._candidate(grid.exits, [t[i] for t, i in zip(grid.thresholds, at, strict=True)])

    def _sets(self) -> Iterable[tuple[int, ...]]:
        """Sets of exits to try: all of them, or grown from the best where there are too many."""
        others = range(self._records.stages - 1)
        if self._records.stages <= _ALL_SETS_UP_TO:
            sizes = range(len(others) + 1)
            # in lexicographic order each set shares its beginning with the one before
            yield from sorted(itertools.chain.from_iterable(itertools.combinations(others, n) for n in sizes))
            return
        yield ()
        level: list[tuple[int, ...]] = [(s,) for s in others]
        while level:
            yield from level
            ranked = sorted(level, key=lambda chosen: self._promise(self._grid(self._exits(chosen))))
            grown = {tuple(sorted((*chosen, s))) for chosen in ranked[:_BEAM] for s in others if s not in chosen}
            level = sorted(grown)

    def _promise(self, grid: _Grid) -> float:
        """Mean cost over a few drops: how good a set of exits is to build on."""
        costs = [
            float(np.where(-grid.gain <= d, grid.cost, self._full_cost()).min()) for d in (0.0, 0.005, 0.01, 0.02, 0.05)
        ]
        return sum(costs)

    def _full_cost(self) -> float:
        return float(sum(self._body) + sum(self._head))

    def _exits(self, chosen: tuple[int, ...]) -> _Exits:
        last = self._records.stages - 1
        steps = self._walk_to(chosen)
        final = self._step(steps[-1].state if steps else self._combiner.start(), last)
        score = np.array([step.score for step in steps], np.float32).reshape(len(steps), self.count)
        gain = np.array([step.gain for step in (*steps, final)], np.int8)
        on = set(chosen)
        limits = np.array([0.0 if s in on else np.inf for s in range(last)], np.float32)
        cost = cost_to(plan(limits, self._records.backbone), self._body, self._head)
        return _Exits((*chosen, last), score, gain, cost[[*chosen, last]])

    def _walk_to(self, chosen: tuple[int, ...]) -> list[_Step]:
        """Evaluate `chosen` in order, keeping what the set asked for last has in common with it.

        Only one path of states is held: with many classes each is as large as a stage's probabilities.
        """
        common = 0
        while common < min(len(chosen), len(self._path)) and self._path[common].stage == chosen[common]:
            common += 1
        del self._path[common:]
        for stage in chosen[common:]:
            self._path.append(self._step(self._path[-1].state if self._path else self._combiner.start(), stage))
        return self._path

    def _step(self, state: Running, stage: int) -> _Step:
        answer, sure, after = self._combiner.merge(state, self._probability[stage])
        correct = predictions(answer) == self._records.label
        gain = correct.astype(np.int8) - self._reference.astype(np.int8)
        return _Step(stage, after, np.where(np.isnan(sure), np.float32(-np.inf), sure), gain)

    def _grid(self, exits: _Exits) -> _Grid:
        k = len(exits.stages) - 1
        per_stage = self._quantiles if k == 0 else min(self._quantiles, int(_MOST_COMBINATIONS ** (1 / k)) - 2)
        thresholds = tuple(_grid_thresholds(score, max(per_stage, 1)) for score in exits.score)
        # a record stays at stage j under threshold number q exactly when bins[j] <= q
        bins = [np.searchsorted(t, s, side="left") for t, s in zip(thresholds, exits.score, strict=True)]
        better = [np.flatnonzero(g > 0) for g in exits.gain]  # few: most answers are the reference's
        worse = [np.flatnonzero(g < 0) for g in exits.gain]
        flat = np.zeros(self.count, np.int64)
        shape: tuple[int, ...] = ()
        stay = np.array(self.count, np.float32)
        cost = np.zeros(())
        gain = discordant = np.zeros((), np.float32)
        for j in range(k):
            up, down = _cumulative(flat[better[j]], shape), _cumulative(flat[worse[j]], shape)
            flat = flat * (len(thresholds[j]) + 1) + bins[j]
            shape = (*shape, len(thresholds[j]) + 1)
            # of those that reach stage j, the ones that do not stay there leave
            up = up[..., None] - _cumulative(flat[better[j]], shape)
            down = down[..., None] - _cumulative(flat[worse[j]], shape)
            staying = _cumulative(flat, shape)
            cost = cost[..., None] + exits.cost[j] * (stay[..., None] - staying)
            gain = gain[..., None] + (up - down)
            discordant = discordant[..., None] + (up + down)
            stay = staying
        up, down = _cumulative(flat[better[k]], shape), _cumulative(flat[worse[k]], shape)
        cost = (cost + exits.cost[k] * stay) / self.count
        return _Grid(exits, thresholds, cost, (gain + up - down) / self.count, (discordant + up + down) / self.count)

    def _candidate(self, exits: _Exits, limits: Sequence[float]) -> Candidate:
        cost, gain = _outcome(exits, limits)
        full = np.full(self._records.stages - 1, np.inf, np.float32)
        full[list(exits.stages[:-1])] = limits
        mean = gain.mean(dtype=np.float64)
        error = standard_error(np.array(mean), np.array(np.abs(gain).mean(dtype=np.float64)), self.count)
        return Candidate(tuple(full.tolist()), float(cost.mean()), float(-mean), float(error))

    def _refine(
        self, grid: _Grid, at: Sequence[np.intp] | tuple[np.intp, ...], max_drop: float, margin: float
    ) -> Candidate:
        """Move one threshold at a time to the best of all its midpoints while that makes it cheaper."""
        exits = grid.exits
        limits = [float(t[i]) for t, i in zip(grid.thresholds, at, strict=True)]
        best = self._candidate(exits, limits)
        for _ in range(_ROUNDS):
            before = best.cost
            for j in range(len(limits)):
                moved = _best_threshold(exits, limits, j, max_drop, margin)
                if moved is not None:
                    trial = self._candidate(exits, [*limits[:j], moved, *limits[j + 1 :]])
                    if trial.cost < best.cost and trial.drop + margin * trial.drop_se <= max_drop + 1e-12:
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


def _cumulative(flat: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """How many of the binned records stay under each combination: prefix sums, the last bin (all leave) cut.

    float32 counts exactly to 2^24.
    """
    table = np.bincount(flat, minlength=int(np.prod(shape, dtype=np.int64))).astype(np.float32).reshape(shape)
    for axis in range(table.ndim):
        np.cumsum(table, axis=axis, out=table)
    return table[tuple(slice(0, -1) for _ in shape)]


def _outcome(exits: _Exits, limits: Sequence[float]) -> tuple[Floats, NDArray[np.int8]]:
    """(cost [N], gain [N]) of every record under `limits [k]`."""
    cost = np.full(exits.gain.shape[1], exits.cost[-1])
    gain = exits.gain[-1].copy()
    for j in range(len(limits) - 1, -1, -1):  # the earliest exit that fires has the last word
        leaves = np.float32(limits[j]) < exits.score[j]
        cost[leaves], gain[leaves] = exits.cost[j], exits.gain[j][leaves]
    return cost, gain


def _best_threshold(exits: _Exits, limits: Sequence[float], j: int, max_drop: float, margin: float) -> float | None:
    """The threshold of stage j, of all that part the records, that is cheapest with the others held."""
    count = exits.gain.shape[1]
    left = np.zeros(count, bool)
    for i in range(j):
        left |= np.float32(limits[i]) < exits.score[i]
    fixed_cost, fixed_gain = _outcome(exits, [*limits[:j], np.inf, *limits[j + 1 :]])  # nobody leaves at j
    here = np.flatnonzero(~left)
    if len(here) == 0:
        return None
    order = here[np.argsort(-exits.score[j][here], kind="stable")]  # surest first: they leave first
    score = exits.score[j][order]
    saved = np.cumsum(exits.cost[j] - fixed_cost[order])
    own, other = exits.gain[j][order].astype(np.float64), fixed_gain[order].astype(np.float64)
    cost = (fixed_cost.sum() + saved) / count
    gain = (fixed_gain.sum(dtype=np.float64) + np.cumsum(own - other)) / count
    discordant = (np.abs(fixed_gain).sum(dtype=np.float64) + np.cumsum(np.abs(own) - np.abs(other))) / count
    feasible = -gain + margin * standard_error(gain, discordant, count) <= max_drop + 1e-12
    parts = np.append(score[:-1] > score[1:], True) & (score > -np.inf)  # a tie leaves together
    cost = np.where(feasible & parts, cost, np.inf)
    best = int(cost.argmin())
    if not np.isfinite(cost[best]):
        return None
    lower = score[best + 1] if best + 1 < len(score) else np.float32(-np.inf)
    return float(midpoints(np.array([lower]), score[best : best + 1])[0])
