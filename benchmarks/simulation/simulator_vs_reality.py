"""Does the simulator say what happens? The same requests on this machine, and simulated from this machine's profile.

    python -m benchmarks.simulation.simulator_vs_reality

ResNet-20, 32 and 56, certified on one half of CIFAR-10's test images, profiled here. A trace of arrivals (bursts of a
Markov-modulated Poisson process, 35% of what the reference can serve on average) goes through `Runtime.submit` with the
images of the other half, in a process of its own; then the same arrivals with the records of the same images, in the
same order, through `simulate`, on a device with this machine's cores and memory and no battery, at relative speed 1.
Several budgets take turns, each without load by others, and with a process that spins during every other stretch of
time, which the simulator is told as half the cores of two.

Profiling calls the engine again and again. A request that is served is also preprocessed and finds cold caches: the
device's `overhead_ms`. One that finds nobody before it waits for the worker to wake up: `wake_ms`. One that has waited
begins `handover_ms` after the last is done, while the worker gives an answer and takes the next. Beside a busy process
a request takes longer, by `contention_share` of what an even division of the cores would cost it. All four come from
runs of their own, without limits and with other arrivals, alone and beside one busy process. This machine is a virtual
one whose speed moves from minute to minute. So the profile is made again before every row, and the runs are made before
and after it. Their mean counts. No figure of a row itself is used. Latency counts from submission: when the sender was
late, that is its own (`late_p95_ms`).

Asked: mean latency within 10%, shares of stages within 2 points, deadline misses within 3 points (limits on latency
count as deadlines where there is none).
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import psutil

import dynamic
from benchmarks.harness import cifar
from benchmarks.harness.common import add_data_option, data_folder, progress, save, spread
from benchmarks.harness.live import SOON_S, Busy, Worker, follow
from benchmarks.harness.live_worker import Answer, Job
from benchmarks.runtime.contention import KEPT, Served, prepared
from dynamic.data import stratified_halves
from dynamic.engines.memory import available_cores
from dynamic.policies import BudgetPolicy, Frontier, Records
from dynamic.simulate import Bursty, Device, Recorded, Steps, simulate

NAME = "ResNet-20, 32, 56 on CIFAR-10"
USED, QUEUE, SEED = 0.35, 64, 0
LATENCY, SHARES, MISSES = 0.10, 2.0, 3.0  # asked: share of the mean, points, points
FIRST_S = 10.0  # of each run that device figures come from
FITTED = ("overhead_ms", "wake_ms", "handover_ms", "contention_share")
NOT_MEASURED = ("battery, heat and clocks", "batches", "several workers", "other engines than ONNX Runtime")


def budgets(frontier: Frontier) -> dict[str, dynamic.Budget]:
    """Limits that leave something to decide on this machine."""
    reference = frontier.points[0]
    slowest_ms = max(p.p95_ms[0] for p in frontier.points)
    return {
        "none": dynamic.Budget(),
        "max_drop 0.01": dynamic.Budget(max_drop=0.01),
        "latency": dynamic.Budget(latency_ms=2.0 * slowest_ms),
        "latency and deadline": dynamic.Budget(latency_ms=3.0 * slowest_ms, deadline_ms=3.0 * slowest_ms),
        "tight deadline": dynamic.Budget(deadline_ms=1.5 * reference.p95_ms[0], max_drop=0.02),
    }


def this_machine(threads: int) -> Device:
    """This machine in the simulator's figures; it has no battery, and its power is not known."""
    memory_mb = psutil.virtual_memory().available / 1e6
    source = {"memory_mb": "psutil", "cores": "affinity", "relative_speed": "profiled here"}
    source |= {"idle_mw": "assumption", "active_mw": "assumption"}
    return Device(
        "this machine",
        relative_speed=1.0,
        cores=available_cores(),
        memory_mb=memory_mb,
        battery_mwh=None,
        idle_mw=1000.0,
        active_mw=1000.0,
        source=source,
    )


