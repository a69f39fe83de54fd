"""An operating point with its costs on one device."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.costing.depths import visits
from dynamic.policies.costing.latency import deepest_ms, mean_ms, percentile_ms, stage_ms
from dynamic.policies.costs import Costs, Table
from dynamic.policies.ladder import Interval, Ladder, OperatingPoint
from dynamic.policies.stage_plan import StagePlan, plan
from dynamic.policies.words.short_repr import short_repr


@dataclass(frozen=True, eq=False)
class CostedPoint:
    """An operating point and what a request costs there, at each of the K batch sizes.

    The overhead of the call is included.

    Args:
        operating_point: The certified point.
        plan: The stages that it runs.
        mean_ms: Mean latency `[K]`.
        p95_ms: 95th percentile of latency `[K]`.
        deep_ms: Latency `[K]` of a request whose rows all go as deep as the thresholds allow.
        cpu_ms: CPU time `[K]`.
        energy_mj: Energy `[K]`. None: not measured.
        memory_mb: Memory of its backbones, in units of 10^6 bytes.

    Example:
        >>> point = frontier.points[0]
        >>> point.name, point.drop, len(point.mean_ms)
        ('reference', 0.0, 2)
    """

    operating_point: OperatingPoint
    plan: StagePlan
    mean_ms: tuple[float, ...]
    p95_ms: tuple[float, ...]
    deep_ms: tuple[float, ...]
    cpu_ms: tuple[float, ...]
    energy_mj: tuple[float, ...] | None
    memory_mb: float

    def __repr__(self) -> str:
        energy = [] if self.energy_mj is None else [f"{self.energy_mj[0]:.3g} mJ"]
        times = [f"mean {self.mean_ms[0]:.3f} ms", f"p95 {self.p95_ms[0]:.3f} ms", f"CPU {self.cpu_ms[0]:.3f} ms"]
        return short_repr("CostedPoint", [*self.operating_point.words(), *times, *energy, f"{self.memory_mb:.1f} MB"])

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
        """Upper bound of its risk. None where it is not certified."""
        return self.operating_point.bound

    @property
    def shares(self) -> tuple[float, ...]:
        """Shares `[S]` of inputs that exit at each stage."""
        return self.operating_point.shares

    @cached_property
    def thresholds(self) -> NDArray[np.float32]:
        """The thresholds `[S-1]` as an engine takes them. All requests share this array, so it is read-only."""
        array = np.array(self.operating_point.thresholds, np.float32)
        array.setflags(write=False)
        return array

    @cached_property
    def backbones(self) -> frozenset[int]:
        """The backbones that the point needs."""
        return frozenset(self.operating_point.backbones)


def with_costs(point: OperatingPoint, ladder: Ladder, costs: Costs) -> CostedPoint:
    """A point of a ladder with its costs."""
    stages = plan(np.array(point.thresholds, np.float32), ladder.backbone)
    return CostedPoint(
        operating_point=point,
        plan=stages,
        mean_ms=tuple(mean_ms(point, stages, costs, rows) for rows in costs.batch),
        p95_ms=tuple(percentile_ms(point, stages, costs, rows, 0.95) for rows in costs.batch),
        deep_ms=tuple(deepest_ms(stages, costs, rows) for rows in costs.batch),
        cpu_ms=tuple(processor_ms(point, stages, costs, column) for column in range(len(costs.batch))),
        energy_mj=None
        if costs.energy_mj is None
        else tuple(energy_mj(point, stages, costs, column) for column in range(len(costs.batch))),
        memory_mb=sum(costs.memory_mb[b] for b in point.backbones),
    )


def processor_ms(point: OperatingPoint, stages: StagePlan, costs: Costs, column: int) -> float:
    """CPU time of a request at the batch size of a column."""
    return _expected(point, stages, costs, costs.cpu_ms, costs.call_cpu_ms, column)


def energy_mj(point: OperatingPoint, stages: StagePlan, costs: Costs, column: int) -> float:
    """Energy of a request at the batch size of a column. It must have been measured."""
    assert costs.energy_mj is not None
    return _expected(point, stages, costs, costs.energy_mj, costs.call_mj, column)


def _expected(
    point: OperatingPoint, stages: StagePlan, costs: Costs, table: Table, call: Sequence[float], column: int
) -> float:
    """What a table of stages gives for a request, with the overhead of the call."""
    total = sum(
        chance * costs.at(table[s], there) * _body_share(costs, stages, s, there)
        for s, (chance, there) in enumerate(visits(point, costs.batch[column]))
        if stages.run[s] and chance
    )
    return total + (call[column] if call else 0.0)


def row_mb(costs: Costs, backbones: Collection[int]) -> float:
    """Memory of one row while the largest of these backbones runs, in MB. 0 where it was not measured."""
    return max((costs.row_mb[b] for b in backbones), default=0.0) if costs.row_mb else 0.0


def _body_share(costs: Costs, stages: StagePlan, stage: int, rows: float) -> float:
    """Share of a stage's work that is done, by time. It is below 1 where the head is off."""
    whole = costs.at(costs.latency_ms[stage], rows)
    return stage_ms(costs, stages, stage, rows) / whole if whole > 0 else 1.0
