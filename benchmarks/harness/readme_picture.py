"""The picture of README.md: the certified cascade against static networks, drawn from committed results.

    python -m benchmarks.harness.readme_picture

It reads `results/cascades/family_cascade.json` (a processor with VNNI) and `family_cascade_avx2.json` (the same
machine, limited to AVX2), engine ONNX Runtime. Both axes are relative to ResNet-56 in float32, on the same requests.
Static networks were timed on the first split. Small circles are the splits of the cascade, the large one is their mean.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from benchmarks.harness.common import RESULTS, ROOT

ENGINE = "onnxruntime f32"
PICTURE = ROOT / "docs" / "pictures" / "cascade.png"
PANELS = {"family_cascade": "with VNNI", "family_cascade_avx2": "AVX2 alone"}
FLOAT, INT8, CASCADE = "tab:gray", "tab:orange", "tab:blue"


@dataclass(frozen=True)
class Figures:
    """Latency relative to ResNet-56, and accuracy above it in points."""

    static: dict[str, tuple[float, float]]
    splits: tuple[tuple[float, float], ...]
    mean: tuple[float, float]


def figures(name: str) -> Figures:
    """What a result of `family_cascade` says on ONNX Runtime."""
    result: dict[str, Any] = json.loads((RESULTS / "cascades" / f"{name}.json").read_text(encoding="utf-8"))
    engine = result["engines"][ENGINE]
    static = {
        network: (row["ratio"]["ratio"], 100 * row["gain"])
        for network, row in engine["rows"].items()
        if not network.startswith("cascade")
    }
    splits = tuple((split["ratio"], 100 * split["gain"]) for split in engine["splits"])
    return Figures(static, splits, (engine["ratio"], 100 * engine["gain"]))


def draw(path: Path) -> None:
    """Write the picture."""
    figure, panels = pyplot.subplots(1, 2, figsize=(8.4, 3.6), sharey=True, layout="constrained")
    for axes, (name, title) in zip(panels, PANELS.items(), strict=True):
        drawn = figures(name)
        axes.axhline(0, color="black", linewidth=0.6)
        axes.axhspan(-0.5, 0, color="tab:blue", alpha=0.08, linewidth=0, label="certified to lose at most 0.5 points")
        for color, int8, below, label in ((FLOAT, False, -11, "static, float32"), (INT8, True, 5, "static, int8")):
            own = {n.removesuffix("-int8"): at for n, at in drawn.static.items() if n.endswith("-int8") == int8}
            axes.plot(*zip(*own.values(), strict=True), "s", color=color, label=label, markersize=5)
            for network, at in own.items():
                short = network.replace("resnet", "R-").replace("student", "S-")
                axes.annotate(short, at, (0, below), textcoords="offset points", ha="center", fontsize=7, color=color)
        axes.plot(*zip(*drawn.splits, strict=True), "o", color=CASCADE, markersize=3.5, alpha=0.6)
        axes.plot(*drawn.mean, "o", color=CASCADE, markersize=9, label="certified cascade, mean of 4 splits")
        axes.annotate(
            f"cascade {drawn.mean[0]:.3f}",
            drawn.mean,
            (9, 3),
            textcoords="offset points",
            fontsize=9,
            color=CASCADE,
        )
        axes.set(
            xlabel="latency relative to ResNet-56, float32",
            title=f"CIFAR-10, 2 cores, {title}",
            xlim=(0, 1.06),
            ylim=(-2.4, 1.4),
        )
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("accuracy above ResNet-56 (points)")
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
