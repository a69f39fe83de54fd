"""Who misses deadlines while other processes take the cores: the policy, the cheapest stage alone, or the full network?

    python -m benchmarks.runtime.contention

Every 10 seconds other processes at normal priority that do nothing but spin are stopped and others started: 0, 1, 2 or
4 at once. Requests come 20 times a second whatever has been answered by then (open loop), latency counts from when they
should have come, and the deadline is 1.5 times the 95th percentile of what the runtime itself took, unloaded, all the
way through every stage.

Contenders are three runtimes, each a process with a monitor of its own: `BudgetPolicy` under the deadline and the same
limit on p95 latency; the cheapest point, which is the first stage alone; and the reference, the full network alone. Two
ways to take turns. "requests": they get the requests one after another, each a third of the rate, so that all three
meet the same load within 150 ms; the next request is 50 ms away, so that they rarely run at once. "cycles": each gets
the whole rate for a cycle of all loads, then the next does, which takes three times as long.

Two cascades: ResNet-18 at 224 with 3 exits and random weights (thresholds are quantiles of its scores on the noise that
is served, so that shares are known; its accuracies are made up, they only put points in order), and ResNet-20, 32, 56
on CIFAR-10, certified on one half of the test images and served the other.

The goal: the policy's misses are at most 2 points above those of the cheapest stage alone.
"""

import argparse
import json
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray

import dynamic
from benchmarks.harness import cifar
from benchmarks.harness.common import ROOT, add_data_option, data_folder, progress, save
from benchmarks.harness.live import SOON_S, Busy, Worker, follow
from benchmarks.harness.live_worker import Answer, Job
from benchmarks.runtime.one_stays import plain, unsettle
from dynamic.bundle.bundle_writer import write
from dynamic.data import stratified_halves
from dynamic.offline.onnx_export.stage_graphs import export_stages
from dynamic.offline.onnx_export.whole_graph import write_graphs
from dynamic.policies.certification.replay import replay, shares
from dynamic.policies.ladder import Interval, Ladder, OperatingPoint
from dynamic.policies.scores import Combiner

CYCLES = ((0, 1, 2, 4), (0, 4, 1, 2), (0, 2, 4, 1))  # busy processes, STEP_S each
STEP_S, RATE_HZ, TIMES, GOAL_POINTS = 10.0, 20.0, 1.5, 2.0
POLICY, CHEAPEST, REFERENCE, DEEP = "policy", "cheapest stage", "full network", "all deep"
ABOVE_ALL = 1.001  # the highest threshold that a ladder of probabilities may hold: no input exits there
QUIET = 0.1  # load by others, at most, while the deadline is measured
KEPT = ROOT / "out" / "contention"
NOISE, TARGETS = 256, (0.0, 0.0025, 0.005, 0.01, 0.02, 0.05)
NOT_MEASURED = ("ARM", "phones", "accelerators", "real-time priorities", "other engines than ONNX Runtime")


@dataclass(frozen=True)
class Served:
    """A bundle in `folder` with `inputs` to serve in order; `labels` where there are any."""

    folder: Path
    inputs: Path
    count: int
    labels: NDArray[np.int64] | None

    @property
    def bundle(self) -> dynamic.Bundle:
        """As it lies there."""
        return dynamic.load(self.folder)


def resnet18(data: Path, folder: Path) -> Served:
    """ResNet-18 at 224 with three exits of random weights, a ladder of quantiles, and the noise it was made on."""
    torch.manual_seed(0)
    example = torch.randn(2, 3, 224, 224)
    network = torchvision.models.resnet18(weights=None).eval()
    unsettle(network)
    cascade = dynamic.Cascade(dynamic.wrap(network, example, exits=3))
    for one in cascade.networks:  # the heads are new
        unsettle(one)
    spec = export_stages(cascade, folder, example, progress=False)
    bare = plain(cascade, spec, (3, 224, 224))
    write_graphs(folder, spec, bare)
    noise = torch.randn(NOISE, 3, 224, 224)
    batches = [(part, torch.arange(len(part))) for part in noise.split(32)]  # labels mean nothing
    records = dynamic.calibrate(cascade, batches, progress=False)
    write(
        folder,
        spec,
        replace(bare, points=tuple(quantile_points(bare, records)), fingerprint=records.fingerprint),
        records,
        "onnxruntime",
        "f32",
        cascade.fingerprint(),
        None,
        None,
    )
    inputs = folder.with_suffix(".npy")
    np.save(inputs, noise.numpy())
    return Served(folder, inputs, NOISE, None)


