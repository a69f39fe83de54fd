"""What a user gets: a certified cascade through `run(x)` against the best static network of its accuracy, CIFAR-10.

    python -m benchmarks.runtime.as_users_run [--cascade family]

The cascade is made by the public steps alone. It is built on one half of the test images for a drop of at most 0.005 to
its last network (delta 0.1), and profiled here. Ranges of int8 come from training images. The other half reports.

- "resnets": int8 versions of ResNet-20, 32 and 56, and ResNet-56 as it was given. Nothing was trained for it.
- "family": that of `family_cascade.py`, with two students that were trained for it.
- "modern": int8 versions of the two students and of the network of `modern_network.py`, and that network as it was
  trained.

`run(x)` is timed with everything on: monitor, drift test, observation, decisions. Beside it the same cascade as a bare
engine call (its thresholds are known there), and every static network alone as a bare call: ResNet-20, 32, 44 and 56 in
float32 and int8, the modern network in both where it was trained, and the students in int8 where they are members. Each
side runs in its best setting of threads and waiting, chosen on calibration images of the first split. All are processes
that take turns, one request behind the other (`alternating.py`).

The opponent is the fastest static network that is at least as accurate as the cascade on the images that report, or the
most accurate one where none is. Every answer of `run(x)` has to be certified. One half decides that within 0.3 points
(standard error), so several splits are run. Ratios are of mean latencies, with 95th and 99th percentiles beside them.
"""

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import dynamic
from benchmarks.cascades import family_networks, modern_network
from benchmarks.cascades.family_networks import CALIBRATION, EXAMPLE
from benchmarks.harness import cifar
from benchmarks.harness.alternating import (
    ENGINES,
    Contender,
    Timed,
    Workers,
    alternate,
    circumstances,
    engines_here,
    not_measured,
    settings,
    winners,
    workers,
)
from benchmarks.harness.alternating_worker import Job, Setting, keep_spec
from benchmarks.harness.common import add_data_option, data_folder, progress, ratio, required, save
from dynamic.data import stratified_halves
from dynamic.models.compress import quantize
from dynamic.offline.onnx_export.stage_graphs import export_stages

MAX_DROP, DELTA = 0.005, 0.1
MEMBERS = ("resnet20 int8", "resnet32 int8", "resnet56 int8", "resnet56")  # the last is the reference
SPLITS, REQUESTS, BLOCK, SCREENED = 5, 1500, 50, 200
RESULT = {
    "resnets": "runtime/as_users_run",
    "family": "runtime/as_users_run_family",
    "modern": "runtime/as_users_run_modern",
}
RUN, BARE = "run(x)", "bare cascade"


def resnets(data: Path) -> tuple[dynamic.Cascade, dict[str, nn.Module]]:
    """The cascade of int8 ResNets, and the static networks: the ResNets as they were given, and in int8."""
    given = dict(zip(cifar.NAMES, cifar.networks(data), strict=True))
    images = cifar.images(data, "train")
    few = images.select(np.random.default_rng(0).permutation(len(images))[:CALIBRATION])
    batches = [torch.from_numpy(cifar.PREPROCESS(few.images))]
    int8 = {
        f"{name} int8": quantize(network, EXAMPLE, calibration_loader=batches, latency=False).network
        for name, network in given.items()
    }
    every = {**given, **int8}
    cascade = dynamic.Cascade([every[member] for member in MEMBERS], names=list(MEMBERS))
    return cascade, every | modern_networks(data, "modern int8")


def family(data: Path) -> tuple[dynamic.Cascade, dict[str, nn.Module]]:
    """The cascade with students, and the static networks: the ResNets as they were given, and all of them in int8."""
    return family_networks.cascade(data), with_students(data)


def modern(data: Path) -> tuple[dynamic.Cascade, dict[str, nn.Module]]:
    """The cascade of students and the modern network, and the static networks of "family"."""
    required(modern_network.FILE, modern_network.COMMAND)
    every = with_students(data)
    with_exits = {"student32-int8": family_networks.eight(data, family_networks.larger_student())}
    members = {
        name: (every | with_exits)[name] for name in ("student16-int8", "student32-int8", "modern-int8", "modern")
    }
    return dynamic.Cascade(list(members.values()), names=list(members)), every


def with_students(data: Path) -> dict[str, nn.Module]:
    """The static networks: the ResNets as they were given and in int8, the students in int8, the modern network."""
    given = dict(zip(cifar.NAMES, cifar.networks(data), strict=True))
    return {**given, **family_networks.alone(data), **modern_networks(data, "modern-int8")}


def modern_networks(data: Path, int8_name: str) -> dict[str, nn.Module]:
    """The modern network in float32 and int8. None where its weights do not exist."""
    if not modern_network.FILE.is_file():
        progress(f"without the modern network, which {modern_network.COMMAND} trains")
        return {}
    return {"modern": modern_network.modern_network(), int8_name: modern_network.int8_network(data)}


