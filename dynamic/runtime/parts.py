"""Which stages of a cascade a runtime runs, where others run elsewhere."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from dynamic.bundle.contract import DeployedBundle
from dynamic.engines.contract import Engine
from dynamic.engines.parts.part_engines import PartEngine
from dynamic.engines.parts.rest import has_carry
from dynamic.engines.route_choice import CascadeEngine
from dynamic.policies.costing.latency import stage_ms
from dynamic.policies.costs import Costs, Table
from dynamic.policies.stage_plan import StagePlan


@dataclass(frozen=True)
class Part:
    """The stages before a cut, or those from it on.

    Args:
        cut: The first stage that runs in the tail.
        is_head: Whether those before it run here. A runtime of the others answers by `Runtime.resume` alone.
        hop_ms: What it costs to hand a row over. Decisions of the head count it to the first stage of the tail.
    """

    cut: int
    is_head: bool
    hop_ms: float = 0.0

    def engine(self, engine: CascadeEngine, bundle: DeployedBundle) -> Engine:
        """The part of an engine."""
        return PartEngine(engine, self.cut, self.is_head, version_of(bundle))

    def costs(self, costs: Costs) -> Costs:
        """Costs of the whole cascade, with the hop where rows continue in the tail."""

        def added(table: Table) -> Table:
            later = tuple(ms + self.hop_ms for ms in table[self.cut])
            return (*table[: self.cut], later, *table[self.cut + 1 :])

        if not self.is_head:
            return costs
        return replace(costs, latency_ms=added(costs.latency_ms), latency_p95_ms=added(costs.latency_p95_ms))


def version_of(bundle: DeployedBundle) -> str:
    """What bundles share whose stages give the same answers under the same points."""
    content = json.dumps([bundle.cascade, bundle.ladder.to_json()], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def first_stage(backbone: Sequence[int], plan: StagePlan, cut: int, names: Iterable[str]) -> int:
    """The first stage that the tail runs for rows that continue.

    Rows without a carry have their inputs instead. Where their backbone began before the cut, its stages run again.

    Args:
        backbone: Number of the backbone of each stage `[S]`.
        plan: The stages that run.
        cut: The first stage of the tail.
        names: Of the arrays that rows have, see `Rest`.

    Returns:
        The stage: the cut, or one before it.
    """
    return backbone.index(backbone[cut]) if plan.run[cut] and not has_carry(names) else cut


def again_ms(costs: Costs, plan: StagePlan, stages: range, rows: int) -> float:
    """95th percentile of the time of stages that the tail runs again. See `ahead_ms` for why it is no median."""
    return sum(stage_ms(replace(costs, latency_ms=costs.latency_p95_ms), plan, stage, rows) for stage in stages)


def rest_ms(costs: Costs, plan: StagePlan, first: int, stages: Sequence[int]) -> float:
    """Expected time of rows from a stage on, which all of them run.

    Args:
        costs: What each stage costs.
        plan: The stages that run.
        first: The first of them: 0 in the head, `first_stage` in the tail.
        stages: The last stage that each row runs `[B]`, `first` or later.

    Returns:
        The time in milliseconds.
    """
    reaching = (sum(stage <= last for last in stages) for stage in range(first, max(stages) + 1))
    return sum(stage_ms(costs, plan, first + number, rows) for number, rows in enumerate(reaching))
