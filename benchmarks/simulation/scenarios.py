"""Is the composed policy better than every static network, and how far is it from one that knows the future? Simulated.

    python -m benchmarks.simulation.scenarios [--seeds 20]

CIFAR-10, the ResNets of `cifar_simulated.py`: one half of the test images chooses the ladder, the other is served. The
scenarios of `dynamic.simulate`, scaled to each simulated device. Costs were profiled on this machine, heat
and batteries are models. In every scenario the same requests meet, seed by seed:

- every static network alone, and every operating point of the cascade as a static one;
- the composed policy, `BudgetPolicy()`; single policies, which apply one kind of limit; and the oracle, which knows
  all but what inputs look like (see dynamic/simulate/requests/oracle.py).

A miss is a request answered later than the tighter of the budget's latency and deadline, or not at all. A latency at a
percentile allows some: "excess" counts what is unanswered or later than the deadline, and of those later than the
latency only what goes beyond the share that the percentile allows. Energy is that of inference; what the device
draws anyway is the same for all. "Broken" is the share of time in which a limit of battery, heat or memory was
exceeded, which no static network looks at.

The composed policy beats a static network where it has fewer misses at no lower accuracy, or is more accurate at no
more misses, or uses less energy where both are equal; once with misses as such, once with the excess. Equal means: the
mean difference over seeds, paired, lies within two of its standard errors, or within `TOLERANCE`. Beside that stands
what is of use: right and in time, of all that arrived. Seeds change arrivals, the order of images, noise and bursts;
the images stay the 5,000 of the report half, on which two accuracies differ by 0.3 points by chance.

Runs are kept in out/scenarios for as long as code and costs stay the same, and an interrupted run goes on.
"""

import argparse
import hashlib
import json
import math
import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.common import ROOT, add_data_option, data_folder, progress, save
from benchmarks.simulation.cifar_simulated import Simulated, simulated
from dynamic.policies import Budget, BudgetPolicy, Frontier, Policy
from dynamic.policies.budget import LimitName
from dynamic.policies.control.fixed_policy import FixedPolicy
from dynamic.simulate import SCENARIOS, Scenario, SimulationReport, device, oracle, scenarios

DEVICES = ("raspberry-pi-5-power-bank", "mid-range-phone")
COMPOSED, ORACLE = "composed policy", "oracle"
SINGLE: dict[str, tuple[LimitName, ...]] = {
    "accuracy only": ("drop",),
    "latency only": ("latency", "deadline"),
    "battery only": ("battery",),
    "temperature only": ("temperature",),
}
LENGTH_S = {"battery": 1800.0}  # hours otherwise; its floor moves in proportion
TOLERANCE = {
    "misses": 0.0005,
    "excess": 0.0005,
    "useful": 0.0005,
    "accuracy": 0.0005,
    "energy_mj": 0.005,
}  # energy: a share

_shared: list[Simulated] = []


def contenders(cifar: Simulated) -> dict[str, tuple[str, Frontier, Policy]]:
    """(kind, frontier, policy) by name, the oracle left out."""
    found: dict[str, tuple[str, Frontier, Policy]] = {}
    for name, frontier in cifar.alone.items():
        found[name] = ("network", frontier, FixedPolicy(name))
    for point in cifar.frontier.points:
        found[f"point {point.name}"] = ("point", cifar.frontier, FixedPolicy(point.name))
    for name, limits in SINGLE.items():
        found[name] = ("single", cifar.frontier, BudgetPolicy(limits))
    found[COMPOSED] = ("composed", cifar.frontier, BudgetPolicy())
    return found


def play(task: tuple[str, str, int]) -> dict[str, dict[str, Any]]:
    """One scenario on one device under one seed: figures of every contender."""
    where, what, seed = task
    cifar, here = _shared[0], device(where)
    chosen = scenarios(here, cifar.frontier, duration_s=LENGTH_S.get(what), seed=seed)[what]
    budget, around = chosen.budget, chosen.surroundings()
    assert isinstance(budget, Budget)
    found = {}
    for name, (_, frontier, policy) in contenders(cifar).items():
        # what never changes may be decided less often
        decide = "monitor" if isinstance(policy, FixedPolicy) else "request"
        report = chosen.run(frontier, cifar.records, device=here, policy=policy, seed=seed, decide=decide)
        found[name] = figures(report, chosen)
    planned = oracle(
        cifar.frontier, cifar.records, device=here, workload=chosen.workload, budget=budget, seed=seed, **around
    )
    found[ORACLE] = figures(chosen.run(cifar.frontier, cifar.records, device=here, policy=planned, seed=seed), chosen)
    return found


