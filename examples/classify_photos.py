"""Photographs in 1,000 classes: three networks at three resolutions, from one picture.

    python examples/classify_photos.py --data DATA

MobileNets with 14, 77 and 233 million multiply-adds see a photograph at 128, 160 and 192 pixels. Each small one has its
resize inside. Half of the photographs calibrates, the other half reports. No training.

DATA holds `imagenet_open_1000.zip`, photographs with a `labels.csv` of `file,label`, and `weights/`, MobileNets with
batch norm folded, as `google-coral/test_data` has them (mobilenet_v1_{025_128,050_160,075_192}.safetensors). The
photographs were picked so that networks classify them well: accuracies compare networks, no more.
"""

import argparse
import csv
import io
import itertools
import os
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torchvision.models import MobileNet_V2_Weights

import dynamic
from dynamic.data import Normalize, Preprocess, Resize

SIDE = 192
PREPROCESS = Preprocess((Resize((SIDE, SIDE)), Normalize((128.0,), (128.0,))))
MEMBERS = {"025_128": (0.25, 128), "050_160": (0.5, 160), "075_192": (0.75, 192)}  # width, pixels
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)  # Howard et al. 2017, "MobileNets", table 1
CHANNELS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)


class MobileNetV1(nn.Module):
    """Depthwise separable convolutions with TensorFlow's padding, `[B, 3, H, W]` -> logits `[B, 1000]`."""

    def __init__(self, width: float) -> None:
        super().__init__()
        channels = [int(32 * width), *(int(c * width) for c in CHANNELS)]
        self.conv0 = nn.Conv2d(3, channels[0], 3, 2)
        for i, (before, after) in enumerate(itertools.pairwise(channels)):
            padding = 1 if STRIDES[i] == 1 else 0
            self.add_module(f"dw{i}", nn.Conv2d(before, before, 3, STRIDES[i], padding, groups=before))
            self.add_module(f"pw{i}", nn.Conv2d(before, after, 1))
        self.fc = nn.Linear(channels[-1], 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The logits."""
        right_and_below = (0, 1, 0, 1)
        x = nn.functional.relu6(self.conv0(nn.functional.pad(x, right_and_below)))
        for i, stride in enumerate(STRIDES):
            x = nn.functional.pad(x, right_and_below) if stride == 2 else x
            x = nn.functional.relu6(self.get_submodule(f"dw{i}")(x))
            x = nn.functional.relu6(self.get_submodule(f"pw{i}")(x))
        logits: torch.Tensor = self.fc(x.mean((2, 3)))
        return logits


def member(data: Path, name: str) -> nn.Module:
    """A network with its weights, which takes photographs of `SIDE` pixels."""
    width, pixels = MEMBERS[name]
    network = MobileNetV1(width)
    weights = load_file(data / "weights" / f"mobilenet_v1_{name}.safetensors")
    network.load_state_dict({key: value.float() for key, value in weights.items()})
    return network if pixels == SIDE else resized(network, pixels)


def resized(network: nn.Module, pixels: int) -> nn.Module:
    """The network behind its resize. Bicubic: a picture that was resized before would be blurred twice."""
    return dynamic.at_resolution(network, pixels, source=SIDE, interpolation="bicubic")


def photographs(data: Path) -> tuple[list[bytes], NDArray[np.int64]]:
    """The files of all photographs and their labels, mixed."""
    with zipfile.ZipFile(data / "imagenet_open_1000.zip") as archive:
        (table,) = (name for name in archive.namelist() if name.endswith("labels.csv"))
        rows = list(csv.DictReader(io.StringIO(archive.read(table).decode())))
        files = [archive.read(table.removesuffix("labels.csv") + row["file"]) for row in rows]
    order = np.random.default_rng(0).permutation(len(rows))
    return [files[i] for i in order], np.array([int(rows[i]["label"]) for i in order])


def batches(files: list[bytes], labels: NDArray[np.int64]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs as the networks take them."""
    for start in range(0, len(files), 50):
        pictures = [Image.open(io.BytesIO(file)) for file in files[start : start + 50]]
        yield torch.from_numpy(PREPROCESS(pictures)), torch.from_numpy(labels[start : start + 50])


@dataclass
class Way:
    """A way to answer: thresholds on the same engine. For a network alone all other exits are off."""

    name: str
    limits: NDArray[np.float32]
    alone: bool
    right: list[bool] = field(default_factory=list)
    stage: list[int] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)

    @property
    def point(self) -> tuple[float, float]:
        """Mean milliseconds, and accuracy in percent."""
        return float(np.mean(self.ms)), 100 * float(np.mean(self.right))


