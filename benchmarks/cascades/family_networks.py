"""The networks of `family_cascade.py`, made without a test image. Heads lie in weights/, the choice in results/."""

import copy
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

import dynamic
from benchmarks.cascades.family_students import EPOCHS, file, kept
from benchmarks.cascades.frozen_exits import Augmented
from benchmarks.harness import cifar
from benchmarks.harness.common import RESULTS, WEIGHTS, progress, required
from dynamic.data import ImageSet
from dynamic.models.compress import quantize
from dynamic.offline.exit_selection import select_exits
from dynamic.offline.networks.checkpoints import load_weights, save_weights
from dynamic.offline.tracing.wrap_network import ExitNetwork
from dynamic.policies.errors import ExitError

CANDIDATES = ("2", "3", "4", "5", "6")  # of the larger student: after 2 to 6 of 8 convolutions
HIDDEN = 256
HEADS, CHOICE = WEIGHTS / "family_heads.safetensors", RESULTS / "cascades" / "family_exits.json"
# the student has seen the images that choose: shifted and mirrored it is less sure of them, but surer than of new ones;
# and it is judged alone, where the cascade has smaller networks before it. The search may switch an exit off that was
# kept; then it still costs a few microseconds
CALIBRATION, CHOOSING = 512, 5000  # training images: for ranges of int8, and held back from the heads
# multiply-adds: an exit that is passed takes some 35 microseconds, and of its 95 million the larger student, in int8,
# does as many meanwhile (all of them take 164; ONNX Runtime, two threads, spinning)
EXIT_COST = 20e6
EXAMPLE = torch.zeros(2, 3, 32, 32)


def training(data: Path) -> tuple[ImageSet, ImageSet, ImageSet]:
    """Training images: those that heads learn from, those that choose exits, and those that calibrate int8."""
    images = cifar.images(data, "train")
    order = np.random.default_rng(0).permutation(len(images))
    rest, choosing = order[CHOOSING:], order[:CHOOSING]
    return images.select(rest), images.select(choosing), images.select(rest[:CALIBRATION])


def wrapped(backbone: nn.Module, exits: Sequence[str]) -> ExitNetwork:
    """The larger student with exits whose heads know nothing yet."""

    def classifier(width: int, classes: int) -> nn.Module:
        first = nn.Linear(width, HIDDEN, bias=False)  # the norm behind it has one
        return nn.Sequential(
            nn.BatchNorm1d(width), first, nn.BatchNorm1d(HIDDEN), nn.ReLU(inplace=True), nn.Linear(HIDDEN, classes)
        )

    torch.manual_seed(0)
    return dynamic.wrap(backbone, EXAMPLE, exits=list(exits), classifier=classifier)


def larger_student() -> nn.Module:
    """With the exits that pay, as kept in results/; there may be none."""
    names = json.loads(CHOICE.read_text())["kept"]
    if not names:
        return kept(32)
    net = wrapped(kept(32), names)
    load_weights(net.heads, HEADS)
    return net.float().eval()


def train(data: Path, passes: int, epochs: int) -> None:
    """Train heads at all candidates on the frozen student, choose exits on images held back, and keep what pays."""
    learn, choosing, _ = training(data)
    net = wrapped(kept(32), CANDIDATES)
    progress(
        str(
            dynamic.fit(
                net,
                Augmented(learn, passes),
                mode="heads",
                epochs=epochs,
                training=dynamic.TrainingConfig(memory_limit_mb=6000),
            )
        )
    )
    # shifted and mirrored: on the images as they are the backbone is surer than on any that it does not know
    loader = list(Augmented(choosing, 1))
    HEADS.unlink(missing_ok=True)
    names, removed = [], []
    try:
        found = select_exits(net.eval(), EXAMPLE, selection_loader=loader, exit_cost=EXIT_COST, progress=False)
    except ExitError as error:  # none pays
        progress(str(error))
    else:
        progress(str(found))
        names, removed = [exit_.name for exit_ in found.network.exits], [vars(step) for step in found.choice.removals]
        save_weights(copy.deepcopy(found.network.heads).half(), HEADS)
    about = {"student": fingerprint(), "candidates": CANDIDATES, "kept": names, "removed": removed}
    CHOICE.write_text(json.dumps(about, indent=1) + "\n")


def fingerprint() -> str:
    """Of the student that heads were trained on."""
    return hashlib.sha256(required(file(32), "python -m benchmarks.cascades.family_students").read_bytes()).hexdigest()


def up_to_date() -> bool:
    """Whether heads and exits of this very student are there."""
    choice = json.loads(CHOICE.read_text()) if CHOICE.is_file() else {}
    return choice.get("student") == fingerprint() and (HEADS.is_file() or not choice["kept"])


def cascade(data: Path) -> dynamic.Cascade:
    """int8 networks from cheap to dear, both students among them, then ResNet-56 as it was given.

    Which of them are used, and from where on, is up to the search.
    """
    small, middle, large = cifar.networks(data, ("resnet20", "resnet32", "resnet56"))
    floats = {
        "student16": kept(16),
        "resnet20": small,
        "student32": larger_student(),
        "resnet32": middle,
        "resnet56": large,
    }
    made = {f"{name}-int8": eight(data, network) for name, network in floats.items()}
    return dynamic.Cascade([*made.values(), large], names=(*made, "resnet56"))


def alone(data: Path) -> dict[str, nn.Module]:
    """The students and all given ResNets as static int8 networks: what int8 saves by itself."""
    floats = {f"student{width}": kept(width) for width in EPOCHS}
    floats |= dict(zip(cifar.NAMES, cifar.networks(data), strict=True))
    return {f"{name}-int8": eight(data, network) for name, network in floats.items()}


def eight(data: Path, network: nn.Module) -> nn.Module:
    """In int8, with ranges from training images."""
    return quantize(network, EXAMPLE, calibration_loader=calibration_batches(data), latency=False).network


@cache
def calibration_batches(data: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The training images that calibrate int8. All 50,000 are read for it, so this is done once."""
    return cifar.batches(training(data)[2])
