"""What `run(x)` costs beyond the engine: input check, snapshot, drift, observation, and a share of the decisions.

    python -m benchmarks.runtime.overhead

A bundle of ResNet-20 and 56 is built on the spot. On each engine four calls take turns on CIFAR-10 images that were
preprocessed before, one row each:

- `library`: the engine's own call, in the fewest lines that give arrays of one's own. It runs on the session of the
  runtime, or its weights would be in the caches less than those of the others.
- `engine`: `engine.run` under thresholds that are chosen.
- `minimal`: the least that a request can be (see `Minimal`), around the call that the runtime uses.
- `runtime`: `run(x)`. The monitor runs, and the budget limits latency and drop, loosely: one decision must hold
  throughout, or the calls would not do the same work.

"Cold": another network runs between two calls, so that each finds its code and data out of the caches. "Hot": nothing
runs between, each call comes 50 times in a row. "Paced": 20 requests a second, sleeping between, 20 in a row of each
call. "Threads": 8 threads
on one runtime against 8 on the bare engine, requests a second, on as many threads of the engine as there are cores.
All run the single graph (`route="graph"`).

Batches take milliseconds that vary by more than what is looked for. For them the engine is replaced by one that has
its answers ready: the whole time is then the runtime's, with its memory in cache.
"""

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import dynamic
from benchmarks.harness import cifar
from benchmarks.harness.common import Contender, add_data_option, data_folder, progress, save, spread, take_turns
from dynamic.data import ImageSet, stratified_halves
from dynamic.engines.contract import OUTPUTS, SINGLE_GRAPH, THRESHOLDS, Output
from dynamic.errors import EngineError, InputError
from dynamic.runtime.runtime import Runtime

NAMES = ("resnet20", "resnet56")
ENGINES = ("onnxruntime", "openvino")
CALLS, HOT, PACED, PACE_S, SHARED_S = 2000, 50, 400, 0.05, 3.0
ROWS = (1, 8, 64)
CALLERS, BLOCK = 8, 20
BUDGET = dynamic.Budget(latency_ms=1e5, max_drop=0.01)
THREADS = 1  # of the engine: what is measured runs on one
NEVER = 1e-30  # drift_alpha: images come again and again, and after an alarm the test would cost nothing
NOT_MEASURED = ("preprocessing", "limits of memory, deadlines", "decisions that change each time", "engine torch")
GOALS_US = {"onnxruntime": 20, "openvino": 12}  # of the runtime over the library, cold

Inputs = dict[str, NDArray[Any]]
Call = Callable[[Inputs], Any]


def build(data: Path, folder: Path) -> tuple[dynamic.Cascade, ImageSet]:
    """A bundle in `folder`, with its cascade, and images that it was not calibrated on."""
    images = cifar.images(data, "test")
    half, rest = stratified_halves(images.labels, seed=0)
    cascade = dynamic.Cascade(cifar.networks(data, NAMES), names=NAMES)
    calibration = cifar.batches(images.select(half))
    dynamic.build(cascade, calibration, max_drops=(0.01,), preprocess=cifar.PREPROCESS).save(folder)
    # not sorted by class: that would be drift
    return cascade, images.select(np.random.default_rng(0).permutation(rest))


class Answer:
    """What `Minimal` returns."""

    __slots__ = ("latency_ms", "output")

    def __init__(self, output: Output, latency_ms: float) -> None:
        self.output, self.latency_ms = output, latency_ms


class Minimal:
    """The least that a request can be.

    It reads one attribute, checks type, dtype and shape, calls the engine, appends a tuple, and returns an object.
    """

    def __init__(self, call: Callable[[Inputs], Output], name: str, shape: tuple[int, ...]) -> None:
        self.plan, self.observed = call, list[tuple[Output, float]]()
        self._name, self._shape = name, shape

    def __call__(self, inputs: Inputs) -> Answer:
        began = time.perf_counter()
        array = inputs[self._name]
        if type(array) is not np.ndarray or array.dtype != np.float32 or array.shape != self._shape:
            raise InputError(f"{self._name!r} is no float32 array {self._shape}")
        output = self.plan(inputs)
        latency_ms = (time.perf_counter() - began) * 1e3
        self.observed.append((output, latency_ms))
        return Answer(output, latency_ms)


def library_call(engine: str, graph: Path, thresholds: NDArray[np.float32], threads: int) -> Call:
    """The engine's own call: its arrays are copied where it would overwrite them."""
    if engine == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        return lambda inputs: session.run(OUTPUTS, {**inputs, THRESHOLDS: thresholds})
    import openvino

    settings = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": str(threads)}
    settings["INFERENCE_PRECISION_HINT"] = "f32"
    model = openvino.Core().compile_model(str(graph), "CPU", settings)
    local = threading.local()

    def call(inputs: Inputs) -> list[NDArray[Any]]:
        (array,) = inputs.values()
        if not hasattr(local, "request"):
            local.request, local.bound = model.create_infer_request(), array.copy()
            local.request.set_input_tensor(0, openvino.Tensor(local.bound, shared_memory=True))
            local.request.set_input_tensor(1, openvino.Tensor(thresholds, shared_memory=True))
        local.bound[...] = array  # another tensor takes longer where caches are cold
        return [output.copy() for output in local.request.infer(None, share_outputs=True).values()]

    return call


