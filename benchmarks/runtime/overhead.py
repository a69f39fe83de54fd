"""What a request costs beyond the engine: snapshot, decision, feedback, drift, label and probability of the answer.

    python -m benchmarks.runtime.overhead

A bundle of ResNet-20 and 56 is built on the spot. On each engine two calls take turns on CIFAR-10 images, preprocessed
before: the engine alone under thresholds that are chosen, and the runtime. The monitor runs, and the budget limits
latency and drop, loosely: one decision must hold throughout, or the two would not do the same work. The goal is 30
microseconds at the median.

A batch takes milliseconds that vary by more than what is looked for. So for batches, and once more for one row, the
engine is replaced by one that has its answers ready: the whole time is then the runtime's, with its memory in cache.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dynamic
from benchmarks.harness import cifar
from benchmarks.harness.common import Contender, add_data_option, data_folder, progress, save, spread, take_turns
from dynamic.data import ImageSet, stratified_halves
from dynamic.engines.contract import Output
from dynamic.errors import EngineError

NAMES = ("resnet20", "resnet56")
ENGINES = ("onnxruntime", "openvino", "torch")
CALLS, ROWS = 3000, (1, 8, 64)
BUDGET = dynamic.Budget(latency_ms=1e5, max_drop=0.01)
THREADS = 1  # of the engine: what is measured runs on one
NEVER = 1e-30  # drift_alpha: images come again and again, and after an alarm the test would cost nothing
NOT_MEASURED = ("preprocessing", "limits of memory, deadlines", "decisions that change each time", "several threads")


def build(data: Path, folder: Path) -> tuple[dynamic.Cascade, ImageSet]:
    """A bundle in `folder`, with its cascade; and images that it was not calibrated on."""
    images = cifar.images(data, "test")
    half, rest = stratified_halves(images.labels, seed=0)
    cascade = dynamic.Cascade(cifar.networks(data, NAMES), names=NAMES)
    calibration = cifar.batches(images.select(half))
    dynamic.build(cascade, calibration, max_drops=(0.01,), preprocess=cifar.PREPROCESS).save(folder)
    # not sorted by class: that would be drift
    return cascade, images.select(np.random.default_rng(0).permutation(rest))


@dataclass
class Ready:
    """An engine that has its answers ready, one after the other whatever the inputs."""

    outputs: Iterator[Output]
    name: str
    precision: str
    threads: int = THREADS
    agrees: bool = True

    def ready(self, rows: int) -> bool:
        return True

    def prepare(self, *_: Any) -> bool:
        return False

    def run(self, *_: Any) -> Output:
        return next(self.outputs)

    def bind(self, *_: Any) -> Callable[[Any], Output]:
        return self.run


def measure(run: Any, images: ImageSet, calls: int) -> dict[str, Any]:
    """Microseconds of engine and runtime, and how they differ: of the medians, and request by request."""
    ready = [{"input": cifar.PREPROCESS(image)} for image in images.images]
    point = [run(inputs).decision.point for inputs in ready[:50]][-1]

    def through_runtime(inputs: Any) -> None:
        if (now := run(inputs).decision.point) is not point:
            raise SystemExit(f"the decision went from {point.name!r} to {now.name!r}: run it again")

    contenders = [
        Contender("engine", lambda i: run.engine.run(ready[i], point.thresholds)),
        Contender("runtime", lambda i: through_runtime(ready[i])),
    ]
    took = take_turns(contenders, [number % len(ready) for number in range(calls)])
    us = {name: [ms * 1e3 for ms in values] for name, values in took.items()}
    return {
        "point": point.name,
        **{f"{name}_us": spread(values, 1) for name, values in us.items()},
        "of_medians_us": round(statistics.median(us["runtime"]) - statistics.median(us["engine"]), 1),
        "difference_us": spread([ours - bare for ours, bare in zip(us["runtime"], us["engine"], strict=True)], 1),
    }


def without_engine(run: Any, images: ImageSet, rows: int, calls: int) -> dict[str, float]:
    """Microseconds of the runtime alone."""
    batches = range(0, min(rows * calls, len(images) - rows), rows)
    ready = [{"input": cifar.PREPROCESS(images.images[at : at + rows])} for at in batches]
    inputs, thresholds = ready[0], run(ready[0]).decision.point.thresholds
    outputs = cycle([run.engine.run(given, thresholds) for given in ready])
    engines, engine = run.deployment.engines, run.engine
    engines.first = Ready(outputs, engine.name, engine.precision)
    took = take_turns([Contender("runtime", lambda _: run(inputs))], range(calls), warm=1)["runtime"]
    engines.first = engine
    return spread([ms * 1e3 for ms in took], 1)


def main() -> None:
    """Every engine, for one row and for a batch; table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--calls", type=float, default=1.0, help="multiplies the number of requests")
    options = parser.parse_args()
    data = data_folder(options.data)
    torch.set_num_threads(THREADS)
    engines: dict[str, Any] = {}
    alone: dict[int, Any] = {}
    missing, calls = list(NOT_MEASURED), max(100, round(CALLS * options.calls))
    print(f"{'':12} {'engine':>9} {'runtime':>9}   added: of medians (median of differences, quartiles)")
    with tempfile.TemporaryDirectory() as folder:
        progress("building the bundle")
        cascade, images = build(data, Path(folder) / "shelf")
        for engine in ENGINES:
            bundle = dynamic.load(Path(folder) / "shelf", modules=cascade)
            try:
                threads = {} if engine == "torch" else {"threads": THREADS}
                run = bundle.runtime(BUDGET, engine=engine, drift_alpha=NEVER, **threads)
            except EngineError as error:
                missing.append(f"{engine}: {error}")
                continue
            with run:
                row = engines[engine] = measure(run, images, calls)
                alone = alone or {rows: without_engine(run, images, rows, calls) for rows in ROWS}
            us, bare, ours = row["difference_us"], row["engine_us"]["median"], row["runtime_us"]["median"]
            print(f"{engine:12} {bare:9.1f} {ours:9.1f}   {row['of_medians_us']:6.1f}", end=" ")
            print(f"({us['median']:.1f}, {us['q25']:.1f} to {us['q75']:.1f})", flush=True)
    for rows, us in alone.items():
        print(f"the engine's answers ready, {rows:2} rows: {us['median']:.1f} us ({us['q25']:.1f} to {us['q75']:.1f})")
    print(f"not measured: {'; '.join(missing)}")
    figures = {"goal_us": 30, "threads": THREADS, "calls": calls, "engines": engines, "without_engine_us": alone}
    print(f"\n{save('runtime/overhead', figures | {'not_measured': missing})}")


if __name__ == "__main__":
    main()
