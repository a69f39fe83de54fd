"""What policies are worth on small devices, simulated: recorded answers, times scaled from here, models of the rest.

    python examples/simulate_devices.py [--seconds 120] [--scenario contention]

Every preset device meets the same situation, scaled to it, under every policy: a table, and a picture in out/. The
networks read handwritten digits; their bundle is made in out/digits on the first run (half a minute). Nothing here is
measured on a device: dynamic/simulate/devices.json names the source of every figure, or says that it is an assumption.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import digits_bundle

from dynamic.policies import Budget, BudgetPolicy, FixedPolicy, Policy
from dynamic.simulate import SCENARIOS, Scenario, SimulationReport, devices, oracle, scenarios

PICTURE = Path("out/simulated_devices.png")
MAX_DROP = 0.02  # what may be given up for savings, under the policy that is told so
Reports = dict[str, dict[str, SimulationReport]]  # by device, then by policy


def main() -> None:
    """Every device under every policy, the same requests each time; then one report in full."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0, help="simulated for each line of the table")
    parser.add_argument("--scenario", default="contention", choices=SCENARIOS)
    options = parser.parse_args()
    bundle, _ = digits_bundle.ready()
    # thresholds were chosen on the other part of the records
    records = bundle.records.select(bundle.records.part == 1)
    found: Reports = {}
    for device in devices().values():
        known = scenarios(device, bundle.frontier, duration_s=options.seconds)
        if options.scenario not in known:
            print(f"no {options.scenario!r} on {device.name}: it lacks what that takes")
            continue
        what = known[options.scenario]
        budget, around = what.budget, what.surroundings()
        assert isinstance(budget, Budget)
        ways: dict[str, tuple[Policy, Budget]] = {
            "last network alone": (FixedPolicy(bundle.frontier.points[0].name), budget),
            "cheapest point": (FixedPolicy(bundle.frontier.cheapest.name), budget),
            "budget policy": (BudgetPolicy(), budget),
            f"and max_drop {MAX_DROP:g}": (BudgetPolicy(), replace(budget, max_drop=MAX_DROP)),
            "knows the future": (
                oracle(bundle.frontier, records, device=device, workload=what.workload, budget=budget, **around),
                budget,
            ),
        }
        found[device.name] = {
            name: what.run(bundle.frontier, records, device=device, policy=policy, budget=limits)
            for name, (policy, limits) in ways.items()
        }
        print_table(device.name, what, found[device.name])
    draw(found, options.scenario, PICTURE)
    print(f"\nsimulated figures as a picture: {PICTURE}")
    name, reports = next(iter(found.items()))
    print(f"\nthe budget policy on {name} in full:\n", reports["budget policy"], sep="")


def print_table(name: str, what: Scenario, reports: dict[str, SimulationReport]) -> None:
    """One line for each policy."""
    print(f"\nSIMULATED {name}: {what.about}")
    print(f"{'':20} accuracy  missed  p95 ms  mJ an answer  hours of a full battery")
    for policy, report in reports.items():
        hours = "none" if report.hours_per_charge is None else f"{report.hours_per_charge:.2f}"
        # what the device draws anyway is not the cascade's
        print(
            f"{policy:20} {report.accuracy or 0:8.2%} {missed(report):7.2%} {report.p95_latency_ms or 0:7.2f}"
            f" {report.inference_mj_each or 0:13.2f}  {hours:>23}"
        )


def missed(report: SimulationReport) -> float:
    """Share of requests answered after the budget's latency or deadline, or not at all."""
    late = max(report.late_share or 0.0, report.deadline_miss_share or 0.0)  # whatever misses one misses the tighter
    return 1 - (1 - late) * report.answered / report.requests


def draw(found: Reports, scenario: str, path: Path) -> None:
    """Four panels with a row for each device and a mark for each policy."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import PercentFormatter

    panels: dict[str, Callable[[SimulationReport], float | None]] = {
        "accuracy": lambda r: r.accuracy,
        "requests missed": missed,
        "inference energy, mJ an answer": lambda r: r.inference_mj_each,
        "hours of a full battery": lambda r: r.hours_per_charge,
    }
    policies = list(next(iter(found.values())))
    figure, axes = plt.subplots(
        1, len(panels), figsize=(15, 1.6 + 0.85 * len(found)), sharey=True, layout="constrained"
    )
    for axis, (title, value) in zip(axes, panels.items(), strict=True):
        for number, policy in enumerate(policies):
            rows = [
                (row + 0.14 * (number - (len(policies) - 1) / 2), value(reports[policy]))
                for row, reports in enumerate(found.values())
            ]
            shown = [(x, y) for y, x in rows if x is not None]
            axis.scatter(*zip(*shown, strict=True), marker="os^Dv"[number], s=34, label=policy)
        axis.set_title(title, fontsize=11)
        axis.grid(axis="x", alpha=0.3)
        for row in range(1, len(found)):
            axis.axhline(row - 0.5, color="0.85", linewidth=0.8)
        if title in ("accuracy", "requests missed"):
            axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    axes[0].set_yticks(range(len(found)), [_wrapped(name) for name in found])
    axes[0].set_ylim(len(found) - 0.5, -0.5)
    figure.suptitle(f"SIMULATED, scenario {scenario!r}: models of devices, nothing measured on them", fontsize=12)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(policies), frameon=False)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _wrapped(name: str, width: int = 20) -> str:
    lines = [""]
    for word in name.split(" (")[0].split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


if __name__ == "__main__":
    main()
