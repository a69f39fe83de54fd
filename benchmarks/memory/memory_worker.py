"""The process behind `real_memory.py`: a runtime whose resident memory is watched while requests run.

`real_memory.py` starts it: python -m benchmarks.memory.memory_worker JOB, the job as JSON.

The job as JSON: `folder` of the bundle, `moves` of (requests, `memory_mb` of the budget on top of what the process has
before any network is loaded, or null for no limit); `rate_hz` (null: one request after the other); `until_stopped`: or
until a line comes in; `shape` of an input. It says "ready", serves, and prints one line of JSON. No torch in here.
"""

import json
import sys
import threading
import time
from typing import Any

import numpy as np
import psutil

import dynamic

SAMPLED_S = 0.02
SETTLED_REQUESTS = 10  # after a move, whatever the time they take on a busy machine


class Sampler:
    """Resident MB of this process, and what the monitor says is available, again and again from a thread."""

    def __init__(self, run: Any) -> None:
        self.times_s: list[float] = []
        self.resident_mb: list[float] = []
        self.available_mb: list[float | None] = []
        self._process, self._run, self._stop = psutil.Process(), run, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """No more."""
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLED_S):
            self.times_s.append(time.perf_counter())
            self.resident_mb.append(self._process.memory_info().rss / 1e6)
            self.available_mb.append(self._run.monitor.latest.memory_available_mb)


def serve(run: Any, job: dict[str, Any], base_mb: float) -> dict[str, Any]:
    """All requests; what ran, what failed, and when the budget moved."""
    random = np.random.default_rng(0)
    inputs = random.standard_normal((64, 1, *job["shape"])).astype(np.float32)
    moves: list[dict[str, float | None]] = []
    points: list[tuple[float, str, tuple[str, ...]]] = []  # when, which and what gave way: where it changes
    failed: dict[str, int] = {}
    number, next_s = 0, time.perf_counter()
    stopped = threading.Event()
    if job.get("until_stopped"):

        def wait_for_a_line() -> None:
            sys.stdin.readline()
            stopped.set()

        threading.Thread(target=wait_for_a_line, daemon=True).start()
    for requests, extra_mb in job["moves"]:
        limit_mb = None if extra_mb is None else base_mb + extra_mb
        run.budget = dynamic.Budget(memory_mb=limit_mb)
        moves.append({"time_s": time.perf_counter(), "limit_mb": limit_mb})
        for sent in range(requests):
            if sent == SETTLED_REQUESTS:
                moves[-1]["settled_s"] = time.perf_counter()
            if job.get("rate_hz"):
                next_s += 1 / job["rate_hz"]
                time.sleep(max(0.0, next_s - time.perf_counter()))
            if stopped.is_set():
                break
            try:
                decision = run({"input": inputs[number % len(inputs)]}).decision
            except Exception as error:
                failed[repr(error)[:200]] = failed.get(repr(error)[:200], 0) + 1
            else:
                said = (decision.point.name, decision.violated_limits)
                if not points or points[-1][1:] != said:
                    points.append((time.perf_counter(), *said))
            number += 1
    return {"requests": number, "failed": failed, "moves": moves, "points": points}


def main() -> None:
    """One job."""
    job = json.loads(sys.argv[1])
    bundle = dynamic.load(job["folder"])
    base_mb = psutil.Process().memory_info().rss / 1e6
    with bundle.runtime(dynamic.Budget(), drift_alpha=None, fallback=(), **job["options"]) as run:
        print("ready", flush=True)
        sampler = Sampler(run)
        found = serve(run, job, base_mb)
        sampler.close()
        stats = run.stats()
    found |= {
        "base_mb": base_mb,
        "sampled_s": sampler.times_s,
        "resident_mb": sampler.resident_mb,
        "available_mb": sampler.available_mb,
        "point_shares": stats.point_shares,
        "engine_failures": stats.engine_failures,
        "policy_failures": stats.policy_failures,
    }
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
