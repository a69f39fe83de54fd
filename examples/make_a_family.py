"""Sub-models of one network: make several, keep those that nothing beats, run them as a cascade.

    python examples/make_a_family.py

A network is trained on handwritten digits in some seconds. Two methods make smaller ones from it, the network itself
teaches them, and all compete, together with a small network that was trained as it is. One part of the images trains,
another chooses, and a third calibrates and certifies: what has chosen must not certify.
"""

import argparse
from pathlib import Path

import digits_bundle
import torch
from torch import nn

import dynamic
from dynamic.data import ImageSet
from dynamic.models import CifarResNet

PREPROCESS = dynamic.Preprocess.of()
Batches = list[tuple[torch.Tensor, torch.Tensor]]


def batches(images: ImageSet) -> Batches:
    """Images as networks take them, with their labels."""
    x, y = torch.from_numpy(PREPROCESS(images.images)), torch.from_numpy(images.labels)
    return list(zip(x.split(64), y.split(64), strict=True))


def trained(depth: int, width: int, loader: Batches, epochs: int) -> nn.Module:
    """A ResNet for images of 8 x 8 pixels."""
    torch.manual_seed(0)
    network = CifarResNet(depth, in_channels=1, width=width)
    print(f"resnet{depth}-w{width}, {dynamic.fit(network, loader, mode='joint', epochs=epochs)}")
    return network.eval()


def main() -> None:
    """The whole way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=9, help="of training; a third as many of fine-tuning")
    parser.add_argument("--width", type=int, default=32, help="channels of the large network")
    parser.add_argument("--targets", type=float, nargs="+", default=(0.5, 0.25), help="shares of its latency")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for bundle and picture")
    options = parser.parse_args()
    train, calibrate, choose = digits_bundle.split()
    loader = batches(train)
    large = trained(14, options.width, loader, options.epochs)
    small = trained(8, 8, loader, options.epochs)

    family = dynamic.family(
        large,
        batches(choose),
        targets=options.targets,
        methods=("prune_blocks", "quantize"),
        train_loader=loader,
        epochs=max(1, options.epochs // 3),
        others={"resnet8-w8": small},
        checkpoint=None,  # a folder, where this takes hours and may be killed
    )
    print(f"\n{family}")

    bundle = dynamic.build(
        family.cascade(), batches(calibrate), max_drops=(0.02,), preprocess=PREPROCESS, classes=train.classes
    )
    bundle = bundle.save(options.out / "family").profile(batch=(1,))
    print(f"\n{bundle}\n\n{family.advice(bundle)}")
    print(f"\npicture: {family.chart(options.out / 'family.png', bundle)}")

    with bundle.runtime(dynamic.Budget(max_drop=0.02)) as run:
        right = sum(int(run(image).label == label) for image, label in zip(choose.images, choose.labels, strict=True))
        print(f"{right / len(choose):.1%} of the images that chose, at {run(choose.images[0]).decision.reason}")


if __name__ == "__main__":
    main()