@dataclass(frozen=True)
class Moment:
    """Mean times of requests without limits, at one moment of this machine.

    Args:
        alone_ms: From start to end, without load by others.
        loaded_ms: The same beside one busy process.
        wake_ms: Until a worker that sleeps begins.
        handover_ms: Until it begins with the next that waits.
    """

    alone_ms: float
    loaded_ms: float
    wake_ms: float
    handover_ms: float


def device_between(before: Moment, after: Moment, predicted_ms: float, device: Device, threads: int) -> Device:
    """The device with the figures of two moments. `predicted_ms`: the mean time from start to end by profile alone."""
    excess = (1 + threads) / device.cores - 1  # of the simulator's rule, with one busy process
    alone_ms, loaded_ms = (before.alone_ms + after.alone_ms) / 2, (before.loaded_ms + after.loaded_ms) / 2
    figures: dict[str, Any] = {
        "overhead_ms": max(0.0, alone_ms - predicted_ms),
        "wake_ms": (before.wake_ms + after.wake_ms) / 2,
        "handover_ms": (before.handover_ms + after.handover_ms) / 2,
        "contention_share": max(0.0, loaded_ms / alone_ms - 1) / excess if excess > 0 else 1.0,
    }
    return replace(device, source={**device.source, **dict.fromkeys(figures, "a run")}, **figures)


def work_ms(answers: Sequence[Answer]) -> float:
    """Mean time from start to end."""
    return float(np.mean([a.work_ms for a in answers if a.latency_ms is not None]))


def begin_ms(answers: Sequence[Answer]) -> tuple[float, float]:
    """Mean time until requests begin: those that find nobody, after they came. Others, after the last was done."""
    alone: list[float] = []
    waited: list[float] = []
    free_s = 0.0
    for a in answers:
        if a.latency_ms is None:
            continue
        came_s = a.at_s + a.late_ms / 1e3
        begins_s = came_s + (own_ms(a) - a.work_ms) / 1e3
        (alone if came_s > free_s else waited).append(1e3 * (begins_s - max(came_s, free_s)))
        free_s = max(free_s, a.at_s + a.latency_ms / 1e3)
    return float(np.mean(alone)), float(np.mean(waited))


def own_ms(answer: Answer) -> float:
    """From submission to answer."""
    assert answer.latency_ms is not None
    return answer.latency_ms - answer.late_ms