CASCADES = {"resnets": resnets, "family": family, "modern": modern}


def built(
    data: Path, cascade: dynamic.Cascade, half: Sequence[int], engine: str, folder: Path, threads: Sequence[int]
) -> dynamic.Bundle:
    """The bundle of one split, certified, saved in `folder` and profiled there."""
    images = cifar.images(data, "test").select(np.array(half))
    name, precision = ENGINES[engine]
    bundle = dynamic.build(
        cascade,
        cifar.batches(images, size=1),  # as it is timed
        max_drops=(MAX_DROP,),
        delta=DELTA,
        engine=name,
        precision=precision,
        preprocess=cifar.PREPROCESS,
        progress=False,
    ).save(folder)
    for count in threads:
        bundle = bundle.profile(batch=(1,), threads=count, progress=False)
    return dynamic.load(folder)


def contenders(bundle: dynamic.Bundle, statics: Mapping[str, Path], engine: str, inputs: str) -> list[Contender]:
    """`run(x)`, the bare cascade, and every static network, in every setting."""
    name, precision = ENGINES[engine]
    keep_spec(bundle.folder, bundle.spec, bundle.ladder)
    listed = []
    for setting in settings(name, bare=False):
        listed.append(Contender(RUN, Job(name, precision, str(bundle.folder), "run", setting, inputs, MAX_DROP)))
        costs = bundle.costs_on(name, precision, setting.threads)
        assert costs is not None
        frontier = dynamic.Frontier.of(bundle.ladder, costs)
        allowed = [point for point in frontier.points if point.bound is not None and point.bound <= MAX_DROP]
        point = min(allowed, key=lambda one: one.mean_ms[0])
        thresholds = point.operating_point.thresholds
        route = costs.route[0]
        listed.append(Contender(BARE, Job(name, precision, str(bundle.folder), route, setting, inputs), thresholds))
    listed += [
        Contender(network, Job(name, precision, str(folder), None, setting, inputs))
        for network, folder in statics.items()
        for setting in settings(name, bare=True)
    ]
    return listed


def row_of(timed: Timed) -> dict[str, float]:
    """Latency and CPU of one contender."""
    p50, p95, p99 = np.percentile(timed.ms, [50, 95, 99])
    figures = {"mean_ms": statistics.fmean(timed.ms), "p50_ms": p50, "p95_ms": p95, "p99_ms": p99}
    figures["cpu_ms"] = statistics.fmean(timed.cpu_ms)
    return {name: round(float(value), 4) for name, value in figures.items()}


def accuracies(
    running: Workers, best: Sequence[Contender], report: Sequence[int], labels: np.ndarray[Any, Any]
) -> dict[str, float]:
    """Of each contender on the images that report."""
    shares = {}
    for contender in best:
        answers = running[contender.job].ask("answers", items=list(report), thresholds=contender.thresholds)
        shares[contender.name] = round(float(np.mean(np.array(answers["label"]) == labels[list(report)])), 4)
    return shares


def split_of(
    bundle: dynamic.Bundle,
    statics: Mapping[str, Path],
    engine: str,
    sides: Any,
    folder: Path,
    chosen: dict[str, Setting],
) -> dict[str, Any]:
    """One split on one engine: every row, and the ratios to the opponent. Settings that lack in `chosen` come in."""
    labels, calibration, report, requests = sides
    listed = contenders(bundle, statics, engine, str(folder / "inputs.npy"))
    listed = [one for one in listed if chosen.get(one.name, one.job.setting) == one.job.setting]
    with workers(listed) as running:
        best, means = winners(running, listed, calibration[:SCREENED], BLOCK)
        chosen.update({one.name: one.job.setting for one in best})
        right = accuracies(running, best, report, labels)
        took = alternate(running, best, report[:requests], BLOCK)
    by_name = {contender.name: contender for contender in best}
    reference = bundle.spec.stages[-1].name
    timed = {name: took[contender.key] for name, contender in by_name.items()}
    rows: dict[str, Any] = {
        name: {"setting": by_name[name].key.split(" | ")[1], "accuracy": right[name], **row_of(one)}
        for name, one in timed.items()
    }
    eligible = [name for name in statics if right[name] >= right[RUN]]
    most_accurate = max(right[name] for name in statics)  # where the cascade beats all of them
    eligible = eligible or [name for name in statics if right[name] == most_accurate]
    opponent = min(eligible, key=lambda name: rows[name]["mean_ms"])
    against = timed[opponent]
    result = {
        "opponent": opponent,
        "opponent_is_as_accurate": right[opponent] >= right[RUN],
        "ratio": ratio(timed[RUN].ms, against.ms),
        "ratio_p50": round(rows[RUN]["p50_ms"] / rows[opponent]["p50_ms"], 3),
        "ratio_p95": round(rows[RUN]["p95_ms"] / rows[opponent]["p95_ms"], 3),
        "ratio_p99": round(rows[RUN]["p99_ms"] / rows[opponent]["p99_ms"], 3),
        "ratio_cpu": round(rows[RUN]["cpu_ms"] / rows[opponent]["cpu_ms"], 3),
        "ratio_of_bare_cascade": ratio(timed[BARE].ms, against.ms)["ratio"],
        "ratio_to_resnet56": ratio(timed[RUN].ms, timed["resnet56"].ms)["ratio"],
        "ratio_to_reference": ratio(timed[RUN].ms, timed[reference].ms)["ratio"],
        "gain": round(right[RUN] - right[reference], 4),
        "rows": rows,
        "settings_ms": means,
    }
    print(f"{engine}, against {opponent}: mean {result['ratio']['ratio']:.3f}, p95 {result['ratio_p95']:.3f}")
    for name, row in sorted(rows.items(), key=lambda pair: pair[1]["mean_ms"]):
        print(
            f"  {name:15} {row['accuracy']:.4f}  mean {row['mean_ms']:.3f}  p50 {row['p50_ms']:.3f}  "
            f"p95 {row['p95_ms']:.3f}  p99 {row['p99_ms']:.3f}  CPU-ms {row['cpu_ms']:.3f}  {row['setting']}",
            flush=True,
        )
    return result


