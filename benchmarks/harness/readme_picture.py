"""The picture of README.md: a certified cascade through `run(x)` against static networks, drawn from committed results.

    python -m benchmarks.harness.readme_picture

It reads `results/runtime/as_users_run_modern.json`. Latency and accuracy are means of its splits. Small circles are the
splits of the cascade. Accuracies of networks on the same images move together from split to split.
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from benchmarks.harness.common import RESULTS, ROOT

SOURCE = RESULTS / "runtime" / "as_users_run_modern.json"
PICTURE = ROOT / "docs" / "pictures" / "cascade.png"
PANELS = {"onnxruntime f32": "ONNX Runtime", "openvino f32": "OpenVINO"}
FLOAT, INT8, CASCADE = "tab:gray", "tab:orange", "tab:blue"
RUN = "run(x)"
SHORT = {"resnet": "R-", "student": "S-", "modern": "wide"}

Point = tuple[float, float]  # milliseconds, accuracy in percent


def points(splits: Sequence[Mapping[str, Any]], name: str) -> list[Point]:
    """Where a row lies in each split."""
    return [(one["rows"][name]["mean_ms"], 100 * one["rows"][name]["accuracy"]) for one in splits]


def mean(some: Sequence[Point]) -> Point:
    """The mean of some points."""
    return statistics.fmean(x for x, _ in some), statistics.fmean(y for _, y in some)


def shortened(name: str) -> str:
    """A name that fits beside a point."""
    for long, short in SHORT.items():
        name = name.replace(long, short)
    return name.removesuffix("-int8")


def draw_panel(axes: Any, title: str, splits: Sequence[Mapping[str, Any]]) -> None:
    """One engine."""
    static = [name for name in splits[0]["rows"] if name not in (RUN, "bare cascade")]
    for color, int8, label in ((FLOAT, False, "static, float32"), (INT8, True, "static, int8")):
        own = {name: mean(points(splits, name)) for name in static if name.endswith("-int8") == int8}
        axes.plot(*zip(*own.values(), strict=True), "s", color=color, label=label, markersize=5)
        for name, at in own.items():
            axes.annotate(
                shortened(name), at, (0, -11), textcoords="offset points", ha="center", fontsize=7, color=color
            )
    cascade = points(splits, RUN)
    axes.plot(*zip(*cascade, strict=True), "o", color=CASCADE, markersize=3.5, alpha=0.6)
    label = f"certified cascade, run(x), mean of {len(splits)} splits"
    axes.plot(*mean(cascade), "o", color=CASCADE, markersize=9, label=label)
    axes.set(xlabel="mean latency (ms)", title=f"CIFAR-10, 2 cores with VNNI, {title}")
    axes.set(xlim=(0, None), ylim=(90.3, 94.5))
    axes.grid(alpha=0.25)


def draw(path: Path) -> None:
    """Write the picture."""
    engines = json.loads(SOURCE.read_text(encoding="utf-8"))["engines"]
    figure, panels = pyplot.subplots(1, 2, figsize=(8.4, 3.6), sharey=True, layout="constrained")
    for axes, (engine, title) in zip(panels, PANELS.items(), strict=True):
        draw_panel(axes, title, engines[engine]["splits"])
    panels[0].set_ylabel("accuracy (%)")
    panels[1].legend(loc="lower right", fontsize=7.5)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def main() -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PICTURE)
    options = parser.parse_args()
    draw(options.out)
    print(options.out)


if __name__ == "__main__":
    main()
