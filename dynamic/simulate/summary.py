"""The report of a simulation from the lists of its loop."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.budget import Budget
from dynamic.policies.control.feasibility import covered
from dynamic.policies.records import Records
from dynamic.simulate.device_models import Device
from dynamic.simulate.report import SimulatedChange, SimulationReport
from dynamic.simulate.requests.outcomes import Outcome
from dynamic.simulate.requests.simulated_runtime import Log, Requests
from dynamic.simulate.world.environment import SAMPLED, Environment

Floats = NDArray[np.float64]


def summarize(
    log: Log,
    device: Device,
    env: Environment,
    outcomes: Sequence[Outcome],
    requests: Requests,
    records: Records,
    certified: bool,
) -> SimulationReport:
    """Compute the report.

    Args:
        log: The lists of the loop.
        device: The device.
        env: Its state at the end, and samples over time.
        outcomes: Outcomes by point, in the order of the frontier.
        requests: The requests.
        records: The records that they replayed.
        certified: Whether the ladder is certified.

    Returns:
        The report.
    """
    served = np.array(log.served, np.int64)
    start_s, end_s = np.array(log.start_s, np.float64), np.array(log.end_s, np.float64)
    arrival_s, record = np.array(requests.arrival_s, np.float64), np.array(requests.record, np.int64)
    arrived_s = arrival_s[served]
    latency_ms, wait_ms = (end_s - arrived_s) * 1e3, (start_s - arrived_s) * 1e3
    stage, point = np.array(log.stage, np.int64), np.array(log.point, np.int64)
    cut = np.zeros(len(served), bool)
    cut[log.cut] = True
    right = _right(outcomes, point, stage, record[served], cut)
    sure = _covered(env.budgets, start_s, outcomes, point) & ~cut & certified
    limit_ms, deadline_ms = _limits(env.budgets, start_s)
    in_time = ~(latency_ms > limit_ms) & ~(latency_ms > deadline_ms)  # NaN: no limit
    count, world = len(served), env.world
    quantiles: list[float | None] = [None] * 4
    if count:
        quantiles = np.percentile(latency_ms, [50, 95, 99, 100]).tolist()
    hours = world.time_s / 3600
    shares = np.bincount(point, minlength=len(outcomes)) / max(count, 1)
    full_mwh = device.battery_mwh
    return SimulationReport(
        device=device.name,
        requests=len(arrival_s),
        answered=count,
        shed=log.shed,
        accuracy=None if right is None or not count else float(right.mean()),
        useful_share=None if right is None or not len(arrival_s) else float((right & in_time).sum() / len(arrival_s)),
        mean_latency_ms=_mean(latency_ms),
        median_latency_ms=quantiles[0],
        p95_latency_ms=quantiles[1],
        p99_latency_ms=quantiles[2],
        longest_latency_ms=quantiles[3],
        mean_wait_ms=_mean(wait_ms),
        late_share=_over(latency_ms, limit_ms),
        deadline_miss_share=_over(latency_ms, deadline_ms),
        cut_share=_mean(cut),
        uncertified_share=_mean(~sure),
        infeasible_share=log.infeasible / count if count else None,
        violated_limit_shares={name: times / max(count, 1) for name, times in sorted(log.violated_limits.items())},
        queue_longest=log.longest,
        energy_mj=world.used_mj,
        energy_source="model",
        idle_mj=world.idle_mj,
        screen_mj=world.screen_mj,
        inference_mj=world.inference_mj,
        inference_mj_each=world.inference_mj / count if count else None,
        battery_left=world.battery,
        hours=hours,
        hours_per_charge=full_mwh * world.time_s / world.used_mj if full_mwh and world.used_mj else None,
        temperature_max_c=world.hottest_c,
        throttled_share=world.throttled_s / world.time_s if world.time_s else 0.0,
        memory_over_share=env.ticks_over_memory / max(env.ticks, 1),
        changes=tuple(SimulatedChange(*change) for change in log.changes),
        switches_per_hour=max(len(log.changes) - 1, 0) / hours if hours else 0.0,
        loads=log.loads,
        stage_shares=tuple((np.bincount(stage, minlength=records.stages) / max(count, 1)).tolist()),
        point_shares={outcome.name: float(s) for outcome, s in zip(outcomes, shares, strict=True) if s},
        latency_ms=latency_ms,
        series=_series(env, end_s, latency_ms, right, point, outcomes, arrival_s),
    )


def _right(
    outcomes: Sequence[Outcome],
    point: NDArray[np.int64],
    stage: NDArray[np.int64],
    record: NDArray[np.int64],
    cut: NDArray[np.bool_],
) -> NDArray[np.bool_] | None:
    right = np.zeros(len(point), bool)
    for outcome in outcomes:
        if outcome.right is None:
            return None
        here = point == outcome.number
        right[here] = outcome.right[record[here]]
        if (short := here & cut).any():
            right[short] = outcome.right_at(stage[short], record[short])
    return right


def _limits(budgets: Sequence[tuple[float, Budget]], start_s: Floats) -> tuple[Floats, Floats]:
    """Latency and deadline `[answered]` of the budget at the start of each request. NaN where it has none."""
    which = _budget_of(budgets, start_s)

    def limits(name: str) -> Floats:
        values = [getattr(budget, name) for _, budget in budgets]
        return np.array([np.nan if limit is None else limit for limit in values])[which]

    return limits("latency_ms"), limits("deadline_ms")


def _covered(
    budgets: Sequence[tuple[float, Budget]], start_s: Floats, outcomes: Sequence[Outcome], point: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether the certificate of the point that answered covers the budget `[answered]`."""
    table = [[covered(outcome.point.operating_point, budget) for outcome in outcomes] for _, budget in budgets]
    return np.array(table, bool)[_budget_of(budgets, start_s), point]


