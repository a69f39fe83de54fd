"""Cascades of two networks whose times, and whose share of hard inputs, are given. It has no command of its own.

The first numbers of an input are the logits that each network gives. So an input is easy or hard as it is made, and a
network costs as much as it has layers.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import dynamic
from benchmarks.harness.common import progress
from benchmarks.serve.deployed import OUT

CLASSES, SIDE, CHANNELS = 8, 32, 32
_SURE, _UNSURE = 8.0, 0.4


class Made(nn.Module):
    """Logits from the numbers of one row of the picture, and so many convolutions that change them by nothing."""

    def __init__(self, row: int, layers: int) -> None:
        super().__init__()
        self.row = row
        self.stem = nn.Conv2d(1, CHANNELS, 3, padding=1)
        self.body = nn.Sequential(
            *(layer for _ in range(layers) for layer in (nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.ReLU()))
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[B, 1, SIDE, SIDE]` -> `[B, CLASSES]`."""
        spent = self.body(self.stem(x)).mean((1, 2, 3))
        logits: Tensor = x[:, 0, self.row, :CLASSES] + 1e-6 * spent[:, None].clamp(-1, 1)
        return logits


def inputs(count: int, hard: float, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Inputs `[count, 1, SIDE, SIDE]` of which a share is hard, and their labels. Both networks are right on easy ones.

    Of hard ones the first network is not sure, and wrong half of the time.
    """
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, count)
    x = 0.1 * generator.standard_normal((count, 1, SIDE, SIDE)).astype(np.float32)
    x[:, 0, :2, :CLASSES] = 0.1 * generator.standard_normal((count, 2, CLASSES))
    is_hard = np.arange(count) < round(hard * count)
    generator.shuffle(is_hard)
    guessed = np.where(is_hard & (generator.random(count) < 0.5), (labels + 1) % CLASSES, labels)
    rows = np.arange(count)
    x[rows, 0, 0, guessed] += np.where(is_hard, _UNSURE, _SURE)
    x[rows, 0, 1, labels] += _SURE
    return x, labels


def layers_for(ms: float) -> int:
    """Layers that take about so long on one thread of ONNX Runtime."""
    few = _bundle(0, 20, OUT / "made" / "twenty")
    assert few.costs is not None
    each_ms = few.costs.latency_ms[-1][0] / 20
    return max(round(ms / each_ms), 1)


def _bundle(first: int, second: int, folder: Path, hard: float = 0.3) -> dynamic.Bundle:
    """A bundle of networks of so many layers, that is built once."""
    if not (folder / "bundle.json").is_file():
        progress(f"building {folder.name}: {first} and {second} layers")
        torch.manual_seed(0)
        x, y = inputs(1200, hard, seed=1)
        batches = list(zip(torch.from_numpy(x).split(100), torch.from_numpy(y).split(100), strict=True))
        networks = [Made(0, first), Made(1, second)]
        dynamic.build(networks, batches, max_drops=(0.05,), progress=False).save(folder)
    return dynamic.load(folder).profile(batch=(1, 8), seconds=0.3, threads=1)


def cascade(ms: float, hard: float) -> dynamic.Bundle:
    """A cascade whose last network takes so long, with a first one of a tenth of that."""
    layers = layers_for(ms)
    folder = OUT / "made" / f"{ms:g}-ms-{hard:g}-hard"
    return _bundle(max(layers // 10, 1), layers, folder, hard)
