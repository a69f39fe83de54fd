"""A ladder with the costs of one device. A policy chooses from it."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeVar

from dynamic.policies.costing.costed_point import CostedPoint, energy_mj, processor_ms, row_mb, with_costs
from dynamic.policies.costing.dominance import rank_within_noise, remove_dominated
from dynamic.policies.costing.latency import depth_ms, first_answer_ms, mean_ms, percentile_ms
from dynamic.policies.costs import Costs
from dynamic.policies.errors import InputError
from dynamic.policies.fast_paths import Rank
from dynamic.policies.ladder import Ladder
from dynamic.policies.words.short_repr import short_repr
from dynamic.policies.words.tables import table

__all__ = ["SPREADS", "CostedPoint", "Frontier"]

K = TypeVar("K")
V = TypeVar("V")
RankKind = Literal["mean", "accuracy", "effort", "processor"]

SPREADS = (0.0, 0.1, 0.2, 0.3, 0.45, 0.65, 0.9, 1.3)  # spreads of requests for which latencies are computed
_CACHE_SIZE = 1000  # figures of each kind


@dataclass(frozen=True, eq=False)
class Frontier:
    """Points of a ladder that no other point dominates on this device. The reference always belongs to it.

    A point dominates another where it is better in one figure and worse in none. The figures are promised drop,
    accuracy, memory, and mean latency, p95 latency and CPU time at every batch size and measured size of input. Costs
    that a profile cannot distinguish are ranked by compute (`Costs.noise`).

    Args:
        ladder: The certified points, the reference first.
        costs: What each stage costs on this device.
        points: The points with their costs, in the order of the ladder.

    Example:
        >>> frontier = dynamic.Frontier.of(ladder, costs)
        >>> frontier.points[0].name
        'reference'
    """

    ladder: Ladder
    costs: Costs
    points: tuple[CostedPoint, ...]
    # requests need the same few figures again. These are not in __init__, so that a copy with other costs has none
    _latency: dict[tuple[float | None, int, float, int | None], Rank] = field(
        default_factory=dict, init=False, repr=False
    )
    _loaded: dict[frozenset[int], int] = field(default_factory=dict, init=False, repr=False)
    _first: dict[tuple[int, int | None], Rank] = field(default_factory=dict, init=False, repr=False)
    _path: dict[tuple[CostedPoint, int, int, int | None], float] = field(default_factory=dict, init=False, repr=False)
    _ranks: dict[tuple[RankKind, int], Rank] = field(default_factory=dict, init=False, repr=False)
    _sized: dict[int, Costs] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, ladder: Ladder, costs: Costs) -> "Frontier":
        """Compute the costs of every point and remove the dominated ones.

        Args:
            ladder: The certified points.
            costs: What each stage costs on this device.

        Returns:
            The frontier.

        Raises:
            InputError: when the costs belong to a cascade with another number of stages.

        Example:
            >>> len(dynamic.Frontier.of(ladder, costs).points) <= len(ladder.points)
            True
        """
        if len(costs.latency_ms) != len(ladder.backbone):
            raise InputError(
                f"costs are of {len(costs.latency_ms)} stages, the ladder has {len(ladder.backbone)}: profile again"
            )
        points, *others = (
            [with_costs(p, ladder, at_size) for p in ladder.points]
            for at_size in (costs, *(costs.at_size(other.size) for other in costs.sizes))
        )
        return cls(ladder, costs, remove_dominated(points, costs.noise, others))

    def __str__(self) -> str:
        """What the points cost at the smallest batch."""
        kinds = {point.operating_point.kind for point in self.points}
        head = ("point", f"{' or '.join(sorted(kinds))} <=", "accuracy", "mean ms", "p95 ms", "CPU-ms", "MB")
        rows = (
            (
                p.name,
                "no" if p.bound is None else f"{p.bound:.4g}",
                f"{p.accuracy.mid:.4f}",
                *(f"{ms:.3f}" for ms in (p.mean_ms[0], p.p95_ms[0], p.cpu_ms[0])),
                f"{p.memory_mb:.1f}",
            )
            for p in self.points
        )
        return table(head, rows)

    def __repr__(self) -> str:
        names = ", ".join(point.name for point in self.points)
        of = f"{len(self.points)} of {len(self.ladder.points)} points: {names}"
        return short_repr("Frontier", [of, f"{self.costs.engine} {self.costs.precision}"])

    def plot(self, axes: Any = None) -> Any:
        """Draw accuracy against mean latency, with 95% intervals of the accuracy.

        It needs matplotlib, which the extra "plot" brings.

        Args:
            axes: Axes of matplotlib to draw into. None: new ones.

        Returns:
            The axes.

        Raises:
            ModuleNotFoundError: matplotlib is missing.

        Example:
            >>> frontier.plot().get_ylabel()
            'accuracy'
        """
        from dynamic import plot  # on first use: the core knows no pictures

        return plot(self, axes)

    def recost(self, costs: Costs) -> "Frontier":
        """Return a frontier of the same ladder with other costs. Certificates still hold.

        Args:
            costs: What each stage costs now.

        Returns:
            The new frontier.

        Raises:
            InputError: when the costs belong to a cascade with another number of stages.

        Example:
            >>> frontier.recost(costs.powered(active_mw=2000.0)).points[0].energy_mj is None
            False
        """
        return Frontier.of(self.ladder, costs)

    @cached_property
    def cheapest(self) -> CostedPoint:
        """The point of the least CPU time at the smallest batch."""
        return self.points[self.processor.first((1 << len(self.points)) - 1)]

    def costs_at(self, size: int | None) -> Costs:
        """Return the costs of inputs of a size (see `Costs.at_size`), which are computed once.

        Args:
            size: The product of the dynamic dimensions of one row. None: that of the example.

        Returns:
            The costs.

        Raises:
            InputError: when the size is no whole number of 1 or more.

        Example:
            >>> frontier.costs_at(None) is frontier.costs
            True
        """
        if size is None or not self.costs.sizes:
            return self.costs
        costs = self._sized.get(size)
        if costs is None:
            costs = self.costs.at_size(size)
            _remember(self._sized, size, costs)
        return costs

    def latency_ms(
        self, percentile: float | None, rows: int, *, spread: float = 0.0, size: int | None = None
    ) -> tuple[float, ...]:
        """Return the latency of a request at every point.

        Args:
            percentile: The share of requests with at most this latency, such as 0.95. None: the mean.
            rows: Inputs in the request.
            spread: See `latency`.
            size: Of one row. None: that of the example.

        Returns:
            Latencies in milliseconds, in the order of `points`.

        Raises:
            TypeError: when an argument is not a number.

        Example:
            >>> len(frontier.latency_ms(0.95, rows=1)) == len(frontier.points)
            True
        """
        return self.latency(percentile, rows, spread=spread, size=size).figures

    def latency(self, percentile: float | None, rows: int, *, spread: float = 0.0, size: int | None = None) -> Rank:
        """Return the points, ranked by the latency of a request.

        Args:
            percentile: The share of requests with at most this latency, such as 0.95. None: the mean.
            rows: Inputs in the request.
            spread: Standard deviation of the log ratio of observed to expected times. It counts where requests
                scatter more than during the profile. The next larger of `SPREADS` is used.
            size: Of one row: the product of its dynamic dimensions. None: that of the example.

        Returns:
            The rank, by milliseconds.

        Raises:
            TypeError: when an argument is not a number.

        Example:
            >>> rank = frontier.latency(None, rows=8)
            >>> frontier.points[rank.first((1 << len(frontier.points)) - 1)] in frontier.points
            True
        """
        wide = SPREADS[min(bisect_left(SPREADS, spread), len(SPREADS) - 1)]
        rank = self._latency.get((percentile, rows, wide, size))
        if rank is None:
            costs = self.costs_at(size)
            rank = Rank(
                [
                    mean_ms(p.operating_point, p.plan, costs, rows)
                    if percentile is None
                    else percentile_ms(p.operating_point, p.plan, costs, rows, percentile, wide)
                    for p in self.points
                ]
            )
            _remember(self._latency, (percentile, rows, wide, size), rank)
        return rank

    def first_answer(self, rows: int, *, size: int | None = None) -> Rank:
        """Return the points, ranked by the time until all rows have a first answer.

        Args:
            rows: Inputs in the request.
            size: Of one row: the product of its dynamic dimensions. None: that of the example.

        Returns:
            The rank, by milliseconds.

        Raises:
            TypeError: when `rows` is not a number.

        Example:
            >>> frontier.first_answer(1).figures[0] <= frontier.first_answer(8).figures[0]
            True
        """
        rank = self._first.get((rows, size))
        if rank is None:
            costs = self.costs_at(size)
            rank = Rank([first_answer_ms(p.plan, costs, rows) for p in self.points])
            _remember(self._first, (rows, size), rank)
        return rank

    @cached_property
    def effort(self) -> Rank:
        """Points by what an inference takes from a battery: energy where it was measured, else CPU time."""
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
        """Points by negative accuracy: the most accurate is first. Equals are ranked by time."""
        ties = rank_within_noise(self.mean.figures, self.costs.noise)
        return Rank([-p.accuracy.mid for p in self.points], ties=ties)

    @cached_property
    def mean(self) -> Rank:
        """Points by mean latency at the smallest batch, in ms."""
        return self._measured([p.mean_ms[0] for p in self.points])

    def ranked(self, kind: RankKind, size: int | None) -> Rank:
        """Return `mean`, `accuracy`, `effort` or `processor` for inputs of a size.

        Args:
            kind: Which of them. Points of equal accuracy are ranked by their time at the size.
            size: The product of the dynamic dimensions of one row. None: that of the example.

        Returns:
            The rank.

        Raises:
            InputError: when the size is no whole number of 1 or more.

        Example:
            >>> frontier.ranked("mean", None) is frontier.mean
            True
        """
        if size is None or size == self.costs.size or not self.costs.sizes:
            usual: Rank = getattr(self, kind)
            return usual
        rank = self._ranks.get((kind, size))
        if rank is not None:
            return rank
        costs, points = self.costs_at(size), [(p.operating_point, p.plan) for p in self.points]
        if kind == "accuracy":
            ties = rank_within_noise(self.ranked("mean", size).figures, self.costs.noise)
            rank = Rank(self.accuracy.figures, ties=ties)
        elif kind == "mean":
            rank = self._measured([mean_ms(*p, costs, costs.batch[0]) for p in points])
        elif kind == "effort" and costs.energy_mj is not None:
            rank = self._measured([energy_mj(*p, costs, 0) for p in points])
        else:
            rank = self._measured([processor_ms(*p, costs, 0) for p in points])
        _remember(self._ranks, (kind, size), rank)
        return rank

    def _measured(self, figures: Sequence[float]) -> Rank:
        """Points by a measured figure. Those that the profile cannot distinguish are in the order of compute."""
        return Rank(figures, order=rank_within_noise(figures, self.costs.noise))

    def within(self, backbones: frozenset[int]) -> int:
        """Return the points that need none but some backbones.

        Args:
            backbones: Numbers of the backbones, such as those in memory.

        Returns:
            The points as bits. Bit i stands for `points[i]`.

        Raises:
            TypeError: when `backbones` cannot be hashed.

        Example:
            >>> frontier.within(frozenset())
            0
        """
        points = self._loaded.get(backbones)
        if points is None:
            points = sum(1 << i for i, p in enumerate(self.points) if p.backbones <= backbones)
            _remember(self._loaded, backbones, points)
        return points

    def path_ms(self, point: CostedPoint, depth: int, *, rows: int = 1, size: int | None = None) -> float:
        """Return the expected time of a request whose deepest row exits at a stage.

        Args:
            point: A point of this frontier.
            depth: The stage.
            rows: Inputs in the request.
            size: Of one row: the product of its dynamic dimensions. None: that of the example.

        Returns:
            The time in milliseconds.

        Raises:
            IndexError: when there is no such stage.

        Example:
            >>> frontier.path_ms(frontier.points[0], depth=1) > 0
            True
        """
        time_ms = self._path.get((point, depth, rows, size))
        if time_ms is None:
            time_ms = depth_ms(point.operating_point, point.plan, self.costs_at(size), depth=depth, rows=rows)
            _remember(self._path, (point, depth, rows, size), time_ms)
        return time_ms


def _remember(cache: dict[K, V], key: K, value: V) -> None:
    if len(cache) >= _CACHE_SIZE:  # a caller that varies rows without end must not fill memory
        cache.clear()
    cache[key] = value
