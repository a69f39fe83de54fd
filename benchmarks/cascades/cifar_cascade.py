"""A cascade of given CIFAR ResNets, nothing trained, against every static one.

    python -m benchmarks.cascades.cifar_cascade

Half of the 10,000 test images chooses thresholds, the other half reports, over 20 class-stratified splits. The goal: at
least ResNet-56's own accuracy at 0.45 or less of its mean multiply-adds. Thresholds, scores and margins see the
calibration half alone; which point is used is the rule `within_compute`, which has no other input.

Then wall-clock on the first split's report half: one image at a time and in batches of 64, on torch and ONNX Runtime,
against the same networks unsplit on the same engine, each at its own best settings, taking turns in one process.
"""

import argparse
import inspect
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import dynamic
from benchmarks.harness import cifar
from benchmarks.harness.common import (
    Contender,
    add_data_option,
    best,
    data_folder,
    progress,
    ratio,
    save,
    spread,
    take_turns,
)
from dynamic.data import stratified_halves
from dynamic.engines.engine_factory import open_engine
from dynamic.engines.route_choice import CascadeEngine
from dynamic.offline.onnx_export.stage_graphs import describe, export_stages
from dynamic.policies.certification.certificates import certify
from dynamic.policies.certification.replay import cost_to, replay
from dynamic.policies.records import SEARCH, SEARCH_SHARE, split
from dynamic.policies.scores import Combiner, Score
from dynamic.policies.stage_plan import plan

GOAL = 0.45  # of ResNet-56's multiply-adds
SPLITS = 20
CASCADES = (("resnet20", "resnet56"), ("resnet20", "resnet32", "resnet56"), cifar.NAMES)
HEADLINE = ("resnet20", "resnet32", "resnet56")
SCORES: tuple[Score, ...] = ("max_probability", "margin")
DEFAULT_MARGIN: float = inspect.signature(certify).parameters["margin"].default
MARGINS = tuple(np.arange(4.0, 0.0, -0.25).tolist())  # standard errors, widest first
PAUSE_S = 0.1  # ONNX Runtime's workers spin for tens of milliseconds after a call


@dataclass(frozen=True)
class Chosen:
    """What a rule takes from a calibration half: a ladder, its point, and the settings that gave it."""

    ladder: dynamic.Ladder
    point: dynamic.OperatingPoint
    margin: float


@dataclass(frozen=True)
class Outcome:
    """On a report half: accuracy minus ResNet-56's, and mean multiply-adds as a share of ResNet-56's."""

    gain: float
    compute: float


Rule = Callable[[dynamic.Records], Chosen]


def stages_of(records: dynamic.Records, names: Sequence[str]) -> dynamic.Records:
    """The records of a cascade of some of the networks."""
    at = [records.stage_names.index(name) for name in names]
    return dynamic.Records(
        logits=np.ascontiguousarray(records.logits[:, at]),
        label=records.label,
        group=None,
        part=records.part,
        backbone=tuple(range(len(at))),
        macs=tuple(records.macs[i] for i in at),
        head_macs=tuple(records.head_macs[i] for i in at),
        stage_names=tuple(names),
        fingerprint="",
    )


def parted(records: dynamic.Records, search_share: float) -> dynamic.Records:
    """The same with a share of them to search on, as `calibrate` would part them."""
    return replace(records, part=split(None, len(records), search_share=search_share, seed=0))


def drop_0(ladder: dynamic.Ladder) -> dynamic.OperatingPoint:
    """The cheapest point that was chosen to lose nothing: the last one with target 0, the reference if no other."""
    return [point for point in ladder.points if point.target == 0][-1]


def defaults() -> Rule:
    """`certify` as it comes, on records parted as `build` parts them."""

    def rule(calibration: dynamic.Records) -> Chosen:
        ladder = certify(parted(calibration, SEARCH_SHARE))
        return Chosen(ladder, drop_0(ladder), DEFAULT_MARGIN)

    return rule


def fixed_margin(score: Score, margin: float) -> Rule:
    """One score and margin for every split."""

    def rule(calibration: dynamic.Records) -> Chosen:
        ladder = certify(parted(calibration, 1.0), (0.0,), score=score, margin=margin)
        return Chosen(ladder, drop_0(ladder), margin)

    return rule


