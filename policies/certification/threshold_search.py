"""The cheapest thresholds of all stages within a limit of the risk.

For every set of exits that are on, each record is binned by its score at every one of them. Prefix sums over the joint
histogram give cost and risk of *all* combinations of grid thresholds exactly. The best one is refined at full
resolution, one stage at a time. With "mean" the scores depend on which exits are on, so every set is scored on its own.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.certification.answers import Answers, Exits
from dynamic.policies.certification.risks import RISKS, Risk
from dynamic.policies.certification.thresholds.best_threshold import best_threshold
from dynamic.policies.certification.thresholds.grids import ThresholdGrid, grid_thresholds, is_within, risk_and_se
from dynamic.policies.errors import CalibrationError
from dynamic.policies.records import Records
from dynamic.policies.scores import Combiner

QUANTILES = 16
_MOST_COMBINATIONS = 2_000_000  # of all sets of exits of one size together, a limit of time and memory
_ALL_SETS_UP_TO = 7  # stages. With more, sets of exits grow from the best smaller ones
_BEAM = 6
_ROUNDS = 6
_RUNGS = 4000  # risks that are distinguished on the path from the safest to the cheapest thresholds
_EQUAL = 1e-7  # less than one loss in a million records
_SAMPLE_RISKS = (0.0, 0.005, 0.01, 0.02, 0.05)  # risks that rate a set of exits before it grows


@dataclass(frozen=True)
class Candidate:
    """Thresholds with their cost and risk on the records that chose them.

    Args:
        thresholds: One for each stage but the last `[S-1]`.
        cost: Mean cost.
        risk: Mean loss.
        risk_se: Its standard error.
    """

    thresholds: tuple[float, ...]
    cost: float
    risk: float
    risk_se: float


class Search:
    """All combinations of grid thresholds, computed once for many targets.

    Args:
        records: Records that choose, which is part 0 of a calibration set.
        combiner: How logits become answers and scores.
        body: Cost of the body of each stage `[S]`, in any one unit. None: multiply-adds.
        head: Cost of the head of each stage `[S]`, in the same unit. None: multiply-adds.
        quantiles: Grid thresholds of each exit, at most.
        risk: What is measured. The default is the drop.
        expected: Whether losses are expected values under what all stages together predict.

    Raises:
        CalibrationError: when there are no records, or no labels that the risk needs.
        SettingError: when costs are not S numbers of 0 or more.

    Example:
        >>> combiner = dynamic.policies.Combiner(
        ...     ladder.temperature, ladder.score, combine=ladder.combine, backbone=ladder.backbone
        ... )
        >>> search = dynamic.policies.Search(records.select(records.part == 0), combiner)
        >>> search.reference.risk
        0.0
    """

    def __init__(
        self,
        records: Records,
        combiner: Combiner,
        *,
        body: Sequence[float] | None = None,
        head: Sequence[float] | None = None,
        quantiles: int = QUANTILES,
        risk: Risk = RISKS["drop"],
        expected: bool = False,
    ) -> None:
        if len(records) == 0:
            raise CalibrationError("no records to search on: give held-out inputs, or a larger search_share")
        self._answers = Answers(records, combiner, risk, body=body, head=head, expected=expected)
        self.risk, self.stages = risk, records.stages
        self._quantiles = quantiles
        self.count = len(records)
        self._grids = self._all_grids() if records.stages <= _ALL_SETS_UP_TO else self._grown_grids()
        self.reference = self._candidate(self._answers.exits(()), ())  # the last backbone alone
        self._answers.clear()

    def cheapest(self, target: float, margin: float = 0.0) -> Candidate | None:
        """Return the cheapest thresholds within a limit of the risk.

        Args:
            target: The limit.
            margin: Standard errors that are added to the risk.

        Returns:
            The thresholds. None: no thresholds are within it, not even the reference.

        Raises:
            TypeError: when an argument is not a number.

        Example:
            >>> combiner = dynamic.policies.Combiner(ladder.temperature, ladder.score, combine="last")
            >>> search = dynamic.policies.Search(records, combiner)
            >>> search.cheapest(0.02).cost <= search.reference.cost
            True
        """
        costs = ((*grid.cheapest(target, margin), grid) for grid in self._grids)
        ranked = sorted((entry for entry in costs if np.isfinite(entry[0])), key=lambda entry: entry[0])
        refined = [
            self._refine(grid.exits, grid.limits(at), target=target, margin=margin) for _, at, grid in ranked[:_BEAM]
        ]
        return min(refined, key=lambda c: (c.cost, c.risk), default=None)

    def most_accurate(self, margin: float = 0.0) -> Candidate:
        """Return the thresholds of the least risk, the cheapest of equals.

        Args:
            margin: Standard errors that are added to the risk.

        Returns:
            The thresholds.

        Raises:
            TypeError: when the margin is not a number.

        Example:
            >>> combiner = dynamic.policies.Combiner(ladder.temperature, ladder.score, combine="last")
            >>> search = dynamic.policies.Search(records, combiner)
            >>> search.most_accurate().risk <= search.reference.risk
            True
        """
        # expected losses are rounded: smaller differences count as equal, so rounding does not choose among equals
        least = min(float(grid.bound(margin).min()) for grid in self._grids) + _EQUAL
        _, at, grid = min(((*grid.cheapest(least, margin), grid) for grid in self._grids), key=lambda entry: entry[0])
        return self._candidate(grid.exits, grid.limits(at))

    def least_cost(self) -> Candidate:
        """The cheapest thresholds, whatever their risk: every input exits at the cheapest exit."""
        grid = min(self._grids, key=lambda g: float(g.cost.min()))
        return self._candidate(grid.exits, grid.limits(np.unravel_index(int(grid.cost.argmin()), grid.cost.shape)))

    def candidate(self, thresholds: Sequence[float]) -> Candidate:
        """Return some thresholds with their cost and risk.

        Args:
            thresholds: One for each stage but the last `[S-1]`.

        Returns:
            The thresholds with both.

        Raises:
            ValueError: when this set of exits was not searched.

        Example:
            >>> combiner = dynamic.policies.Combiner(ladder.temperature, ladder.score, combine="last")
            >>> search = dynamic.policies.Search(records, combiner)
            >>> search.candidate((float("inf"),)) == search.reference
            True
        """
        chosen = tuple(s for s, limit in enumerate(thresholds) if limit != np.inf)
        for grid in self._grids:
            if tuple(stage.stage for stage in grid.exits.stages[:-1]) == chosen:
                return self._candidate(grid.exits, [thresholds[s] for s in chosen])
        raise ValueError(f"exits {chosen} were not searched")

    def threshold_for(self, exits: int) -> float:
        """Return the lowest threshold of the first exit, alone on, under which at most so many records exit.

        Args:
            exits: The number of records.

        Returns:
            The threshold.

        Raises:
            IndexError: when the number is negative and beyond the records.

        Example:
            >>> combiner = dynamic.policies.Combiner(ladder.temperature, ladder.score, combine="last")
            >>> search = dynamic.policies.Search(records, combiner)
            >>> search.threshold_for(len(records))
            -inf
        """
        score = np.sort(self._single(0).exits.stages[0].score)[::-1]
        return float(score[exits]) if exits < len(score) else -np.inf

    def thresholds(self, stage: int, quantiles: int) -> NDArray[np.float32]:
        """Return thresholds of one exit at quantiles of its scores, and -inf.

        Args:
            stage: The exit's stage.
            quantiles: How many quantiles.

        Returns:
            The thresholds, rising `[Q]`.

        Raises:
            StopIteration: when the stage has no exit.

        Example:
            >>> combiner = dynamic.policies.Combiner(ladder.temperature, ladder.score, combine="last")
            >>> search = dynamic.policies.Search(records, combiner)
            >>> len(search.thresholds(0, 10)) <= 11
            True
        """
        return grid_thresholds(self._single(stage).exits.stages[0].score, quantiles)[:-1]

    def safest_threshold(self, stage: int, margin: float) -> float:
        """Return the threshold of one exit, alone on, with the least risk, the lowest of equals.

        Args:
            stage: The exit's stage.
            margin: Standard errors that are added to the risk.

        Returns:
            The threshold.

        Raises:
            StopIteration: when the stage has no exit.

        Example:
            >>> combiner = dynamic.policies.Combiner(ladder.temperature, ladder.score, combine="last")
            >>> search = dynamic.policies.Search(records, combiner)
            >>> search.safest_threshold(0, 1.0) <= 1.0
            True
        """
        grid = self._single(stage)
        bound = grid.bound(margin)
        return float(grid.thresholds[0][int(np.flatnonzero(bound <= bound.min() + _EQUAL)[0])])

    def single_exit(self, targets: Sequence[float], margin: float, worth: float) -> int | None:
        """Return the exit that is enough, alone on.

        Args:
            targets: Limits of the risk.
            margin: Standard errors that are added to the risk.
            worth: Several exits must cost less than one by this share, on average over the targets.

        Returns:
            Its stage. None: several exits cost less by more than that.

        Raises:
            TypeError: when an argument is not a number.

        Example:
            >>> combiner = dynamic.policies.Combiner(ladder.temperature, ladder.score, combine="last")
            >>> search = dynamic.policies.Search(records, combiner)
            >>> search.single_exit((0.02,), 1.0, 0.1)
            0
        """
        full = self.reference.cost
        least = sum(min(full, *(grid.cheapest(target, margin)[0] for grid in self._grids)) for target in targets)
        singles = [grid for grid in self._grids if len(grid.exits.stages) == 2]
        costs = [sum(min(full, grid.cheapest(target, margin)[0]) for target in targets) for grid in singles]
        best = int(np.argmin(costs))
        return singles[best].exits.stages[0].stage if least >= costs[best] * (1 - worth) else None

    def _single(self, stage: int) -> ThresholdGrid:
        return next(g for g in self._grids if len(g.exits.stages) == 2 and g.exits.stages[0].stage == stage)

    def path(self, margin: float, step: float = 0.01) -> list[Candidate]:
        """Return thresholds from about the safest to about the cheapest, without dominated ones.

        Args:
            margin: Standard errors that are added to the risk.
            step: Each costs at least this share less than the one before.

        Returns:
            The thresholds, which are those of the grids.

        Raises:
            TypeError: when an argument is not a number.

        Example:
            >>> combiner = dynamic.policies.Combiner(ladder.temperature, ladder.score, combine="last")
            >>> path = dynamic.policies.Search(records, combiner).path(1.0)
            >>> path[0].cost >= path[-1].cost
            True
        """
        low = min(float(grid.bound(margin).min()) for grid in self._grids)
        least = min(self._grids, key=lambda g: float(g.cost.min()))
        high = float(least.bound(margin).ravel()[int(least.cost.argmin())])
        width = max(high - low, 1e-12) / _RUNGS
        cheapest = np.full(_RUNGS + 1, np.inf)
        places: list[tuple[ThresholdGrid, int]] = [(least, 0)] * (_RUNGS + 1)
        for grid in self._grids:
            rung = np.clip((grid.bound(margin).ravel() - low) / width, 0, _RUNGS).astype(np.intp)
            cost = np.where(grid.bound(margin).ravel() <= high + 1e-12, grid.cost.ravel(), np.inf)
            own = np.full(_RUNGS + 1, np.inf)
            np.minimum.at(own, rung, cost)
            for place in np.flatnonzero((cost == own[rung]) & (cost < cheapest[rung])).tolist():
                cheapest[rung[place]], places[rung[place]] = cost[place], (grid, place)
        candidates: list[Candidate] = []
        last_cost = np.inf
        for cost, (grid, place) in zip(cheapest.tolist(), places, strict=True):
            if cost < last_cost * (1 - step):
                candidates.append(self._candidate(grid.exits, grid.limits(np.unravel_index(place, grid.cost.shape))))
                last_cost = cost
        return candidates

    def _all_grids(self) -> list[ThresholdGrid]:
        others = range(self._answers.stages - 1)
        by_size = [list(itertools.combinations(others, size)) for size in range(len(others) + 1)]
        # in lexicographic order each set shares its beginning with the one before
        return [self._grid(chosen, len(by_size[len(chosen)])) for chosen in sorted(itertools.chain(*by_size))]

    def _grown_grids(self) -> list[ThresholdGrid]:
        """Every single exit, then the best sets with one more exit, while their grids fit."""
        others = range(self._answers.stages - 1)
        grids = [self._grid((), 1)]
        level: list[tuple[int, ...]] = [(s,) for s in others]
        while level and len(level) * 3 ** len(level[0]) <= _MOST_COMBINATIONS:
            grown = [(self._grid(chosen, len(level)), chosen) for chosen in level]
            grids += [grid for grid, _ in grown]
            ranked = sorted(grown, key=lambda entry: self._rating(entry[0]))
            level = sorted({tuple(sorted((*c, s))) for _, c in ranked[:_BEAM] for s in others if s not in c})
        return grids

    def _rating(self, grid: ThresholdGrid) -> float:
        """Mean cost over a few risks, by which sets of exits are chosen to grow."""
        full = float(sum(self._answers.body) + sum(self._answers.head))
        return sum(min(full, grid.cheapest(risk, 0.0)[0]) for risk in _SAMPLE_RISKS)

    def _grid(self, chosen: tuple[int, ...], sets: int) -> ThresholdGrid:
        """The grid of one of so many `sets` of exits of its size."""
        most = int((_MOST_COMBINATIONS / sets) ** (1 / max(len(chosen), 1))) - 2
        return ThresholdGrid.of(self._answers.exits(chosen), self.count, quantiles=max(1, min(self._quantiles, most)))

    def _candidate(self, exits: Exits, limits: Sequence[float]) -> Candidate:
        at = exits.exit_numbers(limits)
        loss, square = (losses.sum(dtype=np.float64) for losses in exits.losses_at(at))
        risk, error = risk_and_se(loss, square, self.count)
        cost = float(np.bincount(at, minlength=len(exits.cost)) @ exits.cost) / self.count
        full = np.full(self._answers.stages - 1, np.inf, np.float32)
        full[[stage.stage for stage in exits.stages[:-1]]] = limits
        return Candidate(tuple(full.tolist()), cost, float(risk), float(error))

    def _refine(self, exits: Exits, limits: list[float], *, target: float, margin: float) -> Candidate:
        """Move one threshold at a time to the best of all its midpoints while that reduces the cost."""
        best = self._candidate(exits, limits)
        for _ in range(_ROUNDS):
            before = best.cost
            for j in range(len(limits)):
                moved = best_threshold(exits, limits, j, target=target, margin=margin)
                if moved is not None:
                    trial = self._candidate(exits, [*limits[:j], moved, *limits[j + 1 :]])
                    if trial.cost < best.cost and is_within(np.array(trial.risk + margin * trial.risk_se), target):
                        limits[j], best = moved, trial
            if best.cost >= before * (1 - 1e-6):
                break
        return best
