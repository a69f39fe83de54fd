"""Does `Budget(battery_duration_s=...)` make the battery last that long, and not much longer? Simulated.

    python -m benchmarks.simulation.battery_lasts [--seeds 20]

A made-up phone with CIFAR-10's ResNets (`cifar_simulated.py`): half a battery is used up after 3 hours by ResNet-56
under a Poisson load and after 7 by the idle device, and 5 hours are asked for. The charge is told in whole percents.
The run goes on until the battery is empty, so that its end is seen; requests come till then. Variants:

- known: costs hold energies and sensors tell the charge in milliwatt-hours too;
- unknown: neither, so the policy must learn from its percents what idling and inference take;
- impossible: the idle device alone is at the end after 4 hours; nothing helps, and the decision must say so;
- evening: known, and requests come three times as often from the second hour to the fourth as before and after.

Beside it: ResNets alone and operating points of the cascade, each one always, that would have lasted 5 hours.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.harness.common import add_data_option, data_folder, progress, save
from benchmarks.simulation.cifar_simulated import Simulated, simulated
from dynamic.policies import Budget, BudgetPolicy, CostedPoint, Decision, Feedback, Frontier, Policy, Snapshot
from dynamic.policies.control.fixed_policy import FixedPolicy
from dynamic.simulate import Device, Poisson, Schedule, SimulationReport, Workload, simulate
from dynamic.simulate.requests.simulated_runtime import Decide

ASKED_H, FULL_H, IDLE_H, TOO_SHORT_H = 5.0, 3.0, 7.0, 4.0
START = 0.5
GOAL_H = (5.0, 5.3)
BATTERY_MWH, SPEED, BUSY = (
    10_000.0,
    0.03,
    0.4,
)  # a slow device: a request takes some 90 ms, and hours are soon simulated
LONGEST_H = 8.0


class Blind(Policy):
    """A policy whose costs hold no energies; the simulator's own always do."""

    def __init__(self, inner: Policy) -> None:
        self.inner = inner
        self._costed: Frontier | None = None
        self._blind: dict[CostedPoint, CostedPoint] = {}

    def initial(self) -> Any:
        """As the inner one."""
        return self.inner.initial()

    def decide(self, frontier: Frontier, budget: Budget, snapshot: Snapshot, state: Any) -> tuple[Decision, Any]:
        """As the inner one, of the same points without energies."""
        if frontier is not self._costed:
            costs = replace(frontier.costs, energy_mj=None, energy_source=None, idle_mw=None)
            self._costed, self._without = frontier, frontier.recost(costs)
            self._blind = dict(zip(frontier.points, self._without.points, strict=True))
            self._known = {blind: point for point, blind in self._blind.items()}
        decision, state = self.inner.decide(self._without, budget, snapshot, state)
        return replace(decision, point=self._known[decision.point]), state

    def observe(self, state: Any, feedback: Feedback) -> Any:
        """As the inner one, of the point without energies."""
        return self.inner.observe(state, replace(feedback, point=self._blind[feedback.point]))


@dataclass(frozen=True)
class Variant:
    """A device, its load, and a policy."""

    device: Device
    policy: Policy
    workload: Workload


def made_up(frontier: Frontier, idle_h: float, blind: bool) -> tuple[Device, float]:
    """A device, and the rate at which the reference empties half a battery in 3 hours."""
    slow = frontier.points[0].mean_ms[0] / SPEED
    idle_mw = START * BATTERY_MWH / idle_h
    active_mw = (START * BATTERY_MWH / FULL_H - idle_mw) / BUSY
    figures = ("relative_speed", "cores", "memory_mb", "battery_mwh", "idle_mw", "active_mw", "battery_step", "absent")
    device = Device(
        "made-up phone",
        relative_speed=SPEED,
        cores=4,
        memory_mb=2000.0,
        battery_mwh=BATTERY_MWH,
        idle_mw=idle_mw,
        active_mw=active_mw,
        battery_step=0.01,
        absent=("battery_mwh", "power_mw") if blind else ("power_mw",),
        source=dict.fromkeys(figures, "assumption: made up for this benchmark"),
    )
    return device, BUSY * 1e3 / slow


