"""What lies ahead of a request that has come to a stage: how long until its next answer."""

from dynamic.policies.costs import Costs
from dynamic.policies.stage_plan import StagePlan


def ahead_ms(costs: Costs, todo: StagePlan, rows: int) -> tuple[float, ...]:
    """Time from the start of each stage to the end of the next whose exit is on `[S]`, for so many rows.

    Of the 95th percentiles: a deadline is hard, and by medians every second stage that is expected to end just at the
    deadline would end after it. They are summed where exits are off, which is more than the 95th percentile of the
    sum: cut too soon, a request has a less certain answer; too late, it has missed.
    """
    found: list[float] = []
    after = 0.0
    for stage in reversed(range(len(todo.on))):
        own = 0.0
        if todo.run[stage]:
            own = costs.at(costs.latency_p95_ms[stage], rows)
            if not todo.on[stage]:
                own = max(own - costs.at(costs.head_ms[stage], rows), 0.0)
        after = own if todo.on[stage] else own + after
        found.append(after)
    return tuple(reversed(found))
