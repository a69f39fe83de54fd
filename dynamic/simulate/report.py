"""Results of a simulation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.words.short_repr import short_repr, wrapped

_ARRAYS = ("latency_ms", "changes", "series")


@dataclass(frozen=True)
class SimulatedChange:
    """A change of the operating point.

    Args:
        time_s: Time of the change in seconds.
        point: Name of the new operating point.
        reason: Reason of the policy, in words.

    Example:
        >>> dynamic.simulate.SimulatedChange(12.0, "drop 0.01", "latency").point
        'drop 0.01'
    """

    time_s: float
    point: str
    reason: str


@dataclass(frozen=True, eq=False)
class SimulationReport:
    """Results of a simulated run. Nothing in it was measured on the device that it names.

    Figures of answers are None where nothing was answered. Figures over time are None where the model has none.

    Args:
        device: Name of the device.
        requests: Number of requests that arrived.
        answered: Number of answers. Requests that were neither answered nor shed came after the battery was empty.
        shed: Number of requests that left the queue unanswered.
        accuracy: Accuracy of the answers, 0 to 1. None without labels.
        useful_share: Share of all requests answered rightly and within latency and deadline. None without labels.
        mean_latency_ms: Mean latency from arrival to answer, queue included.
        median_latency_ms: Median latency.
        p95_latency_ms: 95th percentile of latency.
        p99_latency_ms: 99th percentile of latency.
        longest_latency_ms: Longest latency.
        mean_wait_ms: Mean time in the queue.
        late_share: Share of answers over the budget's latency. None: no such limit.
        deadline_miss_share: Share of answers after the budget's deadline. None: no such limit.
        cut_share: Share of answers that a deadline cut short.
        uncertified_share: Share of answers that were cut short, or whose point has no bound within `max_drop`.
        infeasible_share: Share of answers under a decision that violated a limit.
        violated_limit_shares: The same share for each limit, by its name.
        queue_longest: Largest number of waiting requests.
        energy_mj: Energy of the whole device in millijoules.
        energy_source: Source of the energy, here "model".
        idle_mj: Part of the energy drawn all the time.
        screen_mj: Part of the energy of the screen.
        inference_mj: Part of the energy of inference.
        inference_mj_each: Energy of inference for each answer.
        battery_left: Charge at the end, 0 to 1. None: no battery.
        hours: Length of the run in hours, until the end or an empty battery.
        hours_per_charge: Hours that a full battery lasts at this power. None: no battery.
        temperature_max_c: Highest temperature in degrees Celsius. None: no model of heat.
        throttled_share: Share of the time with a lowered clock.
        memory_over_share: Share of the time in which the process exceeded its memory budget, or the free memory.
        changes: Changes of the operating point, the first at the start.
        switches_per_hour: Changes an hour.
        loads: Number of backbones loaded while serving.
        stage_shares: Share of answers by stage `[S]`.
        point_shares: Share of answers by name of the operating point.
        latency_ms: Latency of each answer `[answered]`.
        series: Figures over time for pictures, lists of equal length. See `dynamic.simulate.summary`.
        doubts: Reasons to doubt the costs behind all figures. See `Costs.doubts`.

    Example:
        >>> report = dynamic.simulate.simulate(
        ...     bundle.frontier,
        ...     records,
        ...     device=dynamic.simulate.device("laptop"),
        ...     workload=dynamic.simulate.Constant(rate_hz=2, duration_s=30),
        ...     policy=dynamic.BudgetPolicy(),
        ...     budget=dynamic.Budget(),
        ... )
        >>> report.requests, report.shed
        (60, 0)
    """

    device: str
    requests: int
    answered: int
    shed: int
    accuracy: float | None
    useful_share: float | None
    mean_latency_ms: float | None
    median_latency_ms: float | None
    p95_latency_ms: float | None
    p99_latency_ms: float | None
    longest_latency_ms: float | None
    mean_wait_ms: float | None
    late_share: float | None
    deadline_miss_share: float | None
    cut_share: float | None
    uncertified_share: float | None
    infeasible_share: float | None
    violated_limit_shares: dict[str, float]
    queue_longest: int
    energy_mj: float
    energy_source: str
    idle_mj: float
    screen_mj: float
    inference_mj: float
    inference_mj_each: float | None
    battery_left: float | None
    hours: float
    hours_per_charge: float | None
    temperature_max_c: float | None
    throttled_share: float
    memory_over_share: float
    changes: tuple[SimulatedChange, ...]
    switches_per_hour: float
    loads: int
    stage_shares: tuple[float, ...]
    point_shares: dict[str, float]
    latency_ms: NDArray[np.float64]
    series: Mapping[str, list[float | None]]
    doubts: tuple[str, ...] = ()

    def to_json(self, series: bool = False) -> dict[str, Any]:
        """Return plain JSON types, marked as simulated, without the latency of each request.

        Args:
            series: Whether to include the figures over time.

        Returns:
            Figures by name.

        Raises:
            Nothing: every figure has a JSON type.

        Example:
            >>> report = dynamic.simulate.simulate(
            ...     bundle.frontier,
            ...     records,
            ...     device=dynamic.simulate.device("laptop"),
            ...     workload=dynamic.simulate.Constant(rate_hz=2, duration_s=30),
            ...     policy=dynamic.BudgetPolicy(),
            ...     budget=dynamic.Budget(),
            ... )
            >>> report.to_json()["simulated"]
            True
        """
        data = {k: v for k, v in vars(self).items() if k not in _ARRAYS}
        changes = [vars(change).copy() for change in self.changes]
        data = (
            {"simulated": True}
            | data
            | {"changes": changes, "stage_shares": list(self.stage_shares), "doubts": list(self.doubts)}
        )
        return data | {"series": dict(self.series)} if series else data

    def plot(self) -> Any:
        """Draw latency, battery, temperature and accuracy over time, below each other.

        It needs matplotlib, which the extra "plot" brings. What the device does not have is left out.

        Returns:
            An array of axes `[rows]`.

        Raises:
            ModuleNotFoundError: matplotlib is missing.

        Example:
            >>> report = dynamic.simulate.simulate(
            ...     bundle.frontier,
            ...     records,
            ...     device=dynamic.simulate.device("laptop"),
            ...     workload=dynamic.simulate.Constant(rate_hz=2, duration_s=30),
            ...     policy=dynamic.BudgetPolicy(),
            ...     budget=dynamic.Budget(),
            ... )
            >>> [axes.get_ylabel() for axes in report.plot()]
            ['latency, p95 (ms)', 'battery', 'temperature (C)', 'accuracy of the point']
        """
        from dynamic import plot  # on first use: no simulation needs pictures

        return plot(self)

    def __repr__(self) -> str:
        accuracy = f"accuracy {_format(self.accuracy, '.4f')}"
        latency = f"p95 {_format(self.p95_latency_ms, '.3g')} ms"
        answered = f"{self.answered} of {self.requests} answered"
        return short_repr("SimulationReport", [f"simulated {self.device!r}", answered, accuracy, latency])

    def __str__(self) -> str:
        lines = [f"simulated on {self.device} (a model, nothing measured there)"]
        lines += [f"  DOUBTFUL: {doubt}" for doubt in self.doubts]
        battery = "none" if self.battery_left is None else f"{self.battery_left:.1%} left after {self.hours:.3g} h"
        if self.hours_per_charge is not None:
            battery += f", and a full one lasts {self.hours_per_charge:.3g} h like this"
        shed = f", shed {self.shed}" if self.shed else ""
        rows = {
            "simulated requests": f"{self.requests}, answered {self.answered}{shed}",
            "simulated accuracy": _format(self.accuracy, ".4f"),
            "simulated latency": f"mean {_format(self.mean_latency_ms, '.3g')} ms, "
            f"p95 {_format(self.p95_latency_ms, '.3g')} ms, "
            f"{_share('late', self.late_share, '.1%', 'no limit on latency')}, "
            f"longest queue {self.queue_longest}",
            "simulated deadline": f"{_share('missed', self.deadline_miss_share, '.2%', 'none')}, "
            f"cut {_format(self.cut_share, '.2%')}, not certified {_format(self.uncertified_share, '.1%')}",
            "simulated energy": f"{self.energy_mj / 1e3:.4g} J ({self.energy_source}): idle {self.idle_mj / 1e3:.4g}, "
            f"screen {self.screen_mj / 1e3:.4g}, inference {self.inference_mj / 1e3:.4g}",
            "simulated battery": battery,
            "simulated heat": f"at most {_format(self.temperature_max_c, '.1f')} C, "
            f"throttled {self.throttled_share:.1%} of the time",
            "simulated stages": ", ".join(f"{share:.1%}" for share in self.stage_shares),
            "simulated points": ", ".join(f"{name} {share:.1%}" for name, share in self.point_shares.items()),
            "simulated switches": f"{self.switches_per_hour:.3g} an hour, {self.loads} networks loaded",
        }
        if self.infeasible_share:
            violated_limits = ", ".join(f"{name} {share:.1%}" for name, share in self.violated_limit_shares.items())
            rows["simulated limits"] = f"not all met {self.infeasible_share:.1%}: {violated_limits}"
        lines += [f"  {name:<19} {text}" for name, text in rows.items()]
        lines += [f"  simulated decision at {c.time_s:.3f} s: {c.reason}" for c in self.changes[:_SHOWN]]
        if len(self.changes) > _SHOWN:
            lines.append(f"  and {len(self.changes) - _SHOWN} more simulated decisions")
        return wrapped("\n".join(lines), "  simulated".ljust(22))  # every line says so


_SHOWN = 20  # decisions in the text


def _share(what: str, value: float | None, how: str, instead: str) -> str:
    return instead if value is None else f"{what} {value:{how}}"


def _format(value: float | None, how: str) -> str:
    return "unknown" if value is None else format(value, how)