def quantile_points(ladder: Ladder, records: dynamic.Records) -> Iterator[OperatingPoint]:
    """The reference, and points at which shares of 25% to 100% leave early, at all exits alike or at one alone."""
    combiner = Combiner(ladder.temperature, ladder.score, combine=ladder.combine, backbone=ladder.backbone)
    last = len(ladder.backbone) - 1
    wanted: dict[str, list[float]] = {"reference": [0.0] * last}  # share of those who get there that leaves
    wanted |= {f"{share:.0%} at each": [share] * last for share in (0.25, 0.5, 0.75)}
    wanted |= {f"all by exit {stop}": [0.5] * (stop - 1) + [1.0] + [0.0] * (last - stop) for stop in range(last, 0, -1)}
    wanted["all by exit 1"] = [1.0, *[0.0] * (last - 1)]
    for name, leave in wanted.items():
        thresholds = [float("inf")] * last
        for stage, share in enumerate(leave):
            if share == 1.0:
                thresholds[stage] = -float("inf")
            elif share:
                played = replay(
                    records.logits,
                    combiner,
                    thresholds=[*thresholds[:stage], -float("inf"), *[0.0] * (last - stage - 1)],
                    backbone=ladder.backbone,
                )
                there = played.score[played.stage == stage]
                thresholds[stage] = float(np.quantile(there, 1 - share))
        exits = replay(records.logits, combiner, thresholds=thresholds, backbone=ladder.backbone).stage
        deep = 0.9 - 0.1 * (1 - float(exits.mean()) / last)  # made up: the deeper the better
        yield OperatingPoint(
            name,
            tuple(thresholds),
            (0,),
            0.0 if name == "reference" else 0.9 - deep,
            0.9 - deep,
            None,
            None,
            len(records),
            Interval(deep, deep, deep),
            shares(exits, last + 1),
        )


def resnets(data: Path, folder: Path) -> Served:
    """ResNet-20, 32 and 56, certified on one half of CIFAR-10's test images, and the other half shuffled."""
    images = cifar.images(data, "test")
    half, rest = stratified_halves(images.labels, seed=0)
    names = ("resnet20", "resnet32", "resnet56")
    cascade = dynamic.Cascade(cifar.networks(data, names), names=names)
    calibration = cifar.batches(images.select(half))
    dynamic.build(cascade, calibration, max_drops=TARGETS, preprocess=cifar.PREPROCESS).save(folder)
    report = images.select(np.random.default_rng(0).permutation(rest))
    inputs = folder.with_suffix(".npy")
    np.save(inputs, report.images)
    np.save(folder.with_suffix(".labels.npy"), report.labels)
    return Served(folder, inputs, len(report), report.labels)


CASCADES = {"ResNet-18 at 224": resnet18, "ResNet-20, 32, 56 on CIFAR-10": resnets}


def prepared(name: str, data: Path, again: bool) -> Served:
    """The bundle of a cascade, from `out/` where it was made before."""
    folder = KEPT / CASCADES[name].__name__
    if again or not (folder / "bundle.json").is_file():
        progress(f"building {name}")
        shutil.rmtree(folder, ignore_errors=True)
        KEPT.mkdir(parents=True, exist_ok=True)
        folder.mkdir(exist_ok=True)
        return CASCADES[name](data, folder)
    inputs, labels = folder.with_suffix(".npy"), folder.with_suffix(".labels.npy")
    return Served(folder, inputs, len(np.load(inputs, mmap_mode="r")), np.load(labels) if labels.is_file() else None)


def all_deep(served: Served, options: dict[str, Any], queued: bool, seconds: float) -> list[Answer]:
    """Unloaded requests that go through every stage, as the runtime takes them under a deadline."""
    bundle, folder = served.bundle, served.folder.with_name(f"{served.folder.name}-deep")
    last = len(bundle.spec.stages) - 1
    every = tuple(range(max(bundle.spec.backbone) + 1))
    deep = replace(
        bundle.ladder.points[0],
        name=DEEP,
        thresholds=(ABOVE_ALL,) * last,
        backbones=every,
        shares=(0.0,) * last + (1.0,),
    )
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(served.folder, folder)
    ladder = replace(bundle.ladder, points=(deep,), certified=False)
    arguments = (bundle.records, bundle.engine, bundle.precision, bundle.cascade, bundle.classes, bundle.preprocess)
    write(folder, bundle.spec, ladder, *arguments)
    times_s = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    never = dynamic.Budget(deadline_ms=1e6)  # but as with one: stage by stage
    with Worker(Job(str(folder), str(served.inputs), DEEP, options, queued)) as worker:
        return worker.run(never, times_s.tolist(), [i % served.count for i in range(len(times_s))])


