"""A batch of 64 in which one input stays: what does compaction cost, stage by stage and in the single graph?

    python -m benchmarks.runtime.one_stays

The goal: one hard input in a batch of 64, ResNet-18 at 224 with its first exit at 0.55 of compute, takes at most 1.10
of what was needed, on ONNX Runtime, OpenVINO f32 and torch. What was needed is measured beside it: the first stage on
64 rows plus the remaining stages on one, run bare, without scores, thresholds and copies of rows.

Weights are random and heads untrained: times do not depend on them. Batch norms get statistics of their own, or the
exporter would drop them as doing nothing. The threshold lies between the two least sure inputs of the batch. All
settings and both routes of an engine take turns; an engine is judged by its faster route at the setting that suits it,
against what was needed at the setting that suits that.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from torch import nn

import dynamic
from benchmarks.harness.common import Contender, progress, ratio, save, spread, take_turns
from dynamic.engines.contract import CascadeSpec
from dynamic.engines.engine_factory import open_engine
from dynamic.engines.route_choice import CascadeEngine
from dynamic.models import resnet20, resnet56
from dynamic.offline.cascade import Cascade
from dynamic.offline.onnx_export.stage_graphs import export_stages
from dynamic.offline.onnx_export.whole_graph import write_graphs
from dynamic.policies.errors import EngineError
from dynamic.policies.ladder import Ladder
from dynamic.policies.scores import Combiner
from dynamic.profiling.graph_profile import NOBODY

ROWS, GOAL = 64, 1.10
JUDGED = ("torch", "onnxruntime", "openvino f32")  # bf16 is reported, whatever it is
THREADS: list[dict[str, Any]] = [{"threads": 2}, {"threads": 1}]
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "torch": THREADS,
    # the first is the library's default on two cores
    "onnxruntime": [{"threads": 2, "idle": "sleep"}, {"threads": 2, "idle": "spin"}, {"threads": 1, "idle": "sleep"}],
    "openvino f32": THREADS,
    "openvino bf16": THREADS,
}
NOT_MEASURED = ("ARM", "phones", "accelerators", "batches other than 64", "fitted heads (their time is the same)")


def cascades() -> Iterator[tuple[str, Cascade, tuple[int, ...], int]]:
    """(name, cascade, shape of an input, repeats); the goal is about the last."""
    torch.manual_seed(0)
    small = torch.randn(2, 3, 32, 32)
    yield "ResNet-56, 3 exits", Cascade(dynamic.wrap(resnet56().eval(), small, exits=3)), (3, 32, 32), 40
    yield "ResNet-20, then ResNet-56", Cascade([resnet20().eval(), resnet56().eval()]), (3, 32, 32), 40
    large = torch.randn(2, 3, 224, 224)
    resnet18 = torchvision.models.resnet18(weights=None).eval()
    yield "ResNet-18 at 224, exit at 0.55", Cascade(dynamic.wrap(resnet18, large, exits=[0.55])), (3, 224, 224), 12


def unsettle(network: nn.Module) -> None:
    """Random statistics and factors for every batch norm, in place."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)


def plain(cascade: Cascade, spec: CascadeSpec, shape: Sequence[int]) -> Ladder:
    """A ladder without points, with temperatures that spread the scores.

    Random networks are as sure as can be of everything, and equal scores cannot be parted.
    """
    with torch.no_grad():
        found = cascade.eval()(torch.randn(ROWS, *shape))
    return Ladder(
        temperature=tuple(float(z.std()) for z in found),
        score="max_probability",
        combine="mean",
        backbone=spec.backbone,
        stage_names=tuple(s.name for s in spec.stages),
        points=(),
        fingerprint="",
        certified=False,
    )


