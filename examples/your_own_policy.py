"""A policy of one's own is a class with one method: at night the cheapest point, by day what the latency allows.

    python examples/your_own_policy.py

Runs it on the simulator (a phone, a day and a night) and then on the real runtime, whose sensors are made up here. A
policy that raises fails no request: its last good decision stands, and it is counted. Handwritten digits; the bundle in
out/digits is made on the first run (half a minute).
"""

import logging
from typing import Any

import digits_bundle

import dynamic
from dynamic.policies import Budget, BudgetPolicy, Decision, Frontier, Policy, Snapshot
from dynamic.simulate import Diurnal, device, simulate

HOUR_S = 3600.0


class NightAndDay(Policy):
    """At night the cheapest point, by day the most accurate that answers in time."""

    def __init__(self, midnight_s: float = 0.0) -> None:
        self.midnight_s = midnight_s  # of the clock that `snapshot.time_s` is told by

    def decide(self, frontier: Frontier, budget: Budget, snapshot: Snapshot, state: Any) -> tuple[Decision, Any]:
        """Pure: the same decision wherever it is taken, and no memory but the state (None here, it needs none)."""
        hour = (snapshot.time_s - self.midnight_s) / HOUR_S % 24
        if hour < 7 or hour >= 22:
            return Decision(frontier.cheapest, reason=f"it is night, past {int(hour)}:00: the cheapest"), state
        limit_ms = (budget.latency_ms or float("inf")) - (snapshot.waited_ms or 0.0)
        p95_ms = frontier.latency_ms(budget.percentile, snapshot.rows or 1)
        fitting = [point for point, ms in zip(frontier.points, p95_ms, strict=True) if ms <= limit_ms]
        if not fitting:
            return Decision(frontier.cheapest, False, ("latency_ms",), "by day, and too late for any"), state
        best = max(fitting, key=lambda point: point.accuracy.mid)
        return Decision(best, reason=f"by day the most accurate within {limit_ms:.3g} ms"), state


class Forgetful(NightAndDay):
    """The same with a bug: it fails where the charge is not known."""

    def decide(self, frontier: Frontier, budget: Budget, snapshot: Snapshot, state: Any) -> tuple[Decision, Any]:
        """Raises TypeError where the charge is None."""
        if snapshot.battery < 0.1:  # type: ignore[operator]
            return Decision(frontier.cheapest, reason="the battery is low"), state
        return super().decide(frontier, budget, snapshot, state)


def on_the_simulator(bundle: dynamic.Bundle, budget: Budget) -> None:
    """A day and a night, with the policy and with the library's own."""
    records = bundle.records.select(bundle.records.part == 1)  # thresholds were chosen on the others
    requests = Diurnal(mean_hz=1.0, duration_s=24 * HOUR_S)
    print(f"SIMULATED mid-range phone on its charger, {requests.mean_hz:g} requests a second, midnight to midnight")
    for policy in (NightAndDay(), BudgetPolicy()):
        report = simulate(
            bundle.frontier,
            records,
            device=device("mid-range-phone"),
            workload=requests,
            policy=policy,
            budget=budget,
            plugged=1.0,
        )
        points = ", ".join(f"{name} {share:.0%}" for name, share in report.point_shares.items())
        print(
            f"{type(policy).__name__:14} accuracy {report.accuracy:.2%}, p95 {report.p95_latency_ms:.2f} ms, "
            f"{report.inference_mj / 1e3:.1f} J for inference, {len(report.changes) - 1} changes; {points}"
        )


def on_the_runtime(bundle: dynamic.Bundle, images: Any, policy: Policy, budget: Budget) -> None:
    """Real answers; only the readings are made up: noon, three in the morning, noon with the charge unknown."""
    monitor = dynamic.FixedMonitor(Snapshot(time_s=12 * HOUR_S, battery=0.8))
    readings: tuple[dict[str, Any], ...] = ({}, {"time_s": 27 * HOUR_S}, {"time_s": 36 * HOUR_S, "battery": None})
    with bundle.runtime(budget, policy=policy, monitor=monitor, drift_alpha=None) as run:
        for changes in readings:
            monitor.set(**changes)
            results = [run(image) for image in images.images[:100]]
            right = sum(result.label == label for result, label in zip(results, images.labels, strict=False))
            print(f"{type(policy).__name__:14} {len(results)} answers, {right} right: {results[-1].decision.reason}")
        print(f"{'':14} {run.stats().policy_failures} failures of the policy, 0 of {run.stats().requests} requests")


def main() -> None:
    """Simulate, then run, then run the one with the bug."""
    logging.basicConfig(format="log: %(message)s")
    logging.getLogger("dynamic").setLevel(logging.ERROR)  # each kind of failure is told once, with its traceback
    bundle, images = digits_bundle.ready()
    p95_ms = [point.p95_ms[0] for point in bundle.frontier.points]
    on_the_simulator(bundle, Budget(latency_ms=10 * max(p95_ms)))
    budget = Budget(latency_ms=2 * max(p95_ms))
    print("\non this machine, the readings made up")
    on_the_runtime(bundle, images, NightAndDay(), budget)
    on_the_runtime(bundle, images, Forgetful(), budget)


if __name__ == "__main__":
    main()
