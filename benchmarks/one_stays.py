"""A batch of 64 in which one input stays: what does compaction cost?

    python benchmarks/one_stays.py

All inputs but one leave at the first exit. Against that stands the least it could take: the first stage on 64 rows plus
the remaining stages on one, run bare, without scores, thresholds and copies of rows. Weights are random and heads
untrained: times do not depend on them, and the threshold is put between the two least sure inputs of the batch.
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
from common import Contender, progress, ratio, save, spread, take_turns
from numpy.typing import NDArray

import dynamic
from dynamic.engines.loop import StageEngine
from dynamic.engines.opening import open_engine
from dynamic.models import resnet20, resnet56
from dynamic.offline.cascade import Cascade
from dynamic.policies.scores import Combiner
from dynamic.profiling import NOBODY

ROWS = 64
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "torch": [{"threads": 2}, {"threads": 1}],
    # the first is the library's default on two cores
    "onnxruntime": [{"threads": 2, "idle": "sleep"}, {"threads": 2, "idle": "spin"}, {"threads": 1, "idle": "sleep"}],
}


def cascades() -> Iterator[tuple[str, Cascade, tuple[int, ...], int]]:
    """(name, cascade, shape of an input, repeats)."""
    torch.manual_seed(0)
    small = torch.randn(2, 3, 32, 32)
    yield "ResNet-56, 3 exits", Cascade(dynamic.wrap(resnet56().eval(), small, exits=3)), (3, 32, 32), 40
    yield "ResNet-20, then ResNet-56", Cascade([resnet20().eval(), resnet56().eval()]), (3, 32, 32), 40
    large = torch.randn(2, 3, 224, 224)
    resnet18 = torchvision.models.resnet18(weights=None).eval()
    yield "ResNet-18 at 224, exit at half", Cascade(dynamic.wrap(resnet18, large, exits=[0.5])), (3, 224, 224), 12


def one_stays(engine: StageEngine, combiner: Combiner, inputs: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Thresholds under which all rows but one leave at the first exit, and that one goes to the end."""
    first, _ = engine.executor.step(0, engine.executor.start(inputs), True)
    _, score, _ = combiner.add(combiner.start(), 0, first)
    least, next_to_least = np.sort(score)[:2]
    limits = np.full(len(engine.spec.stages) - 1, NOBODY, np.float32)
    limits[0] = (least + next_to_least) / 2
    left = engine.run(inputs, limits).stage
    assert np.count_nonzero(left == 0) == ROWS - 1, "scores tie: no threshold lets exactly one stay"
    assert left.max() == len(engine.spec.stages) - 1
    return limits


def parts(
    engine: StageEngine, inputs: dict[str, NDArray[Any]]
) -> tuple[Callable[[int], object], Callable[[int], object]]:
    """(the first stage on all rows, the remaining stages on one row), on the executor alone."""
    executor, backbone = engine.executor, engine.spec.backbone
    _, carry = executor.step(0, executor.start(inputs), True)
    one = {name: np.ascontiguousarray(array[:1]) for name, array in inputs.items()}
    kept = executor.keep(carry, np.array([0])) if backbone[1] == backbone[0] else None

    def first(_: int) -> object:
        return executor.step(0, executor.start(inputs), True)

    def rest(_: int) -> object:
        state = kept
        for stage in range(1, len(backbone)):
            if backbone[stage] != backbone[stage - 1]:
                state = executor.start(one)
            _, state = executor.step(stage, state, True)
        return state

    return first, rest


def measure(
    engine: StageEngine, combiner: Combiner, shape: Sequence[int], repeats: int, threads: int
) -> dict[str, Any]:
    """The whole request and its two parts, taking turns."""
    inputs = {"input": np.random.default_rng(0).standard_normal((ROWS, *shape)).astype(np.float32)}
    limits = one_stays(engine, combiner, inputs)
    first, rest = parts(engine, inputs)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        contenders = [Contender("whole", lambda _: engine.run(inputs, limits)), Contender("first", first)]
        contenders.append(Contender("rest", rest))
        take_turns(contenders, range(3))
        took = take_turns(contenders, range(repeats))
    finally:
        torch.set_num_threads(before)
    needed = [a + b for a, b in zip(took["first"], took["rest"], strict=True)]
    return {
        "whole_ms": spread(took["whole"]),
        "first_ms": spread(took["first"]),
        "rest_ms": spread(took["rest"]),
        "of_medians": round(statistics.median(took["whole"]) / statistics.median(needed), 3),
        "of_means": ratio(took["whole"], needed, parts=min(10, repeats)),
    }


def main() -> None:
    """Every cascade on both engines in all settings; table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=float, default=1.0, help="multiplies the number of repeats")
    options = parser.parse_args()
    figures: dict[str, Any] = {"rows": ROWS, "goal": 1.15, "cascades": {}}
    print(f"batch {ROWS}, one stays: time against (first stage at {ROWS} + the rest at 1)")
    print(f"{'':32}{'':34}{'whole':>8}{'first':>8}{'rest':>7}   ratio of medians, of means (quartiles)")
    for name, cascade, shape, repeats in cascades():
        figures["cascades"][name] = {}
        with tempfile.TemporaryDirectory() as folder:
            progress(f"exporting {name}")
            spec = dynamic.export(cascade, Path(folder), torch.randn(2, *shape))
            with torch.no_grad():
                found = cascade.eval()(torch.randn(ROWS, *shape))
            # random networks are as sure as can be of everything, and equal scores cannot be parted
            combiner = Combiner(tuple(float(z.std()) for z in found), "max_probability", "mean")
            for kind, settings in SETTINGS.items():
                for setting in settings:
                    given = {} if kind == "torch" else setting
                    engine = open_engine(kind, Path(folder), spec, combiner, cascade.stages, **given)
                    engine.load(spec.backbones)
                    row = measure(engine, combiner, shape, max(3, round(repeats * options.repeats)), setting["threads"])
                    engine.close()
                    label = ", ".join([kind, *(f"{k} {v}" for k, v in setting.items())])
                    figures["cascades"][name][label] = row
                    means = row["of_means"]
                    print(
                        f"{name:32}{label:34}{row['whole_ms']['median']:8.1f}{row['first_ms']['median']:8.1f}"
                        f"{row['rest_ms']['median']:7.2f}   {row['of_medians']:.3f}   {means['ratio']:.3f} "
                        f"({means['q25']:.3f} to {means['q75']:.3f})",
                        flush=True,
                    )
    print(f"\n{save('one_stays', figures)}")


if __name__ == "__main__":
    main()
