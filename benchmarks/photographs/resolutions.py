"""Cascades of networks and resolutions on 1,000 photographs against the best static network of at least their accuracy.

    python -m benchmarks.photographs.resolutions

All members take one picture of 260 pixels and resize it inside. On each engine every member is a bundle of its own, in
f32 and int8, and is timed through `run(x)`, by turns. Accuracies of members are those of 1,000 photographs. On each of
20 splits, one half chooses a cascade and certifies it for a drop of 0.02, and the other half reports. Costs there are
sums of the measured times of members. On the first split the cascade that was chosen is built and timed through
`run(x)` itself, beside its opponent. Decoding and resizing are measured on their own.
"""

import argparse
import io
import itertools
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

import dynamic
from benchmarks.harness.common import add_data_option, data_folder, progress, ratio, save, spread
from benchmarks.photographs.members import PREPROCESS, members, photographs
from dynamic.data import stratified_halves
from dynamic.models.compress import quantize
from dynamic.policies import Combiner, replay
from dynamic.policies.records import split

TARGET, SPLITS, MOST_MEMBERS, MOST_CASCADES = 0.02, 20, 3, 60
Loader = list[tuple[torch.Tensor, torch.Tensor]]


def main() -> None:
    """Measure and write `results/photographs/resolutions.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--engines", nargs="+", default=["onnxruntime", "openvino"])
    parser.add_argument("--requests", type=int, default=200, help="photographs timed one at a time")
    parser.add_argument("--members", nargs="+", help="names of some members alone, for a trial")
    parser.add_argument("--photographs", type=int, default=1000)
    parser.add_argument("--splits", type=int, default=SPLITS)
    parser.add_argument("--no-int8", action="store_true")
    options = parser.parse_args()
    data = data_folder(options.data)
    files, labels = photographs(data)
    files, labels = files[: options.photographs], labels[: options.photographs]
    decode_ms, pictures = decoded(files)
    loader = batches(pictures, labels)
    networks = {name: net for name, net in members(data).items() if not options.members or name in options.members}
    if not options.no_int8:
        for name, network in list(networks.items()):
            progress(f"int8 of {name}")
            few = loader[: max(1, len(loader) // 10)]
            int8 = quantize(network, few[0][0], calibration_loader=few, latency=False)
            networks[f"{name} int8"] = int8.network.eval()
    figures: dict[str, Any] = {"photographs": len(files), "decode_ms": spread(decode_ms), "target": TARGET}
    for engine in options.engines:
        figures[engine] = measure(networks, loader, pictures, labels, engine, options)
    print(save("photographs/resolutions", figures))


def decoded(files: Sequence[bytes]) -> tuple[list[float], NDArray[np.float32]]:
    """(milliseconds of decoding and resizing of each file, the pictures `[N, 3, H, W]`)."""
    took, pictures = [], []
    for file in files:
        began = time.perf_counter()
        pictures.append(PREPROCESS(Image.open(io.BytesIO(file)))[0])
        took.append((time.perf_counter() - began) * 1e3)
    return took, np.stack(pictures)


def batches(pictures: NDArray[np.float32], labels: NDArray[np.int64]) -> Loader:
    """Batches of 50."""
    return list(zip(torch.from_numpy(pictures).split(50), torch.from_numpy(labels).split(50), strict=True))


def measure(
    networks: Mapping[str, nn.Module],
    loader: Loader,
    pictures: NDArray[np.float32],
    labels: NDArray[np.int64],
    engine: Any,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Everything about one engine."""
    names = list(networks)
    progress(f"records on {engine}")
    records = dynamic.calibrate(dynamic.Cascade(list(networks.values()), names=names), loader, engine=engine)
    right = records.logits.argmax(2) == labels[:, None]  # [N, M]
    bundles = {
        name: dynamic.build([network], loader, engine=engine, max_drops=(TARGET,), progress=False)
        for name, network in networks.items()
    }
    progress(f"timing {len(names)} members on {engine}")
    ms, cpu_ms = timed(bundles, pictures[: options.requests])
    mean = {name: statistics.fmean(ms[name]) for name in names}
    rows: dict[str, Any] = {}
    for i, name in enumerate(names):
        rows[name] = {"accuracy": round(float(right[:, i].mean()), 4), "ms": spread(ms[name])} | tails(ms[name])
        rows[name]["cpu_ms"] = round(cpu_ms[name], 3)
    order = sorted(range(len(names)), key=lambda i: mean[names[i]])
    cascades = [c for k in range(2, MOST_MEMBERS + 1) for c in itertools.combinations(order, k)]
    # the last is the reference: only cascades that end in one of the most accurate members
    best = set(np.argsort(-right.mean(0))[:3].tolist())
    cascades = [c for c in cascades if c[-1] in best][:MOST_CASCADES]
    outcomes = []
    for seed in range(options.splits):
        progress(f"split {seed} on {engine}")
        half, other = stratified_halves(np.zeros(len(labels), np.int64), seed=seed)
        outcomes.append(on_split(records, labels, cascades, half, other, [mean[n] for n in names], names))
    usable = [o for o in outcomes if o is not None]
    figures = {"members": rows, "splits": outcomes, "certified_splits": len(usable)}
    if usable:
        figures["ratio"] = {"mean": round(statistics.fmean(o["ratio"] for o in usable), 3)}
    if outcomes and outcomes[0] is not None:
        half, other = stratified_halves(np.zeros(len(labels), np.int64), seed=0)
        halves = pictures, labels, half, other
        figures["run"] = run_itself(networks, outcomes[0], bundles, *halves, engine, options.requests)
    print(engine, {key: value for key, value in figures.items() if key not in ("splits", "members")})
    return figures


