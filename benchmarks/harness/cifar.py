"""CIFAR-10 and the given ResNets for the benchmarks: images, networks, and records that are computed once."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import dynamic
from benchmarks.harness.common import IMAGENET, ROOT, progress
from dynamic.data import ImageSet, load_images
from dynamic.engines.options import EngineName
from dynamic.models import CifarResNet, load_weights

NAMES = ("resnet20", "resnet32", "resnet44", "resnet56")
PREPROCESS = dynamic.Preprocess.of(IMAGENET["mean"], IMAGENET["std"])


def networks(data: Path, names: Sequence[str] = NAMES) -> list[nn.Module]:
    """The ResNets with their weights, in evaluation mode."""
    found: list[nn.Module] = []
    for name in names:
        network = CifarResNet(int(name.removeprefix("resnet")))
        load_weights(network, data / "weights" / f"{name}_cifar10.safetensors")
        found.append(network.eval())
    return found


def images(data: Path, split: str) -> ImageSet:
    """The images of "train" or "test"; decoded once, then from the cache."""
    return load_images(data / "cifar10.zip", split)


def batches(found: ImageSet, size: int = 100) -> list[tuple[Tensor, Tensor]]:
    """The images as networks take them, with their labels, in order."""
    return [
        (torch.from_numpy(PREPROCESS(found.images[i : i + size])), torch.from_numpy(found.labels[i : i + size]))
        for i in range(0, len(found), size)
    ]


def records(cascade: dynamic.Cascade, found: ImageSet, engine: EngineName = "onnxruntime") -> dynamic.Records:
    """What every stage says about every image, kept in `out/` for as long as the networks stay the same."""
    kept = ROOT / "out" / f"records-{engine}-{len(found)}-{cascade.fingerprint()[:16]}.npz"
    if kept.is_file():
        return dynamic.Records.load(kept)
    progress(f"running {len(found)} images through {len(cascade.stages)} stages on {engine} (kept in {kept.parent})")
    computed = dynamic.calibrate(cascade, batches(found), engine=engine, preprocess=PREPROCESS)
    kept.parent.mkdir(exist_ok=True)
    computed.save(kept)
    return computed
