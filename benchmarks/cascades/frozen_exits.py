"""Exits on a frozen ResNet-56: what leaving early saves without touching a weight of it.

    python -m benchmarks.cascades.frozen_exits [--train]

Heads are trained on the 50,000 training images with `fit(mode="heads")`, each image read `--passes` times, shifted
by up to 4 pixels and mirrored as the network was trained. Then, over 20 class-stratified splits of the test images,
one half chooses thresholds, for each target of the ladder, and the other half reports. The goal: at most 1.0 points
below ResNet-56 on average at 0.74 or less of its multiply-adds, heads counted. The trained heads are kept in weights/
and used again without `--train`.
"""

import argparse
import copy
import statistics
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import dynamic
from benchmarks.harness import cifar
from benchmarks.harness.common import WEIGHTS, add_data_option, data_folder, progress, save
from dynamic.data import ImageSet, stratified_halves
from dynamic.offline.networks.checkpoints import load_weights, save_weights
from dynamic.offline.tracing.wrap_network import ExitNetwork
from dynamic.policies.certification.replay import cost_to, replay
from dynamic.policies.records import split
from dynamic.policies.scores import Combiner
from dynamic.policies.stage_plan import plan

EXITS = (0.33, 0.45, 0.56, 0.67, 0.78, 0.89)  # shares of compute
SPLITS = 20
DROPS = (0.0, 0.005, 0.01, 0.02)  # targets of the ladder
GOAL = {"points below": 1.0, "compute": 0.74}


class Augmented:
    """Batches of the images, `passes` times over, shifted by up to 4 pixels and mirrored at random."""

    def __init__(self, images: ImageSet, passes: int, size: int = 250) -> None:
        self.images, self.passes, self.size = images, passes, size

    def __len__(self) -> int:
        return self.passes * -(-len(self.images) // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(self.passes):
            for chosen in torch.randperm(len(self.images)).split(self.size):
                pixels = np.pad(self.images.images[chosen.numpy()], ((0, 0), (4, 4), (4, 4), (0, 0)))
                down, right = torch.randint(9, (2,)).tolist()  # one shift a batch
                pixels = pixels[:, down : down + 32, right : right + 32]
                mirrored = torch.rand(len(pixels)).numpy() < 0.5
                pixels[mirrored] = pixels[mirrored][:, :, ::-1]
                yield torch.from_numpy(cifar.PREPROCESS(pixels)), torch.from_numpy(self.images.labels[chosen.numpy()])


def trained(options: argparse.Namespace) -> ExitNetwork:
    """ResNet-56 with heads, from weights/ or trained now."""
    data = data_folder(options.data)
    (backbone,) = cifar.networks(data, ["resnet56"])
    torch.manual_seed(0)
    net = dynamic.wrap(backbone, torch.zeros(1, 3, 32, 32), exits=list(EXITS))
    kept = WEIGHTS / "frozen_exits_heads.safetensors"
    if kept.is_file() and not options.train:
        load_weights(net.heads, kept)
        return net
    loader = Augmented(cifar.images(data, "train"), options.passes)
    report = dynamic.fit(
        net,
        loader,
        mode="heads",
        epochs=options.epochs,
        checkpoint=options.checkpoint,
        training=dynamic.TrainingConfig(memory_limit_mb=4000),
    )
    progress(str(report))
    WEIGHTS.mkdir(exist_ok=True)
    save_weights(copy.deepcopy(net.heads).half(), kept)  # half the size, and what is evaluated from here on
    load_weights(net.heads, kept)
    return net


def evaluate(
    records: dynamic.Records,
    seed: int,
    drop: float,
    reference: NDArray[np.bool_] | None = None,
    macs: float | None = None,
) -> dict[str, Any]:
    """Thresholds from one half of the images; points below ResNet-56 and share of its compute on the other.

    `reference [N]`: whether ResNet-56 as it was given is right, and its `macs` (None: the cascade's own last stage).
    """
    assert records.label is not None
    half, other = stratified_halves(records.label, seed)
    calibration = records.select(half)
    calibration = replace(calibration, part=split(None, len(half), search_share=1.0, seed=0))
    ladder = dynamic.certify(calibration, (drop,))
    point = next((p for p in ladder.points if p.target == drop), ladder.points[0])
    report = records.select(other)
    combiner = Combiner(ladder.temperature, ladder.score, combine=ladder.combine, backbone=ladder.backbone)
    found = replay(report.logits, combiner, thresholds=point.thresholds, backbone=records.backbone)
    todo = plan(np.array(point.thresholds, np.float32), records.backbone)
    own = report.logits[:, -1].argmax(1) == report.label if reference is None else reference[other]
    cost = cost_to(todo, records.macs, records.head_macs)[found.stage]
    return {
        "points below": 100 * float(own.mean() - (found.prediction == report.label).mean()),
        # the last stage has no head: the sum is ResNet-56 alone
        "compute": float(cost.mean() / (sum(records.macs) if macs is None else macs)),
        "shares": (np.bincount(found.stage, minlength=records.stages) / len(report)).round(4).tolist(),
    }


def main() -> None:
    """Train or load the heads, then report over all splits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--train", action="store_true", help="train the heads again")
    parser.add_argument("--passes", type=int, default=2, help="times each training image is read")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--checkpoint", help="file to go on from when interrupted")
    options = parser.parse_args()
    net = trained(options)
    test = cifar.images(data_folder(options.data), "test")
    records = cifar.records(dynamic.Cascade(net), test)
    assert records.label is not None
    alone = [float((records.logits[:, s].argmax(1) == records.label).mean()) for s in range(records.stages)]
    total = sum(records.macs)
    print(f"{'exit':24} {'at compute':>10} {'head':>7} {'accuracy alone':>15}")
    for name, at, head, accuracy in zip(
        records.stage_names, np.cumsum(records.macs) / total, records.head_macs, alone, strict=True
    ):
        print(f"{name:24} {at:10.3f} {head / total:7.4f} {accuracy:15.4f}")
    table = []
    print(
        f"\n{'target':>8} {'points below ResNet-56':>24} {'share of its compute':>22}   "
        f"(mean and worst of {SPLITS} splits)"
    )
    for drop in DROPS:
        rows = [evaluate(records, seed, drop) for seed in range(SPLITS)]
        below, compute = ([row[k] for row in rows] for k in ("points below", "compute"))
        reached = statistics.fmean(below) <= GOAL["points below"] and statistics.fmean(compute) <= GOAL["compute"]
        print(
            f"{100 * drop:8g} {statistics.fmean(below):12.2f} {max(below):11.2f} {statistics.fmean(compute):12.3f} "
            f"{max(compute):9.3f}   {'within the goal' if reached else ''}"
        )
        table.append(
            {
                "target drop": drop,
                "points below": {"mean": statistics.fmean(below), "worst": max(below), "sd": statistics.stdev(below)},
                "compute": {"mean": statistics.fmean(compute), "worst": max(compute), "sd": statistics.stdev(compute)},
                "within the goal": reached,
                "splits": rows,
            }
        )
    print(f"goal: at most {GOAL['points below']} points below on average at {GOAL['compute']} or less of its compute")
    figures = {
        "goal": GOAL,
        "exits": [{"name": e.name, "share": round(e.share, 4)} for e in net.exits],
        "accuracy of each exit alone": alone,
        "targets": table,
    }
    print(f"written to {save('cascades/frozen_exits', figures)}")


if __name__ == "__main__":
    main()
