"""A ladder with one device's costs: what a policy chooses from."""

import math
from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.costs import Costs
from dynamic.policies.errors import InputError
from dynamic.policies.fast_paths import Rank
from dynamic.policies.ladder import Interval, Ladder, OperatingPoint
from dynamic.policies.stage_plan import StagePlan, plan

K = TypeVar("K")
V = TypeVar("V")

ONE_SIDED_95 = 1.644854  # quantile of the normal distribution
SPREADS = (0.0, 0.1, 0.2, 0.3, 0.45, 0.65, 0.9, 1.3)  # of requests, that latencies are worked out for
_KEPT = 1000  # figures that a frontier remembers of each kind


@dataclass(frozen=True, eq=False)
class CostedPoint:
    """An operating point and what it costs at each of the K batch sizes.

    `mean_ms`, `p95_ms`, `deep_ms` (every row as deep as the thresholds let one go), `cpu_ms`,
    `energy_mj` (or None) are `[K]`, of a request of that many rows, the overhead of the call included; `memory_mb` of
    its backbones.
    """

    operating_point: OperatingPoint
    plan: StagePlan
    mean_ms: tuple[float, ...]
    p95_ms: tuple[float, ...]
    deep_ms: tuple[float, ...]
    cpu_ms: tuple[float, ...]
    energy_mj: tuple[float, ...] | None
    memory_mb: float

    @property
    def name(self) -> str:
        """The name of the operating point."""
        return self.operating_point.name

    @property
    def accuracy(self) -> Interval:
        """Its accuracy in calibration, or the agreement with the reference where there were no labels."""
        return self.operating_point.accuracy

    @property
    def drop(self) -> float | None:
        """Its signed accuracy drop to the reference in calibration. None without labels."""
        return self.operating_point.drop

    @property
    def promised_drop(self) -> float:
        """The drop that a budget may count on."""
        return self.operating_point.promised_drop

    @property
    def bound(self) -> float | None:
        """What its risk is at most. None where it is not certified."""
        return self.operating_point.bound

    @property
    def shares(self) -> tuple[float, ...]:
        """Shares `[S]` of inputs that exit at each stage."""
        return self.operating_point.shares

    @cached_property
    def thresholds(self) -> NDArray[np.float32]:
        """The point's thresholds `[S-1]` as an engine takes them; read-only, since all requests are given this one."""
        array = np.array(self.operating_point.thresholds, np.float32)
        array.setflags(write=False)
        return array

    @cached_property
    def backbones(self) -> frozenset[int]:
        """The backbones that the point needs."""
        return frozenset(self.operating_point.backbones)


