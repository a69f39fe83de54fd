"""MobileNetV2 with real ImageNet weights, and photographs with labels, for the benchmarks.

The photographs were picked so that networks classify them well. Their accuracy is relative, never "ImageNet accuracy".
"""

import csv
import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

# expansion, output channels, repeats, stride of the first (Sandler et al. 2018, "MobileNetV2", table 2)
_BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def convolution(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Module:
    """TensorFlow's SAME padding: what is left over comes to the right and below."""
    layer = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2 if stride == 1 else 0, groups=groups)
    return nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), layer) if stride == 2 else layer


class _Block(nn.Module):
    def __init__(self, inputs: int, expansion: int, outputs: int, stride: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.expand = nn.Sequential(nn.Conv2d(inputs, width, 1), nn.ReLU6()) if expansion > 1 else nn.Identity()
        self.dw = nn.Sequential(convolution(width, width, 3, stride, width), nn.ReLU6())
        self.project = nn.Conv2d(width, outputs, 1)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.dw(self.expand(x)))
        return x + y if self.adds else y


class MobileNetV2(nn.Module):
    """Width 1.0, batch norm folded: `[B, 3, 224, 224]` of `(pixel - 128) / 128` -> logits `[B, 1000]`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0 = nn.Sequential(convolution(3, 32, 3, 2), nn.ReLU6())
        blocks, inputs = [], 32
        for expansion, outputs, repeats, stride in _BLOCKS:
            for number in range(repeats):
                blocks.append(_Block(inputs, expansion, outputs, stride if number == 0 else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(nn.Conv2d(inputs, 1280, 1), nn.ReLU6())
        self.fc = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.head(self.blocks(self.conv0(x))).mean((2, 3)))
        return logits


def mobilenet_v2(data: Path) -> nn.Module:
    """The network with its weights, in evaluation mode."""
    network = MobileNetV2()
    given = load_file(data / "weights" / "mobilenet_v2_100_224.safetensors")
    own = network.state_dict()
    network.load_state_dict({name: given[_given(name)].float() for name in own})
    return network.eval()


def _given(name: str) -> str:
    """The name of a tensor in the file: without its place in a Sequential, but with the number of its block."""
    parts = name.split(".")
    return ".".join(
        part for before, part in zip(("", *parts), parts, strict=False) if not part.isdigit() or before == "blocks"
    )


def photographs(data: Path, size: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """All photographs at `size` pixels, `[N, 3, size, size]`, and their labels `[N]`, in a fixed mixed order."""
    with zipfile.ZipFile(data / "imagenet_open_1000.zip") as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("labels.csv"))
        rows = list(csv.DictReader(io.StringIO(archive.read(name).decode("utf-8"))))
        folder = name.removesuffix("labels.csv")
        images = []
        for row in rows:
            with Image.open(io.BytesIO(archive.read(folder + row["file"]))) as image:
                small = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
                images.append(np.asarray(small, np.float32).transpose(2, 0, 1))
    order = np.random.default_rng(0).permutation(len(rows))
    labels = np.array([int(row["label"]) for row in rows], np.int64)
    return ((np.stack(images)[order] - 128) / 128).astype(np.float32), labels[order]


def as_batches(inputs: NDArray[np.float32], size: int = 50) -> list[Tensor]:
    """Inputs in batches of torch tensors."""
    return list(torch.from_numpy(inputs).split(size))
