"""How many decisions a stream needs, and whether they are those that a decision for each request would make.

    python -m benchmarks.runtime.decision_rate

A runtime on an engine of numpy answers 1,000 requests a second for some seconds, with its monitor at 5 Hz. What is
counted is how often the policy decides. Then simulated streams under changing load run twice: once with a decision for
each request, once as the runtime decides. What is counted is the share of requests that run at the same operating
point. Streams have 20 requests a second, of which a reading comes every fourth, or 200, of networks ten times as fast.
"""

import argparse
import time
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

import dynamic
from benchmarks.harness.common import progress, save
from benchmarks.runtime.request_path import INPUTS, runtime
from benchmarks.simulation.simulator_speed import made_up
from dynamic.policies import Budget, BudgetPolicy, Costs, Decision, Feedback
from dynamic.policies.control.budget_policy import BudgetState
from dynamic.simulate import Bursts, Poisson, Steps, device, simulate
from dynamic.simulate.requests.simulated_runtime import Decide

RATE_HZ, SECONDS, REQUESTS = 1000, 10.0, 30_000
STREAMS = {  # requests a second, and a budget under which points change
    "20/s, latency": (20, Budget(latency_ms=14)),
    "20/s, latency, temperature": (20, Budget(latency_ms=14, temperature_c=38)),
    "200/s, latency": (200, Budget(latency_ms=1.4)),
    "200/s, latency, temperature": (200, Budget(latency_ms=1.4, temperature_c=38)),
}


class Recorder(BudgetPolicy):
    """The budget policy, with its decisions and the number of requests before each."""

    def __init__(self) -> None:
        super().__init__()
        self.decisions: list[tuple[int, str]] = []
        self.standing: list[str] = []  # points of decisions that were not for one request alone
        self.answered = 0

    def decide(self, frontier: Any, budget: Any, snapshot: Any, state: BudgetState) -> tuple[Decision, BudgetState]:
        """As the budget policy."""
        decision, state = super().decide(frontier, budget, snapshot, state)
        self.decisions.append((self.answered, decision.point.name))
        if not decision.one_request_only:
            self.standing.append(decision.point.name)
        return decision, state

    def observe(self, state: BudgetState, feedback: Feedback) -> BudgetState:
        """As the budget policy."""
        self.answered += len(feedback.stages)
        return super().observe(state, feedback)

    def points(self) -> list[str]:
        """The operating point of each request that was answered."""
        begins = [number for number, _ in self.decisions] + [self.answered]
        lengths = np.diff(begins).tolist()
        return [name for (_, name), length in zip(self.decisions, lengths, strict=True) for _ in range(length)]


def decisions_a_second(seconds: float) -> dict[str, float]:
    """Of a runtime that answers `RATE_HZ` requests a second."""
    policy, monitor = Recorder(), dynamic.Monitor().start()
    with runtime(monitor, policy) as run:
        x = np.zeros(INPUTS, np.float32)
        for _ in range(RATE_HZ):
            run(x)
        policy.decisions.clear()
        began = time.perf_counter()
        for number in range(round(RATE_HZ * seconds)):
            run(x)
            time.sleep(max(0.0, began + (number + 1) / RATE_HZ - time.perf_counter()))
        took_s = time.perf_counter() - began
    monitor.close()
    return {
        "requests_per_s": round(RATE_HZ * seconds / took_s, 1),
        "decisions_per_s": round(len(policy.decisions) / took_s, 1),
    }


def faster(costs: Costs, factor: float) -> Costs:
    """Costs of networks so many times as fast."""
    fields = ("latency_ms", "latency_p95_ms", "head_ms", "cpu_ms")
    tables: dict[str, Any] = {
        name: tuple(tuple(ms / factor for ms in row) for row in getattr(costs, name)) for name in fields
    }
    return replace(costs, **tables, call_ms=tuple(ms / factor for ms in costs.call_ms))


def agreement(rate_hz: float, budget: Budget, seed: int) -> dict[str, float]:
    """The share of requests that run at the same point, and the decisions of both."""
    frontier, records = made_up()
    frontier = frontier.recost(faster(frontier.costs, rate_hz / 20))
    phone = device("mid-range-phone")
    recorders: dict[Decide, Recorder] = {}
    ways: tuple[Decide, ...] = ("request", "change")
    for decide in ways:
        recorders[decide] = Recorder()
        simulate(
            frontier,
            records,
            device=phone,
            workload=Poisson(rate_hz, REQUESTS / rate_hz),
            policy=recorders[decide],
            budget=budget,
            background_load=Bursts(0.1, 0.9, on_s=20, off_s=60, seed=seed),
            ambient_c=Steps((0.0, 600.0), (25.0, 35.0)),
            plugged=1.0,
            decide=decide,
            seed=seed,
        )
    both = [recorders[decide].points() for decide in ways]
    count = min(map(len, both))
    same = float(np.mean([one == other for one, other in zip(*(points[:count] for points in both), strict=True)]))
    return {
        "requests": count,
        "same_point": round(same, 5),
        "decisions_each": len(recorders["request"].decisions),
        "decisions": len(recorders["change"].decisions),
        "changes_each": _changes(recorders["request"].standing),
        "changes": _changes(recorders["change"].standing),
    }


def _changes(points: list[str]) -> int:
    return sum(one != other for one, other in pairwise(points))


def main() -> None:
    """Both figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    progress(f"{RATE_HZ} requests a second for {options.seconds:g} s")
    rate = decisions_a_second(options.seconds)
    print(f"{rate['requests_per_s']} requests and {rate['decisions_per_s']} decisions a second")
    rows: dict[str, list[dict[str, float]]] = {}
    for name, (rate_hz, budget) in STREAMS.items():
        rows[name] = [agreement(rate_hz, budget, seed) for seed in range(options.seeds)]
        for row in rows[name]:
            print(f"{name:27} {row}")
    total = sum(row["requests"] for some in rows.values() for row in some)
    same = sum(row["same_point"] * row["requests"] for some in rows.values() for row in some) / total
    least = min(row["same_point"] for some in rows.values() for row in some)
    print(f"the same point in {same:.3%} of {total} requests, in {least:.3%} of the stream with the least")
    figures = {"rate": rate, "streams": rows, "same_point": round(same, 5), "least_same_point": least}
    print(save("runtime/decision_rate", figures))


if __name__ == "__main__":
    main()
