"""What do exits cost the inputs that take none of them? Every head and score evaluated, nobody leaving, batch 1.

    python -m benchmarks.cascades.full_depth

ResNet-18 at 224 (torchvision's, random weights) and ResNet-56 at 32 (the given weights where the data folder is
there), each with three exits, against the same network unsplit, on every engine that this machine has. The cascade goes
as its single graph and stage by stage; an engine takes the faster one, and so does the goal. "exits off" is the single
graph with every threshold at +inf, which runs no head at all. All contenders are processes of their own that take
turns, each side at the best of its settings (threads, waiting, and for the unsplit network a fixed batch), found on a
run of its own.

Heads are fitted for an epoch or two and batch norms have seen images, because the exporter drops norms that do nothing.
Latency does not depend on what the weights are, as long as they are ordinary numbers.
"""

import argparse
import math
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.models import resnet18

import dynamic
from benchmarks.harness import cifar
from benchmarks.harness.alternating import (
    ENGINES,
    HEADER,
    Contender,
    alternate,
    circumstances,
    columns,
    engines_here,
    not_measured,
    row_of,
    settings,
    winners,
    workers,
)
from benchmarks.harness.alternating_worker import Job, keep_spec
from benchmarks.harness.common import add_data_option, data_folder, progress, save
from dynamic.models import CifarResNet
from dynamic.offline.onnx_export.stage_graphs import export_stages
from dynamic.offline.onnx_export.whole_graph import plain_ladder, write_graphs
from dynamic.policies.ladder import Interval
from dynamic.profiling.graph_profile import NOBODY

EXITS = 3
CLASSES = 1000  # of ResNet-18
TEMPERATURE = 1.5  # any but 1, which would leave the division out
ROWS = 64  # different inputs


@dataclass(frozen=True)
class Case:
    """A network with the ratios to its unsplit self that are aimed at, by engine; `block` items are a turn."""

    name: str
    goals: dict[str, float]
    block: int


CASES = (
    Case("ResNet-18 at 224", {"onnxruntime f32": 1.03, "openvino f32": 1.05, "openvino bf16": 1.10}, 5),
    Case("ResNet-56 at 32", {"onnxruntime f32": 1.08, "openvino f32": 1.08, "openvino bf16": 1.25}, 20),
)


def make(case: Case, folder: Path, data: Path | None) -> str:
    """Write `cascade/<engine>/`, `alone/` and `inputs.npy` under `folder`. Return what the weights are."""
    torch.manual_seed(0)
    if case is CASES[0]:
        images = torch.randn(200, 3, 224, 224)
        labels, backbone, weights = torch.randint(CLASSES, (200,)), resnet18(), "random weights, noise"
    elif data is None:
        images = torch.randn(500, 3, 32, 32)
        labels, backbone, weights = torch.randint(10, (500,)), CifarResNet(56), "random weights, noise"
    else:
        found = cifar.images(data, "train")
        some = found.select(np.random.default_rng(0).permutation(len(found))[:500])
        images, labels = torch.from_numpy(cifar.PREPROCESS(some.images)), torch.from_numpy(some.labels)
        (backbone,) = cifar.networks(data, ["resnet56"])
        weights = "given weights, CIFAR-10"
    if weights.startswith("random"):
        backbone.train()  # statistics of ordinary size; without them activations grow from block to block
        with torch.no_grad():
            for part in images.split(50):
                backbone(part)
    net = dynamic.wrap(backbone.eval(), images[:2], exits=EXITS)
    batches = list(zip(images.split(50), labels.split(50), strict=True))
    dynamic.fit(net, batches, mode="heads", epochs=2, progress=False)
    _write_cascade(dynamic.Cascade(net), folder / "cascade", images[:2])
    export_stages(dynamic.Cascade(backbone), folder / "alone", images[:2], progress=False)
    np.save(folder / "inputs.npy", images[:ROWS].numpy())
    return weights