def levels(seconds: float, step_s: float) -> list[tuple[float, int]]:
    """(when, how many busy processes), until nobody is at the end."""
    order = [count for cycle in CYCLES for count in cycle]
    steps = max(1, round(seconds / step_s))
    return [(i * step_s, order[i % len(order)]) for i in range(steps)] + [(steps * step_s, 0)]


def schedule(turns: str, seconds: float, step_s: float, names: Sequence[str]) -> dict[str, list[float]]:
    """When each contender's requests come."""
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(round(seconds * RATE_HZ)):
        at_s = number / RATE_HZ
        turn = number if turns == "requests" else int(at_s // (len(CYCLES[0]) * step_s))
        found[names[turn % len(names)]].append(at_s)
    return found


def run(
    served: Served, budget: dynamic.Budget, settings: argparse.Namespace, options: dict[str, Any]
) -> dict[str, list[Answer]]:
    """Every contender's answers under the same load."""
    points = {POLICY: None, CHEAPEST: served.bundle.frontier.cheapest.name, REFERENCE: "reference"}
    seconds = settings.seconds * (len(points) if settings.turns == "cycles" else 1)
    load = levels(seconds, settings.step)
    times_s = schedule(settings.turns, load[-1][0], settings.step, list(points))
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(
                Worker(Job(str(served.folder), str(served.inputs), point, options, not settings.direct))
            )
            for name, point in points.items()
        }
        busy = stack.enter_context(Busy())
        time.sleep(2.0)  # monitors see an idle machine
        start_s = time.perf_counter() + SOON_S
        for name, worker in workers.items():
            worker.start(budget, start_s, times_s[name], [i % served.count for i in range(len(times_s[name]))])
        follow(busy, start_s, load)
        return {name: worker.answers() for name, worker in workers.items()}