def within_compute(search_share: float, scores: Sequence[Score] = SCORES) -> Rule:
    """The widest margin, with its best score, whose "drop 0" point stays within the goal on the calibration half.

    Compute that may be spent is spent on certainty. Within the goal means two standard errors below it: mean compute
    on other images is off by about one of either half.
    """

    def rule(calibration: dynamic.Records) -> Chosen:
        records = parted(calibration, search_share)
        seen = parted(records.select(records.part == SEARCH), 1.0)  # nothing is certified: margins are compared
        for margin in MARGINS:
            fitting = []
            for score in scores:
                ladder = certify(seen, (0.0,), score=score, margin=margin)
                _, compute = outcomes(seen, ladder, drop_0(ladder))
                error = compute.std() / np.sqrt(len(seen))
                if compute.mean() + 2 * error <= GOAL:
                    fitting.append((float(compute.mean()), Chosen(ladder, drop_0(ladder), margin)))
            if fitting:
                return min(fitting, key=lambda pair: pair[0])[1]
        ladder = certify(seen, (0.0,))
        return Chosen(ladder, drop_0(ladder), DEFAULT_MARGIN)

    return rule


def outcomes(
    records: dynamic.Records, ladder: dynamic.Ladder, point: dynamic.OperatingPoint
) -> tuple[NDArray[Any], NDArray[Any]]:
    """(gain in {-1, 0, 1}, compute as a share of the last network's) of every record `[N]`."""
    combiner = Combiner(ladder.temperature, ladder.score, combine=ladder.combine, backbone=ladder.backbone)
    found = replay(records.logits, combiner, thresholds=point.thresholds, backbone=records.backbone)
    todo = plan(np.array(point.thresholds, np.float32), records.backbone)
    compute = cost_to(todo, records.macs, records.head_macs)[found.stage] / (records.macs[-1] + records.head_macs[-1])
    reference = records.logits[:, -1].argmax(axis=1) == records.label
    return (found.prediction == records.label).astype(np.int64) - reference, compute


def over_splits(records: dynamic.Records, rule: Rule) -> tuple[list[Chosen], list[Outcome]]:
    """What the rule takes from each calibration half, and what becomes of it on the other half."""
    assert records.label is not None
    chosen, found = [], []
    for seed in range(SPLITS):
        calibration, report = stratified_halves(records.label, seed)
        chosen.append(rule(records.select(calibration)))
        gain, compute = outcomes(records.select(report), chosen[-1].ladder, chosen[-1].point)
        found.append(Outcome(float(gain.mean()), float(compute.mean())))
    return chosen, found


def summary(found: Sequence[Outcome]) -> dict[str, float]:
    """Mean and worst over the splits."""
    gain, compute = np.array([o.gain for o in found]), np.array([o.compute for o in found])
    named = {
        "gain_mean": gain.mean(),
        "gain_worst": gain.min(),
        "gain_sd": gain.std(ddof=1),
        "compute_mean": compute.mean(),
        "compute_worst": compute.max(),
        "splits_accurate_enough": (gain >= 0).mean(),
        "splits_cheap_enough": (compute <= GOAL).mean(),
        "splits_both": ((gain >= 0) & (compute <= GOAL)).mean(),
    }
    return {name: round(float(value), 5) for name, value in named.items()}


def accuracy_table(records: dynamic.Records) -> tuple[dict[str, Any], Chosen]:
    """Every rule over all splits, every static network; and what the headline rule chose on the first split."""
    rules: list[tuple[str, Sequence[str], Rule]] = [
        *((f"margin within compute, {_short(names)}", names, within_compute(1.0)) for names in CASCADES),
        (f"the same, half of it to search, {_short(HEADLINE)}", HEADLINE, within_compute(0.5)),
        (f"the same, max_probability alone, {_short(HEADLINE)}", HEADLINE, within_compute(1.0, ("max_probability",))),
        *((f"build's defaults, {_short(names)}", names, defaults()) for names in CASCADES),
        *(
            (f"{score}, margin {margin:g}, {_short(HEADLINE)}", HEADLINE, fixed_margin(score, margin))
            for score in SCORES
            for margin in (0.5, 1.0, 1.5, 2.0)
        ),
    ]
    table: dict[str, Any] = {}
    first: Chosen | None = None
    label = records.label
    assert label is not None
    print(f"\naccuracy minus ResNet-56's and share of its compute on the report half, {SPLITS} splits")
    print(f"{'':52}{'gain mean':>10}{'worst':>8}{'compute':>9}{'worst':>7}{'accurate':>10}{'cheap':>7}{'both':>6}")
    for name, names, rule in rules:
        chosen, found = over_splits(stages_of(records, names), rule)
        if first is None and tuple(names) == HEADLINE:
            first = chosen[0]
        row = summary(found)
        table[name] = row | {
            "margins": [c.margin for c in chosen],
            "scores": {s: sum(c.ladder.score == s for c in chosen) for s in SCORES},
            "gain": [round(o.gain, 5) for o in found],
            "compute": [round(o.compute, 5) for o in found],
        }
        _print_row(name, row)
    for name in cifar.NAMES[:-1]:
        alone = stages_of(records, (name, "resnet56"))
        found = []
        for seed in range(SPLITS):
            half = stratified_halves(label, seed)[1]
            right = (alone.logits[half].argmax(axis=2) == label[half, None]).mean(axis=0)
            found.append(Outcome(float(right[0] - right[1]), alone.macs[0] / alone.macs[1]))
        table[f"{name} alone"] = summary(found)
        _print_row(f"{name} alone", table[f"{name} alone"])
    assert first is not None
    return table, first