def compare(bundle: dynamic.Bundle, files: list[bytes], labels: NDArray[np.int64]) -> list[Way]:
    """Each network alone and each point of the frontier, one photograph at a time, by turns."""
    names = [stage.name for stage in bundle.spec.stages]
    last = len(names) - 1
    ways = []
    for at, name in enumerate(names):
        limits = np.full(last, np.inf, np.float32)
        limits[at : at + 1] = -np.inf
        ways.append(Way(name, limits, alone=True))
    mixed = [point for point in bundle.frontier.points if max(point.shares) < 1]
    ways += [Way(p.name, np.array(p.operating_point.thresholds, np.float32), alone=False) for p in mixed]
    decoding_ms, engine = [], bundle.open()
    for file, label in zip(files, labels, strict=True):
        began = time.perf_counter()
        x = PREPROCESS(Image.open(io.BytesIO(file)))
        decoding_ms.append((time.perf_counter() - began) * 1e3)
        for way in ways:
            began = time.perf_counter()
            output = engine.run({"input": x}, way.limits)
            way.ms.append((time.perf_counter() - began) * 1e3)
            way.right.append(bool(output.logits.argmax() == label))
            way.stage.append(int(output.stage[0]))
    engine.close()
    print(f"\ndecoding and resizing take {np.mean(decoding_ms):.2f} ms\n")
    print(f"{'':12} accuracy  mean ms  p95 ms  exits at each stage")
    for way in ways:
        shares = " ".join(f"{share:4.0%}" for share in np.bincount(way.stage, minlength=last + 1) / len(files))
        mean_ms, accuracy = way.point
        print(f"{way.name:12} {accuracy:7.1f}% {mean_ms:8.2f} {np.percentile(way.ms, 95):7.2f}  {shares}")
    return ways


def draw(ways: list[Way], files: list[bytes], path: Path) -> None:
    """Photographs by the stage at which they exit, above accuracy against time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(9, 7), layout="constrained")
    grid = figure.add_gridspec(3, 6, height_ratios=(1, 1, 3))
    stages = np.array(next((way for way in ways if not way.alone), ways[-1]).stage)
    for line, (at, title) in enumerate(((0, "exits at the first network"), (2, "needs the last"))):
        for column, chosen in enumerate(np.flatnonzero(stages == at)[:6]):
            axes = figure.add_subplot(grid[line, column])
            axes.imshow(Image.open(io.BytesIO(files[chosen])))
            axes.axis("off")
            axes.set_title(title if column == 0 else "", fontsize=9, loc="left")
    axes = figure.add_subplot(grid[2, :])
    for alone, marker, label in ((True, "s", "one network"), (False, "o-", "cascade")):
        some = sorted((*way.point, way.name) for way in ways if way.alone == alone)
        axes.plot([x for x, _, _ in some], [y for _, y, _ in some], marker, label=label)
        for x, y, name in some:
            axes.annotate(name, (x, y), (5, -10), textcoords="offset points", fontsize=8)
    axes.set(xlabel="mean latency of a photograph (ms)", ylabel="accuracy (%)")
    axes.margins(0.15)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=130)


def main() -> None:
    """The whole way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("DYNAMIC_DATA", "../shared/data")))
    parser.add_argument("--report", type=int, default=500, help="photographs to report on, at most 500")
    options = parser.parse_args()
    if not (options.data / "imagenet_open_1000.zip").is_file():
        sys.exit(f"{options.data} holds no imagenet_open_1000.zip: --help says what is needed")
    files, labels = photographs(options.data)
    half = len(files) // 2
    cascade = dynamic.Cascade([member(options.data, name).eval() for name in MEMBERS], names=list(MEMBERS))
    bundle = dynamic.build(
        cascade,
        list(batches(files[:half], labels[:half])),
        max_drops=(0.02, 0.05),
        preprocess=PREPROCESS,
        classes=MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"],
    )
    print(bundle.save("out/photos").profile(batch=(1,)))
    bundle, stop = dynamic.load("out/photos"), half + options.report
    with bundle.runtime(dynamic.Budget(max_drop=0.05)) as run:
        answer = run(Image.open(io.BytesIO(files[half])))
        print(f"\n{answer.name}, {answer.probability:.2f}: {answer.decision.reason}")
    draw(compare(bundle, files[half:stop], labels[half:stop]), files[half:stop], Path("out/photos.png"))
    print("picture: out/photos.png, bundle: out/photos")


if __name__ == "__main__":
    main()