def order(count: int, records: int) -> list[int]:
    """The records of the requests as `simulate` draws them: every one once, in random order."""
    random = np.random.default_rng(SEED)
    rounds = [random.permutation(records) for _ in range(-(-count // records))]
    found: list[int] = np.concatenate(rounds)[:count].tolist()
    return found


def recorded(data: Any, served: Served) -> Records:
    """What every stage says about the images that are served, in their order; of all images, kept in `out/`."""
    images = cifar.images(data, "test")
    names = ("resnet20", "resnet32", "resnet56")
    everything = cifar.records(dynamic.Cascade(cifar.networks(data, names), names=names), images)
    _, rest = stratified_halves(images.labels, seed=0)
    found = everything.select(np.random.default_rng(0).permutation(rest))
    assert served.labels is not None
    assert found.label is not None
    assert (found.label == served.labels).all()
    return found


def compare(answers: Sequence[Answer], report: Any, budget: dynamic.Budget, stages: int) -> dict[str, Any]:
    """Both sides, and how far apart they are."""
    limit_ms = budget.deadline_ms or budget.latency_ms
    ms = np.array([own_ms(a) for a in answers if a.latency_ms is not None])
    counts = np.bincount([a.stage for a in answers if a.latency_ms is not None], minlength=stages)
    real = {
        "mean_ms": float(ms.mean()),
        "median_ms": float(np.median(ms)),
        "p95_ms": float(np.percentile(ms, 95)),
        "shares": (counts / counts.sum()).tolist(),
        "missed": float((ms > limit_ms).mean()) if limit_ms else None,
        "cut": sum(a.cut for a in answers) / len(answers),
        "work_mean_ms": work_ms(answers),
        "late_p95_ms": float(np.percentile([a.late_ms for a in answers], 95)),
        "load": spread([a.load or 0.0 for a in answers]),
        "slowdown": spread([a.slowdown for a in answers]),
        "points": {p: sum(a.point == p for a in answers) / len(answers) for p in sorted({a.point for a in answers})},
    }
    simulated = {
        "mean_ms": report.mean_latency_ms,
        "median_ms": report.median_latency_ms,
        "p95_ms": report.p95_latency_ms,
        "shares": list(report.stage_shares),
        "missed": report.deadline_miss_share if budget.deadline_ms else report.late_share,
        "cut": report.cut_share,
        "work_mean_ms": report.mean_latency_ms - report.mean_wait_ms,
        "points": report.point_shares,
    }
    latency = simulated["mean_ms"] / real["mean_ms"] - 1
    shares = 100 * max(abs(a - b) for a, b in zip(real["shares"], simulated["shares"], strict=True))
    missed = None if limit_ms is None else 100 * (simulated["missed"] - real["missed"])
    ok = abs(latency) <= LATENCY and shares <= SHARES and (missed is None or abs(missed) <= MISSES)
    return {
        "real": real,
        "simulated": simulated,
        "latency_off": round(latency, 4),
        "shares_off_points": round(shares, 2),
        "missed_off_points": None if missed is None else round(missed, 2),
        "met": bool(ok),
    }


def live(
    served: Served,
    budget: dynamic.Budget,
    times_s: Sequence[float],
    items: Sequence[int],
    load: Sequence[tuple[float, int]],
    options: dict[str, Any],
) -> list[Answer]:
    """The trace on this machine."""
    with Worker(Job(str(served.folder), str(served.inputs), None, options)) as worker, Busy() as busy:
        time.sleep(1.0)
        start_s = time.perf_counter() + SOON_S
        worker.start(budget, start_s, times_s, items)
        follow(busy, start_s, load)
        return worker.answers()


def main() -> None:
    """Every budget with and without load; table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each trace")
    parser.add_argument("--step", type=float, default=10.0, help="seconds between changes of the load")
    parser.add_argument("--profile", type=float, default=5.0, help="seconds of profiling, for each way to run")
    parser.add_argument("--threads", type=int, help="of the engine (default: the library's)")
    parser.add_argument("--used", type=float, default=USED, help="of what the reference can serve")
    parser.add_argument("--budgets", nargs="+", help="names of some budgets (default: all)")
    parser.add_argument("--keep", action="store_true", help="every single request into out/contention")
    options = parser.parse_args()
    data = data_folder(options.data)
    served = prepared(NAME, data, again=False)
    given: dict[str, Any] = {"threads": options.threads} if options.threads else {}

    def profiled() -> Frontier:
        progress("profiling")
        return served.bundle.profile(batch=(1,), seconds=options.profile, progress=False, **given).frontier

    frontier, records = profiled(), recorded(data, served)
    device = this_machine(frontier.costs.threads)
    rate_hz = options.used * 1e3 / frontier.points[0].mean_ms[0]
    trace = Bursty(0.4 * rate_hz, 1.6 * rate_hz, quiet_s=4.0, busy_s=4.0, duration_s=options.seconds)
    times_s = trace.arrivals(np.random.default_rng(SEED))
    items = order(len(times_s), len(records))
    steps = max(2, round(options.seconds / options.step))
    load = [(i * options.step, i % 2) for i in range(steps)]
    share = 1 / available_cores()
    loads: dict[str, tuple[list[tuple[float, int]], float | Steps]] = {
        "alone": ([(0.0, 0)], 0.0),
        "one busy process": (
            [*load, (options.seconds, 0)],
            Steps(tuple(t for t, _ in load), tuple(share * count for _, count in load)),
        ),
    }
    chosen = {k: v for k, v in budgets(frontier).items() if not options.budgets or k in options.budgets}
    progress(f"{len(times_s)} requests in {options.seconds:g} s, {rate_hz:.0f} a second on average")
    first = trace.arrivals(np.random.default_rng(SEED + 1))
    first = first[first < FIRST_S]

    def moment() -> Moment:
        """Requests without limits as the machine is now, alone and beside one busy process."""
        alone, loaded = (
            live(served, dynamic.Budget(), first.tolist(), items[: len(first)], [(0.0, busy)], given) for busy in (0, 1)
        )
        return Moment(work_ms(alone), work_ms(loaded), *begin_ms(alone))

    def predicted_ms(now: Frontier) -> float:
        """Mean time from start to end of the same requests, by profile alone."""
        report = simulate(
            now,
            records,
            device=device,
            workload=Recorded(first, FIRST_S),
            policy=BudgetPolicy(),
            budget=dynamic.Budget(),
            seed=SEED,
        )
        assert report.mean_latency_ms is not None
        assert report.mean_wait_ms is not None
        return report.mean_latency_ms - report.mean_wait_ms

    rows: dict[str, Any] = {}
    before = moment()
    for label, (real_load, simulated_load) in loads.items():
        for name, budget in chosen.items():
            now = profiled()
            answers = live(served, budget, times_s.tolist(), items, real_load, given)
            after = moment()
            here = device_between(before, after, predicted_ms(now), device, now.costs.threads)
            report = simulate(
                now,
                records,
                device=here,
                workload=Recorded(times_s, options.seconds),
                policy=BudgetPolicy(),
                budget=budget,
                seed=SEED,
                background_load=simulated_load,
                queue_limit=QUEUE,
            )
            row = rows[f"{name}, {label}"] = compare(answers, report, budget, records.stages)
            row["before"], row["after"], before = asdict(before), asdict(after), after
            row["fitted"] = {name: round(getattr(here, name), 4) for name in FITTED}
            show(f"{name}, {label}", row)
            if options.keep:
                kept = KEPT / f"simulated-{name}-{label}.json".replace(" ", "-")
                kept.write_text(json.dumps([asdict(a) for a in answers]))
    met = all(row["met"] for row in rows.values())
    print(f"asked for: {LATENCY:.0%} of the mean, {SHARES} and {MISSES} points: {'met' if met else 'missed'}")
    facts = {"seconds": options.seconds, "used": options.used, "rate_hz": round(rate_hz, 1), "requests": len(times_s)}
    facts |= {"costs": frontier.costs.to_json(), "met": met}
    print(save("simulation/simulator_vs_reality", facts | {"rows": rows, "not_measured": NOT_MEASURED}))


def show(name: str, row: dict[str, Any]) -> None:
    """Print a row."""
    real, simulated = row["real"], row["simulated"]
    missed = "" if row["missed_off_points"] is None else f", missed {real['missed']:.1%} / {simulated['missed']:.1%}"
    shares = " ".join(f"{100 * a:.1f}/{100 * b:.1f}" for a, b in zip(real["shares"], simulated["shares"], strict=True))
    print(
        f"{name:40} real / simulated: mean {real['mean_ms']:.3f} / {simulated['mean_ms']:.3f} ms "
        f"({row['latency_off']:+.1%}), work {real['work_mean_ms']:.3f} / {simulated['work_mean_ms']:.3f}, "
        f"p95 {real['p95_ms']:.2f} / {simulated['p95_ms']:.2f}, shares {shares}{missed}, "
        f"cut {real['cut']:.1%} / {simulated['cut']:.1%}  {'met' if row['met'] else 'missed'}",
        flush=True,
    )


if __name__ == "__main__":
    main()
