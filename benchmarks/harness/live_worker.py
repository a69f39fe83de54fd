"""The process behind one contender of a live run: opens a bundle, then answers requests at the times it is told.

It reads a line of JSON a run and answers with one; what it holds in between is an open runtime, its monitor running.
Times are of the system's monotonic clock, which all processes share. torch is never imported here. `live.py` starts it:
python -m benchmarks.harness.live_worker JOB, the job as JSON.
"""

import gc
import json
import sys
import time
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

import dynamic
from dynamic.policies.budget import Budget
from dynamic.policies.control.budget_policy import BudgetPolicy
from dynamic.policies.control.fixed_policy import FixedPolicy


@dataclass(frozen=True)
class Job:
    """What a worker opens: the bundle in `folder`, under the policy that stays at `point` (None: BudgetPolicy).

    `inputs`: an .npy file `[N, ...]`, an item is one row of it. `options`: those of `OnnxRuntimeOptions`, by name.
    `queued`: by `Runtime.submit`, else by `run(x)` on the thread that keeps the times.
    """

    folder: str
    inputs: str
    point: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    queued: bool = True

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Answer:
    """One request: `item` that came at `at_s` after the start of the run, `late_ms` handed to the runtime.

    `latency_ms` from `at_s` to the answer, `work_ms` of it without lateness and queue; None where it was shed. `cut`:
    by the deadline. `slowdown` that the policy expected, `load` that the monitor said last, `pause_ms` of the garbage
    collector in the process so far.
    """

    at_s: float
    item: int
    late_ms: float
    latency_ms: float | None = None
    work_ms: float = 0.0
    stage: int = -1
    label: int = -1
    point: str = ""
    cut: bool = False
    slowdown: float = 1.0
    load: float | None = None
    pause_ms: float = 0.0


class Pauses:
    """Milliseconds that the garbage collector took so far."""

    def __init__(self) -> None:
        self.ms, self._began = 0.0, 0.0
        gc.callbacks.append(self._note)

    def _note(self, phase: str, _: Any) -> None:
        if phase == "start":
            self._began = time.perf_counter()
        else:
            self.ms += (time.perf_counter() - self._began) * 1e3


def answers(run: Any, inputs: Any, asked: dict[str, Any], queued: bool, pauses: Pauses) -> list[Answer]:
    """Send `asked["items"]` at `asked["times_s"]` after `asked["start_s"]`, whatever has been answered by then."""
    found: list[Answer] = []
    waiting: list[tuple[dict[str, Any], Future[Any]]] = []

    def note(what: dict[str, Any], result: Any) -> None:
        point, stage = result.decision.point, result.stage
        last = len(point.operating_point.thresholds)
        found.append(
            Answer(
                **what,
                latency_ms=what["late_ms"] + result.latency_ms,
                work_ms=result.latency_ms - result.waited_ms,
                stage=stage,
                label=result.label,
                point=point.name,
                cut=stage < last and not point.operating_point.thresholds[stage] < result.score,
                slowdown=result.decision.slowdown,
                load=run.monitor.latest.cpu_load,
                pause_ms=pauses.ms,
            )
        )

    for at_s, item in zip(asked["times_s"], asked["items"], strict=True):
        left_s = asked["start_s"] + at_s - time.perf_counter()
        if left_s > 0:
            time.sleep(left_s)
        image = inputs[item]
        what = {"at_s": at_s, "item": item, "late_ms": (time.perf_counter() - asked["start_s"] - at_s) * 1e3}
        if not queued:
            note(what, run(image))
            continue
        waiting.append((what, run.submit(image)))
        while waiting and waiting[0][1].done():
            _take(waiting.pop(0), note, found)
    for entry in waiting:
        _take(entry, note, found)
    return found


def _take(entry: tuple[dict[str, Any], Any], note: Any, found: list[Answer]) -> None:
    what, future = entry
    try:
        result = future.result()
    except dynamic.ShedError:
        found.append(Answer(**what))
    else:
        note(what, result)


def main() -> None:
    """Open, then serve run after run until the pipe closes."""
    job = Job(**json.loads(sys.argv[1]))
    inputs = np.load(job.inputs)
    policy = BudgetPolicy() if job.point is None else FixedPolicy(job.point)
    pauses = Pauses()
    options = dynamic.OnnxRuntimeOptions(**job.options)
    with dynamic.load(job.folder).runtime(policy=policy, drift_alpha=None, options=options) as run:
        for _ in range(20):  # what is loaded and allocated once is no part of a run
            run(inputs[0])
        print(json.dumps({"threads": run.engine.threads, "points": [p.name for p in run.frontier.points]}))
        sys.stdout.flush()
        for line in sys.stdin:
            asked = json.loads(line)
            run.budget = Budget.from_json(asked["budget"])
            run(inputs[0])  # the first under a budget may go another way, and load
            served = [asdict(a) for a in answers(run, inputs, asked, job.queued, pauses)]
            print(json.dumps({"answers": served, "cuts": run.stats().deadline_cuts}).replace("NaN", "null"))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