def summary(splits: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over the splits, with the least and the largest."""
    ratios = ("p50", "p95", "p99", "cpu", "of_bare_cascade", "to_resnet56", "to_reference")
    keys = (*(f"ratio_{key}" for key in ratios), "gain")
    values = {"ratio": [one["ratio"]["ratio"] for one in splits], **{key: [one[key] for one in splits] for key in keys}}
    return {
        key: {"mean": round(statistics.fmean(some), 4), "least": min(some), "largest": max(some)}
        for key, some in values.items()
    }


def against_statics(splits: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """`run(x)` relative to every static network, as means over the splits, and its accuracy above theirs."""

    def mean(name: str, key: str) -> float:
        return statistics.fmean(one["rows"][name][key] for one in splits)

    found = {}
    for name in (n for n in splits[0]["rows"] if n not in (RUN, BARE)):
        row = {key: round(mean(RUN, f"{key}_ms") / mean(name, f"{key}_ms"), 3) for key in ("mean", "p50", "p95", "cpu")}
        found[name] = row | {"gain": round(mean(RUN, "accuracy") - mean(name, "accuracy"), 4)}
    return found


def main() -> None:
    """Every engine and split, saved after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--cascade", default="resnets", choices=CASCADES)
    parser.add_argument("--engines", nargs="*", default=["onnxruntime f32", "openvino f32"], choices=list(ENGINES))
    parser.add_argument("--splits", type=int, default=SPLITS)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--suffix", default="", help="of the result's name, as in _avx2 behind tests/avx2/limit.py")
    options = parser.parse_args()
    data = data_folder(options.data)
    here, skipped = engines_here(options.engines)
    result: dict[str, Any] = {engine: {"splits": []} for engine in here}
    chosen: dict[str, dict[str, Setting]] = {engine: {} for engine in here}
    path = None
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        progress("int8 networks and their graphs")
        (cascade, every), images = CASCADES[options.cascade](data), cifar.images(data, "test")
        inputs = cifar.PREPROCESS(images.images)
        np.save(folder / "inputs.npy", inputs)
        statics = {name: folder / name for name in every}
        for name, network in every.items():
            export_stages(
                dynamic.Cascade(network, names=[name]), statics[name], torch.from_numpy(inputs[:2]), progress=False
            )
        for seed in range(options.splits):
            calibration, report = stratified_halves(images.labels, seed)
            random = np.random.default_rng(seed)
            sides = [random.permutation(half).tolist() for half in (calibration, report)]
            for engine in here:
                progress(f"split {seed} of {options.splits} on {engine}: building")
                name, _ = ENGINES[engine]
                threads = sorted({setting.threads for setting in settings(name, bare=False)})
                bundle = built(data, cascade, sides[0], engine, folder / f"{name}-{seed}", threads)
                known = (images.labels, *sides, options.requests)
                one = split_of(bundle, statics, engine, known, folder, chosen[engine])
                result[engine]["splits"].append(one)
                result[engine]["over_splits"] = summary(result[engine]["splits"])
                result[engine]["against"] = against_statics(result[engine]["splits"])
                figures = {"max_drop": MAX_DROP, "delta": DELTA, "members": cascade.names, "engines": result}
                path = save(
                    RESULT[options.cascade] + options.suffix,
                    figures | {"skipped": skipped, "not_measured": not_measured()},
                )
    for engine in here:
        print(f"{engine}: {result[engine]['over_splits']}")
    print(f"{circumstances()}\n{path}")


if __name__ == "__main__":
    main()