def level_at(at_s: float, step_s: float) -> int:
    """How many busy processes there are."""
    order = [count for cycle in CYCLES for count in cycle]
    return order[int(at_s // step_s) % len(order)]


def figures(answers: Sequence[Answer], deadline_ms: float, labels: NDArray[np.int64] | None) -> dict[str, Any]:
    """Misses, latencies, stages, accuracy of some requests."""
    done = [a for a in answers if a.latency_ms is not None]
    ms = [a.latency_ms for a in answers if a.latency_ms is not None]
    missed = sum(a.latency_ms is None or a.latency_ms > deadline_ms for a in answers)
    found = {
        "requests": len(answers),
        "missed": round(missed / len(answers), 4),
        "median_ms": round(float(np.median(ms)), 2),
        "p95_ms": round(float(np.percentile(ms, 95)), 2),
        "mean_stage": round(statistics.fmean(a.stage for a in done), 3),
        "cut": round(sum(a.cut for a in done) / len(done), 4),
        "shed": len(answers) - len(done),
        "points": {k: round(v / len(done), 3) for k, v in Counter(a.point for a in done).most_common()},
        "median_slowdown": round(statistics.median(a.slowdown for a in done), 2),
        "median_load": round(statistics.median(a.load or 0.0 for a in done), 2),
        "handed_over_late_ms": round(float(np.percentile([a.late_ms for a in answers], 95)), 2),
    }
    if labels is not None:
        found["accuracy"] = round(statistics.fmean(a.label == labels[a.item] for a in done), 4)
    return found


def measure(served: Served, settings: argparse.Namespace) -> dict[str, Any]:
    """One cascade."""
    options: dict[str, Any] = {"threads": settings.threads} if settings.threads else {}
    if settings.idle:
        options["idle"] = settings.idle
    progress("profiling")
    how = dynamic.OnnxRuntimeOptions(**options)
    bundle = served.bundle.profile(batch=(1,), seconds=settings.profile, progress=False, options=how)
    deep = all_deep(served, options, not settings.direct, settings.unloaded)
    deep_ms = float(np.percentile([a.latency_ms for a in deep if a.latency_ms is not None], 95))
    deadline_ms = TIMES * deep_ms
    budget = dynamic.Budget(latency_ms=deadline_ms, percentile=0.95, deadline_ms=deadline_ms)
    if statistics.median(a.load or 0.0 for a in deep) > QUIET:
        progress("others are at work on this machine: the deadline will be too long, run it again when it is quiet")
    progress(f"all the way {deep_ms:.2f} ms at p95, so the deadline is {deadline_ms:.2f} ms; serving")
    found = run(served, budget, settings, options)
    rows = {}
    for name, answers in found.items():
        rows[name] = figures(answers, deadline_ms, served.labels)
        rows[name]["by_busy_processes"] = {}
        for count in sorted(set(CYCLES[0])):
            some = [a for a in answers if level_at(a.at_s, settings.step) == count]
            if some:
                rows[name]["by_busy_processes"][str(count)] = figures(some, deadline_ms, served.labels)
    if settings.keep:
        kept = KEPT / f"{served.folder.name}-answers.json"
        kept.write_text(json.dumps({name: [asdict(a) for a in answers] for name, answers in found.items()}))
    above = 100 * (rows[POLICY]["missed"] - rows[CHEAPEST]["missed"])
    return {
        "threads": bundle.costs.threads if bundle.costs else None,
        "all_deep_p95_ms": round(deep_ms, 2),
        "load_while_unloaded": round(statistics.median(a.load or 0.0 for a in deep), 3),  # not quiet: run it again
        "deadline_ms": round(deadline_ms, 2),
        "profiled_ms": {p.name: round(p.mean_ms[0], 2) for p in bundle.frontier.points},
        "contenders": rows,
        "points_above_cheapest": round(above, 2),
        "met": above <= GOAL_POINTS,
    }


def show(name: str, found: dict[str, Any]) -> None:
    """Print a table."""
    print(f"\n{name}: deadline {found['deadline_ms']} ms; misses, median ms / p95 ms, mean stage, cut")
    for contender, row in found["contenders"].items():
        for count, own in {"all": row, **row["by_busy_processes"]}.items():
            accuracy = f", accuracy {own['accuracy']:.1%}" if "accuracy" in own else ""
            label = contender if count == "all" else f"  {count} busy"
            print(
                f"{label:18}{own['missed']:8.2%}{own['median_ms']:9.2f} /{own['p95_ms']:8.2f}{own['mean_stage']:7.2f}"
                f"{own['cut']:8.1%}   load {own['median_load']:.2f}, slowdown {own['median_slowdown']:.2f}{accuracy}"
            )
    state = "met" if found["met"] else "missed"
    print(f"the policy misses {found['points_above_cheapest']:+.2f} points more than the cheapest stage: {state}")


def main() -> None:
    """Both cascades; tables and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument(
        "--seconds", type=float, default=120.0, help="of load, for each contender where they take cycles"
    )
    parser.add_argument("--step", type=float, default=STEP_S, help="seconds between changes of the load")
    parser.add_argument("--turns", choices=["requests", "cycles"], default="requests")
    parser.add_argument("--unloaded", type=float, default=15.0, help="seconds that the deadline is measured for")
    parser.add_argument("--profile", type=float, default=3.0, help="seconds of profiling, for each way to run")
    parser.add_argument("--threads", type=int, help="of the engine (default: the library's)")
    parser.add_argument("--idle", choices=["sleep", "spin"], help="of the engine (default: the library's)")
    parser.add_argument("--direct", action="store_true", help="run(x) on the thread that keeps the times, no queue")
    parser.add_argument("--cascades", nargs="+", choices=["resnet18", "resnets"], default=["resnet18", "resnets"])
    parser.add_argument("--again", action="store_true", help="build the bundles again")
    parser.add_argument("--keep", action="store_true", help="every single request into out/contention")
    parser.add_argument("--name", default="contention", help="of the file in results/runtime/")
    settings = parser.parse_args()
    data = data_folder(settings.data)
    found = {}
    for name, make in CASCADES.items():
        if make.__name__ in settings.cascades:
            found[name] = measure(prepared(name, data, settings.again), settings)
            show(name, found[name])
    facts = {k: v for k, v in vars(settings).items() if k in ("seconds", "step", "turns", "threads", "idle", "direct")}
    facts |= {"rate_hz": RATE_HZ, "goal_points": GOAL_POINTS, "deadline_times_all_deep_p95": TIMES}
    print(save(f"runtime/{settings.name}", facts | {"cascades": found, "not_measured": NOT_MEASURED}))


if __name__ == "__main__":
    main()
