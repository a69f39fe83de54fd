"""Two small networks for `family_cascade.py`, shallow and wide, taught by ResNet-44 and ResNet-56 together.

    python -m benchmarks.cascades.family_students [--students 16 32] [--threads 1] [--smoke]

A thin network of many layers is a bad bargain in int8: an engine spends some 10 microseconds on each layer of ResNet-20
whatever it computes. These have 8 convolutions (the form of D. Page's ResNet-9, "How to train your ResNet", 2018,
narrowed: 16 or 32 channels at first, doubled at each halving of the image), 0.19 and 0.76 of ResNet-56's multiply-adds.
They learn from scratch, on training images alone, what the mean of two teachers says of `COPIES` augmented copies of
each (`distillation.py`). Training goes on where it was interrupted (out/students-24/). Then the weights of each
layer share 128 values, and the networks are kept in weights/, Huffman coded. What that costs is told.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import dynamic
from benchmarks.compress.distillation import Copies, Kept, Numbered, accuracy, said
from benchmarks.harness import cifar
from benchmarks.harness.common import ROOT, WEIGHTS, add_data_option, data_folder, progress, required, save
from dynamic.models.compress import cluster
from dynamic.models.compress.distillation.distillation import mean_logits
from dynamic.models.compress.packing.half_precision import to_half_precision
from dynamic.models.compress.packing.packed_file import load_packed, save_packed

TEACHERS, TEMPERATURE = ("resnet44", "resnet56"), 4.0
COPIES = 24
EPOCHS = {16: 80, 32: 32}  # by width
CLUSTERS = 128
LR, WEIGHT_DECAY, SHARE = 0.1, 5e-4, 0.9


def convolution(width: int, out: int) -> nn.Sequential:
    """A 3 x 3 convolution, its norm and ReLU."""
    return nn.Sequential(nn.Conv2d(width, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True))


class Residual(nn.Module):
    """Two convolutions beside an identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = convolution(width, width), convolution(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, width, H, W]`, as it came."""
        found: Tensor = x + self.second(self.first(x))
        return found


def student(width: int) -> nn.Sequential:
    """Eight convolutions for images `[B, 3, 32, 32]`, `width` channels at first and 8 times as many in the end."""
    return nn.Sequential(
        convolution(3, width),
        convolution(width, 2 * width),
        nn.MaxPool2d(2),
        Residual(2 * width),
        convolution(2 * width, 4 * width),
        nn.MaxPool2d(2),
        convolution(4 * width, 8 * width),
        nn.MaxPool2d(2),
        Residual(8 * width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8 * width, 10),
    )


def kept(width: int) -> nn.Module:
    """A student as it is kept in weights/."""
    network = student(width)
    load_packed(network, required(file(width), "python -m benchmarks.cascades.family_students"))
    return network.eval()


def file(width: int) -> Path:
    """Where a student is kept."""
    return WEIGHTS / f"family_student_{width}.packed"


def train(width: int, data: Path, loader: Copies, folder: Path, epochs: int) -> tuple[nn.Module, dict[str, Any]]:
    """One student, from where it stopped, and how it went."""
    logits = torch.stack([said(name, data, loader, folder).float() for name in TEACHERS])
    torch.manual_seed(0)
    network = student(width)
    progress(f"student {width}")
    report = dynamic.fit(
        Numbered(network),
        loader,
        mode="distill",
        epochs=epochs,
        checkpoint=folder / f"student-{width}.safetensors",
        lr=LR,
        training=dynamic.TrainingConfig(weight_decay=WEIGHT_DECAY, optimizer="sgd"),
        distillation=dynamic.DistillationConfig(
            teacher=Kept(mean_logits(logits, TEMPERATURE)), share=SHARE, temperature=TEMPERATURE
        ),
        progress=True,
    )
    shares = [round(row[0], 4) for row in report.history_accuracy]
    return network.eval(), {"epochs": epochs, "training accuracy": shares}


def main() -> None:
    """Train the students."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--students", type=int, nargs="+", choices=list(EPOCHS), default=list(EPOCHS))
    parser.add_argument("--threads", type=int, default=1, help="of this process")
    parser.add_argument("--smoke", action="store_true", help="a hundredth of the images, nothing written to results/")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = data_folder(options.data)
    # by their number too the copies differ
    folder = ROOT / "out" / ("students-smoke" if options.smoke else f"students-{COPIES}")
    if options.smoke:
        shutil.rmtree(folder, ignore_errors=True)  # or a second one would find everything done
    folder.mkdir(parents=True, exist_ok=True)
    images = cifar.images(data, "train").select(np.arange(0, 50_000, 100 if options.smoke else 1))
    loader = Copies(images, 2 if options.smoke else COPIES)
    test = cifar.batches(cifar.images(data, "test"), 500)
    figures = {}
    for width in options.students:
        network, facts = train(width, data, loader, folder, 2 if options.smoke else EPOCHS[width])
        shared = to_half_precision(
            cluster(network, torch.zeros(1, 3, 32, 32), clusters=CLUSTERS, reduce=True, latency=False).network
        )
        path = folder / file(width).name if options.smoke else file(width)
        facts["bytes"] = save_packed(shared, path)
        facts["accuracy on test images"] = {"trained": accuracy(network, test), "as kept": accuracy(shared, test)}
        figures[f"student{width}"] = facts
        progress(f"{path}: {facts}")
    if not options.smoke and len(figures) == len(EPOCHS):
        settings = {"lr": LR, "weight_decay": WEIGHT_DECAY, "optimizer": "sgd", "distill_share": SHARE}
        content = {"teachers": TEACHERS, "copies": COPIES, **settings, "students": figures}
        print(save("cascades/family_students", content))


if __name__ == "__main__":
    main()
