"""Shared by all benchmarks: where the data is, contenders that take turns, and results with their circumstances."""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from dynamic.profiling.machine import machine_name

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
WEIGHTS = ROOT / "benchmarks" / "weights"  # not in git: a command makes each of them, see benchmarks/README.md
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

_PACKAGES = (
    *("dynamic-inference", "numpy", "onnxruntime", "onnx", "openvino", "torch", "torchvision", "earlyon", "timm"),
    *("transformers", "onnxscript"),
)


def save(name: str, figures: dict[str, Any]) -> Path:
    """Write `results/<name>.json`, as in "cascades/headline": figures with command, versions, machine and date."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    module = getattr(sys.modules["__main__"], "__spec__", None)
    circumstances = {
        "command": " ".join(["python -m", module.name if module else sys.argv[0], *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine_name(),
        "versions": {"python": sys.version.split()[0], **{p: v for p in _PACKAGES if (v := version_of(p))}},
    }
    path.write_text(json.dumps(circumstances | figures, indent=1) + "\n", encoding="utf-8")
    return path


def version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def module_command(module: str, *arguments: str) -> list[str]:
    """The command of a module of the benchmarks, `module` as in "harness.live_worker". `module_path` finds it."""
    return [sys.executable, "-m", f"benchmarks.{module}", *arguments]


def module_path() -> dict[str, str]:
    """The environment of a child that imports what this process imports, from any working folder."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *(p or os.getcwd() for p in sys.path)])}


def required(path: Path, command: str) -> Path:
    """The file, which `command` makes; exits with the command where it is absent."""
    if not path.is_file():
        sys.exit(f"needs {path.relative_to(ROOT)}: run {command}")
    return path


def add_data_option(parser: argparse.ArgumentParser) -> None:
    """`--data`: the folder that `data_folder` looks into first."""
    parser.add_argument("--data", type=Path, help="folder with cifar10.zip and weights/ (default: $DYNAMIC_DATA)")


def data_folder(given: Path | None) -> Path:
    """The folder with `cifar10.zip` and `weights/`: as given, $DYNAMIC_DATA, or ../shared/data; exits without one."""
    for candidate in (given, os.environ.get("DYNAMIC_DATA"), ROOT.parent / "shared" / "data"):
        if candidate and (Path(candidate) / "cifar10.zip").is_file():
            return Path(candidate)
    sys.exit(
        "needs a folder with cifar10.zip and weights/resnet{20,32,44,56}_cifar10.safetensors (see CONTRIBUTING.md): "
        "give --data FOLDER or set DYNAMIC_DATA"
    )


@dataclass(frozen=True)
class Contender:
    """One way to do the work: `run(i)` on item `i`; `prepare()` comes before its turn and is not timed."""

    name: str
    run: Callable[[int], object]
    prepare: Callable[[], object] = lambda: None


def take_turns(
    contenders: Sequence[Contender], items: Sequence[int], block: int = 1, pause_s: float = 0.0, warm: int = 0
) -> dict[str, list[float]]:
    """Milliseconds of every contender on every item `[N]`; nothing but the work itself is timed.

    Contenders take turns, each on `block` items at a time, and the order turns with every block, so that drift of the
    machine falls on all alike. `pause_s` and `warm` untimed calls come before a turn: worker threads that spin go
    on for some time after a call, and would run beside the next contender.
    """
    took: dict[str, list[float]] = {c.name: [] for c in contenders}
    for number, start in enumerate(range(0, len(items), block)):
        chosen = items[start : start + block]
        shift = number % len(contenders)
        for contender in (*contenders[shift:], *contenders[:shift]):
            contender.prepare()
            if pause_s:
                time.sleep(pause_s)
            for _ in range(warm):
                contender.run(chosen[0])
            for item in chosen:
                began = time.perf_counter()
                contender.run(item)
                took[contender.name].append((time.perf_counter() - began) * 1e3)
    return took


def spread(values: Sequence[float], digits: int = 3) -> dict[str, float]:
    """Median with quartiles, mean and 95th percentile of a sample."""
    low, middle, high, p95 = np.percentile(values, [25, 50, 75, 95])
    named = {"median": middle, "q25": low, "q75": high, "p95": p95, "mean": statistics.fmean(values)}
    return {name: round(float(value), digits) for name, value in named.items()}


def ratio(ours: Sequence[float], theirs: Sequence[float], parts: int = 10) -> dict[str, float]:
    """Ratio of the means of two samples that took turns, with its spread over `parts` consecutive stretches."""
    each = [
        statistics.fmean(a) / statistics.fmean(b)
        for a, b in zip(np.array_split(ours, parts), np.array_split(theirs, parts), strict=True)
        if len(a) and len(b)
    ]
    low, middle, high = np.percentile(each, [25, 50, 75])
    whole = statistics.fmean(ours) / statistics.fmean(theirs)
    named = {"ratio": whole, "median": middle, "q25": low, "q75": high}
    return {name: round(float(value), 3) for name, value in named.items()}


def best(took: Mapping[str, Sequence[float]], names: Sequence[str]) -> str:
    """The name with the least mean."""
    return min(names, key=lambda name: statistics.fmean(took[name]))


def progress(text: str) -> None:
    """A line on stderr that says where the run is."""
    print(text, file=sys.stderr, flush=True)