@dataclass(frozen=True, eq=False)
class Frontier:
    """Points of a ladder that no other beats on this device; the reference always stays.

    A point is beaten by one that promises no larger drop, measured no less accurate, and is no dearer in mean and p95
    latency, CPU time and memory at every batch size, and better in one of them. Costs that a profile does not tell
    apart (`Costs.noise`) are ranked by compute, in which a ladder is ordered.
    """

    ladder: Ladder
    costs: Costs
    points: tuple[CostedPoint, ...]
    # requests ask for the same few figures again and again; not of __init__, so that no copy with other costs has them
    _latency: dict[tuple[float | None, int, float], Rank] = field(default_factory=dict, init=False, repr=False)
    _held: dict[frozenset[int], int] = field(default_factory=dict, init=False, repr=False)
    _first: dict[int, Rank] = field(default_factory=dict, init=False, repr=False)
    _path: dict[tuple[CostedPoint, int, int], float] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, ladder: Ladder, costs: Costs) -> "Frontier":
        """Cost every point and drop the beaten ones; raises InputError where costs are of another cascade."""
        if len(costs.latency_ms) != len(ladder.backbone):
            raise InputError(
                f"costs are of {len(costs.latency_ms)} stages, the ladder has {len(ladder.backbone)}: profile again"
            )
        costed = [_cost(point, ladder, costs) for point in ladder.points]
        figures = _compared(costed, costs.noise)
        kept = [p for i, p in enumerate(costed) if i == 0 or not any(_beats(f, figures[i]) for f in figures)]
        return cls(ladder, costs, tuple(kept))

    def recost(self, costs: Costs) -> "Frontier":
        """The same ladder with other costs; ranking measured points by cost spends no guarantee."""
        return Frontier.of(self.ladder, costs)

    @cached_property
    def cheapest(self) -> CostedPoint:
        """The point of the least CPU time at the smallest batch."""
        return self.points[self.processor.first((1 << len(self.points)) - 1)]

    def latency_ms(self, percentile: float | None, rows: int, spread: float = 0.0) -> tuple[float, ...]:
        """Latency of a request of `rows` inputs by point, at a percentile (None: the mean); see `latency`."""
        return self.latency(percentile, rows, spread).figures

    def latency(self, percentile: float | None, rows: int, spread: float = 0.0) -> Rank:
        """Points by the latency of a request of `rows` inputs, in ms, at a percentile (None: the mean).

        `spread`: standard deviation of the time that a request takes over what it should, where requests scatter more
        than they did when stages were profiled; the next of `SPREADS` counts.
        """
        wide = SPREADS[min(bisect_left(SPREADS, spread), len(SPREADS) - 1)]
        found = self._latency.get((percentile, rows, wide))
        if found is None:
            found = Rank(
                [
                    mean_ms(p.operating_point, p.plan, self.costs, rows)
                    if percentile is None
                    else percentile_ms(p.operating_point, p.plan, self.costs, rows, percentile, wide)
                    for p in self.points
                ]
            )
            _keep(self._latency, (percentile, rows, wide), found)
        return found

    def first_answer(self, rows: int) -> Rank:
        """Points by the time, in ms, until a request of `rows` inputs has its first answer."""
        found = self._first.get(rows)
        if found is None:
            found = Rank([first_answer_ms(p.plan, self.costs, rows) for p in self.points])
            _keep(self._first, rows, found)
        return found

    @cached_property
    def effort(self) -> Rank:
        """Points by what an inference takes from a battery: `energy_mj` where that is known, else `cpu_ms`."""
        return self._measured([(p.energy_mj or p.cpu_ms)[0] for p in self.points])

    @cached_property
    def processor(self) -> Rank:
        """Points by the CPU time of an inference, in ms."""
        return self._measured([p.cpu_ms[0] for p in self.points])

    @cached_property
    def memory(self) -> Rank:
        """Points by the memory of their backbones, and of one row while they run, in MB."""
        return Rank([p.memory_mb + row_mb(self.costs, p.backbones) for p in self.points])

    @cached_property
    def drop(self) -> Rank:
        """Points by the drop that they promise not to exceed."""
        return Rank([p.promised_drop for p in self.points])

    @cached_property
    def accuracy(self) -> Rank:
        """Points by accuracy, negated: the most accurate come first, of those as accurate the fastest."""
        ties = told_apart(self.mean.figures, self.costs.noise)
        return Rank([-p.accuracy.mid for p in self.points], ties=ties)

    @cached_property
    def mean(self) -> Rank:
        """Points by mean latency at the smallest batch, in ms."""
        return self._measured([p.mean_ms[0] for p in self.points])

    def _measured(self, figures: Sequence[float]) -> Rank:
        """Points by a measured figure. Those that the profile does not tell apart are in the order of compute."""
        return Rank(figures, order=told_apart(figures, self.costs.noise))

    def held(self, resident: frozenset[int]) -> int:
        """The points (bits, see `Rank`) that need none but these backbones."""
        found = self._held.get(resident)
        if found is None:
            found = sum(1 << i for i, p in enumerate(self.points) if p.backbones <= resident)
            _keep(self._held, resident, found)
        return found

    def path_ms(self, point: CostedPoint, depth: int, rows: int = 1) -> float:
        """Expected time of a request of `rows` inputs whose deepest one left at stage `depth`."""
        found = self._path.get((point, depth, rows))
        if found is None:
            there = (
                _sum_given_depth(point.operating_point, rows, depth, _gets_to(s, depth))[1] for s in range(depth + 1)
            )
            found = sum(_stage_ms(self.costs, point.plan, s, at) for s, at in enumerate(there)) + self.costs.at(
                self.costs.call_ms, rows
            )
            _keep(self._path, (point, depth, rows), found)
        return found


def mean_ms(point: OperatingPoint, todo: StagePlan, costs: Costs, rows: int) -> float:
    """Mean latency: the chance that one of the rows gets to a stage, times what the rows expected there then take."""
    return sum(
        chance * _stage_ms(costs, todo, s, there) for s, (chance, there) in enumerate(_visits(point, rows)) if chance
    ) + costs.at(costs.call_ms, rows)