def figures(report: SimulationReport, chosen: Scenario) -> dict[str, Any]:
    """What is compared of a run."""
    budget = chosen.budget
    assert isinstance(budget, Budget)
    limit_ms = min(budget.latency_ms or math.inf, budget.deadline_ms or math.inf)
    late, after, gone = (
        int((report.latency_ms > limit).sum()) / report.requests
        for limit in (limit_ms, budget.latency_ms or math.inf, budget.deadline_ms or math.inf)
    )
    unanswered = 1 - report.answered / report.requests
    allowed = 0.0 if budget.percentile is None else 1 - budget.percentile
    return {
        "misses": late + unanswered,
        "excess": max(gone, after - allowed, 0.0) + unanswered,
        "accuracy": report.accuracy,
        "useful": report.useful_share,
        "energy_mj": report.inference_mj_each,
        "device_j": report.energy_mj / 1e3,
        "p95_ms": report.p95_latency_ms,
        "unanswered": unanswered,
        "hours": report.hours,
        "battery_left": report.battery_left,
        "throttled": report.throttled_share,
        "broken": broken(report, budget),
        "switches_per_hour": report.switches_per_hour,
        "requests": report.requests,
        "points": {name: round(share, 4) for name, share in report.point_shares.items()},
    }


def broken(report: SimulationReport, budget: Budget) -> float:
    """Share of the time in which battery, temperature or memory were beyond their limits."""
    charge, temperature = report.series["battery"], report.series["temperature_c"]
    floor, limit_c = budget.battery_floor or 0.0, budget.temperature_c or math.inf
    over = [
        (b is not None and b < floor - 1e-3) or (t is not None and t > limit_c + 0.5)
        for b, t in zip(charge, temperature, strict=True)
    ]
    return max(sum(over) / max(len(over), 1), report.memory_over_share)


def everything(tasks: Sequence[tuple[str, str, int]], processes: int) -> dict[tuple[str, str, int], Any]:
    """Every run, those kept from before first."""
    folder = ROOT / "out" / "scenarios"
    folder.mkdir(parents=True, exist_ok=True)
    stamp = code()
    files = {task: folder / f"{'-'.join(map(str, task))}-{stamp}.json" for task in tasks}
    missing = [task for task, path in files.items() if not path.is_file()]
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        for task, found in zip(missing, pool.imap(play, missing), strict=True):
            partial = files[task].with_suffix(".partial")
            partial.write_text(json.dumps(found))
            partial.replace(files[task])
            progress(f"simulated {task[1]} on {task[0]}, seed {task[2]}")
    return {task: json.loads(path.read_text()) for task, path in files.items()}


def code() -> str:
    """What the runs hang on, in short."""
    folders = (ROOT / "policies", ROOT / "dynamic" / "simulate")
    files = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    own = [Path(__file__), Path(__file__).with_name("cifar_simulated.py"), folders[1] / "devices.json"]
    text = json.dumps(_shared[0].frontier.costs.to_json()) + json.dumps(_shared[0].frontier.ladder.to_json())
    return hashlib.sha256(b"".join(p.read_bytes() for p in (*files, *own)) + text.encode()).hexdigest()[:12]


def differs(ours: Sequence[float], theirs: Sequence[float], tolerance: float) -> int:
    """-1, 0 or 1: whether ours is less, equal within noise, or more, paired over seeds."""
    off = np.array(ours) - np.array(theirs)
    error = float(off.std(ddof=1) / math.sqrt(len(off))) if len(off) > 1 else 0.0
    return 0 if abs(off.mean()) <= max(2 * error, tolerance) else int(np.sign(off.mean()))


