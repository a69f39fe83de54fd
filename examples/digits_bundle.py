"""What the examples share: handwritten digits, three networks trained on them on the spot, and their bundle.

scikit-learn's 1,797 digits, 8 x 8 pixels: half of them train, a quarter calibrates, a quarter reports. The first
example that is run trains and leaves the bundle in out/digits, the others take it from there.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import dynamic
from dynamic.data import ImageSet, digits, stratified_halves
from dynamic.progress import track

if TYPE_CHECKING:  # a bundle that is there already runs without torch
    import torch
    from torch import nn

FOLDER = Path("out/digits")
STEPS = 220  # of 64 images
NETWORKS = {"resnet8-w8": (8, 8), "resnet14-w16": (14, 16), "resnet14-w40": (14, 40)}  # name: depth, width

# a bundle that is there already runs without torch; the digits come with scikit-learn
_NEEDED = {"sklearn": "scikit-learn"} | ({} if (FOLDER / "bundle.json").is_file() else {"torch": "torch"})


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # its import is forbidden
        return False


if _MISSING := [package for module, package in _NEEDED.items() if not _is_there(module)]:
    sys.exit(f'this example needs {" and ".join(_MISSING)}: pip install "dynamic-inference[examples]"')


@dataclass(frozen=True)
class Problem:
    """Networks, smallest first, and images that none of them was trained on."""

    networks: list[nn.Module]
    names: list[str]
    preprocess: dynamic.Preprocess
    calibrate: ImageSet
    report: ImageSet


def split() -> tuple[ImageSet, ImageSet, ImageSet]:
    """The images to train, to calibrate and to report on."""
    images = digits()
    train, rest = stratified_halves(images.labels, seed=0)
    held_out = images.select(rest)
    calibrate, report = stratified_halves(held_out.labels, seed=1)
    return images.select(train), held_out.select(calibrate), held_out.select(report)


def problem(steps: int = STEPS) -> Problem:
    """Train every network: AdamW, one cycle, digits moved by up to a pixel."""
    import torch

    train, calibrate, report = split()
    preprocess = dynamic.Preprocess.of()
    x = torch.from_numpy(preprocess(train.images))
    y = torch.from_numpy(train.labels)
    threads = torch.get_num_threads()
    # a second thread gains little here, and on a busy machine the two wait for each other (50 times slower seen)
    torch.set_num_threads(1)
    print(f"training {', '.join(NETWORKS)} on {len(x)} digits")
    networks = [_trained(name, x, y, steps) for name in NETWORKS]
    torch.set_num_threads(threads)
    return Problem(networks, list(NETWORKS), preprocess, calibrate, report)


def build(given: Problem, folder: Path) -> dynamic.Bundle:
    """Export, calibrate, certify, and write the bundle to `folder`."""
    import torch

    images = given.calibrate
    print("building: export, calibrate, certify")
    loader = [
        (torch.from_numpy(given.preprocess(images.images[i])), torch.from_numpy(images.labels[i]))
        for i in np.array_split(np.arange(len(images)), -(-len(images) // 100))
    ]
    cascade = dynamic.Cascade(given.networks, names=given.names)
    # a few hundred labels certify two points and no less, and one target rather than five
    targets = (0.02,) if len(images) < 1000 else None
    built = dynamic.build(cascade, loader, max_drops=targets, preprocess=given.preprocess, classes=images.classes)
    return built.save(folder)


def ready(steps: int = STEPS) -> tuple[dynamic.Bundle, ImageSet]:
    """The bundle, made where it is not there yet and profiled on this machine; and the images to report on."""
    if not (FOLDER / "bundle.json").is_file():
        build(problem(steps), FOLDER)
    bundle = dynamic.load(FOLDER)
    return bundle if bundle.costs else bundle.profile(batch=(1,)), split()[2]


def _trained(name: str, x: torch.Tensor, y: torch.Tensor, steps: int) -> nn.Module:
    import torch
    from torch.nn import functional as F

    from dynamic.models import CifarResNet

    torch.manual_seed(0)
    depth, width = NETWORKS[name]
    network = CifarResNet(depth, in_channels=1, width=width).train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, steps)
    around = F.pad(x, (1, 1, 1, 1))
    moved = torch.stack([around[:, :, i : i + 8, j : j + 8] for i in range(3) for j in range(3)])  # [9, N, 1, 8, 8]
    for _ in track(range(steps), f"training {name}"):
        batch = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        F.cross_entropy(network(moved[torch.randint(9, (64,)), batch]), y[batch]).backward()
        optimizer.step()
        schedule.step()
    return network.eval()
