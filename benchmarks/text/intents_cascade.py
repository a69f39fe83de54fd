"""Intents through `run(x)`: a bag of tokens before MiniLM-L6 with exits, certified, beside every static network.

    python -m benchmarks.text.intents_cascade

CLINC150 and Banking77, one text at a time and 32 at once, on ONNX Runtime and OpenVINO. The bag of tokens and all
heads are trained on the training texts (`intents.py`). Held-out texts are divided into halves: one certifies a drop of
at most 0.01 to the last network, the other reports. Accuracies are means of 20 divisions. Times are of the first:
contenders take turns, one request behind the other, text in and answer out, and once more with the tokens made before.

The opponent of a cascade is the fastest static network that is at least as accurate on the texts that report: the bag
of tokens alone, or MiniLM that ends after 2, 4 or 6 layers with a linear head, in float32 or int8. Where there is none
it is the most accurate one. "use the static network" stands where the opponent is faster.

Of CLINC150, texts of no class are mixed in at 10%. Counted are queries until drift is noticed, and alarms without them.
The drift test's bets on a few inputs of another kind (`TAILS`) were chosen after looking at these very texts, from five
sets at two weights, so delays flatter a little. False alarms cannot be chosen that way.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

import dynamic
from benchmarks.harness.common import ROOT, add_data_option, data_folder, progress, save, spread
from benchmarks.text.intents import LAYERS, SHAPES, STATIC_LAYERS, TASKS, Networks, Task, Texts
from dynamic.data import stratified_halves
from dynamic.policies import Combiner, replay

MAX_DROP, EXITS = 0.01, (2, 4)
ENGINES = ("onnxruntime", "openvino")
BLOCK, WARM = 20, 3
GOALS = {"mean": 0.40, "p95": 1.05}
INT8 = f"MiniLM-L{LAYERS} int8"  # what the goals are relative to
STEPS = ("bundles", "times", "splits")
FOLDER = ROOT / "out" / "intents_cascade"


@dataclass(frozen=True)
class Contender:
    """A network or cascade: its records of all held-out texts, and the bundle of the first division in `folder`."""

    name: str
    is_static: bool
    folder: Path

    @property
    def shelf(self) -> Path:
        """Where its bundle lies."""
        return self.folder / "shelf"

    @property
    def is_kept(self) -> bool:
        """Whether its bundle was built before."""
        return (self.shelf / "bundle.json").is_file()

    @cached_property
    def records(self) -> dynamic.Records:
        """Of all held-out texts."""
        return dynamic.Records.load(self.folder / "records.npz")

    @cached_property
    def bundle(self) -> dynamic.Bundle:
        """Of the first division."""
        return dynamic.load(self.shelf)


STATIC = {f"MiniLM-L{layers} {p}": (layers, p) for layers in STATIC_LAYERS for p in ("f32", "int8")}
BAG = "bag"
NAMES = (BAG, *STATIC, *(f"bag, {then} {p}" for p in ("f32", "int8") for then in (f"MiniLM-L{LAYERS}", "exits")))


def contenders(folder: Path) -> list[Contender]:
    """All of them, in the folder of an engine."""
    return [
        Contender(name, name == BAG or name in STATIC, folder / name.replace(", ", "-").replace(" ", "-"))
        for name in NAMES
    ]


def members(networks: Networks, name: str) -> list[nn.Module]:
    """The networks of a contender."""
    if name == BAG:
        return [networks.bag]
    if name in STATIC:
        return [networks.encoders[STATIC[name]]]
    precision = name.split()[-1]
    last = networks.with_exits(precision, EXITS) if "exits" in name else networks.encoders[LAYERS, precision]
    return [networks.bag, last]


def keep_bundles(networks: Networks, task: Task, engine: Any, first: Texts, listed: Sequence[Contender]) -> None:
    """Calibrate and build what does not exist yet."""
    for contender in listed:
        if contender.is_kept:
            continue
        progress(f"{task.name}, {engine}: {contender.name}")
        cascade = dynamic.Cascade(members(networks, contender.name), dynamic_shapes=SHAPES)
        contender.folder.mkdir(parents=True, exist_ok=True)
        batches = task.held_out.batches(networks.preprocess)
        dynamic.calibrate(cascade, batches, engine=engine, progress=False).save(contender.folder / "records.npz")
        bundle = dynamic.build(
            cascade,
            first.batches(networks.preprocess),
            engine=engine,
            preprocess=networks.preprocess,
            classes=task.classes,
            max_drops=(MAX_DROP,),
            progress=False,
        )
        bundle.save(contender.shelf)


def timed(
    listed: Sequence[Contender], texts: Sequence[str], size: int
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[int, float]]]:
    """Figures of requests of `size` texts by contender, and, of one text, the mean by the stage that answered."""
    budget = dynamic.Budget(max_drop=MAX_DROP, on_drift="report")
    runs = {c.name: c.bundle.runtime(budget) for c in listed}
    preprocess = listed[0].bundle.preprocess
    assert isinstance(preprocess, dynamic.TextPreprocess)
    requests = [texts[0] if size == 1 else list(texts[:size]) for texts in _groups(texts, size)]
    took: dict[str, dict[str, list[float]]] = {c.name: {"text": [], "tokens": [], "cpu": []} for c in listed}
    stages: dict[str, list[tuple[int, float]]] = {c.name: [] for c in listed}
    try:
        lengths: set[int] = set()
        first_ms: dict[str, list[float]] = {c.name: [] for c in listed}
        for request in requests:  # engines prepare for every length
            length = preprocess(request)["input_ids"].shape[1]
            for name, run in runs.items():
                _, ms = _clocked(run, request)
                if length not in lengths:
                    first_ms[name].append(ms)
            lengths.add(length)
        for number, start in enumerate(range(0, len(requests), BLOCK)):
            block, shift = requests[start : start + BLOCK], number % len(listed)
            for contender in (*listed[shift:], *listed[:shift]):
                run, own = runs[contender.name], took[contender.name]
                for request in block[:WARM]:
                    run(request)
                began_cpu = time.process_time()
                for request in block:
                    answer, ms = _clocked(run, request)
                    own["text"].append(ms)
                    if isinstance(answer, dynamic.Prediction):
                        stages[contender.name].append((answer.stage, ms))
                own["cpu"].append((time.process_time() - began_cpu) * 1e3 / len(block))
                ready = [preprocess.arrays(r, contender.bundle.spec.inputs) for r in block]
                own["tokens"] += [_clocked(run, arrays)[1] for arrays in ready]
    finally:
        for run in runs.values():
            run.close()
    figures = {
        name: {
            "ms": spread(own["text"]) | {"p99": round(float(np.percentile(own["text"], 99)), 3)},
            "ms_without_tokenization": spread(own["tokens"]),
            "cpu_ms": round(statistics.fmean(own["cpu"]), 3),
            "first_of_a_length_ms": spread(first_ms[name]),
        }
        for name, own in took.items()
    }
    by_stage = {
        name: {s: statistics.fmean(ms for stage, ms in found if stage == s) for s in {stage for stage, _ in found}}
        for name, found in stages.items()
    }
    return figures, by_stage


def over_splits(
    listed: Sequence[Contender], figures: Mapping[str, Any], by_stage: Mapping[str, dict[int, float]], splits: int
) -> dict[str, Any]:
    """Accuracies and shares of exits on the halves that report, and each cascade beside its opponent."""
    labels = listed[0].records.label
    assert labels is not None
    rows: dict[str, list[dict[str, Any]]] = {c.name: [] for c in listed}
    for seed in range(splits):
        choosing, reporting = stratified_halves(labels, seed)
        for contender in listed:
            rows[contender.name].append(_on_half(contender, choosing, reporting, by_stage, figures))
    found: dict[str, Any] = {}
    for contender in listed:
        own = rows[contender.name]
        row = {key: round(statistics.fmean(r[key] for r in own), 4) for key in ("accuracy", "drop", "certified", "ms")}
        row["exits"] = np.mean([r["exits"] for r in own], axis=0).round(3).tolist()
        found[contender.name] = row
    for contender in listed:
        if contender.is_static:
            continue
        static = [c.name for c in listed if c.is_static]
        able = [name for name in static if found[name]["accuracy"] >= found[contender.name]["accuracy"]]
        opponent = (
            min(able, key=lambda name: found[name]["ms"])
            if able
            else max(static, key=lambda name: found[name]["accuracy"])
        )
        found[contender.name] |= {
            "opponent": opponent,
            "ratio": round(found[contender.name]["ms"] / found[opponent]["ms"], 3),
            "p95_ratio": round(figures[contender.name]["ms"]["p95"] / figures[opponent]["ms"]["p95"], 3),
            "ratio_to_int8": round(found[contender.name]["ms"] / found[INT8]["ms"], 3),
            "p95_ratio_to_int8": round(figures[contender.name]["ms"]["p95"] / figures[INT8]["ms"]["p95"], 3),
            "use_the_static_network": found[contender.name]["ms"] >= found[opponent]["ms"],
        }
    return found


def _on_half(
    contender: Contender,
    choosing: Any,
    reporting: Any,
    by_stage: Mapping[str, dict[int, float]],
    figures: Mapping[str, Any],
) -> dict[str, Any]:
    """What the cheapest certified point of one half does on the other. A static network answers by itself."""
    other = contender.records.select(reporting)
    assert other.label is not None
    alone = float((other.logits[:, -1].argmax(1) == other.label).mean())
    if contender.is_static:
        mean_ms = figures[contender.name]["ms"]["mean"]
        return {"accuracy": alone, "drop": 0.0, "certified": 1.0, "exits": [1.0], "ms": mean_ms}
    ladder = dynamic.certify(contender.records.select(choosing), (MAX_DROP,))
    combiner = Combiner(ladder.temperature, ladder.score, combine=ladder.combine, backbone=ladder.backbone)
    own = by_stage[contender.name]
    usual = max(own.values())
    stage_ms = [own.get(stage, usual) for stage in range(other.stages)]
    # a ladder has cheaper points too, each with the drop that it is certified for
    able = [p for p in ladder.points if p is ladder.points[0] or (p.bound is not None and p.bound <= MAX_DROP)]
    point = min(able, key=lambda one: float(np.dot(one.shares, stage_ms)))
    answers = replay(other.logits, combiner, thresholds=point.thresholds, backbone=other.backbone)
    shares = np.bincount(answers.stage, minlength=other.stages) / len(other)
    accuracy = float((answers.prediction == other.label).mean())
    return {
        "accuracy": accuracy,
        "drop": alone - accuracy,
        "certified": float(point is not ladder.points[0]),
        "exits": shares,
        "ms": float(np.dot(shares, stage_ms)),
    }


def drift(contender: Contender, task: Task, texts: Texts, streams: int, length: int = 600) -> dict[str, Any]:
    """Queries until drift is noticed with 10% out of scope, by stream, and the share of streams without that alarm."""
    noticed: list[int | None] = []
    false_alarms = 0
    for seed in range(streams):
        generator = np.random.default_rng(seed)
        for share in (0.1, 0.0):
            order = generator.permutation(len(texts.texts))[:length]
            stream = [
                task.out_of_scope[int(generator.integers(len(task.out_of_scope)))]
                if generator.random() < share
                else texts.texts[i]
                for i in order
            ]
            with contender.bundle.runtime(dynamic.Budget(max_drop=MAX_DROP, on_drift="report")) as run:
                at = next((n for n, text in enumerate(stream, 1) if run(text) and run.stats().drift), None)
            if share:
                noticed.append(at)
            else:
                false_alarms += at is not None
    within = [at for at in noticed if at is not None]
    return {
        "streams": streams,
        "noticed": len(within),
        "noticed_within_200": sum(at <= 200 for at in within),
        "median_queries": statistics.median(within) if within else None,
        "false_alarms": false_alarms,
    }


def _clocked(run: Callable[[Any], Any], request: Any) -> tuple[Any, float]:
    began = time.perf_counter()
    answer = run(request)
    return answer, (time.perf_counter() - began) * 1e3


def _groups(texts: Sequence[str], size: int) -> list[Sequence[str]]:
    return [texts[i : i + size] for i in range(0, len(texts) - size + 1, size)]


def measure(data: Path, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Everything about one task, printed as tables."""
    task, place = TASKS[name](data), FOLDER / name
    if options.texts:
        train, held_out = (
            part.select(np.random.default_rng(0).permutation(len(part.texts))[: options.texts])
            for part in (task.train, task.held_out)
        )
        task = Task(task.name, task.classes, train, held_out, task.out_of_scope)
        place = FOLDER / f"{name}-{options.texts}"
    choosing, reporting = stratified_halves(task.held_out.labels, 0)
    order = np.random.default_rng(0).permutation(len(reporting))
    first, report = task.held_out.select(choosing), task.held_out.select(np.asarray(reporting)[order])
    listed = {engine: contenders(place / engine) for engine in options.engines}
    if "bundles" in options.steps and not all(c.is_kept for own in listed.values() for c in own):
        networks = Networks(task)
        for engine in options.engines:
            keep_bundles(networks, task, engine, first, listed[engine])
    if "times" in options.steps:
        for engine in options.engines:
            keep_times(listed[engine], report, options.requests, place / engine / "times.json")
    found: dict[str, Any] = {}
    for engine in options.engines if "splits" in options.steps else ():
        kept = json.loads((place / engine / "times.json").read_text(encoding="utf-8"))
        by_stage = {n: {int(stage): ms for stage, ms in own.items()} for n, own in kept.pop("by_stage").items()}
        rows = over_splits(listed[engine], kept["one"], by_stage, options.splits)
        found[engine] = kept | {"over_splits": rows}
        if task.out_of_scope and options.streams:
            cascade = min((c for c in listed[engine] if not c.is_static), key=lambda c: rows[c.name]["ms"])
            found[engine]["out_of_scope"] = drift(cascade, task, report, options.streams)
        show(f"{name}, {engine}", found[engine])
    return found