def _print_row(name: str, row: dict[str, float]) -> None:
    print(
        f"{name:52}{row['gain_mean']:+10.2%}{row['gain_worst']:+8.2%}{row['compute_mean']:9.3f}"
        f"{row['compute_worst']:7.3f}{row['splits_accurate_enough']:10.0%}{row['splits_cheap_enough']:7.0%}"
        f"{row['splits_both']:6.0%}",
        flush=True,
    )


def _short(names: Sequence[str]) -> str:
    return "+".join(name.removeprefix("resnet") for name in names)


@dataclass(frozen=True)
class Setting:
    """An engine's settings; `name` as printed."""

    threads: int
    idle: str = ""

    @property
    def name(self) -> str:
        return (
            ", ".join([f"{self.threads} threads", *([self.idle] if self.idle else [])])
            if self.threads > 1
            else "1 thread"
        )


TORCH_SETTINGS = (Setting(1), Setting(2))
# one thread has no workers to wait; networks alone may spin as ONNX Runtime does by itself, too
ONNX_SETTINGS = (Setting(1), Setting(2, "sleep"), Setting(2, "spin"))
ONNX_OWN = Setting(2, "spin on")


class Timing:
    """The cascade and every network alone, on one engine, ready to take turns."""

    def __init__(self, data: Path, chosen: Chosen, inputs: NDArray[np.float32], folder: Path) -> None:
        self.inputs = inputs
        self.limits = np.array(chosen.point.thresholds, np.float32)
        self.alone = dict(zip(cifar.NAMES, cifar.networks(data), strict=True))
        self.cascade = dynamic.Cascade(cifar.networks(data, HEADLINE), names=HEADLINE)
        self.combiner = Combiner(
            chosen.ladder.temperature,
            chosen.ladder.score,
            combine=chosen.ladder.combine,
            backbone=chosen.ladder.backbone,
        )
        self.folder = folder
        example = torch.from_numpy(inputs[:2])
        self.spec = export_stages(self.cascade, folder / "cascade", example)
        # a plain network is one stage: its graph is the network unsplit
        for name, network in self.alone.items():
            export_stages(dynamic.Cascade(network, names=[name]), folder / name, example)

    def torch(self, rows: int) -> dict[str, dict[str, Contender]]:
        """By network and settings."""
        stages = describe(self.cascade, torch.from_numpy(self.inputs[:2]))
        engine = open_engine("torch", self.folder, stages, self.combiner, self.cascade.stages)
        runs = {"cascade": self._cascade(engine, rows)}
        runs |= {name: self._module(network, rows) for name, network in self.alone.items()}
        return {
            name: {
                setting.name: Contender(f"{name} | {setting.name}", run, _set_threads(setting.threads))
                for setting in TORCH_SETTINGS
            }
            for name, run in runs.items()
        }

    def onnxruntime(self, rows: int) -> dict[str, dict[str, Contender]]:
        """By network and settings."""
        found: dict[str, dict[str, Contender]] = {name: {} for name in ("cascade", *self.alone)}
        for setting in (*ONNX_SETTINGS, ONNX_OWN):
            runs = {name: self._session(self.folder / name, setting, rows) for name in self.alone}
            if setting != ONNX_OWN:
                folder, idle = self.folder / "cascade", setting.idle or "sleep"
                engine = open_engine(
                    "onnxruntime", folder, self.spec, self.combiner, threads=setting.threads, idle=idle
                )
                engine.load(self.spec.backbones)
                runs["cascade"] = self._cascade(engine, rows)
            for name, run in runs.items():
                found[name][setting.name] = Contender(f"{name} | {setting.name}", run)
        return found

    def _cascade(self, engine: CascadeEngine, rows: int) -> Callable[[int], object]:
        return lambda i: engine.run({"input": self.inputs[i : i + rows]}, self.limits)

    def _module(self, network: nn.Module, rows: int) -> Callable[[int], object]:
        def run(i: int) -> object:
            with torch.inference_mode():
                return network(torch.from_numpy(self.inputs[i : i + rows])).numpy()

        return run

    def _session(self, folder: Path, setting: Setting, rows: int) -> Callable[[int], object]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = setting.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry(
            "session.intra_op.allow_spinning", "1" if setting.idle.startswith("spin") else "0"
        )
        if setting.idle == "spin":  # as the engine does
            options.add_session_config_entry("session.force_spinning_stop", "1")
            options.add_session_config_entry("session.intra_op.spin_duration_us", "20")
        graph = str(folder / "backbones" / "0_0.onnx")
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        return lambda i: session.run(None, {"input": self.inputs[i : i + rows]})