def against(runs: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    """The composed policy against a network alone: whether it beats it, how, and the mean differences."""

    def column(who: str, figure: str) -> list[float]:
        # where nothing was answered nothing was right
        return [float(run[who][figure] or 0.0) for run in runs]

    def more(figure: str, scale: float = 1.0) -> int:
        return differs(column(COMPOSED, figure), column(name, figure), TOLERANCE[figure] * scale)

    found: dict[str, Any] = {}
    accuracy = more("accuracy")
    energy = more("energy_mj", float(np.mean(column(name, "energy_mj"))))
    for kind in ("misses", "excess"):
        misses = more(kind)
        ways = {
            "fewer misses": misses < 0 <= accuracy,
            "more accurate": misses <= 0 < accuracy,
            "less energy": misses == accuracy == 0 > energy,
        }
        found[kind] = next((way for way, holds in ways.items() if holds), None)
    found["useful"] = more("useful")
    for figure in ("misses", "excess", "accuracy", "useful", "energy_mj"):
        ours, theirs = float(np.mean(column(COMPOSED, figure))), float(np.mean(column(name, figure)))
        found[f"{figure}_difference"] = round(ours - theirs, 5)
    return found


def summary(runs: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    """Median, least and largest over seeds of every figure."""
    found: dict[str, Any] = {}
    for figure in runs[0][name]:
        if figure != "points":
            values = [float(run[name][figure]) for run in runs if run[name][figure] is not None]
            spread = [round(float(v), 5) for v in (np.median(values), min(values), max(values))] if values else None
            found[figure] = spread
    shares = [run[name]["points"] for run in runs]
    names = dict.fromkeys(point for each in shares for point in each)
    found["points"] = {p: round(float(np.mean([each.get(p, 0.0) for each in shares])), 4) for p in names}
    return found


def to_oracle(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """How far the composed policy is from the oracle: means over seeds of paired differences."""

    def mean(figure: str, relative: bool) -> float:
        pairs = [(float(run[COMPOSED][figure] or 0), float(run[ORACLE][figure] or 0)) for run in runs]
        return float(np.mean([(a / b - 1 if b else 0.0) if relative else a - b for a, b in pairs]))

    return {
        "inference_energy": round(mean("energy_mj", True), 4),
        "device_energy": round(mean("device_j", True), 4),
        "accuracy": round(mean("accuracy", False), 5),
        "misses": round(mean("misses", False), 5),
        "excess": round(mean("excess", False), 5),
        "useful": round(mean("useful", False), 5),
    }


def table(kinds: dict[str, str], runs: Sequence[dict[str, Any]], verdicts: dict[str, Any]) -> list[str]:
    """Lines for people; medians over seeds, and in brackets the worst seed."""
    columns = f"{'misses':>8}{'(most)':>9}{'excess':>8}{'accuracy':>9}{'(least)':>9}{'of use':>8}{'mJ':>7}{'broken':>8}"
    lines = [f"{'':18}{columns}  the composed policy is, by misses / by excess / of use"]
    for name in kinds:
        row = summary(runs, name)
        verdict = ""
        if name in verdicts:
            v = verdicts[name]
            of_use = f"{v['useful_difference']:+.2%}"
            verdict = " / ".join((v["misses"] or "NOT BETTER", v["excess"] or "NOT BETTER", of_use))
        accuracy = row["accuracy"] or (math.nan,) * 3
        lines.append(
            f"{name:18}{row['misses'][0]:8.2%}{row['misses'][2]:9.2%}{row['excess'][0]:8.2%}{accuracy[0]:9.2%}"
            f"{accuracy[1]:9.2%}{row['useful'][0]:8.2%}{(row['energy_mj'] or (math.nan,))[0]:7.2f}"
            f"{row['broken'][0]:8.1%}  {verdict}"
        )
    return lines


def main() -> None:
    """Simulate all, compare, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--devices", nargs="+", default=DEVICES)
    parser.add_argument("--scenarios", nargs="+", default=SCENARIOS, choices=SCENARIOS)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    cifar = simulated(data_folder(options.data))
    _shared.append(cifar)
    kinds = {name: kind for name, (kind, _, _) in contenders(cifar).items()} | {ORACLE: "oracle"}
    places = {name: scenarios(device(name), cifar.frontier) for name in options.devices}
    tasks = [
        (where, what, seed)
        for seed in range(options.seeds)
        for where, known in places.items()
        for what in options.scenarios
        if what in known
    ]
    runs = everything(tasks, options.processes)
    results: dict[str, Any] = {}
    for where, known in places.items():
        for what in (name for name in options.scenarios if name in known):
            mine = [runs[where, what, seed] for seed in range(options.seeds)]
            verdicts = {name: against(mine, name) for name in cifar.alone}
            distance, budget = to_oracle(mine), known[what].budget
            assert isinstance(budget, Budget)
            print(f"\nSIMULATED {device(where).name}, {what}: {known[what].about}")
            print(*table(kinds, mine, verdicts), sep="\n")
            print("to the oracle: " + ", ".join(f"{k} {v:+.2%}" for k, v in distance.items()))
            results.setdefault(where, {})[what] = {
                "requests": mine[0][COMPOSED]["requests"],
                "budget": {k: v for k, v in budget.to_json().items() if v is not None},
                "against_networks": verdicts,
                "better_than_all": {kind: all(v[kind] for v in verdicts.values()) for kind in ("misses", "excess")},
                "more_of_use_than_all": all(v["useful"] > 0 for v in verdicts.values()),
                "to_oracle": distance,
                "contenders": {name: {"kind": kind} | summary(mine, name) for name, kind in kinds.items()},
            }
    points = [
        {"name": p.name, "accuracy": round(p.accuracy.mid, 4), "mean_ms": round(p.mean_ms[0], 3)}
        for p in cifar.frontier.points
    ]
    facts = {"simulated": True, "seeds": options.seeds, "length_s": LENGTH_S, "tolerance": TOLERANCE}
    cost = {"machine": cifar.frontier.costs.machine, "engine": cifar.frontier.costs.engine, "ladder": points}
    print(save("simulation/scenarios", facts | cost | {"devices": results}))


if __name__ == "__main__":
    main()
