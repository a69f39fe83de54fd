"""Which stages of a cascade a runtime runs, where others run elsewhere."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dynamic.bundle.contract import DeployedBundle
from dynamic.engines.contract import Engine
from dynamic.engines.parts.part_engines import HeadEngine, TailEngine
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
        kind = HeadEngine if self.is_head else TailEngine
        return kind(engine, self.cut, version_of(bundle))

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


def rest_ms(costs: Costs, plan: StagePlan, cut: int, stages: Sequence[int]) -> float:
    """Expected time of rows from a cut on.

    Args:
        costs: What each stage costs.
        plan: The stages that run.
        cut: The first of them.
        stages: Where each row exits `[B]`, at the cut or later.

    Returns:
        The time in milliseconds.
    """
    reaching = (sum(stage <= exits for exits in stages) for stage in range(cut, max(stages) + 1))
    return sum(stage_ms(costs, plan, cut + number, rows) for number, rows in enumerate(reaching))