def _set_threads(count: int) -> Callable[[], None]:
    return lambda: torch.set_num_threads(count)


def time_engine(
    engine: str,
    rows: int,
    contenders: dict[str, dict[str, Contender]],
    items: Sequence[int],
    accuracy: dict[str, float],
    compute: dict[str, float],
) -> dict[str, Any]:
    """All contenders in all settings in one interleaved run; each by its best settings.

    `compute`: what the timed inputs cost, as a share of ResNet-56's multiply-adds.
    """
    listed = [c for settings in contenders.values() for c in settings.values()]
    block = 1 if engine == "torch" else (40 if rows == 1 else 4)
    # torch: settings one after the other within an image, so that the thread pool changes once
    listed.sort(key=lambda c: c.name.split(" | ")[1])
    pause = 0.0 if engine == "torch" else PAUSE_S
    took = take_turns(listed, items, block, pause, warm=1 if block > 1 else 0)
    chosen = {name: best(took, [c.name for c in settings.values()]) for name, settings in contenders.items()}
    rivals = [n for n in cifar.NAMES if accuracy[n] >= accuracy["cascade"]]
    nearest = min(rivals, key=lambda n: statistics.fmean(took[chosen[n]]), default=None)
    rows_of: dict[str, dict[str, Any]] = {
        name: {
            "settings": chosen[name].split(" | ")[1],
            "accuracy": round(accuracy[name], 4),
            "compute": round(compute[name], 4),
            "latency_ms": spread(took[chosen[name]]),
            "to_resnet56": ratio(took[chosen[name]], took[chosen["resnet56"]]),
            "latency_ms_by_settings": {
                s: round(statistics.fmean(took[c.name]), 3) for s, c in contenders[name].items()
            },
        }
        for name in contenders
    }
    print(f"\n{engine}, batch {rows}, {len(items)} requests; each at its best settings")
    print(
        f"{'':12}{'accuracy':>9}{'compute':>9}{'mean ms':>9}{'p50':>8}{'p95':>8}   to ResNet-56 (quartiles)   settings"
    )
    for name, row in rows_of.items():
        ms, to = row["latency_ms"], row["to_resnet56"]
        print(
            f"{name:12}{row['accuracy']:9.2%}{row['compute']:9.3f}{ms['mean']:9.2f}{ms['median']:8.2f}{ms['p95']:8.2f}"
            f"   {to['ratio']:.3f} ({to['q25']:.3f} to {to['q75']:.3f})      {row['settings']}"
        )
    against = None
    if nearest is not None:
        against = {"network": nearest, **ratio(took[chosen["cascade"]], took[chosen[nearest]])}
        print(f"best static network of at least the cascade's accuracy: {nearest}, ratio {against['ratio']:.3f}")
    else:
        print("no static network here has the cascade's accuracy")
    return {"requests": len(items), "rows": rows_of, "to_best_static": against}


