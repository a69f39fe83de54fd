"""A policy at work on a simulated device: recorded answers, simulated time and battery, the real decisions."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.budget import Budget
from dynamic.policies.decision import Decision, Feedback, Policy
from dynamic.policies.errors import BudgetError, InputError
from dynamic.policies.frontier import Frontier
from dynamic.policies.records import Records
from dynamic.policies.replay import replay
from dynamic.policies.scores import Combiner
from dynamic.policies.snapshot import Snapshot
from dynamic.simulate.devices import Device
from dynamic.simulate.report import Change, SimulationReport
from dynamic.simulate.workload import Workload

Load = float | Callable[[float], float]  # 0..1, or a function of the time in seconds


def simulate(
    frontier: Frontier,
    records: Records,
    device: Device,
    workload: Workload,
    policy: Policy,
    budget: Budget,
    *,
    seed: int = 0,
    background_load: Load = 0.0,
    battery: float = 1.0,
    process_mb: float = 60.0,
) -> SimulationReport:
    """Let `policy` serve `workload` on `device` under `budget`, one request of one input at a time.

    Every request is one of `records` (each once, in random order, before any comes again), with the scores and
    the correctness that were recorded: give records that the thresholds were not chosen on,
    `records.select(records.part == 1)`. It takes the time of the path to the stage that it leaves at, as if
    profiled on the device, times (b + t) / c where the b cores that `background_load` keeps busy and the t
    threads of inference want more than the c cores there are. The battery starts at `battery` (0..1) and gives
    `idle_mw` all the time and `active_mw` on top while a request is served; what the background load draws is
    not counted. `process_mb`: resident memory before any network is loaded. The same seed gives the same report.

    Raises InputError on records of another cascade, BudgetError on a battery or load outside 0..1.
    """
    if records.stages != len(frontier.ladder.backbone):
        raise InputError(
            f"records are of {records.stages} stages, the frontier of {len(frontier.ladder.backbone)}: "
            "give the records of this bundle"
        )
    if len(records) == 0:
        raise InputError("there are no records: nothing can be replayed")
    if not 0 < battery <= 1:
        raise BudgetError(f"battery={battery} must be a fraction above 0, 1 for full")
    random = np.random.default_rng(seed)
    arrival_s = workload.arrivals(random)  # [M]
    record = _shuffled(len(arrival_s), len(records), random)  # [M]
    here = frontier.recost(device.costs(frontier.costs))
    outcomes = _outcomes(here, records)
    power, tally = _Power(device, battery), _Tally()
    state, resident, free_at_s = policy.initial(), frozenset[int](), 0.0
    for number, arrived_s in enumerate(arrival_s.tolist()):
        start_s = max(arrived_s, free_at_s)
        if not power.draw_until(start_s, busy=False):
            break
        waiting = int(np.searchsorted(arrival_s, start_s, side="right")) - number - 1
        load = _load_at(background_load, start_s)
        loaded_mb = sum(here.costs.memory_mb[backbone] for backbone in resident)
        snapshot = Snapshot(
            time_s=start_s,
            cpu_load=load,
            cpu_cores=float(device.cores),
            memory_available_mb=max(0.0, device.memory_mb - process_mb - loaded_mb),
            memory_process_mb=process_mb + loaded_mb,
            battery=power.battery,
            plugged=False,
            rows=1,
            queue_length=waiting,
            waited_ms=(start_s - arrived_s) * 1e3,
        )
        decision, state = policy.decide(here, budget, snapshot, state)
        point = decision.point
        tally.decided(start_s, decision, waiting)
        needed = frozenset(point.point.backbones)
        resident = needed if budget.memory_mb is not None else resident | needed
        outcome = outcomes[point.point.name]
        stage = int(outcome.stage[record[number]])
        alone_ms = here.path_ms(point, stage, 1)
        took_ms = alone_ms * max(1.0, (load * device.cores + here.costs.threads) / device.cores)
        free_at_s = start_s + took_ms / 1e3
        if not power.draw_until(free_at_s, busy=True):
            break
        tally.answered((free_at_s - arrived_s) * 1e3, stage, point.point.name, outcome, int(record[number]))
        feedback = Feedback(
            point=point,
            stage=stage,
            rows=1,
            latency_ms=took_ms,
            expected_ms=alone_ms,
            threads=here.costs.threads,
            snapshot=snapshot,
        )
        state = policy.observe(state, feedback)
    else:
        power.draw_until(max(free_at_s, workload.duration_s), busy=False)
    return tally.report(device, budget, power, len(arrival_s), records.stages)


@dataclass(frozen=True, eq=False)
class _Outcome:
    """What every record would do at one operating point: `stage [N]`, and whether `right [N]` where labelled."""

    stage: NDArray[np.int64]
    right: NDArray[np.bool_] | None


def _outcomes(frontier: Frontier, records: Records) -> dict[str, _Outcome]:
    ladder = frontier.ladder
    combiner = Combiner(ladder.temperature, ladder.score, ladder.combine, ladder.backbone)
    found = {}
    for costed in frontier.points:
        played = replay(records.logits, combiner, costed.point.thresholds, ladder.backbone)
        right = None if records.label is None else played.prediction == records.label
        found[costed.point.name] = _Outcome(played.stage, right)
    return found


def _shuffled(requests: int, records: int, random: np.random.Generator) -> NDArray[np.int64]:
    """A record for each request: every one once before any comes again."""
    rounds = [random.permutation(records) for _ in range(-(-requests // records))]
    return np.concatenate([*rounds, np.empty(0, np.int64)]).astype(np.int64)[:requests]


def _load_at(background_load: Load, time_s: float) -> float:
    load = background_load(time_s) if callable(background_load) else background_load
    if not 0 <= load <= 1:
        raise BudgetError(f"background_load={load} at {time_s:.3g} s must be a fraction, 0 to 1")
    return float(load)


class _Power:
    """The battery over time: `left_mj` of it (millijoules; 1 mWh is 3,600), `used_mj` so far."""

    def __init__(self, device: Device, battery: float) -> None:
        self._device = device
        self._full_mj = device.battery_mwh * 3600
        self.left_mj = battery * self._full_mj
        self.used_mj = self.time_s = 0.0

    @property
    def battery(self) -> float:
        return self.left_mj / self._full_mj

    def draw_until(self, time_s: float, busy: bool) -> bool:
        """Draw power until `time_s`; False where the battery is empty before."""
        power_mw = self._device.idle_mw + (self._device.active_mw if busy else 0.0)
        lasts_s = self.left_mj / power_mw
        for_s = min(time_s - self.time_s, lasts_s)
        self.time_s += for_s
        self.used_mj += power_mw * for_s
        self.left_mj = max(0.0, self.left_mj - power_mw * for_s)
        return for_s < lasts_s


class _Tally:
    """What happened so far."""

    def __init__(self) -> None:
        self._latency_ms: list[float] = []
        self._right: list[bool] = []
        self._stages: Counter[int] = Counter()
        self._points: Counter[str] = Counter()
        self._changes: list[Change] = []
        self._longest = 0

    def decided(self, time_s: float, decision: Decision, waiting: int) -> None:
        self._longest = max(self._longest, waiting)
        name = decision.point.point.name
        if not self._changes or self._changes[-1].point != name:
            self._changes.append(Change(time_s, name, decision.reason))

    def answered(self, latency_ms: float, stage: int, point: str, outcome: _Outcome, record: int) -> None:
        self._latency_ms.append(latency_ms)
        self._stages[stage] += 1
        self._points[point] += 1
        if outcome.right is not None:
            self._right.append(bool(outcome.right[record]))

    def report(self, device: Device, budget: Budget, power: _Power, requests: int, stages: int) -> SimulationReport:
        latency_ms = np.array(self._latency_ms, np.float64)
        count = len(latency_ms)
        limit_ms = budget.latency_ms if count else None
        return SimulationReport(
            device=device.name,
            requests=requests,
            answered=count,
            accuracy=sum(self._right) / len(self._right) if self._right else None,
            mean_latency_ms=float(latency_ms.mean()) if count else None,
            p95_latency_ms=float(np.percentile(latency_ms, 95)) if count else None,
            late_share=None if limit_ms is None else float((latency_ms > limit_ms).mean()),
            queue_longest=self._longest,
            energy_mj=power.used_mj,
            energy_source="model",
            battery_left=power.battery,
            hours=power.time_s / 3600,
            hours_per_charge=device.battery_mwh * power.time_s / power.used_mj,
            changes=tuple(self._changes),
            stage_shares=tuple(self._stages[s] / max(count, 1) for s in range(stages)),
            point_shares={name: n / count for name, n in self._points.items()},
            latency_ms=latency_ms,
        )
