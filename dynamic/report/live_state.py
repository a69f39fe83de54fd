"""What a live view of a runtime shows, read from it without making any request wait."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dynamic.policies.budget import Budget
from dynamic.policies.decision import Decision
from dynamic.policies.snapshot import Snapshot
from dynamic.runtime.result import Statistics
from dynamic.runtime.runtime import Runtime

DRIFT = {None: "not watched", False: "none noticed", True: "inputs have drifted: answers are not certified"}


@dataclass(frozen=True, eq=False)
class LiveState:
    """A runtime at one moment.

    Args:
        title: Bundle and engine.
        stages: Names of the stages.
        budget: The limits.
        decision: The decision at work. None: no request came yet.
        snapshot: The newest readings. None: the monitor gives none.
        stats: What has been done so far.
        predicted_ms: Latency that the decision predicts at the budget's percentile. None: no decision.
        recent_ms: Mean latency since the state before. None: no request since.
        p95_ms: 95th percentile of the results that were handed to the view. None: there are none.
        rate_hz: Requests a second since the state before.
        time_s: Of the clock that the view reads.
    """

    title: str
    stages: tuple[str, ...]
    budget: Budget
    decision: Decision | None
    snapshot: Snapshot | None
    stats: Statistics
    predicted_ms: float | None
    recent_ms: float | None
    p95_ms: float | None
    rate_hz: float
    time_s: float

    @property
    def percentile_word(self) -> str:
        """What the limit of latency is about."""
        return "mean" if self.budget.percentile is None else f"p{100 * self.budget.percentile:g}"


def live_state(run: Runtime, before: LiveState | None, latencies_ms: Sequence[float], time_s: float) -> LiveState:
    """Read a runtime.

    Args:
        run: The runtime.
        before: The state that was read before. None: this is the first.
        latencies_ms: Of the latest results that were handed to the view.
        time_s: The time now.

    Returns:
        Its state.
    """
    stats, decision, budget = run.stats(), run.deployment.decision, run.budget
    requests = stats.requests - (before.stats.requests if before is not None else 0)
    waited_s = time_s - before.time_s if before is not None else 0.0
    total_ms = stats.mean_latency_ms * stats.requests
    if before is not None:
        total_ms -= before.stats.mean_latency_ms * before.stats.requests
    predicted_ms = None
    if decision is not None and decision.point in run.frontier.points:
        place = run.frontier.points.index(decision.point)
        predicted_ms = run.frontier.latency_ms(budget.percentile, 1)[place] * decision.slowdown
    try:
        snapshot = run.monitor.latest
    except Exception:  # a monitor of the user's own: requests are answered without it too
        snapshot = None
    return LiveState(
        title=f"{run.bundle.folder}, {run.engine.name} {run.engine.precision}",
        stages=tuple(stage.name for stage in run.bundle.spec.stages),
        budget=budget,
        decision=decision,
        snapshot=snapshot,
        stats=stats,
        predicted_ms=predicted_ms,
        recent_ms=max(total_ms, 0.0) / requests if requests > 0 else None,
        p95_ms=float(np.percentile(latencies_ms, 95)) if latencies_ms else None,
        rate_hz=requests / waited_s if waited_s > 0 else 0.0,
        time_s=time_s,
    )


def device_words(state: LiveState) -> dict[str, str]:
    """What the sensors say, by name. What is unknown is called so."""
    snapshot, budget = state.snapshot or Snapshot(0.0), state.budget
    memory = "unknown" if snapshot.memory_process_mb is None else f"{snapshot.memory_process_mb:.0f} MB"
    if budget.memory_mb is not None:
        memory += f" of {budget.memory_mb:g} MB allowed"
    if snapshot.memory_available_mb is not None:
        memory += f", {snapshot.memory_available_mb:.0f} MB free"
    battery = "unknown or none" if snapshot.battery is None else f"{snapshot.battery:.0%}"
    battery += {True: ", on the mains", False: ", on battery", None: ""}[snapshot.plugged]
    if budget.battery_floor is not None:
        battery += f", floor {budget.battery_floor:.0%}"
    heat = "unknown" if snapshot.temperature_c is None else f"{snapshot.temperature_c:.1f} C"
    if budget.temperature_c is not None:
        heat += f" of {budget.temperature_c:g} C allowed"
    load = "unknown" if snapshot.cpu_load is None else f"{snapshot.cpu_load:.0%} used by others"
    return {"CPU": load, "memory": memory, "battery": battery, "heat": heat}


def latency_words(state: LiveState) -> str:
    """Latency beside its limit."""
    parts = []
    if state.predicted_ms is not None:
        parts.append(f"predicted {state.percentile_word} {state.predicted_ms:.3g} ms")
    if state.budget.latency_ms is not None:
        parts.append(f"limit {state.budget.latency_ms:g} ms")
    if state.recent_ms is not None:
        parts.append(f"recent mean {state.recent_ms:.3g} ms")
    if state.p95_ms is not None:
        parts.append(f"measured p95 {state.p95_ms:.3g} ms")
    return ", ".join(parts) or "no request yet"