def wall_clock(
    data: Path, records: dynamic.Records, chosen: Chosen, single: int, batched: int
) -> dict[str, dict[str, Any]]:
    """Timings on the report half of the first split, with the thresholds of its calibration half."""
    assert records.label is not None
    _, report = stratified_halves(records.label, seed=0)
    images = cifar.images(data, "test").select(report)
    inputs = cifar.PREPROCESS(images.images)
    # batches come as they would from a stream: classes mixed
    order = np.random.default_rng(0).permutation(len(inputs))
    inputs = np.ascontiguousarray(inputs[order])
    half = stages_of(records.select(report), HEADLINE)
    gain, cost = outcomes(half, chosen.ladder, chosen.point)
    static = {name: macs / records.macs[-1] for name, macs in zip(cifar.NAMES, records.macs, strict=True)}
    right = (records.select(report).logits.argmax(axis=2) == records.label[report][:, None]).mean(axis=0)
    accuracy = dict(zip(cifar.NAMES, right.tolist(), strict=True))
    accuracy["cascade"] = accuracy["resnet56"] + float(gain.mean())
    threads = torch.get_num_threads()
    figures: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        timing = Timing(data, chosen, inputs, Path(folder))
        for engine, make in (("torch", timing.torch), ("onnxruntime", timing.onnxruntime)):
            for rows, items in ((1, range(single)), (64, range(0, batched * 64, 64))):
                progress(f"timing {engine}, batch {rows}")
                key = f"{engine}, batch {rows}"
                compute = static | {"cascade": float(cost[order][: len(items) * rows].mean())}
                figures[key] = time_engine(engine, rows, make(rows), list(items), accuracy, compute)
    torch.set_num_threads(threads)
    return figures


def same_answers(data: Path, records: dynamic.Records, chosen: Chosen, count: int = 1000) -> float:
    """Share of report images that torch's engine answers, and stops at, as the records say."""
    assert records.label is not None
    _, report = stratified_halves(records.label, seed=0)
    report = np.random.default_rng(0).permutation(report)[:count]
    inputs = cifar.PREPROCESS(cifar.images(data, "test").images[report])
    cascade = dynamic.Cascade(cifar.networks(data, HEADLINE), names=HEADLINE)
    combiner = Combiner(
        chosen.ladder.temperature, chosen.ladder.score, combine=chosen.ladder.combine, backbone=chosen.ladder.backbone
    )
    spec = describe(cascade, torch.from_numpy(inputs[:2]))
    engine = open_engine("torch", Path(), spec, combiner, cascade.stages)
    limits = np.array(chosen.point.thresholds, np.float32)
    wanted = replay(
        stages_of(records, HEADLINE).logits[report], combiner, thresholds=limits, backbone=tuple(range(len(HEADLINE)))
    )
    same = 0
    for start in range(0, count, 100):
        output = engine.run({"input": inputs[start : start + 100]}, limits)
        rows = slice(start, start + 100)
        same += int(((output.stage == wanted.stage[rows]) & (output.logits.argmax(1) == wanted.prediction[rows])).sum())
    return same / count


def main() -> None:
    """Accuracy and compute over the splits, then wall-clock; table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--single", type=int, default=600, help="images timed one at a time")
    parser.add_argument("--batches", type=int, default=78, help="batches of 64 timed (78: the whole report half)")
    parser.add_argument("--no-timing", action="store_true", help="accuracy and compute alone")
    options = parser.parse_args()
    data = data_folder(options.data)
    cascade = dynamic.Cascade(cifar.networks(data), names=cifar.NAMES)
    records = cifar.records(cascade, cifar.images(data, "test"))
    table, chosen = accuracy_table(records)
    print(
        f"\nfirst split: score {chosen.ladder.score}, margin {chosen.margin:g} standard errors, "
        f"thresholds {[round(t, 4) for t in chosen.point.thresholds]}"
    )
    figures: dict[str, Any] = {
        "goal": {"compute": GOAL, "gain": 0.0, "splits": SPLITS},
        "compute": dict(zip(records.stage_names, records.macs, strict=True)),
        "splits": table,
        "timed_point": {
            "cascade": HEADLINE,
            "score": chosen.ladder.score,
            "margin": chosen.margin,
            "thresholds": chosen.point.thresholds,
        },
    }
    if not options.no_timing:
        figures["same_as_torch"] = same_answers(data, records, chosen)
        figures["wall_clock"] = wall_clock(data, records, chosen, options.single, options.batches)
    print(f"\n{save('cascades/cifar_cascade', figures)}")


if __name__ == "__main__":
    main()
