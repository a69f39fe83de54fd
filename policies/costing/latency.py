"""Latency of a request at an operating point: the mean, a percentile, the first answer, and a given depth."""

import math

from dynamic.policies.costing.depths import gets_to, sum_given_depth, visits
from dynamic.policies.costs import Costs
from dynamic.policies.ladder import OperatingPoint
from dynamic.policies.stage_plan import StagePlan

ONE_SIDED_95 = 1.644854  # quantile of the normal distribution


def stage_ms(costs: Costs, stages: StagePlan, stage: int, rows: float) -> float:
    """Median time of one stage, without its head where the exit is off. 0 where the stage does not run."""
    if not stages.run[stage]:
        return 0.0
    whole = costs.at(costs.latency_ms[stage], rows)
    return whole if stages.on[stage] else max(whole - costs.at(costs.head_ms[stage], rows), 0.0)


def mean_ms(point: OperatingPoint, stages: StagePlan, costs: Costs, rows: int) -> float:
    """Mean latency: for each stage the chance that a row gets there, times what the expected rows then take."""
    return sum(
        chance * stage_ms(costs, stages, s, there) for s, (chance, there) in enumerate(visits(point, rows)) if chance
    ) + costs.at(costs.call_ms, rows)


def first_answer_ms(stages: StagePlan, costs: Costs, rows: int) -> float:
    """Time until the first exit that is on has answered for all rows."""
    first = stages.on.index(True)
    return sum(stage_ms(costs, stages, s, rows) for s in range(first + 1)) + costs.at(costs.call_ms, rows)


def deepest_ms(stages: StagePlan, costs: Costs, rows: int) -> float:
    """Time of a request whose rows all go as deep as the thresholds allow."""
    return sum(stage_ms(costs, stages, s, rows) for s in range(stages.deepest + 1)) + costs.at(costs.call_ms, rows)


def depth_ms(point: OperatingPoint, stages: StagePlan, costs: Costs, *, depth: int, rows: int) -> float:
    """Expected time of a request of `rows` inputs whose deepest row exits at stage `depth`."""
    there = (sum_given_depth(point, rows, depth=depth, value=gets_to(s, depth))[1] for s in range(depth + 1))
    return sum(stage_ms(costs, stages, s, at) for s, at in enumerate(there)) + costs.at(costs.call_ms, rows)


def percentile_ms(
    point: OperatingPoint,
    stages: StagePlan,
    costs: Costs,
    rows: int,
    percentile: float,
    request_spread: float = 0.0,
) -> float:
    """The latency that a share of requests does not exceed.

    The model is a mixture over the depth of the request's deepest row. Given the depth, the time is taken as normal.
    Its mean is that of the rows expected at each stage. Its variance has two parts. One is the number of rows at each
    stage times the cost of one more row. The other is that of the stages themselves, from p95 minus median.

    Args:
        point: The point, with the shares of inputs that exit at each stage.
        stages: The stages that run.
        costs: What they cost.
        rows: Inputs in the request.
        percentile: The share, 0.95 for the 95th percentile.
        request_spread: Standard deviation of whole requests, a fraction of the mean. It counts where it is larger.

    Returns:
        The latency in milliseconds.
    """
    overhead = costs.at(costs.call_ms, rows)
    depths: list[tuple[float, float, float]] = []
    for depth in range(len(stages.on)):
        chance = sum_given_depth(point, rows, depth=depth, value=(0.0,) * (depth + 1))[0]
        if chance <= 0:
            continue
        middle, variance, extra = overhead, 0.0, [0.0]
        for s in range(depth + 1):
            there = sum_given_depth(point, rows, depth=depth, value=gets_to(s, depth))[1]
            middle += stage_ms(costs, stages, s, there)
            one_more = stage_ms(costs, stages, s, there + 1) - stage_ms(costs, stages, s, max(there - 1, 1.0))
            extra.append(extra[-1] + one_more / (there + 1 - max(there - 1, 1.0)))
            if stages.run[s]:
                spread = costs.at(costs.latency_p95_ms[s], there) - costs.at(costs.latency_ms[s], there)
                variance += (max(spread, 0.0) / ONE_SIDED_95) ** 2
        variance = max(variance, (request_spread * middle) ** 2)
        variance += sum_given_depth(point, rows, depth=depth, value=extra[1:])[2]
        depths.append((chance, middle, math.sqrt(variance) + 1e-9))
    low, high = 0.0, max(m + 8 * sd for _, m, sd in depths)
    for _ in range(50):
        guess = 0.5 * (low + high)
        below = sum(p * 0.5 * (1 + math.erf((guess - m) / (sd * math.sqrt(2)))) for p, m, sd in depths)
        low, high = (guess, high) if below < percentile else (low, guess)
    return high
