"""Exits of ResNet-56, trained well: how much of its compute do they save for half a point?

    python -m benchmarks.cascades.trained_exits --train blocks     # heads of whole blocks, on the given backbone
    python -m benchmarks.cascades.trained_exits --train heads      # heads of two convolutions, on the given backbone
    python -m benchmarks.cascades.trained_exits --train joint      # mixed regime: all exits by labels
    python -m benchmarks.cascades.trained_exits --train distill    # the same, early exits taught by the last one
    python -m benchmarks.cascades.trained_exits                    # reports on whatever was trained

ResNet-56 as it was given gets exits, then heads or everything are trained on the 50,000 training images, shifted and
mirrored as it was itself. Heads have convolutions (`ConvHead`) or are copies of some of the network's own later blocks
(`BlockHead`), which then learn from the last exit; those of an exit after one block: three, after three: six, after
21: one. They are a few times as dear, and the network itself stays as it is to the last bit. Starting from a trained
backbone is the mixed regime, the best of those that Kubaty et al. 2025, "How to Train Your Multi-Exit Model?", compare.
Then, over 20 class-stratified splits of the test images, one half chooses thresholds, for each target of the ladder,
and the other half reports, against ResNet-56 as it was given. The goal: at most 0.5 points below it at 0.50 or less of
its multiply-adds, heads counted; the last exit at least 93.0%.

Training goes on where it was interrupted. Weights (half precision) are kept in weights/.
"""

import argparse
import copy
import statistics
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

import dynamic
from benchmarks.cascades.frozen_exits import SPLITS, Augmented, evaluate
from benchmarks.harness import cifar
from benchmarks.harness.common import ROOT, WEIGHTS, add_data_option, data_folder, progress, save
from dynamic.models import BlockHead, ConvHead
from dynamic.offline.networks.checkpoints import load_weights, save_weights
from dynamic.offline.tracing.wrap_network import ExitNetwork

EXITS = ("layer1.4", "layer1.8", "layer2.3", "layer2.8")  # after 5, 9, 13 and 18 of 27 blocks
FROZEN = ("layer1.4", "layer1.8", "layer2.2", "layer2.5", "layer2.8")  # where the backbone does not move
# copies of these blocks are the heads: what ResNet-56 would do next, in fewer steps
BLOCKS = {
    "layer1.0": ("layer2.0", "layer3.0", "layer3.1"),
    "layer1.2": ("layer2.0", "layer2.1", "layer2.2", "layer3.0", "layer3.1", "layer3.2"),
    "layer3.2": ("layer3.8",),
}
Regime = Literal["blocks", "heads", "joint", "distill"]
MODES: tuple[Regime, ...] = get_args(Regime)
FIXED = ("blocks", "heads")  # the backbone does not move
DROPS = (0.0, 0.0025, 0.005, 0.0075, 0.01, 0.02)
HEAD_IMAGES = 6000  # that heads see before everything is trained
GOAL = {"points below": 0.5, "compute": 0.50, "last exit": 0.930}


def network(data: Path, mode: str) -> ExitNetwork:
    """ResNet-56 as it was given, with exits whose heads know nothing yet."""
    (backbone,) = cifar.networks(data, ["resnet56"])
    torch.manual_seed(0)
    if mode == "blocks":
        after = iter(BLOCKS.values())  # exits get their heads in order

        def copied(shape: tuple[int, ...], channel: int, classes: int) -> BlockHead:
            return BlockHead([backbone.get_submodule(name) for name in next(after)], shape, channel, classes)

        return dynamic.wrap(backbone, torch.zeros(1, 3, 32, 32), exits=list(BLOCKS), head=copied)
    frozen = mode == "heads"  # features that do not move towards the exits need more from their heads
    exits, head = (FROZEN, partial(ConvHead, extra=1)) if frozen else (EXITS, ConvHead)
    return dynamic.wrap(backbone, torch.zeros(1, 3, 32, 32), exits=list(exits), head=head)


def kept(mode: str) -> Path:
    """Where the weights of a regime are."""
    return WEIGHTS / f"trained_exits_{mode}.safetensors"