def _budget_of(budgets: Sequence[tuple[float, Budget]], start_s: Floats) -> NDArray[np.intp]:
    """Index of the budget at the start of each request `[answered]`."""
    return np.searchsorted([time_s for time_s, _ in budgets], start_s, side="right") - 1


def _over(latency_ms: Floats, limit_ms: Floats) -> float | None:
    limited = ~np.isnan(limit_ms)
    return float((latency_ms[limited] > limit_ms[limited]).mean()) if limited.any() else None


def _mean(values: NDArray[Any]) -> float | None:
    return float(values.mean()) if len(values) else None


def _series(
    env: Environment,
    end_s: Floats,
    latency_ms: Floats,
    right: NDArray[np.bool_] | None,
    point: NDArray[np.int64],
    outcomes: Sequence[Outcome],
    arrival_s: Floats,
) -> Mapping[str, list[float | None]]:
    """State of the device at each sample, and figures of the requests until the next.

    Beside the names in `SAMPLED`: `arrived`, `answered`, and of the answers `mean_latency_ms`, `p95_latency_ms` and
    `accuracy`. `point_accuracy` is the accuracy of the chosen points in calibration. None: no answers.
    """
    series: dict[str, list[float | None]] = {name: [row[i] for row in env.samples] for i, name in enumerate(SAMPLED)}
    edges = np.array([*(row[0] for row in env.samples), np.inf], np.float64)
    bounds = np.searchsorted(end_s, edges)
    promised = np.array([outcome.point.accuracy.mid for outcome in outcomes])[point]

    def each(figure: Any) -> list[float | None]:
        return [float(figure(slice(a, b))) if b > a else None for a, b in pairwise(bounds.tolist())]

    series["arrived"] = np.diff(np.searchsorted(arrival_s, edges)).tolist()
    series["answered"] = np.diff(bounds).tolist()
    series["mean_latency_ms"] = each(lambda part: latency_ms[part].mean())
    series["p95_latency_ms"] = each(lambda part: np.percentile(latency_ms[part], 95))
    series["point_accuracy"] = each(lambda part: promised[part].mean())
    if right is not None:
        series["accuracy"] = each(lambda part: right[part].mean())
    return series