def first_answer_ms(todo: StagePlan, costs: Costs, rows: int) -> float:
    """Time until the first exit that is on has answered for all rows."""
    first = todo.on.index(True)
    return sum(_stage_ms(costs, todo, s, rows) for s in range(first + 1)) + costs.at(costs.call_ms, rows)


def percentile_ms(
    point: OperatingPoint, todo: StagePlan, costs: Costs, rows: int, percentile: float, request_spread: float = 0.0
) -> float:
    """The latency that a share `percentile` of requests stays below.

    A mixture over the depth of the request's deepest row (rows taken as independent). Given the depth, the time
    is taken as normal. Its mean is that of the rows expected at each stage; its variance that of how many get there,
    times what one row more costs, plus that of the stages themselves (independent), read off p95 - median, or that of
    whole requests where they scatter more: `request_spread`, a fraction of the mean.
    """
    spare = costs.at(costs.call_ms, rows)
    depths: list[tuple[float, float, float]] = []
    for depth in range(len(todo.on)):
        chance = _sum_given_depth(point, rows, depth, (0.0,) * (depth + 1))[0]
        if chance <= 0:
            continue
        middle, variance, extra = spare, 0.0, [0.0]
        for s in range(depth + 1):
            there = _sum_given_depth(point, rows, depth, _gets_to(s, depth))[1]
            middle += _stage_ms(costs, todo, s, there)
            one_more = _stage_ms(costs, todo, s, there + 1) - _stage_ms(costs, todo, s, max(there - 1, 1.0))
            extra.append(extra[-1] + one_more / (there + 1 - max(there - 1, 1.0)))
            if todo.run[s]:
                spread = costs.at(costs.latency_p95_ms[s], there) - costs.at(costs.latency_ms[s], there)
                variance += (max(spread, 0.0) / ONE_SIDED_95) ** 2
        variance = max(variance, (request_spread * middle) ** 2)
        variance += _sum_given_depth(point, rows, depth, extra[1:])[2]
        depths.append((chance, middle, math.sqrt(variance) + 1e-9))
    low, high = 0.0, max(m + 8 * sd for _, m, sd in depths)
    for _ in range(50):
        guess = 0.5 * (low + high)
        below = sum(p * 0.5 * (1 + math.erf((guess - m) / (sd * math.sqrt(2)))) for p, m, sd in depths)
        low, high = (guess, high) if below < percentile else (low, guess)
    return high


def _keep(known: dict[K, V], key: K, value: V) -> None:
    if len(known) >= _KEPT:  # a caller that varies rows without end must not fill memory
        known.clear()
    known[key] = value


def _visits(point: OperatingPoint, rows: int) -> list[tuple[float, float]]:
    """By stage: the chance that one of `rows` inputs gets there, and how many do where one does."""
    chances = [1.0 - (1.0 - min(share, 1.0)) ** rows for share in _reach(point)]
    return [(c, rows * share / c if c else 0.0) for c, share in zip(chances, _reach(point), strict=True)]


def _gets_to(stage: int, depth: int) -> list[float]:
    """1 for an input that leaves at `stage` or later."""
    return [float(at >= stage) for at in range(depth + 1)]


def _sum_given_depth(
    point: OperatingPoint, rows: int, depth: int, value: Sequence[float]
) -> tuple[float, float, float]:
    """(chance that the deepest of `rows` independent inputs leaves at `depth`, mean, variance then of a sum over all).

    `value [depth + 1]`: what an input adds that leaves at each stage.
    """

    def no_deeper(d: int) -> tuple[float, float, float]:
        # chance that none goes beyond d; first and second moment of the sum, times that chance
        share = point.shares[: d + 1]
        all_, one = sum(share), sum(p * v for p, v in zip(share, value, strict=False))
        two = sum(p * v * v for p, v in zip(share, value, strict=False))
        pairs = rows * (rows - 1) * all_ ** (rows - 2) * one**2 if rows > 1 else 0.0
        return all_**rows, rows * all_ ** (rows - 1) * one, rows * all_ ** (rows - 1) * two + pairs

    chance, first, second = (a - b for a, b in zip(no_deeper(depth), no_deeper(depth - 1), strict=True))
    if chance > 1e-12:
        mean = first / chance
        return chance, mean, max(second / chance - mean**2, 0.0)
    # never seen: one input there, the others as ever
    before = sum(point.shares[: depth + 1])
    usual = sum(p * v for p, v in zip(point.shares, value, strict=False)) / before if before > 0 else value[depth]
    return 0.0, value[depth] + (rows - 1) * usual, 0.0