def own_call(run: Runtime, thresholds: NDArray[np.float32]) -> Call:
    """The engine's own call on the session of the runtime itself: weights of another would be in no cache."""
    graph: Any = run.engine.graph  # type: ignore[attr-defined]
    if run.engine.name == "onnxruntime":
        session = graph._sessions(SINGLE_GRAPH, "the cascade")
        return lambda inputs: session.run(OUTPUTS, {**inputs, THRESHOLDS: thresholds})
    request = graph._models._request(SINGLE_GRAPH, "the cascade")  # of this thread

    def call(inputs: Inputs) -> list[NDArray[Any]]:
        (array,) = inputs.values()
        request.set_input(0, array)
        request.set_input(1, thresholds)
        return [output.copy() for output in request.request.infer(None, share_outputs=True).values()]

    return call


def contenders_of(run: Runtime, ready: list[Inputs], graph: Path | None = None) -> dict[str, Call]:
    """The four calls, on the operating point that the runtime has decided for.

    `graph`: what the library's own call loads, for several threads. None: it runs on the session of the runtime.
    """
    points = [run(inputs).decision.point for inputs in ready[:50]]
    point, engine = points[-1], run.engine
    thresholds = np.array(point.thresholds, np.float32)
    bound = run.deployment.engines.bind(point.backbones, point.thresholds, 1)
    assert bound is not None, "the graph is loaded by now"
    spec = run.bundle.spec.inputs[0]

    def through_runtime(inputs: Inputs) -> None:
        if (now := run(inputs).decision.point) is not point:
            raise SystemExit(f"the decision went from {point.name!r} to {now.name!r}: run it again")

    return {
        "library": own_call(run, thresholds)
        if graph is None
        else library_call(engine.name, graph, thresholds, engine.threads),
        "engine": lambda inputs: engine.run(inputs, point.thresholds),
        "minimal": Minimal(bound, spec.name, (1, *spec.shape)),
        "runtime": through_runtime,
    }


def added(took: dict[str, list[float]]) -> dict[str, Any]:
    """Of each call its microseconds, and what it takes beyond the library's, item by item."""
    us = {name: np.array(values) * 1e3 for name, values in took.items()}
    rows: dict[str, Any] = {name: {"us": _spread(values)} for name, values in us.items()}
    for name in list(rows)[1:]:
        rows[name]["added_us"] = _spread(us[name] - us["library"])
        of_medians = statistics.median(us[name]) - statistics.median(us["library"])
        rows[name]["added_of_medians_us"] = round(float(of_medians), 1)
    return rows


def _spread(us: NDArray[np.float64]) -> dict[str, float]:
    return spread(us.tolist(), 1) | {"p99": round(float(np.percentile(us, 99)), 1)}


def measure(run: Runtime, other: Call, images: ImageSet, factor: float) -> dict[str, Any]:
    """The four calls cold, hot and paced."""
    ready = [{"input": cifar.PREPROCESS(image)} for image in images.images[:2000]]
    calls = contenders_of(run, ready)

    def items(count: int) -> list[int]:
        return [number % len(ready) for number in range(max(20, round(count * factor)))]

    cold = [Contender(name, lambda i, f=f: f(ready[i]), lambda: other(ready[0])) for name, f in calls.items()]  # type: ignore[misc]
    hot = [Contender(name, lambda i, f=f: f(ready[i])) for name, f in calls.items()]  # type: ignore[misc]
    result: dict[str, Any] = {}
    progress(f"{run.engine.name}: cold")
    result["cold"] = added(take_turns(cold, items(CALLS)))
    progress(f"{run.engine.name}: hot")
    result["hot"] = added(take_turns(hot, items(CALLS), block=HOT))
    progress(f"{run.engine.name}: 20 requests a second")
    result["paced"] = added(paced(calls, ready, items(PACED)))
    return result


def paced(calls: dict[str, Call], ready: list[Inputs], items: list[int]) -> dict[str, list[float]]:
    """Milliseconds of each call when it comes 20 times a second, 20 in a row before the next one's turn."""
    took: dict[str, list[float]] = {name: [] for name in calls}
    for start in range(0, len(items), BLOCK):
        for name, call in calls.items():
            for item in items[start : start + BLOCK]:
                time.sleep(PACE_S)
                began = time.perf_counter()
                call(ready[item])
                took[name].append((time.perf_counter() - began) * 1e3)
    return took