def train(data: Path, mode: Regime, options: argparse.Namespace) -> None:
    """Train everything, and keep it."""
    net = network(data, mode)
    images = cifar.images(data, "train")
    few = np.random.default_rng(0).permutation(len(images))[:HEAD_IMAGES]
    if options.smoke:
        images, few = images.select(np.arange(512)), few[:512]
    checkpoint = ROOT / "out" / f"trained_exits_{mode}{'_smoke' if options.smoke else ''}.ckpt"
    if mode == "blocks" or mode == "heads":  # FIXED, in a form that narrows the type
        loader = Augmented(images, 1, size=128)
        lr, distillation = None, None
        training = dynamic.TrainingConfig(weight_decay=0.01, cache=False)
        if mode == "blocks":
            lr, training = options.lr, dynamic.TrainingConfig(optimizer="sgd", weight_decay=5e-4, cache=False)
            distillation = dynamic.DistillationConfig(teacher=net.backbone, share=0.9, temperature=4.0)
        report = dynamic.fit(
            net,
            loader,
            mode="heads",
            epochs=options.epochs,
            lr=lr,
            training=training,
            distillation=distillation,
            checkpoint=checkpoint,
        )
        progress(str(report))
        if not options.smoke:
            save_weights(copy.deepcopy(net.heads).half(), kept(mode))
        return
    if not checkpoint.is_file():
        # heads that know nothing would spoil the backbone in the first steps
        loader = Augmented(cifar.images(data, "train").select(few), 1, size=128)
        progress(
            str(dynamic.fit(net, loader, mode="heads", epochs=4, training=dynamic.TrainingConfig(memory_limit_mb=3000)))
        )
    loader = Augmented(images, 1, size=128)
    report = dynamic.fit(
        net,
        loader,
        mode=mode,
        epochs=options.epochs,
        lr=options.lr,
        checkpoint=checkpoint,
        # less for early exits, or ramped up, they had learned too little when the rate was low (tried: 12 epochs, 0.01)
        training=dynamic.TrainingConfig(exit_weights=[1.0] * (len(EXITS) + 1), ramp=False),
    )
    progress(str(report))
    if not options.smoke:
        save_weights(copy.deepcopy(net).half(), kept(mode))


def trained(data: Path, mode: str) -> ExitNetwork:
    """The network as it is kept: in half precision, computed in single."""
    net = network(data, mode)
    load_weights(net.heads if mode in FIXED else net, kept(mode))
    return net.float().eval()


def main() -> None:
    """Train where asked, then report over all splits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--train", choices=MODES)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--smoke", action="store_true", help="a few hundred images, nothing kept")
    options = parser.parse_args()
    data = data_folder(options.data)
    if options.train:
        train(data, options.train, options)
        if options.smoke:
            return
    test = cifar.images(data, "test")
    plain = cifar.records(dynamic.Cascade(cifar.networks(data, ["resnet56"]), names=["resnet56"]), test)
    reference = plain.logits[:, -1].argmax(1) == plain.label
    regimes: dict[str, Any] = {}
    for mode in MODES:
        if kept(mode).is_file():
            records = cifar.records(dynamic.Cascade(trained(data, mode)), test)
            regimes[mode] = table(mode, records, reference, sum(plain.macs))
    print(save("cascades/trained_exits", {"splits": SPLITS, "goal": GOAL, "regimes": regimes}))


def table(mode: str, records: dynamic.Records, reference: np.ndarray, macs: float) -> dict[str, Any]:
    """Print and give what became of one regime."""
    assert records.label is not None
    alone = [float((records.logits[:, s].argmax(1) == records.label).mean()) for s in range(records.stages)]
    print(f"\n{mode}\n{'exit':32} {'at compute':>10} {'head':>7} {'accuracy alone':>15}")
    at = np.cumsum(records.macs) / macs
    for name, share, head, right in zip(records.stage_names, at, records.head_macs, alone, strict=True):
        print(f"{name:32} {share:10.3f} {head / macs:7.4f} {right:15.4f}")
    print(f"{'target':>8} {'points below ResNet-56':>24} {'share of its compute':>22}   (mean and worst of {SPLITS})")
    rows = []
    for drop in DROPS:
        found = [evaluate(records, seed, drop, reference, macs) for seed in range(SPLITS)]
        below, compute = ([row[k] for row in found] for k in ("points below", "compute"))
        reached = (
            statistics.fmean(below) <= GOAL["points below"]
            and statistics.fmean(compute) <= GOAL["compute"]
            and alone[-1] >= GOAL["last exit"]
        )
        print(
            f"{100 * drop:8g} {statistics.fmean(below):12.2f} {max(below):11.2f} {statistics.fmean(compute):12.3f} "
            f"{max(compute):9.3f}   {'within the goal' if reached else ''}"
        )
        rows.append(
            {
                "target drop": drop,
                "points below": {"mean": statistics.fmean(below), "worst": max(below), "sd": statistics.stdev(below)},
                "compute": {"mean": statistics.fmean(compute), "worst": max(compute), "sd": statistics.stdev(compute)},
                "leave": np.mean([row["shares"] for row in found], axis=0).round(4).tolist(),
                "within the goal": reached,
            }
        )
    exits = {"names": records.stage_names, "accuracy": alone, "at compute": at.tolist()}
    return {"exits": exits | {"head": [h / macs for h in records.head_macs]}, "targets": rows}


if __name__ == "__main__":
    main()