def _stage_ms(costs: Costs, todo: StagePlan, stage: int, rows: float) -> float:
    if not todo.run[stage]:
        return 0.0
    whole = costs.at(costs.latency_ms[stage], rows)
    return whole if todo.on[stage] else max(whole - costs.at(costs.head_ms[stage], rows), 0.0)


def _body_share(costs: Costs, todo: StagePlan, stage: int, rows: float) -> float:
    """The share of a stage's work that is done: without its head where that is off, by the time the head takes."""
    whole = costs.at(costs.latency_ms[stage], rows)
    return _stage_ms(costs, todo, stage, rows) / whole if whole > 0 else 1.0


def _reach(point: OperatingPoint) -> tuple[float, ...]:
    """Share of inputs that get as far as each stage `[S]`."""
    reach, left = [], 1.0
    for share in point.shares:
        reach.append(max(left, 0.0))
        left -= share
    return tuple(reach)


def _cost(point: OperatingPoint, ladder: Ladder, costs: Costs) -> CostedPoint:
    todo = plan(np.array(point.thresholds, np.float32), ladder.backbone)
    none = (0.0,) * len(costs.batch)
    call_cpu_ms, call_mj = costs.call_cpu_ms or none, costs.call_mj or none

    def expected(table: tuple[tuple[float, ...], ...], rows: int) -> float:
        visits = enumerate(_visits(point, rows))
        return sum(
            chance * costs.at(table[s], there) * _body_share(costs, todo, s, there)
            for s, (chance, there) in visits
            if todo.run[s] and chance
        )

    return CostedPoint(
        operating_point=point,
        plan=todo,
        mean_ms=tuple(mean_ms(point, todo, costs, rows) for rows in costs.batch),
        p95_ms=tuple(percentile_ms(point, todo, costs, rows, 0.95) for rows in costs.batch),
        deep_ms=tuple(
            sum(_stage_ms(costs, todo, s, rows) for s in range(todo.deepest + 1)) + costs.at(costs.call_ms, rows)
            for rows in costs.batch
        ),
        cpu_ms=tuple(expected(costs.cpu_ms, rows) + call for rows, call in zip(costs.batch, call_cpu_ms, strict=True)),
        energy_mj=None
        if costs.energy_mj is None
        else tuple(expected(costs.energy_mj, rows) + call for rows, call in zip(costs.batch, call_mj, strict=True)),
        memory_mb=sum(costs.memory_mb[b] for b in point.backbones),
    )


def row_mb(costs: Costs, backbones: Collection[int]) -> float:
    """What one row takes while the largest of these backbones runs, in MB; 0 where it was not measured."""
    return max((costs.row_mb[b] for b in backbones), default=0.0) if costs.row_mb else 0.0


def _compared(points: Sequence[CostedPoint], noise: float) -> list[list[float]]:
    """Every figure of every point so that less is better, those in time as far as they are told apart."""
    columns = [[p.promised_drop for p in points], [-p.accuracy.mid for p in points]]
    timed = [[*p.mean_ms, *p.p95_ms, *p.cpu_ms] for p in points]
    columns += [told_apart(list(column), noise) for column in zip(*timed, strict=True)]
    columns.append([p.memory_mb for p in points])
    return [list(row) for row in zip(*columns, strict=True)]


def told_apart(figures: Sequence[float], noise: float) -> list[float]:
    """Figures of points from much to little compute, of which none is above an earlier one by noise alone.

    Args:
        figures: As they were measured, in the order of the ladder, which is that of compute.
        noise: A fraction: what differs by less is not told apart.

    Returns:
        The figures, of which one that is above an earlier one by no more than the noise is just below that one.
    """
    if not noise:
        return list(figures)
    ranked: list[float] = []
    for figure in figures:
        near = [own for own in ranked if own <= figure <= own * (1 + noise)]
        ranked.append(math.nextafter(min(near), -math.inf) if near else figure)
    return ranked


def _beats(a: Sequence[float], b: Sequence[float]) -> bool:
    pairs = list(zip(a, b, strict=True))
    return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)
