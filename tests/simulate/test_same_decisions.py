"""The simulator and the runtime decide alike: a simulated stream, played through a real runtime, event by event."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.runtime_cases import Clock, shared_blobs
from support.simulation_cases import COSTS, LADDER, PLAIN, RECORDS

import dynamic
from dynamic.engines.contract import Output
from dynamic.policies import BudgetPolicy, Decision, Feedback, Frontier, Snapshot
from dynamic.policies.control.budget_policy import BudgetState
from dynamic.simulate import Constant, Stalls, Steps, simulate

# times that scatter: a clock rounds, and a scatter of exactly 0 is a case of its own
FRONTIER = Frontier.of(LADDER, replace(COSTS, latency_p95_ms=((24.0,), (48.0,))))


class Recorder(BudgetPolicy):
    """Records each decision with the number of requests before it, and what each request took."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[int, str]] = []
        self.snapshots: dict[int, Snapshot] = {}  # by the number of the request
        self.took_ms: list[float] = []
        self.stages: list[int] = []

    def decide(
        self, frontier: Any, budget: dynamic.Budget, snapshot: Snapshot, state: BudgetState
    ) -> tuple[Decision, BudgetState]:
        decision, state = super().decide(frontier, budget, snapshot, state)
        self.events.append((len(self.took_ms), decision.point.name))
        self.snapshots[len(self.took_ms)] = snapshot
        return decision, state

    def observe(self, state: BudgetState, feedback: Feedback) -> BudgetState:
        self.took_ms += feedback.latency_ms
        self.stages += feedback.stages
        return super().observe(state, feedback)


class Player:
    """An engine whose requests exit where they exited in a simulation, and take as long."""

    name, precision, threads, agrees = "onnxruntime", "f32", 1, True

    def __init__(self, recorded: Recorder, clock: Clock) -> None:
        self._requests, self._clock = zip(recorded.took_ms, recorded.stages, strict=True), clock

    def ready(self, rows: int) -> bool:
        return True

    def prepare(self, *_: Any) -> bool:
        return False

    def bind(self, *_: Any) -> Callable[..., Output]:
        return self.run

    def run(self, *_: Any) -> Output:
        took_ms, stage = next(self._requests)
        self._clock.now += took_ms / 1e3
        return Output(np.log(np.full((1, 4), 0.25, np.float32)), np.array([stage]), np.array([0.9], np.float32))

    def close(self) -> None: ...


@pytest.mark.parametrize("monitor_hz", [5.0, 0.5, 0.01])
@pytest.mark.parametrize("budget", [dynamic.Budget(latency_ms=50), dynamic.Budget(latency_ms=75, min_accuracy=0.4)])
def test_a_recorded_stream_is_decided_alike(
    tmp_path_factory: pytest.TempPathFactory, monitor_hz: float, budget: dynamic.Budget
) -> None:
    # 300 requests. Others work from the 100th to the 200th, which makes requests 1.5 times as long, and some stall
    simulated = Recorder()
    report = simulate(
        FRONTIER,
        RECORDS,
        device=PLAIN,
        workload=Constant(2, 150),
        policy=simulated,
        budget=budget,
        background_load=Steps((0.0, 50.0, 100.0), (0.0, 1.0, 0.0)),
        stalls=Stalls(chance=0.1, mean_ms=60),
        plugged=1.0,
        monitor_hz=monitor_hz,
    )
    assert report.answered == 300
    assert len({name for _, name in simulated.events}) > 1, "nothing has to be decided"
    # each reading that a request meets is decided on: requests come every half second
    readings = {math.floor(number / 2 * monitor_hz + 1e-9) / monitor_hz for number in range(300)}
    assert sorted({snapshot.time_s for snapshot in simulated.snapshots.values()}) == pytest.approx(sorted(readings))
    real, clock, watch = Recorder(), Clock(), dynamic.FixedMonitor(simulated.snapshots[0])
    bundle = shared_blobs(tmp_path_factory)
    ladder = replace(LADDER, fingerprint=bundle.ladder.fingerprint)
    bundle = replace(bundle, ladder=ladder, costs=FRONTIER.costs)
    run = dynamic.Runtime.on_engine(
        bundle, FRONTIER, Player(simulated, clock), budget, watch, real, clock=clock, drift_alpha=None
    )
    with run:
        for number in range(report.answered):
            reading = simulated.snapshots.get(number, watch.latest)
            if reading.time_s != watch.latest.time_s:  # else the same reading was decided on once more
                watch.latest = reading
            run(np.zeros(12, np.float32))
    assert real.events == simulated.events
