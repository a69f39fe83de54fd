"""The networks of `family_cascade.py`, all made without a test image; heads and choice are kept in results/."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import cifar
import numpy as np
import torch
from common import RESULTS, progress
from frozen_exits import Augmented
from torch import nn

import dynamic
from dynamic.models.compress import quantize
from dynamic.offline.checkpoints import load_weights, save_weights
from dynamic.offline.images import ImageSet
from dynamic.offline.selecting import select_exits
from dynamic.offline.wrapping import ExitNetwork

CANDIDATES = ("layer1.2", "layer2.0", "layer2.1", "layer2.2", "layer3.0")  # of ResNet-20: after 3 to 7 of 9 blocks
HIDDEN = 256
HEADS, CHOICE = RESULTS / "family_heads.safetensors", RESULTS / "family_exits.json"
# ResNet-20 has seen the images that choose: shifted and mirrored it is less sure of them, but surer than of new ones;
# whether an exit that was kept is used is up to the thresholds
CALIBRATION, CHOOSING = 512, 5000  # training images: for ranges of int8, and held back from the heads
# of ResNet-56's multiply-adds: an exit that is passed takes some 35 of its 860 microseconds (two threads, spinning)
EXIT_COST = 0.04
EXAMPLE = torch.zeros(2, 3, 32, 32)


def training(data: Path) -> tuple[ImageSet, ImageSet, ImageSet]:
    """Training images: those that heads learn from, those that choose exits, and those that calibrate int8."""
    images = cifar.images(data, "train")
    order = np.random.default_rng(0).permutation(len(images))
    rest, choosing = order[CHOOSING:], order[:CHOOSING]
    return images.select(rest), images.select(choosing), images.select(rest[:CALIBRATION])


def wrapped(backbone: nn.Module, exits: Sequence[str]) -> ExitNetwork:
    """ResNet-20 with exits whose heads know nothing yet."""

    def classifier(width: int, classes: int) -> nn.Module:
        first = nn.Linear(width, HIDDEN, bias=False)  # the norm behind it has one
        return nn.Sequential(
            nn.BatchNorm1d(width), first, nn.BatchNorm1d(HIDDEN), nn.ReLU(inplace=True), nn.Linear(HIDDEN, classes)
        )

    torch.manual_seed(0)
    return dynamic.wrap(backbone, EXAMPLE, exits=list(exits), classifier=classifier)


def train(data: Path, passes: int, epochs: int) -> None:
    """Train heads at all candidates on the frozen ResNet-20, choose exits on images held back, and keep both."""
    (backbone,) = cifar.networks(data, ("resnet20",))
    learn, choosing, _ = training(data)
    net = wrapped(backbone, CANDIDATES)
    progress(str(dynamic.fit(net, Augmented(learn, passes), mode="heads", epochs=epochs, memory_limit_mb=6000)))
    (large,) = cifar.networks(data, ("resnet56",))
    macs = dynamic.models.compress.measure([large], EXAMPLE, latency=False)[0].macs
    # shifted and mirrored: on the images as they are the backbone is surer than on any that it does not know
    loader = list(Augmented(choosing, 1))
    found = select_exits(net.eval(), EXAMPLE, loader, exit_cost=EXIT_COST * macs, progress=False)
    names = [exit_.name for exit_ in found.network.exits]
    progress(f"exits {names}; removed {[(s.exit, round(s.before / s.after, 3)) for s in found.choice.removed]}")
    save_weights(copy.deepcopy(found.network.heads).half(), HEADS)
    steps = [vars(step) for step in found.choice.removed]
    CHOICE.write_text(json.dumps({"candidates": CANDIDATES, "kept": names, "removed": steps}, indent=1) + "\n")


def cascade(data: Path) -> dynamic.Cascade:
    """int8 ResNet-20 with the exit that pays, int8 ResNet-32 and ResNet-56, then ResNet-56 as it was given.

    Which of them are used, and from where on, is up to the thresholds. The pruned ResNet-56 of `compress_pruning.py` is
    not among them: it has 94.7% of the training images right when ResNet-32, as fast, has all but a few.
    """
    first, middle, large = cifar.networks(data, ("resnet20", "resnet32", "resnet56"))
    with_exits = wrapped(first, json.loads(CHOICE.read_text())["kept"])
    load_weights(with_exits.heads, HEADS)
    with_exits.float().eval()
    floats = {"resnet20": with_exits, "resnet32": middle, "resnet56": large}
    made = {f"{name}-int8": eight(data, network) for name, network in floats.items()}
    return dynamic.Cascade([*made.values(), large], names=(*made, "resnet56"))


def alone(data: Path) -> dict[str, nn.Module]:
    """The int8 networks as static ones: what int8 saves by itself."""
    return {
        f"{name}-int8": eight(data, network) for name, network in zip(cifar.NAMES, cifar.networks(data), strict=True)
    }


def eight(data: Path, network: nn.Module) -> nn.Module:
    """In int8, with ranges from training images."""
    return quantize(network, EXAMPLE, cifar.batches(training(data)[2]), latency=False).network