def keep_times(listed: Sequence[Contender], report: Texts, requests: int, path: Path) -> None:
    """Profile every contender and time it, one text at a time and 32 at once."""
    for contender in listed:
        if contender.bundle.costs is None:
            progress(f"profiling {contender.name}")
            contender.bundle.profile(batch=(1, 32), seconds=0.5, progress=False)
            vars(contender).pop("bundle")  # it is loaded with its costs
    progress("timing texts")
    one, by_stage = timed(listed, report.texts[:requests], 1)
    many, _ = timed(listed, report.texts[: 4 * requests], 32)
    path.write_text(
        json.dumps({"requests": requests, "one": one, "batch_of_32": many, "by_stage": by_stage}), encoding="utf-8"
    )


def show(title: str, figures: Mapping[str, Any]) -> None:
    """Print a table."""
    head = f"{'accuracy':>9}{'mean':>8}{'p50':>8}{'p95':>8}{'p99':>8}{'no tok.':>9}{'CPU-ms':>8}{'32, ms':>9}"
    print(f"\n{title}: mean accuracy of halves, milliseconds of a text\n{'':24}{head}")
    for name, row in figures["over_splits"].items():
        one, many = figures["one"][name], figures["batch_of_32"][name]
        ms = one["ms"]
        print(
            f"{name:24}{row['accuracy']:9.4f}{row['ms']:8.3f}{ms['median']:8.3f}{ms['p95']:8.3f}{ms['p99']:8.3f}"
            f"{one['ms_without_tokenization']['mean']:9.3f}{one['cpu_ms']:8.3f}{many['ms']['mean']:9.3f}"
        )
    for name, row in figures["over_splits"].items():
        if "ratio" in row:
            advice = ": use the static network" if row["use_the_static_network"] else ""
            print(
                f"{name}: {row['ratio']:.3f} of the mean of {row['opponent']}, p95 {row['p95_ratio']:.3f}, drop "
                f"{row['drop']:+.4f}, certified in {row['certified']:.0%}, exits {row['exits']}{advice}"
            )
    if "out_of_scope" in figures:
        print(f"out of scope at 10%: {figures['out_of_scope']}")


def main() -> None:
    """Tables and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS), metavar="TASK")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES), metavar="ENGINE")
    parser.add_argument("--steps", nargs="+", default=STEPS, choices=STEPS, metavar="STEP")
    parser.add_argument("--requests", type=int, default=1000, help="texts timed one at a time, of each contender")
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--streams", type=int, default=60, help="with texts out of scope (0: leave that out)")
    parser.add_argument("--texts", type=int, help="train with so many texts and hold out as many, to try it out")
    options = parser.parse_args()
    data = data_folder(options.data)
    figures = {name: measure(data, name, options) for name in options.tasks}
    if not options.texts and STEPS[-1] in options.steps:
        print(save("text/intents_cascade", {"goals": GOALS, "tasks": figures}))


if __name__ == "__main__":
    main()