def on_split(
    records: dynamic.Records,
    labels: NDArray[np.int64],
    cascades: Sequence[tuple[int, ...]],
    half: NDArray[np.int64],
    other: NDArray[np.int64],
    mean_ms: Sequence[float],
    names: Sequence[str],
) -> dict[str, Any] | None:
    """The cascade that is cheapest on one half, on the other half against its opponent. None: none is certified."""
    best: tuple[float, tuple[int, ...], dynamic.Ladder, dynamic.OperatingPoint] | None = None
    for cascade in cascades:
        costs = [mean_ms[i] for i in cascade]
        some = replace(
            records,
            logits=records.logits[half][:, list(cascade)],
            label=labels[half],
            part=split(None, len(half)),
            backbone=tuple(range(len(cascade))),
            macs=tuple(costs),
            head_macs=(0.0,) * len(cascade),
            stage_names=tuple(names[i] for i in cascade),
        )
        ladder = dynamic.certify(some, (TARGET,))
        for point in ladder.points[1:] if ladder.certified else ():
            if point.bound is None or point.bound > TARGET:
                continue
            cost = float(np.dot(point.shares, np.cumsum(costs)))
            if best is None or cost < best[0]:
                best = (cost, cascade, ladder, point)
    if best is None:
        return None
    _, cascade, ladder, point = best
    combiner = Combiner(ladder.temperature, ladder.score, combine=ladder.combine, backbone=ladder.backbone)
    logits = records.logits[other][:, list(cascade)]
    answers = replay(logits, combiner, thresholds=point.thresholds, backbone=ladder.backbone)
    accuracy = float((answers.prediction == labels[other]).mean())
    cost = float(np.cumsum([mean_ms[i] for i in cascade])[answers.stage].mean())
    alone = (records.logits[other].argmax(2) == labels[other][:, None]).mean(0)
    able = [i for i in range(len(names)) if alone[i] >= accuracy]
    opponent = min(able or [int(alone.argmax())], key=lambda i: mean_ms[i])
    return {
        "cascade": [names[i] for i in cascade],
        "accuracy": round(accuracy, 4),
        "ms": round(cost, 3),
        "opponent": names[opponent],
        "opponent_accuracy": round(float(alone[opponent]), 4),
        "more_accurate_than_all": not able,
        "ratio": round(cost / mean_ms[opponent], 4),
        "thresholds": [t if np.isfinite(t) else str(t) for t in point.thresholds],
    }


def run_itself(
    networks: Mapping[str, nn.Module],
    outcome: Mapping[str, Any],
    bundles: Mapping[str, dynamic.Bundle],
    pictures: NDArray[np.float32],
    labels: NDArray[np.int64],
    half: NDArray[np.int64],
    other: NDArray[np.int64],
    engine: Any,
    requests: int,
) -> dict[str, Any]:
    """The cascade of the first split through `run(x)` beside its opponent, one photograph at a time and 32."""
    cascade = dynamic.Cascade([networks[name] for name in outcome["cascade"]], names=outcome["cascade"])
    held_out = batches(pictures[half], labels[half])
    with tempfile.TemporaryDirectory() as folder:
        built = dynamic.build(cascade, held_out, engine=engine, max_drops=(TARGET,), progress=False)
        bundle = built.save(Path(folder) / "shelf").profile(batch=(1,))
        pair = {"cascade": bundle, "opponent": bundles[outcome["opponent"]]}
        ms, cpu_ms = timed(pair, pictures[other][:requests])
        with bundle.runtime(dynamic.Budget(max_drop=TARGET)) as run:
            right = [run(x).label == label for x, label in zip(pictures[other], labels[other], strict=True)]
            shares = run.stats().stage_shares
        by_32, _ = timed(pair, pictures[other], rows=32)
    return {
        "accuracy": round(float(np.mean(right)), 4),
        "leave": [round(float(share), 3) for share in shares],
        "ratio": ratio(ms["cascade"], ms["opponent"]),
        "ratio_32": ratio(by_32["cascade"], by_32["opponent"]),
        "cascade_ms": spread(ms["cascade"]) | tails(ms["cascade"]),
        "opponent_ms": spread(ms["opponent"]) | tails(ms["opponent"]),
        "cpu_ms": {name: round(value, 3) for name, value in cpu_ms.items()},
    }


def timed(
    bundles: Mapping[str, dynamic.Bundle], pictures: NDArray[np.float32], rows: int = 1
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """(milliseconds of each request, mean CPU-ms) of each bundle through `run(x)`, by turns in blocks of 20."""
    ms: dict[str, list[float]] = {name: [] for name in bundles}
    cpu: dict[str, float] = dict.fromkeys(bundles, 0.0)
    requests = [pictures[i : i + rows] for i in range(0, len(pictures) - rows + 1, rows)]
    requests = requests if rows > 1 else [request[0] for request in requests]
    runs = {name: bundle.runtime(dynamic.Budget(max_drop=TARGET)) for name, bundle in bundles.items()}
    try:
        for start in range(0, len(requests), 20):
            block = requests[start : start + 20]
            for name in sorted(runs, reverse=bool(start // 20 % 2)):
                runs[name](block[0])  # clock, caches and threads were another's
                for request in block:
                    began, began_cpu = time.perf_counter(), time.process_time()
                    runs[name](request)
                    ms[name].append((time.perf_counter() - began) * 1e3)
                    cpu[name] += (time.process_time() - began_cpu) * 1e3 / len(requests)
    finally:
        for run in runs.values():
            run.close()
    return ms, cpu


def tails(ms: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99."""
    return {f"p{q}": round(float(np.percentile(ms, q)), 3) for q in (50, 95, 99)}


if __name__ == "__main__":
    main()
