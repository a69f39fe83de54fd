"""Lottery tickets on CIFAR-10: the same sparse network from its own first weights, and from other random ones.

    python -m benchmarks.compress.lottery_ticket [--seeds 3] [--images 20000] [--epochs 6] [--smoke] [--data FOLDER]

A network of four convolutions is trained, pruned to a fifth of its weights in three rounds with rewinding, and trained
again: the ticket. The control has the same mask and new random weights. Some images, few epochs: what counts is the
difference, per seed, on the 10,000 test images. Each training is kept in out/lottery_ticket, so a stopped run goes on.
"""

import argparse
import statistics
import time
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import dynamic
from benchmarks.cascades.frozen_exits import Augmented
from benchmarks.harness import cifar
from benchmarks.harness.common import ROOT, add_data_option, data_folder, progress, save
from dynamic.models.compress.pruning.lottery_ticket import lottery_ticket
from dynamic.models.compress.report import accuracy

SPARSITY, ROUNDS = 0.8, 3


class SmallNetwork(nn.Sequential):
    """Four convolutions with batch norm, halving the picture after each, and a linear layer: `[B, 3, 32, 32]` -> 10."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 64)) -> None:
        layers: list[nn.Module] = []
        for before, after in zip((3, *widths), widths, strict=False):
            norm = nn.BatchNorm2d(after)
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), norm, nn.ReLU(), nn.MaxPool2d(2)]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))


def train(network: nn.Module, loader: Augmented, epochs: int, seed: int) -> None:
    """The same recipe for all: SGD, falling rate."""
    dynamic.fit(
        network,
        loader,
        mode="joint",
        epochs=epochs,
        lr=0.05,
        seed=seed,
        training=dynamic.TrainingConfig(weight_decay=5e-4),
        progress=False,
    )


def drawn(
    seed: int, loader: Augmented, held: list[tuple[Tensor, Tensor]], options: argparse.Namespace
) -> dict[str, Any]:
    """One seed: accuracies of all three networks."""
    began = time.perf_counter()
    name = f"{len(loader.images)}-{options.epochs}-{seed}"
    found = lottery_ticket(
        SmallNetwork,
        torch.zeros(1, 3, 32, 32),
        train=partial(train, loader=loader, epochs=options.epochs, seed=seed),
        sparsity=SPARSITY,
        rounds=ROUNDS,
        warm=partial(train, loader=loader, epochs=1, seed=seed + 100) if options.late else None,
        skip=("0",),  # the 432 weights that see the picture
        seed=seed,
        checkpoint=ROOT / "out" / "lottery_ticket" / (name + ("-late" if options.late else "")),
        latency=False,
    )
    rights = {n: accuracy(getattr(found, n), held) for n in ("dense", "ticket", "control")}
    gain = 100 * (rights["ticket"] - rights["control"])
    progress(f"seed {seed}: {rights}, ticket {gain:+.2f} points, {time.perf_counter() - began:.0f} s")
    left = {name: round(share, 4) for name, share in found.report.facts["left"].items()}
    return {"seed": seed, **rights, "ticket above control": round(gain, 2), "weights left": left}


def main() -> None:
    """All seeds, then the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=20_000, help="training images, evenly from all classes")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--late", action="store_true", help="rewind to the weights after one epoch, not the first ones")
    parser.add_argument("--smoke", action="store_true", help="one seed, few images: does it run?")
    options = parser.parse_args()
    if options.smoke:
        options.seeds, options.images, options.epochs = 1, 500, 1
    torch.set_num_threads(1)  # the network is small: threads would only wait for each other
    data = data_folder(options.data)
    train_images, test = (cifar.images(data, split) for split in ("train", "test"))
    chosen = train_images.select(np.arange(0, len(train_images), len(train_images) // options.images))
    if options.smoke:
        test = test.select(np.arange(0, len(test), 20))
    held, loader = cifar.batches(test), Augmented(chosen, passes=1, size=128)
    rows = [drawn(seed, loader, held, options) for seed in range(options.seeds)]
    means = {n: round(statistics.fmean(row[n] for row in rows), 4) for n in ("dense", "ticket", "control")}
    gains = [row["ticket above control"] for row in rows]
    print(f"{'seed':>4} {'dense':>8} {'ticket':>8} {'control':>8} {'ticket above control':>22}")
    for row in rows:
        each = "".join(f"{row[n]:9.4f}" for n in ("dense", "ticket", "control"))
        print(f"{row['seed']:4}{each} {row['ticket above control']:+16.2f} points")
    each = "".join(f"{mean:9.4f}" for mean in means.values())
    print(f"mean{each} {statistics.fmean(gains):+16.2f} points")
    if options.smoke:
        return
    figures = {
        "sparsity": SPARSITY,
        "rounds": ROUNDS,
        "rewound to": "weights after one epoch" if options.late else "first weights",
        "training images": len(chosen),
        "epochs": options.epochs,
        "test images": len(test),
        "mean": means,
        "ticket above control, points": {"mean": round(statistics.fmean(gains), 2), "each": gains},
        "seeds": rows,
    }
    print(f"written to {save('compress/lottery_ticket' + ('_late' if options.late else ''), figures)}")


if __name__ == "__main__":
    main()