def one_stays(engine: CascadeEngine, inputs: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Thresholds under which all rows but one leave at the first exit, and that one goes to the end."""
    last = len(engine.spec.stages) - 1
    limits = np.full(last, -np.inf, np.float32)
    least, next_to_least = np.sort(engine.run(inputs, limits).score)[:2]
    limits[:] = NOBODY
    limits[0] = (least + next_to_least) / 2
    left = engine.run(inputs, limits).stage
    assert np.count_nonzero(left == 0) == ROWS - 1, "scores tie: no threshold lets exactly one stay"
    assert left.max() == last
    return limits


def needed(
    engine: CascadeEngine, inputs: dict[str, NDArray[Any]]
) -> tuple[Callable[[int], object], Callable[[int], object]]:
    """(the first stage on all rows, the remaining stages on one row), on the executor alone."""
    executor, backbone = engine.executor, engine.spec.backbone
    _, carry = executor.step(0, executor.start(inputs), True)
    one = {name: np.ascontiguousarray(array[:1]) for name, array in inputs.items()}
    # rows of its own: a carry is good only until this thread runs the stage again
    kept = executor.keep(carry, np.array([0])) if backbone[1] == backbone[0] else None

    def first(_: int) -> object:
        return executor.step(0, executor.start(inputs), True)

    def rest(_: int) -> object:
        state = kept
        for stage in range(1, len(backbone)):
            if backbone[stage] != backbone[stage - 1]:
                state = executor.start(one)
            state = executor.step(stage, state, True)[1]
        return state

    return first, rest


def contend(engine: CascadeEngine, kind: str, setting: dict[str, Any], inputs: dict[str, Any]) -> Iterator[Contender]:
    """A request by this engine's route; stage by stage, also its two parts."""

    def threads() -> None:
        torch.set_num_threads(setting["threads"])  # the only setting of an engine that is the process's

    prepare = threads if kind == "torch" else lambda: None
    named = ", ".join(f"{k} {v}" for k, v in setting.items())
    limits = one_stays(engine, inputs)
    way = engine.route(ROWS)
    yield Contender(f"{named}: {way}", lambda _: engine.run(inputs, limits), prepare)
    if way == "stages":
        for part, work in zip(("first", "rest"), needed(engine, inputs), strict=True):
            yield Contender(f"{named}: {part}", work, prepare)


def measure(
    kind: str, cascade: Cascade, folder: Path, spec: CascadeSpec, ladder: Ladder, repeats: int
) -> dict[str, Any]:
    """Every setting and route of one engine, taking turns; raises EngineError where this machine has it not."""
    name, _, precision = kind.partition(" ")
    combiner = Combiner(ladder.temperature, ladder.score, combine=ladder.combine, backbone=ladder.backbone)
    random = np.random.default_rng(0)
    inputs = {i.name: random.standard_normal((ROWS, *i.shape)).astype(np.float32) for i in spec.inputs}
    before = torch.get_num_threads()
    engines: list[CascadeEngine] = []
    contenders: list[Contender] = []
    try:
        for setting in SETTINGS[kind]:
            given = {} if name == "torch" else setting
            for route in ("stages",) if name == "torch" else ("stages", "graph"):
                engine = open_engine(
                    name, folder, spec, combiner, cascade.stages, precision or "f32", route=route, **given
                )
                engines.append(engine)
                contenders.extend(contend(engine, kind, setting, inputs))
        take_turns(contenders, range(3))
        took = take_turns(contenders, range(repeats))
    finally:
        torch.set_num_threads(before)
        for engine in engines:
            engine.close()
    return judge(took, repeats)


def judge(took: dict[str, list[float]], repeats: int) -> dict[str, Any]:
    """By setting and route: milliseconds, and the ratio to the least that was needed at any setting."""
    settings = dict.fromkeys(label.partition(": ")[0] for label in took)
    sums = {s: [a + b for a, b in zip(took[f"{s}: first"], took[f"{s}: rest"], strict=True)] for s in settings}
    least = min(sums, key=lambda s: statistics.median(sums[s]))
    routes: dict[str, dict[str, Any]] = {
        label: {
            "whole_ms": spread(times),
            "of_medians": round(statistics.median(times) / statistics.median(sums[least]), 3),
            "of_means": ratio(times, sums[least], parts=min(10, repeats)),
        }
        for label, times in took.items()
        if label.endswith(("stages", "graph"))
    }
    return {
        "needed": {
            "setting": least,
            "first_ms": spread(took[f"{least}: first"]),
            "rest_ms": spread(took[f"{least}: rest"]),
            "all_ms": {s: spread(times) for s, times in sums.items()},
        },
        "routes": routes,
        "best": min(routes, key=lambda label: routes[label]["of_medians"]),
    }


def show(name: str, kind: str, found: dict[str, Any]) -> None:
    """The lines of one engine."""
    need = found["needed"]
    parts = f"{need['first_ms']['median']:.1f} + {need['rest_ms']['median']:.2f} ms"
    print(f"{name}, {kind}: needed {parts} ({need['setting']})")
    for label, row in found["routes"].items():
        means = row["of_means"]
        print(
            f"   {label:34}{row['whole_ms']['median']:9.1f}{row['of_medians']:9.3f}{means['ratio']:9.3f} "
            f"({means['q25']:.3f} to {means['q75']:.3f}){'  <- best' if label == found['best'] else ''}",
            flush=True,
        )


def main() -> None:
    """Every cascade on every engine in all settings; table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=float, default=1.0, help="multiplies the number of repeats")
    parser.add_argument("--only", default="", help="cascades whose name holds this")
    parser.add_argument("--engine", default="", help="engines whose name holds this")
    options = parser.parse_args()
    figures: dict[str, Any] = {"rows": ROWS, "goal": GOAL, "judged": JUDGED, "not_measured": NOT_MEASURED}
    by_cascade: dict[str, Any] = {}
    print(f"batch {ROWS}, one stays: time against (first stage at {ROWS} + the rest at 1)")
    print(f"{'':37}{'ms':>9}{'medians':>9}{'means':>9} (quartiles)")
    for name, cascade, shape, repeats in cascades():
        if options.only not in name:
            continue
        for network in cascade.networks:
            unsettle(network)
        by_cascade[name] = {}
        with tempfile.TemporaryDirectory() as folder:
            progress(f"exporting {name}")
            spec = export_stages(cascade, Path(folder), torch.randn(2, *shape))
            ladder = plain(cascade, spec, shape)
            write_graphs(Path(folder), spec, ladder)
            for kind in (k for k in SETTINGS if options.engine in k):
                try:
                    times = max(3, round(repeats * options.repeats))
                    found = measure(kind, cascade, Path(folder), spec, ladder, times)
                except EngineError as error:
                    progress(f"{kind} is left out: {error}")
                    continue
                by_cascade[name][kind] = found
                show(name, kind, found)
    of_goal = {kind: found for kind, found in by_cascade.get(name, {}).items() if kind in JUDGED}  # the last cascade's
    reached = {kind: found["routes"][found["best"]]["of_medians"] for kind, found in of_goal.items()}
    print(f"\ngoal, {name}: at most {GOAL:.2f}")
    for kind, value in reached.items():
        print(f"   {kind:20}{value:.3f} {'reached' if value <= GOAL else 'MISSED'}")
    print(f"not measured: {', '.join(NOT_MEASURED)}")
    if not options.only and not options.engine:  # a part must not replace the whole
        print(save("runtime/one_stays", figures | {"reached": reached, "cascades": by_cascade}))


if __name__ == "__main__":
    main()
