"""A day on a simulated device: requests by the time of day, other programs, warm hours, and a battery."""

from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

from dynamic.policies.budget import Budget
from dynamic.policies.control.budget_policy import BudgetPolicy
from dynamic.policies.frontier import Frontier
from dynamic.policies.records import Records
from dynamic.simulate.device_models import device as device_named
from dynamic.simulate.simulator import simulate
from dynamic.simulate.workload import Diurnal
from dynamic.simulate.world.processes import Bursts, Line, demand

DAY_S = 86_400.0
_MEAN_HZ = 0.25  # 21,600 requests: a second or two to simulate
_SAMPLES = 288  # one every five minutes
_FLOOR = 0.1  # of the battery


@dataclass(frozen=True)
class Moment:
    """The device and the decision at one time of the day. None: the model has none, or nothing was answered."""

    hour: float
    battery: float | None
    temperature_c: float | None
    load: float | None
    p95_ms: float | None
    accuracy: float | None
    answered: int
    point: str
    reason: str


@dataclass(frozen=True)
class Day:
    """A simulated day. Nothing in it was measured on the device that it names.

    Args:
        device: Name of the device.
        about: The day in words.
        budget: The budget, as Python.
        limit_ms: Its limit of latency.
        requests: Requests that arrived.
        answered: Answers.
        p95_ms: 95th percentile of latency.
        late_share: Share of answers over the limit.
        battery_left: Charge at the end. None: no battery.
        changes: Changes of the operating point.
        moments: One every five minutes.
    """

    device: str
    about: str
    budget: str
    limit_ms: float | None
    requests: int
    answered: int
    p95_ms: float | None
    late_share: float | None
    battery_left: float | None
    changes: int
    moments: tuple[Moment, ...]


def simulated_day(frontier: Frontier, records: Records, *, device: str, budget: Budget | None, seed: int) -> Day:
    """Simulate 24 hours.

    Args:
        frontier: Operating points with costs of this machine. They are scaled to the device.
        records: Records that chose no thresholds.
        device: Name of a simulated device.
        budget: The limits. None: a latency that binds while other programs run, and a floor of the battery.
        seed: Seed of arrivals and of the load of others.

    Returns:
        The day.
    """
    chosen = device_named(device)
    here = frontier.recost(chosen.costs(frontier.costs))
    slow, fast = here.points[0].p95_ms[0], min(point.p95_ms[0] for point in here.points)
    if budget is None:
        # at a slowdown of 4 the fastest point is in time and the reference is late
        limits: dict[str, Any] = {"latency_ms": _three_digits(2 * (slow + fast) + 2 * chosen.overhead_ms)}
        if chosen.battery_mwh is not None:
            limits["battery_floor"] = _FLOOR
        budget = Budget(**limits)
    # so that an idle phone in a pocket comes to the floor at 20:00
    idle_share = 0.0 if chosen.battery_mwh is None else chosen.idle_mw * 20 / chosen.battery_mwh
    battery = min(1.0, _FLOOR + idle_share)
    busy = tuple(demand(slowdown, here.costs.threads, chosen.cores) for slowdown in (2.0, 4.0))
    morning, warm, cool = chosen.ambient_c, chosen.ambient_c + 10, chosen.ambient_c - 3
    report = simulate(
        frontier,
        records,
        device=chosen,
        workload=Diurnal(_MEAN_HZ, DAY_S),
        policy=BudgetPolicy(),
        budget=budget,
        seed=seed,
        background_load=Bursts(0.0, busy, on_s=900, off_s=2700, seed=seed),
        ambient_c=Line((0.0, 6 * 3600.0, 15 * 3600.0, 23 * 3600.0), (morning, cool, warm, morning)),
        battery=battery,
        screen=False,
        samples=_SAMPLES,
    )
    series, times_s = report.series, [change.time_s for change in report.changes]
    moments = []
    for i, time_s in enumerate(series["time_s"]):
        change = report.changes[max(bisect_right(times_s, time_s or 0.0) - 1, 0)] if report.changes else None
        moments.append(
            Moment(
                hour=(time_s or 0.0) / 3600,
                battery=series["battery"][i],
                temperature_c=series["temperature_c"][i],
                load=series["background_load"][i],
                p95_ms=series["p95_latency_ms"][i],
                accuracy=series["point_accuracy"][i],
                answered=int(series["answered"][i] or 0),
                point="none" if change is None else change.point,
                reason="no request came" if change is None else change.reason,
            )
        )
    return Day(
        device=report.device,
        about="Most requests come at 14:00. Other programs take the processor for a quarter of the time. It is "
        f"{warm:.0f} C at 15:00 and {cool:.0f} C at 6:00. "
        + ("" if chosen.battery_mwh is None else f"The battery starts at {battery:.0%}, and the screen is off."),
        budget=f"dynamic.{budget!r}",
        limit_ms=budget.latency_ms,
        requests=report.requests,
        answered=report.answered,
        p95_ms=report.p95_latency_ms,
        late_share=report.late_share,
        battery_left=report.battery_left,
        changes=max(len(report.changes) - 1, 0),
        moments=tuple(moments),
    )


def _three_digits(value: float) -> float:
    return float(f"{value:.3g}")
