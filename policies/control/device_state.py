"""The last valid reading of every sensor, and what a policy derives from them.

A sensor that stops answering changes nothing. Its last reading counts until it answers again.
"""

import math
from dataclasses import dataclass, field
from typing import Self, TypeVar

from dynamic.policies.budget import Budget
from dynamic.policies.control.battery import BatteryPacer, DrainModel
from dynamic.policies.control.slowdown import Slowdown
from dynamic.policies.control.thermal import Cooling
from dynamic.policies.decision import Feedback
from dynamic.policies.fast_paths import fast_replace
from dynamic.policies.frontier import Frontier
from dynamic.policies.snapshot import Snapshot

T = TypeVar("T", bound=float)

_READINGS: tuple[str, ...] = ("cpu_load", "cpu_cores", "cpu_pressure", "memory_pressure", "battery", "battery_mwh")
_READINGS += ("plugged", "memory_available_mb", "temperature_c", "throttled")

_SETTLED_S = 1.0  # after which resident memory reflects a change of networks
_DECAY = 0.9  # of memory beyond the expected amount, with each reading that shows less


@dataclass(frozen=True)
class DeviceState:
    """Readings as in `Snapshot`, and what is derived from them.

    Args:
        time_s: When the newest snapshot was read.
        cpu_load: See `Snapshot`, as all that follows down to `servers`.
        cpu_cores: See `Snapshot`.
        cpu_pressure: See `Snapshot`.
        memory_pressure: See `Snapshot`.
        battery: See `Snapshot`.
        battery_mwh: See `Snapshot`.
        plugged: See `Snapshot`.
        memory_available_mb: See `Snapshot`.
        temperature_c: See `Snapshot`.
        throttled: See `Snapshot`.
        rows: Inputs in the request that is about to run.
        size: Size of one of them. None: that of the example.
        waited_ms: How long ago it came: its time in the queue and in preprocessing.
        queue_length: Requests that wait behind it.
        servers: How many requests are served at once.
        snapshot: The newest snapshot.
        speed: Estimate of what requests take, over what their profile and `contention` predict.
        contention: How much longer `threads` take because of the load of other processes.
        threads: Threads of the engine.
        base_mb: Memory of this process before any network was loaded.
        excess_mb: Memory beyond `base_mb` and the networks in memory.
        resident: Backbones in memory.
        everything: Whether any backbone may be in memory.
        loaded_s: When `resident` last changed.
        drift: Whether inputs differ from those of the calibration.
        effort: Effort of all requests so far.
        count: Inputs of all requests so far.
        battery_pacer: How a battery that must last a given time discharges.
        cooling: Smoothed temperature.
    """

    time_s: float = 0.0
    cpu_load: float | None = None
    cpu_cores: float | None = None
    cpu_pressure: float | None = None
    memory_pressure: float | None = None
    battery: float | None = None
    battery_mwh: float | None = None
    plugged: bool | None = None
    memory_available_mb: float | None = None
    temperature_c: float | None = None
    throttled: bool | None = None
    rows: int = 1
    size: int | None = None
    waited_ms: float = 0.0
    queue_length: int = 0
    servers: int = 1
    snapshot: Snapshot | None = None
    speed: Slowdown = field(default_factory=Slowdown)
    contention: float = 1.0
    threads: int = 0
    base_mb: float | None = None
    excess_mb: float = 0.0
    resident: frozenset[int] = frozenset()
    everything: bool = True
    loaded_s: float = 0.0
    drift: bool = False
    effort: float = 0.0
    count: int = 0
    battery_pacer: BatteryPacer | None = None
    cooling: Cooling | None = None

    @property
    def slowdown(self) -> float:
        """How much longer than profiled a request takes."""
        return self.speed.ratio * self.contention

    @property
    def spread(self) -> float:
        """Standard deviation of the log ratio of observed to expected time of single requests."""
        return self.speed.spread

    def with_snapshot(self, frontier: Frontier, budget: Budget, snapshot: Snapshot) -> Self:
        """After a snapshot."""
        now = fast_replace(
            self,
            time_s=snapshot.time_s,
            rows=snapshot.rows or 1,
            size=snapshot.size,
            waited_ms=snapshot.waited_ms or 0.0,
            queue_length=snapshot.queue_length or 0,
            servers=snapshot.servers or 1,
            snapshot=snapshot,
        )
        fields, readings = now.__dict__, snapshot.__dict__
        for name in _READINGS:
            reading = readings[name]
            if reading is not None and math.isfinite(reading):
                fields[name] = reading
        fields["threads"] = threads = frontier.costs.threads
        fields["contention"] = fair_share(now.cpu_load, now.cpu_cores, now.cpu_pressure, threads)
        process_mb, now_c = newest(snapshot.memory_process_mb, None), newest(snapshot.temperature_c, None)
        if self.base_mb is None and process_mb is not None:  # mostly before any network was loaded
            fields["base_mb"] = max(process_mb - resident_mb(frontier, self.resident), 0.0)
        before = self.snapshot
        # a clock that stands still: nothing can be averaged over time, so a new reading counts as it is
        still = before if before is not None and snapshot.time_s == before.time_s else None
        if budget.memory_mb is not None and process_mb is not None:
            settled = still is not None and process_mb != still.memory_process_mb
            decay = _DECAY if now.time_s > self.time_s else 1.0
            fields["excess_mb"] = now._excess(frontier, process_mb, decay, settled)
        if budget.battery_duration_s is None:
            fields["battery_pacer"] = None
        elif now.battery is not None:
            fields["battery_pacer"] = now._next_pacer(
                frontier, budget.battery_duration_s, now.battery, snapshot.battery is not None
            )
        if budget.temperature_c is None:
            fields["cooling"] = None
        elif now_c is not None:
            cooling = self.cooling or Cooling(snapshot.time_s, now_c)
            if still is not None and now_c != still.temperature_c and now_c > cooling.temperature_c:
                cooling = Cooling(snapshot.time_s, now_c, cooling.slope_c)
            fields["cooling"] = cooling.with_reading(snapshot.time_s, now_c)
        return now

    def with_feedback(self, feedback: Feedback, effort: float) -> Self:
        """After requests: their time beyond what the load explains, and whether inputs have drifted.

        Args:
            feedback: What they took.
            effort: Of the point that ran, for one input.
        """
        contention, snapshot, rows = self.contention, feedback.snapshot, sum(feedback.rows)
        if snapshot is not self.snapshot or feedback.threads != self.threads:  # of a request on another thread
            load, cores = newest(snapshot.cpu_load, self.cpu_load), newest(snapshot.cpu_cores, self.cpu_cores)
            contention = fair_share(load, cores, newest(snapshot.cpu_pressure, self.cpu_pressure), feedback.threads)
        return fast_replace(
            self,
            speed=self.speed.observe(feedback.latency_ms, [contention * ms for ms in feedback.expected_ms]),
            drift=feedback.drift,
            effort=self.effort + effort * rows,
            count=self.count + rows,
        )

    def _excess(self, frontier: Frontier, process_mb: float, decay: float, settled: bool) -> float:
        assert self.base_mb is not None
        if not settled and 0 <= self.time_s - self.loaded_s < _SETTLED_S:
            return self.excess_mb
        networks = resident_mb(frontier, self.resident)
        return max(process_mb - self.base_mb - networks, decay * self.excess_mb, 0.0)

    def _next_pacer(self, frontier: Frontier, battery_duration_s: float, battery: float, fresh: bool) -> BatteryPacer:
        pacer, metered = self.battery_pacer, frontier.costs.energy_mj is not None
        drain = DrainModel()
        if self.battery_mwh and battery > 0:
            whole_mj = self.battery_mwh / battery * 3600  # 1 mWh is 3,600 mJ
            idle_mw = frontier.costs.idle_mw
            drain = DrainModel(None if idle_mw is None else idle_mw / whole_mj, 1 / whole_mj if metered else None)
        if pacer is None or pacer.battery_duration_s != battery_duration_s:
            pacer = BatteryPacer.start(battery_duration_s, self.time_s, battery, self.effort, self.count, drain)
        if self.plugged:
            return pacer.charging(self.time_s, battery, self.effort)
        return pacer.with_reading(self.time_s, battery, self.effort, self.count, drain, fresh)


def fair_share(cpu_load: float | None, cpu_cores: float | None, cpu_pressure: float | None, threads: int) -> float:
    """How much longer than alone `threads` take beside other load, where all threads get the same share of the cores.

    Where the load is unknown, the share of time in which something waited for the processor counts instead.
    """
    if cpu_load is None or not cpu_cores:
        return 1.0 if cpu_pressure is None else 1.0 / (1.0 - min(cpu_pressure, 0.9))
    return max(cpu_cores, cpu_load * cpu_cores + threads) / max(cpu_cores, threads)


def resident_mb(frontier: Frontier, backbones: frozenset[int]) -> float:
    """Memory of these backbones, in MB."""
    memory_mb = frontier.costs.memory_mb
    return sum(memory_mb[b] for b in backbones) if backbones else 0.0


def newest(new: T | None, old: T | None) -> T | None:
    """The new value, or the old one where the new is None, infinite or NaN."""
    return old if new is None or not math.isfinite(new) else new