def shared(run: Runtime, graph: Path, images: ImageSet, seconds: float) -> dict[str, float]:
    """Requests a second of 8 threads on one runtime, and on the bare engine. They take turns."""
    ready = [{"input": cifar.PREPROCESS(image)} for image in images.images[:500]]
    calls = contenders_of(run, ready, graph)
    rates: dict[str, list[float]] = {"library": [], "runtime": []}
    for turn in range(4):
        for name in list(rates)[:: 1 if turn % 2 else -1]:
            rates[name].append(_rate(calls[name], ready, seconds))
    ratios = [ours / bare for ours, bare in zip(rates["runtime"], rates["library"], strict=True)]
    medians = {f"{name}_per_s": round(statistics.median(rate)) for name, rate in rates.items()}
    return {**medians, "ratio": round(statistics.median(ratios), 3), "least": round(min(ratios), 3)}


def _rate(call: Call, ready: list[Inputs], seconds: float) -> float:
    """Calls a second of all threads together."""
    ends = time.perf_counter() + seconds

    def caller(number: int) -> int:
        items, count = cycle(ready[number::CALLERS]), 0
        while time.perf_counter() < ends:
            call(next(items))
            count += 1
        return count

    began = time.perf_counter()
    with ThreadPoolExecutor(CALLERS) as pool:
        count = sum(pool.map(caller, range(CALLERS)))
    return count / (time.perf_counter() - began)


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

    def close(self) -> None: ...


def without_engine(run: Runtime, images: ImageSet, rows: int, calls: int) -> dict[str, float]:
    """Microseconds of the runtime alone."""
    batches = range(0, min(rows * calls, len(images) - rows), rows)
    ready = [{"input": cifar.PREPROCESS(images.images[at : at + rows])} for at in batches]
    inputs, thresholds = ready[0], run(ready[0]).decision.point.thresholds
    outputs = cycle([run.engine.run(given, thresholds) for given in ready])
    engines, engine = run.deployment.engines, run.engine
    engines.first = Ready(outputs, engine.name, engine.precision)
    run.budget = replace(BUDGET)  # another one: what was planned for the engine does not hold any more
    took = take_turns([Contender("runtime", lambda _: run(inputs))], range(calls), warm=1)["runtime"]
    engines.first = engine
    run.budget = replace(BUDGET)
    return spread([ms * 1e3 for ms in took], 1)


def main() -> None:
    """Every engine in every setting; table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--calls", type=float, default=1.0, help="multiplies the number of requests")
    options = parser.parse_args()
    data = data_folder(options.data)
    torch.set_num_threads(THREADS)
    engines: dict[str, Any] = {}
    alone: dict[int, Any] = {}
    missing = list(NOT_MEASURED)
    with tempfile.TemporaryDirectory() as folder:
        progress("building the bundle")
        shelf = Path(folder) / "shelf"
        _, images = build(data, shelf)
        never = np.array([np.inf], np.float32)  # the other network goes all the way
        other = library_call("onnxruntime", shelf / SINGLE_GRAPH, never, THREADS)
        for engine in ENGINES:
            try:
                run = dynamic.load(shelf).runtime(
                    BUDGET, engine=engine, drift_alpha=NEVER, threads=THREADS, route="graph"
                )
            except EngineError as error:
                missing.append(f"{engine}: {error}")
                continue
            with run:
                row = engines[engine] = measure(run, other, images, options.calls)
                calls = max(100, round(CALLS * options.calls))
                alone = alone or {rows: without_engine(run, images, rows, calls) for rows in ROWS}
            with dynamic.load(shelf).runtime(BUDGET, engine=engine, drift_alpha=NEVER, route="graph") as run:
                progress(f"{engine}: {CALLERS} threads")
                row["threads"] = shared(run, shelf / SINGLE_GRAPH, images, max(0.5, SHARED_S * options.calls))
    _print(engines, alone)
    print(f"not measured: {', '.join(missing)}")
    figures = {"goals_us": GOALS_US, "threads": THREADS, "engines": engines, "without_engine_us": alone}
    print(f"\n{save('runtime/overhead', figures | {'not_measured': missing})}")


def _print(engines: dict[str, Any], alone: dict[int, Any]) -> None:
    print(f"{'':28} {'median us':>9}   added to the library's call: of medians (median of differences, quartiles)")
    for engine, settings in engines.items():
        for setting in ("cold", "hot", "paced"):
            for name, row in settings[setting].items():
                line = f"{engine:12} {setting:6} {name:8} {row['us']['median']:9.1f}"
                if name != "library":
                    us = row["added_us"]
                    line += (
                        f"   {row['added_of_medians_us']:6.1f} ({us['median']:.1f}, {us['q25']:.1f} to {us['q75']:.1f})"
                    )
                print(line)
        threads = settings["threads"]
        print(
            f"{engine:12} {CALLERS} threads on one runtime: {threads['runtime_per_s']} requests a second, on the bare "
            f"engine {threads['library_per_s']}. Ratio {threads['ratio']} (least of 4: {threads['least']})"
        )
    for rows, us in alone.items():
        print(f"the engine's answers ready, {rows:2} rows: {us['median']:.1f} us ({us['q25']:.1f} to {us['q75']:.1f})")


if __name__ == "__main__":
    main()
