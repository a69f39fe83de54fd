"""The index of all benchmarks, `benchmarks/README.md`, written from their docstrings and results.

python -m benchmarks.harness.index
"""

import argparse
import ast
import json
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from benchmarks.harness.common import RESULTS, ROOT

FOLDER = ROOT / "benchmarks"
INDEX = FOLDER / "README.md"

# theme/name of a result -> words for a figure -> where it stands in the file
FIGURES: dict[str, dict[str, tuple[str, ...]]] = {
    "cascades/headline": {
        "latency of ResNet-56, ONNX Runtime": ("engines", "onnxruntime f32", "ratio"),
        "OpenVINO": ("engines", "openvino f32", "ratio"),
        "OpenVINO bf16": ("engines", "openvino bf16", "ratio"),
    },
    "cascades/family_cascade": {
        "latency of ResNet-56, ONNX Runtime": ("engines", "onnxruntime f32", "ratio"),
        "OpenVINO": ("engines", "openvino f32", "ratio"),
    },
    "compress/compress_deep": {"times smaller": ("times smaller",), "points lost": ("accuracy", "points lost")},
    "compress/compress_pruning": {
        "multiply-adds": ("multiply-adds", "share"),
        "latency": ("latency", "ratio", "ratio"),
        "points below": ("points below",),
    },
    "compress/lottery_ticket": {"points above the control": ("ticket above control, points", "mean")},
    "memory/footprint": {
        "of torch: memory": ("bundle_to_torch", "resident_mb"),
        "time to the first answer": ("bundle_to_torch", "first_answer_s"),
    },
    "memory/real_memory": {"moves over the limit": ("budget", "moves_over"), "killed": ("group", "killed")},
    "runtime/decision_cost": {"us, worst median": ("worst_median_us",)},
    "runtime/monitor": {"percent of one core": ("percent_of_one_core",)},
    "runtime/one_stays": {
        "of what was needed: torch": ("reached", "torch"),
        "ONNX Runtime": ("reached", "onnxruntime"),
        "OpenVINO": ("reached", "openvino f32"),
    },
    "runtime/overhead": {
        "us beside ONNX Runtime": ("engines", "onnxruntime", "cold", "runtime", "added_of_medians_us"),
        "beside OpenVINO": ("engines", "openvino", "cold", "runtime", "added_of_medians_us"),
    },
    "runtime/as_users_run": {
        "run(x), of the best static network's latency, ONNX Runtime": (
            "engines",
            "onnxruntime f32",
            "over_splits",
            "ratio",
            "mean",
        ),
        "OpenVINO": ("engines", "openvino f32", "over_splits", "ratio", "mean"),
    },
    "statistics/few_labels": {
        "share that the proxy answers at 0.98, 200 labels, CIFAR-10": ("table", "cifar 0.98 200 batch", "share"),
        "BARGAIN": ("table", "cifar 0.98 bargain", "share"),
        "CLINC150": ("table", "clinc 0.98 200 batch", "share"),
        "its BARGAIN": ("table", "clinc 0.98 bargain", "share"),
    },
    "wrapping/compatibility": {
        "networks of timm that work": ("timm", "work"),
        "of as many tried": ("timm", "tried"),
        "of transformers": ("transformers", "work"),
        "of as many": ("transformers", "tried"),
    },
    "wrapping/wrap_torchvision": {"networks that pass": ("passing",)},
}

# weights that are not in git -> the command that makes them, and how long it takes on 2 cores
WEIGHTS = {
    "frozen_exits_heads.safetensors": ("benchmarks.cascades.frozen_exits --train", "30 minutes"),
    "trained_exits_blocks.safetensors": ("benchmarks.cascades.trained_exits --train blocks", "4 hours"),
    "trained_exits_heads.safetensors": ("benchmarks.cascades.trained_exits --train heads", "2 hours"),
    "trained_exits_distill.safetensors": ("benchmarks.cascades.trained_exits --train distill", "5 hours"),
    "family_student_16.packed, family_student_32.packed": ("benchmarks.cascades.family_students", "a day"),
    "family_heads.safetensors": ("benchmarks.cascades.family_cascade --train", "1 hour, after the students"),
    "modern_network.safetensors": ("benchmarks.cascades.modern_network", "half an hour"),
    "compress_pruning_network.safetensors, .json": ("benchmarks.compress.compress_pruning --train", "a day"),
}

HEAD = """# Benchmarks

This page is written by `python -m benchmarks.harness.index`. Each benchmark runs from the root of the repository.
It says in its first lines what it measures and how. Figures stand in `benchmarks/results/`, with command, versions,
machine and date. Those of CIFAR-10 need the folder that [CONTRIBUTING.md](../CONTRIBUTING.md) describes.
"""

FOOT = """## Weights

Trained weights above 200 kB are not in git. A command makes each of them again, in `benchmarks/weights/`. The times
are estimates for 2 cores without other load. Training continues where it was interrupted.
The heads of `cifar_exits` and the packed file of `compress_deep` are in git: later benchmarks start from them.

| file | command | takes about |
| --- | --- | --- |
"""


def commands() -> Iterator[tuple[str, str, str, str]]:
    """(theme, name, first sentence, command) of every file whose docstring shows how to start it."""
    for path in sorted(FOLDER.glob("*/*.py")):
        theme, name = path.parent.name, path.stem
        lines = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()
        shown = [line.strip() for line in lines if f"python -m benchmarks.{theme}" in line and line.startswith("    ")]
        if shown and theme != "harness":
            yield (
                theme,
                theme if name == "__main__" else name,
                lines[0],
                shown[0].partition("#")[0].partition("[")[0].strip(),
            )


def figures(result: dict[str, Any], wanted: dict[str, tuple[str, ...]]) -> str:
    """The figures of a result, each after its words."""
    words = []
    for label, place in wanted.items():
        value: Any = result
        for key in place:
            value = value[key]
        words.append(f"{label} {value:g}")
    return ", ".join(words)


def row(theme: str, name: str, sentence: str, command: str) -> str:
    """The line of one benchmark."""
    path = RESULTS / theme / f"{name}.json"
    result = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    link = f"[{name}](results/{theme}/{name}.json)" if result else name
    read = figures(result, FIGURES.get(f"{theme}/{name}", {})) if result else ""
    cells = (f"{link}: {sentence}", f"`{command}`", read, result.get("machine", ""), result.get("date", ""))
    return f"| {' | '.join(cells)} |"


def page() -> str:
    """The whole page."""
    lines = [HEAD]
    for theme, listed in groupby(commands(), key=itemgetter(0)):
        about = ast.get_docstring(ast.parse((FOLDER / theme / "__init__.py").read_text(encoding="utf-8"))) or ""
        lines += [f"## {theme.capitalize()}", "", about.partition(": `")[0].rstrip(".") + ".", ""]
        lines += ["| benchmark | command | figures | machine | date |", "| --- | --- | --- | --- | --- |"]
        lines += [row(*entry) for entry in listed]
        lines.append("")
    rows = [f"| {file} | `python -m {command}` | {time} |" for file, (command, time) in WEIGHTS.items()]
    return "\n".join(lines) + "\n" + FOOT + "\n".join(rows) + "\n"


def main() -> None:
    """Write the page."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    INDEX.write_text(page(), encoding="utf-8")
    print(INDEX.relative_to(Path.cwd()) if INDEX.is_relative_to(Path.cwd()) else INDEX)


if __name__ == "__main__":
    main()
