"""How long a request at some stage still takes until its next answer."""

from dynamic.policies.costs import Costs
from dynamic.policies.stage_plan import StagePlan


def ahead_ms(costs: Costs, stages: StagePlan, rows: int) -> tuple[float, ...]:
    """Time from the start of each stage to the end of the next stage whose exit is on.

    It uses 95th percentiles because a deadline is hard. By medians, half of the stages that are expected to end at the
    deadline would end after it. Percentiles are summed where exits are off, which is more than the percentile of the
    sum. A request that is cut too early has a less certain answer. One that is cut too late misses its deadline.

    Args:
        costs: What each stage costs.
        stages: The stages that run.
        rows: Inputs in the request.

    Returns:
        The times `[S]` in milliseconds.
    """
    times: list[float] = []
    after = 0.0
    for stage in reversed(range(len(stages.on))):
        own = 0.0
        if stages.run[stage]:
            own = costs.at(costs.latency_p95_ms[stage], rows)
            if not stages.on[stage]:
                own = max(own - costs.at(costs.head_ms[stage], rows), 0.0)
        after = own if stages.on[stage] else own + after
        times.append(after)
    return tuple(reversed(times))
