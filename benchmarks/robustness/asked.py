"""Two small bundles that requests are tried on: one of vectors, one of pictures with preprocessing."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

import dynamic

CLASSES, FEATURES, SIDE = 4, 12, 16
LOUD = 1.0  # of a vector's first value from one class to the next


class Steps(nn.Module):
    """The class is the number of whole steps in a level. `width`: how much is computed beside, for nothing."""

    def __init__(self, step: float, pictures: bool, width: int) -> None:
        super().__init__()
        self.pictures = pictures
        self.beside = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2 if pictures else FEATURES, width))
        number = torch.arange(CLASSES, dtype=torch.float32)[:, None]
        self.last = nn.Linear(1, CLASSES)
        # class k wins between k and k + 1 steps: 2 a (k + 1/2) - (k + 1/2)^2 is largest for the k + 1/2 nearest to a
        self.last.weight.data = 40 * (number + 0.5) / step
        self.last.bias.data = -20 * (number[:, 0] + 0.5) ** 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        level = x.mean((1, 2, 3)) if self.pictures else x[:, 0]
        return self.last(level[:, None]) + 1e-9 * self.beside(x).mean(1, keepdim=True)  # type: ignore[no-any-return]


def build(folder: Path, seed: int, pictures: bool) -> dynamic.Bundle:
    """Save a bundle of two such networks, and profile it."""
    torch.manual_seed(seed)
    step = 1 / CLASSES if pictures else LOUD
    label = torch.arange(400) % CLASSES
    level = (label + 0.5) * step
    if pictures:
        inputs = (level[:, None, None, None] + 0.02 * torch.randn(400, 3, SIDE, SIDE)).clamp(0, 1)
    else:
        inputs = torch.randn(400, FEATURES)
        inputs[:, 0] = level + 0.1 * torch.rand(400)
    preprocess = dynamic.Preprocess.of() if pictures else None
    networks = [Steps(step, pictures, width) for width in (1, 512)]
    built = dynamic.build(networks, [(inputs, label)], preprocess=preprocess, seed=seed, progress=False)
    return built.save(folder).profile(batch=(1, 4), seconds=0.05, progress=False)


@contextmanager
def bundles(seed: int) -> Iterator[tuple[dynamic.Bundle, dynamic.Bundle]]:
    """The bundle of vectors and that of pictures, in a folder that goes afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        yield build(Path(folder, "vectors"), seed, False), build(Path(folder, "pictures"), seed, True)
