"""What does it take to decide? Microseconds for the snapshot, the decision and the feedback of each request.

    python -m benchmarks.runtime.decision_cost

On a bundle of ResNet-20, 32 and 56 with a monitor that reads this machine 5 times a second, the three steps of the
runtime are timed as it takes them: making the request's snapshot of the monitor's latest, `decide`, and after the
network has run `observe`. "Paced": 20 requests a second, so that each comes after 50 ms of sleep, and `observe` after a
network has gone through the caches. "Hot": one after the other, nothing between them. Each hot request has waited
longer than the one before, so that every snapshot is a new one; "same snapshot" is without that.

The goal is 20 microseconds at the median. Budgets: none; latency and drop; and every limit there is (the machine is
told a battery, a temperature and what it draws).
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dynamic
from benchmarks.harness import cifar
from benchmarks.harness.common import add_data_option, data_folder, progress, save, spread
from dynamic.data import stratified_halves
from dynamic.monitoring.monitor import Battery, Monitor
from dynamic.policies import CostedPoint
from dynamic.policies.control.budget_policy import BudgetPolicy
from dynamic.policies.decision import Feedback
from dynamic.runtime.decisions.device_reading import RequestReading
from dynamic.runtime.decisions.policy_guard import Guard

NAMES = ("resnet20", "resnet32", "resnet56")
DROPS = (0.0, 0.0025, 0.005, 0.01, 0.02, 0.05)
GOAL_US, HZ, PACE_S = 20, 5, 0.05
BUDGETS = {
    "none": dynamic.Budget(),
    "latency and drop": dynamic.Budget(latency_ms=5.0, max_drop=0.01),
    "everything": dynamic.Budget(
        latency_ms=5.0,
        deadline_ms=8.0,
        energy_mj=20.0,
        memory_mb=400.0,
        battery_floor=0.1,
        battery_duration_s=8 * 3600.0,
        temperature_c=75.0,
        max_drop=0.02,
        min_accuracy=0.9,
    ),
}
NOT_MEASURED = ("ARM", "phones", "several threads at once", "free-threaded Python")


def build(data: Path, folder: Path) -> tuple[dynamic.Bundle, list[dict[str, Any]]]:
    """A certified bundle with costs and energies of this machine, and inputs."""
    images = cifar.images(data, "test")
    half, rest = stratified_halves(images.labels, seed=0)
    cascade = dynamic.Cascade(cifar.networks(data, NAMES), names=NAMES)
    calibration = cifar.batches(images.select(half))
    bundle = dynamic.build(cascade, calibration, max_drops=DROPS, preprocess=cifar.PREPROCESS).save(folder)
    inputs = [{"input": cifar.PREPROCESS(image)} for image in images.select(rest[::50]).images]
    return bundle.profile(batch=(1, 8), active_mw=4000.0, idle_mw=2000.0, threads=1), inputs


class Steps:
    """The three steps on one budget, timed: microseconds of each `[N]`, and of them together."""

    def __init__(self, frontier: dynamic.Frontier, monitor: Any, budget: dynamic.Budget, threads: int) -> None:
        self.took: dict[str, list[float]] = {"snapshot": [], "decide": [], "observe": [], "all": []}
        self._frontier, self._budget, self._threads = frontier, budget, threads
        self._read, self._guard = RequestReading(monitor), Guard(BudgetPolicy(), self._failed)
        self._guard.begin()
        self.changes = 0
        self._point: CostedPoint | None = None

    def __call__(self, waited_ms: float, work: Callable[[Any], int]) -> None:
        """One request that has waited so long; `work(point)` gives the stage it ended at."""
        clock = time.perf_counter
        t0 = clock()
        snapshot = self._read.of_request(self._read.latest, 1, waited_ms, 0, None)
        t1 = clock()
        decision = self._guard.decide(self._frontier, self._budget, snapshot)
        t2 = clock()
        stage = work(decision.point)
        t3 = clock()
        point = decision.point
        expected_ms = self._frontier.path_ms(point, stage, rows=1)
        told = Feedback(point, [stage], [1], [1.05 * expected_ms], [expected_ms], self._threads, snapshot, False)
        self._guard.observe(told)
        t4 = clock()
        for name, took in zip(self.took, (t1 - t0, t2 - t1, t4 - t3, (t2 - t0) + (t4 - t3)), strict=True):
            self.took[name].append(took * 1e6)
        self.changes += point is not self._point
        self._point = point

    def figures(self, skip: int) -> dict[str, Any]:
        """Medians and spread of all but the first."""
        return {name: spread(values[skip:], 1) for name, values in self.took.items()} | {"changes": self.changes}

    def _failed(self) -> None:
        raise SystemExit("the policy failed")


def measure(bundle: dynamic.Bundle, inputs: list[dict[str, Any]], paced: int, hot: int) -> dict[str, Any]:
    """Every budget in each setting; budgets take turns, request by request where they are paced."""
    frontier = bundle.frontier
    engine = bundle.open(threads=1)
    monitor = Monitor(1 / HZ, battery=lambda: Battery(0.8, False), temperature=lambda: 50.0, power=lambda: 3000.0)
    found: dict[str, Any] = {name: {} for name in BUDGETS}
    with monitor:
        steps = {name: Steps(frontier, monitor, budget, 1) for name, budget in BUDGETS.items()}

        def work(number: int) -> Callable[[Any], int]:
            return lambda point: int(engine.run(inputs[number % len(inputs)], point.thresholds).stage[0])

        progress(f"{paced} requests of each, paced")
        for number in range(paced):
            for one in steps.values():
                time.sleep(PACE_S)
                one(0.0, work(number))
        for name, one in steps.items():
            found[name]["paced"] = one.figures(skip=20)
        progress(f"{hot} requests of each, hot")
        for setting, waits in (("hot", True), ("hot, same snapshot", False)):
            steps = {name: Steps(frontier, monitor, budget, 1) for name, budget in BUDGETS.items()}
            for name, one in steps.items():
                for number in range(hot):
                    one(1e-3 + 1e-6 * number if waits else 0.0, lambda point: point.plan.deepest)
                found[name][setting] = one.figures(skip=hot // 10)
    engine.close()
    return found


def main() -> None:
    """Table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--paced", type=int, default=600, help="requests of each budget, 50 ms apart")
    parser.add_argument("--hot", type=int, default=20_000, help="requests of each budget, one after the other")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        progress("building the bundle")
        bundle, inputs = build(data_folder(options.data), Path(folder) / "shelf")
        found = measure(bundle, inputs, options.paced, options.hot)
        points = len(bundle.frontier.points)
    print(f"{points} points; microseconds, median (95th percentile)")
    print(f"{'':40}{'snapshot':>16}{'decide':>16}{'observe':>16}{'all':>16}")
    for name, settings in found.items():
        for setting, own in settings.items():
            cells = "".join(
                f"{own[step]['median']:8.1f} ({own[step]['p95']:5.1f})"
                for step in ("snapshot", "decide", "observe", "all")
            )
            print(f"{name + ', ' + setting:40} {cells}")
    worst = max(own["all"]["median"] for settings in found.values() for own in settings.values())
    met = worst <= GOAL_US
    print(f"the worst median is {worst} us: the goal of {GOAL_US} us is {'met' if met else 'missed'}")
    facts = {"goal_us": GOAL_US, "points": points, "monitor_hz": HZ, "worst_median_us": worst, "met": met}
    print(save("runtime/decision_cost", facts | {"budgets": found, "not_measured": NOT_MEASURED}))


if __name__ == "__main__":
    main()