def _write_cascade(cascade: dynamic.Cascade, folder: Path, example: torch.Tensor) -> None:
    spec = export_stages(cascade, folder, example, progress=False)
    stages = len(spec.stages)
    nothing_known = Interval(0, 0, 0)
    # a ladder is not read without its reference
    reference = dynamic.OperatingPoint(
        name="reference",
        thresholds=(math.inf,) * (stages - 1),
        backbones=spec.backbones[-1:],
        target=0.0,
        risk=0.0,
        bound=None,
        delta=None,
        n=0,
        accuracy=nothing_known,
        shares=(*(0.0,) * (stages - 1), 1.0),
    )
    ladder = replace(plain_ladder(spec, cascade.combine), temperature=(TEMPERATURE,) * stages, points=(reference,))
    for engine in sorted({engine for engine, _ in ENGINES.values()}):
        own = folder / engine
        shutil.copytree(folder / "backbones", own / "backbones")
        write_graphs(own, spec, ladder, engine)
        keep_spec(own, spec, ladder)


def contenders(engine_name: str, folder: Path) -> list[Contender]:
    """The unsplit network, and both routes through the cascade, in every setting."""
    engine, precision = ENGINES[engine_name]
    nobody, off = (float(NOBODY),) * EXITS, (float("inf"),) * EXITS

    def all_settings(name: str, part: Path, route: str | None, limits: tuple[float, ...] | None) -> list[Contender]:
        inputs = str(folder / "inputs.npy")
        return [
            Contender(name, Job(engine, precision, str(part), route, setting, inputs), limits)
            for setting in settings(engine, bare=route is None)
        ]

    cascade = folder / "cascade" / engine
    return [
        *all_settings("unsplit", folder / "alone", None, None),
        *all_settings("graph", cascade, "graph", nobody),
        *all_settings("stages", cascade, "stages", nobody),
        *all_settings("exits off", cascade, "graph", off),
    ]


def measure(case: Case, engine: str, folder: Path, calls: int) -> dict[str, Any]:
    """All contenders in one run; rows by name, and the faster route against the goal."""
    listed = contenders(engine, folder)
    with workers(listed) as running:
        chosen, means = winners(running, listed, [i % ROWS for i in range(max(calls // 4, case.block))], case.block)
        took = alternate(running, chosen, [i % ROWS for i in range(calls)], case.block)
    named = {c.name: c for c in chosen}
    unsplit = took[named["unsplit"].key]
    rows = {name: row_of(took[c.key], unsplit, c) for name, c in named.items()}
    route = min(("graph", "stages"), key=lambda name: rows[name]["latency_ms"]["mean"])
    reached, goal = rows[route]["ratio"]["ratio"], case.goals[engine]
    print(f"\n{case.name}, {EXITS} exits, {engine}, {calls} calls")
    print(f"{'':12}{HEADER}")
    for name, found in rows.items():
        print(f"{name:12}{columns(found)}")
    print(f"full depth {reached:.3f} of the unsplit network by {route}; the goal of {goal} is", end=" ")
    print("met" if reached <= goal else "missed", flush=True)
    return {
        "calls": calls,
        "rows": rows,
        "means_ms": means,
        "route": route,
        "ratio": reached,
        "goal": goal,
        "met": reached <= goal,
    }


def measure_all(data: Path | None, engines: Sequence[str], calls: Sequence[int]) -> dict[str, Any]:
    """Figures by network and engine; `calls` of each contender for each of `CASES`."""
    here, skipped = engines_here(engines)
    figures: dict[str, Any] = {"skipped": skipped, "not_measured": not_measured(), "networks": {}}
    for case, count in zip(CASES, calls, strict=True):
        if not count:
            continue
        with tempfile.TemporaryDirectory() as given:
            progress(f"making {case.name}")
            weights = make(case, Path(given), data)
            found = {}
            for engine in here:
                progress(f"timing {case.name} on {engine}")
                found[engine] = measure(case, engine, Path(given), count)
        figures["networks"][case.name] = {"weights": weights, "engines": found}
    for name, why in skipped.items():
        print(f"{name}: skipped, {why}")
    return figures


def data_or_none(given: Path | None) -> Path | None:
    """The data folder where there is one."""
    try:
        return data_folder(given)
    except SystemExit as missing:
        if given is not None:  # asked for, and not there
            raise
        progress(f"without data: {missing}")
        return None


def main() -> None:
    """Tables and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--calls", type=int, nargs=2, default=(200, 1000), help="of each contender, by network")
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES), metavar="ENGINE")
    options = parser.parse_args()
    figures = measure_all(data_or_none(options.data), options.engines, options.calls)
    print(circumstances())
    print(save("cascades/full_depth", figures))


if __name__ == "__main__":
    main()
