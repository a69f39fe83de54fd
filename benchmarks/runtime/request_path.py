"""The files and Python calls that one warm `run(x)` crosses, on an engine of numpy.

    python -m benchmarks.runtime.request_path [--calls]

The engine answers at once, so that all that is seen belongs to the runtime. The drift test is active. A request that
repeats the last decision is traced, and one that decides again.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import dynamic
from dynamic.engines.contract import Output
from dynamic.policies import BudgetPolicy, Policy
from dynamic.runtime.decisions.device_reading import HasLatest
from dynamic.runtime.runtime import Runtime

LIBRARY = Path(dynamic.__file__).resolve().parent.parent
INPUTS, CLASSES = 12, 4
# drift_alpha: the engine's scores are not those of the calibration, and after an alarm the test would cost nothing
NEVER = 1e-300


class NumpyEngine:
    """Two stages in numpy. Every input exits at the first."""

    name, precision, threads, agrees = "onnxruntime", "f32", 1, True

    def __init__(self) -> None:
        self.weights = np.random.default_rng(0).normal(size=(INPUTS, CLASSES)).astype(np.float32)

    def ready(self, rows: int) -> bool:
        return True

    def prepare(self, *_: Any) -> bool:
        return False

    def bind(self, backbones: Any, thresholds: Any, rows: int) -> Callable[[Mapping[str, NDArray[Any]]], Output]:
        return self.answer

    def answer(self, inputs: Mapping[str, NDArray[Any]]) -> Output:
        logits = inputs["input"] @ self.weights
        logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return Output(logits, np.zeros(len(logits), np.int64), np.exp(logits.max(axis=1)))

    def run(self, inputs: Mapping[str, NDArray[Any]], *_: Any) -> Output:
        return self.answer(inputs)

    def close(self) -> None: ...


@contextmanager
def traced(calls: list[tuple[str, str]]) -> Iterator[None]:
    """Note the file and name of every Python function of the library that is called."""

    def note(frame: FrameType, event: str, _: Any) -> None:
        file = Path(frame.f_code.co_filename)
        if event == "call" and file.is_relative_to(LIBRARY) and ".venv" not in file.parts:
            calls.append((str(file.relative_to(LIBRARY)), frame.f_code.co_name))

    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)


def runtime(monitor: HasLatest | None = None, policy: Policy | None = None) -> Runtime:
    """A runtime of two small networks, on that engine. By default it reads the same at all times."""
    torch.manual_seed(0)
    networks = [nn.Linear(INPUTS, CLASSES), nn.Sequential(nn.Linear(INPUTS, 64), nn.ReLU(), nn.Linear(64, CLASSES))]
    loader = [(torch.randn(400, INPUTS), torch.arange(400) % CLASSES)]
    bundle = dynamic.build(networks, loader, progress=False).profile(batch=(1,), seconds=0.05, progress=False)
    monitor = monitor or dynamic.FixedMonitor(dynamic.Snapshot(time_s=0.0))
    engine: Any = NumpyEngine()
    budget, policy = dynamic.Budget(), policy or BudgetPolicy()
    return Runtime.on_engine(bundle, bundle.frontier, engine, budget, monitor, policy, drift_alpha=NEVER)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", action="store_true", help="list every call")
    options = parser.parse_args()
    run = runtime()
    inputs = np.random.default_rng(1).normal(size=(300, INPUTS)).astype(np.float32)
    for x in inputs[:100]:
        run(x)
    kinds: dict[bool, list[tuple[str, str]]] = {}
    for x in inputs[100:]:
        calls: list[tuple[str, str]] = []
        with traced(calls):
            run(x)
        own = [call for call in calls if "benchmarks" not in call[0]]
        repeats = all(name != "renew" for _, name in own)
        if repeats not in kinds or len(own) < len(kinds[repeats]):
            kinds[repeats] = own
    for repeats, own in sorted(kinds.items(), reverse=True):
        files = Counter(file for file, _ in own)
        print(f"{'repeats the decision' if repeats else 'decides again'}: {len(files)} files, {len(own)} Python calls")
        for file, count in sorted(files.items()):
            print(f"  {file}: {count}")
        if options.calls:
            print(*(f"    {file}: {name}" for file, name in own), sep="\n")
    if run.stats().drift:
        raise SystemExit("drift was found, and the test has ended: raise NEVER's exponent")
    run.close()


if __name__ == "__main__":
    main()