def variants(frontier: Frontier) -> dict[str, Variant]:
    """All of them, by name."""
    device, rate_hz = made_up(frontier, IDLE_H, blind=False)
    nearly, _ = made_up(frontier, IDLE_H, blind=True)
    hungry, hungry_hz = made_up(frontier, TOO_SHORT_H, blind=False)
    whole_s = LONGEST_H * 3600
    evening = Schedule((0.0, 3600.0, 14_400.0), (rate_hz / 2, 1.5 * rate_hz, rate_hz / 2), duration_s=whole_s)
    return {
        "known": Variant(device, BudgetPolicy(), Poisson(rate_hz, whole_s)),
        "unknown": Variant(nearly, Blind(BudgetPolicy()), Poisson(rate_hz, whole_s)),
        "evening": Variant(device, BudgetPolicy(), evening),
        "impossible": Variant(hungry, BudgetPolicy(), Poisson(hungry_hz, whole_s)),
    }


def run(frontier: Frontier, cifar: Simulated, given: Variant, policy: Policy, seed: int) -> SimulationReport:
    """Until the battery is empty."""
    budget = Budget(battery_duration_s=ASKED_H * 3600)
    # what never changes may be decided less often
    decide: Decide = "monitor" if isinstance(policy, FixedPolicy) else "request"
    return simulate(
        frontier,
        cifar.records,
        device=given.device,
        workload=given.workload,
        policy=policy,
        budget=budget,
        seed=seed,
        battery=START,
        monitor_hz=1.0,
        decide=decide,
    )


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and largest."""
    found = {"median": np.median(values), "least": min(values), "most": max(values)}
    return {name: round(float(value), 4) for name, value in found.items()}


def measure(cifar: Simulated, given: Variant, seeds: int) -> dict[str, Any]:
    """The policy over all seeds, and under the first everything that never changes."""
    reports = [run(cifar.frontier, cifar, given, given.policy, seed) for seed in range(seeds)]
    hours, first = [report.hours for report in reports], reports[0]
    within = sum(GOAL_H[0] <= report.hours <= GOAL_H[1] and not report.battery_left for report in reports)
    honest = next((str(c.reason) for c in first.changes if "can last" in c.reason or "battery lasts" in c.reason), None)
    static = {name: (frontier, FixedPolicy(name)) for name, frontier in cifar.alone.items()}
    static |= {f"point {p.name}": (cifar.frontier, FixedPolicy(p.name)) for p in cifar.frontier.points}
    beside = {}
    for name, (frontier, policy) in static.items():
        report = run(frontier, cifar, given, policy, 0)
        beside[name] = {"hours": round(report.hours, 3), "accuracy": report.accuracy}
    return {
        "hours": spread(hours),
        "within_goal": within,
        "accuracy": spread([report.accuracy or 0.0 for report in reports]),
        "switches_per_hour": spread([report.switches_per_hour for report in reports]),
        "first_reason": str(first.changes[0].reason),
        "honest": honest,
        "points": first.point_shares,
        "static": beside,
    }


def main() -> None:
    """Simulate all variants, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--variants", nargs="+")
    options = parser.parse_args()
    cifar = simulated(data_folder(options.data))
    known = variants(cifar.frontier)
    table: dict[str, Any] = {}
    for name in options.variants or known:
        progress(f"simulating {name!r}")
        row = table[name] = measure(cifar, known[name], options.seeds)
        hours, accuracy = row["hours"], row["accuracy"]
        print(
            f"\nSIMULATED {name}: asked {ASKED_H:g} h, lasted {hours['median']:.2f} h ({hours['least']:.2f} to "
            f"{hours['most']:.2f}), within {GOAL_H[0]:g} to {GOAL_H[1]:g} h in {row['within_goal']} of {options.seeds} "
            f"seeds; accuracy {accuracy['median']:.2%}, {row['switches_per_hour']['median']:.0f} changes an hour"
        )
        print(f"  first decision: {row['first_reason']}")
        for static, found in sorted(row["static"].items(), key=lambda item: -item[1]["accuracy"]):
            lasts = "lasts" if found["hours"] >= ASKED_H else "     "
            print(f"  {static:18} always: {found['accuracy']:7.2%}  {found['hours']:5.2f} h  {lasts}")
    facts = {"simulated": True, "seeds": options.seeds, "asked_h": ASKED_H, "goal_h": GOAL_H, "start": START}
    print(save("simulation/battery_lasts", facts | {"variants": table}))


if __name__ == "__main__":
    main()
