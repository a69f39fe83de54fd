"""How many simulated requests a second one core manages, by policy and by how often it decides.

    python -m benchmarks.simulation.simulator_speed

A made-up cascade of four stages and two networks (times do not depend on what it answers), Poisson arrivals on the
simulated phone, bursts of background load. "busy": 60% of what its reference can serve, and a deadline. Most requests
wait, and a request that waits or has a deadline is decided for itself. "light": 10%, and no deadline, so that decisions
are repeated. The fixed policy does nothing, so its figures are the simulator's own share. What others take on top is
theirs. Every figure is the median of repeats that take turns. Reading records and drawing noise before the loop counts
too.
"""

import argparse
import time
from dataclasses import replace
from typing import get_args

import numpy as np

from benchmarks.harness.common import progress, save, spread
from dynamic.policies import Budget, BudgetPolicy, Combiner, Costs, Frontier, Ladder, OperatingPoint, Policy, Records
from dynamic.policies.certification.replay import replay, shares
from dynamic.policies.control.fixed_policy import FixedPolicy
from dynamic.policies.ladder import Interval
from dynamic.policies.stage_plan import plan
from dynamic.simulate import Bursts, Poisson, device, simulate
from dynamic.simulate.requests.simulated_runtime import Decide

BACKBONE = (0, 0, 1, 1)
OFF, ALL = np.inf, -np.inf


def made_up(count: int = 10_000, classes: int = 10) -> tuple[Frontier, Records]:
    """A frontier and records of a cascade whose later stages are surer and more often right."""
    random = np.random.default_rng(0)
    label = random.integers(classes, size=count)
    logits = random.normal(size=(count, 4, classes)).astype(np.float32)
    reach = np.linspace(2.0, 4.0, 4) - 1.5 * random.normal(size=(count, 1))
    logits[np.arange(count), :, label] += reach.astype(np.float32)
    names = ("a early", "a", "b early", "b")
    records = Records(logits, label, None, np.ones(count, np.int8), BACKBONE, (1.0,) * 4, (0.0,) * 4, names, "made up")
    ladder = Ladder((1.0,) * 4, "max_probability", "backbones", BACKBONE, names, (), "made up", False)
    vectors = {"reference": (OFF, OFF, OFF)}
    vectors |= {f"all exits {t}": (t, t, t) for t in (0.99, 0.95, 0.9, 0.8, 0.6)}
    vectors |= {f"networks {t}": (OFF, t, OFF) for t in (0.95, 0.9, 0.8, 0.6)}
    vectors |= {"small with exit": (0.8, ALL, OFF), "small": (OFF, ALL, OFF), "first exit": (ALL, OFF, OFF)}
    combiner = Combiner(ladder.temperature, ladder.score, combine=ladder.combine, backbone=BACKBONE)
    points = []
    for name, thresholds in vectors.items():
        played = replay(logits, combiner, thresholds=thresholds, backbone=BACKBONE)
        right, share = float((played.prediction == label).mean()), shares(played.stage, 4)
        exact = Interval(right, right, right)
        todo = plan(np.array(thresholds, np.float32), BACKBONE)
        needed = {BACKBONE[stage] for stage in range(todo.deepest + 1) if todo.run[stage]}
        points.append(
            OperatingPoint(name, thresholds, tuple(sorted(needed)), 0.0, 0.0, None, None, count, exact, share)
        )
    costs = Costs(
        machine="made up",
        engine="none",
        precision="f32",
        threads=2,
        batch=(1,),
        latency_ms=((0.3,), (0.3,), (1.0,), (1.0,)),
        latency_p95_ms=((0.4,), (0.4,), (1.2,), (1.2,)),
        head_ms=((0.02,), (0.0,), (0.02,), (0.0,)),
        call_ms=(0.02,),
        cpu_ms=((0.6,), (0.6,), (2.0,), (2.0,)),
        energy_mj=None,
        energy_source=None,
        memory_mb=(10.0, 40.0),
        idle_mw=None,
        not_measured=(),
    )
    return Frontier.of(replace(ladder, points=tuple(points)), costs), records


def main() -> None:
    """Time every policy at every rate of decision, and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200_000, help="simulated in each run")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    frontier, records = made_up()
    phone = device("mid-range-phone")
    mean_ms = frontier.recost(phone.costs(frontier.costs)).points[0].mean_ms[0]
    limits = Budget(latency_ms=4 * mean_ms, max_drop=0.02)
    streams = {"busy": (0.6, replace(limits, deadline_ms=8 * mean_ms)), "light": (0.1, limits)}
    policies: dict[str, Policy] = {"FixedPolicy": FixedPolicy("reference"), "BudgetPolicy": BudgetPolicy()}
    ways: list[tuple[str, str, Decide]] = [
        (stream, name, decide) for stream in streams for name in policies for decide in get_args(Decide)
    ]
    took_us: dict[tuple[str, str, Decide], list[float]] = {way: [] for way in ways}
    for repeat in range(options.repeats):
        for stream, name, decide in ways:
            share, budget = streams[stream]
            rate_hz = share * 1e3 / mean_ms
            workload = Poisson(rate_hz, options.requests / rate_hz)
            load = Bursts(0.2, (1.0, 2.0), on_s=10, off_s=30)
            began = time.perf_counter()
            report = simulate(
                frontier,
                records,
                device=phone,
                workload=workload,
                policy=policies[name],
                budget=budget,
                background_load=load,
                decide=decide,
            )
            took_us[stream, name, decide].append((time.perf_counter() - began) / report.requests * 1e6)
        progress(f"repeat {repeat + 1} of {options.repeats}")
    rows = []
    for (stream, name, decide), values in took_us.items():
        middle = spread(values)
        a_second = round(1e6 / middle["median"])
        rows.append(
            {"stream": stream, "policy": name, "decides_on_every": decide}
            | {"us_per_request": middle, "requests_per_second": a_second}
        )
        took = f"{middle['median']:6.2f} us a request, {a_second:8,} requests a second"
        print(f"{stream:5} {name:13} on every {decide:8} {took}")
    points = len(frontier.points)
    facts = {"requests": options.requests, "points": points, "device": phone.name}
    print(save("simulation/simulator_speed", facts | {"rows": rows}))


if __name__ == "__main__":
    main()
