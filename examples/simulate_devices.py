"""What budgets are worth on battery devices, simulated: recorded answers, this machine's times scaled, a battery model.

    python examples/simulate_devices.py

Handwritten digits; the bundle in out/digits is made on the first run (half a minute). Nothing here is measured on a
device: figures of energy, battery and latency are the model's, and dynamic/simulate/devices.json names its sources.
"""

from typing import Any

import digits_bundle

import dynamic
from dynamic.policies import BudgetPolicy, Decision, Feedback, Frontier
from dynamic.simulate.devices import devices
from dynamic.simulate.simulator import simulate
from dynamic.simulate.workload import Poisson


class OnlyReference:
    """The last network alone, whatever happens: what there is without a cascade."""

    def initial(self) -> None:
        """Nothing to remember."""

    def decide(
        self, frontier: Frontier, budget: dynamic.Budget, snapshot: dynamic.Snapshot, state: Any
    ) -> tuple[Decision, Any]:
        """The reference is the first point of every frontier."""
        return Decision(frontier.points[0], True, (), "nothing else is allowed"), state

    def observe(self, state: Any, feedback: Feedback) -> Any:
        """Nothing to learn."""
        return state


def main() -> None:
    """Every device under every budget, the same requests each time."""
    bundle, _ = digits_bundle.ready()
    # thresholds were chosen on the other part of the records
    records = bundle.records.select(bundle.records.part == 1)
    workload = Poisson(rate_hz=100, duration_s=60)
    for device in devices().values():
        reference = bundle.frontier.recost(device.costs(bundle.frontier.costs)).points[0]
        limit_ms = round(reference.p95_ms[0] / 2, 1)
        ways = {
            "last network alone": (OnlyReference(), dynamic.Budget()),
            "no limits": (BudgetPolicy(), dynamic.Budget()),
            "max_drop 0": (BudgetPolicy(), dynamic.Budget(max_drop=0.0)),
            "max_drop 0.02": (BudgetPolicy(), dynamic.Budget(max_drop=0.02)),
            f"latency {limit_ms} ms": (BudgetPolicy(), dynamic.Budget(latency_ms=limit_ms)),
            "battery_floor 0.5": (BudgetPolicy(), dynamic.Budget(battery_floor=0.5)),
        }
        print(f"\nSIMULATED {device.name}: {workload.rate_hz} requests a second, others keep 30% busy, battery at half")
        print(f"{'':20} accuracy  mean ms   p95 ms  J/1000 answers  hours of a full battery")
        for name, (policy, budget) in ways.items():
            report = simulate(
                bundle.frontier, records, device, workload, policy, budget, background_load=0.3, battery=0.5
            )
            # what the device draws anyway is not the cascade's
            spent_j = (report.energy_mj - device.idle_mw * report.hours * 3600) / 1e3
            print(
                f"{name:20} {report.accuracy:8.2%} {report.mean_latency_ms:8.2f} {report.p95_latency_ms:8.2f}"
                f"  {spent_j * 1000 / report.answered:14.2f}  {report.hours_per_charge:23.1f}"
            )
    print("\nthe last report in full:\n", report, sep="")


if __name__ == "__main__":
    main()
