"""Exits on the first network of a cascade: how far below ResNet-56's latency can a cascade as accurate as it go?

    python -m benchmarks.cascades.cifar_exits [--train]

ResNet-20 alone takes 0.33 of ResNet-56's latency, so a cascade that starts with it goes below that only by leaving
inside it. Here it gets exits: their heads are trained on the 50,000 training images with `fit(mode="heads")`, the
ResNets stay as given. Then, over 20 class-stratified splits of the test images, one half chooses thresholds by each of
several rules, and the other half reports accuracy against ResNet-56's and mean cost, as a share of ResNet-56's latency
at batch 1. Costs of stages are the constants below, measured once. `headline.py` times whole requests.

Exits, rule and goal were settled after looking at these splits. Trained heads are kept in results/ for the next run.
Those kept are two of five from one run with these settings: `--train` gives others like them.
"""

import argparse
import copy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import dynamic
from benchmarks.cascades.cifar_cascade import SPLITS, drop_0, parted
from benchmarks.cascades.frozen_exits import Augmented
from benchmarks.harness import cifar
from benchmarks.harness.common import RESULTS, add_data_option, data_folder, progress, save
from dynamic.data import stratified_halves
from dynamic.offline.networks.checkpoints import load_weights, save_weights
from dynamic.offline.tracing.wrap_network import ExitNetwork
from dynamic.policies.certification.certificates import certify
from dynamic.policies.certification.replay import cost_to, replay
from dynamic.policies.scores import Combination, Combiner, Score
from dynamic.policies.stage_plan import plan

EXITS = ("layer2.0", "layer2.2")  # of ResNet-20: after 4 and 6 of its 9 blocks
NAMES = ("resnet20", "resnet32", "resnet56")
HIDDEN = 256  # units of a head, on the means of a 4 x 4 grid: more than `wrap` allows itself, 0.1% of ResNet-56
HEADS = RESULTS / "cascades" / "cifar_exits_heads.safetensors"

# shares of ResNet-56's latency at batch 1 on ONNX Runtime, one thread: a stage's body, and its exit (head and score)
BODY = {"resnet20@layer2.0": 0.152, "resnet20@layer2.2": 0.072, "resnet20": 0.110, "resnet32": 0.557, "resnet56": 1.0}
EXIT = {"resnet20@layer2.0": 0.016, "resnet20@layer2.2": 0.016, "resnet20": 0.006, "resnet32": 0.006, "resnet56": 0.0}


@dataclass(frozen=True)
class Rule:
    """How a calibration half gives a point: the "drop 0" of `certify` at a margin, or at the widest margin it can pay.

    `within`: the most it may cost on the calibration half. Cost that may be spent is spent on certainty: a fixed margin
    asks least where the calibration half happens to be easy, which is where the other half is hard.
    """

    combine: Combination
    margin: float | None = None
    within: float | None = None
    score: Score = "margin"

    def __str__(self) -> str:
        how = f"margin {self.margin:g}" if self.within is None else f"within {self.within:g}"
        return f"{self.combine}, {self.score}, {how}"


MARGINS = tuple(np.arange(4.0, -0.25, -0.25).tolist())  # standard errors, widest first
RULE = Rule("backbones", within=0.36)  # 0.38 is the goal; a request costs a little more than its stages
RULES = (
    *(Rule("backbones", within=within) for within in (0.34, 0.35, 0.36, 0.37, 0.38, 0.39, 0.40)),
    *(Rule(combine, within=0.38) for combine in ("last", "mean")),
    *(Rule("backbones", margin, score=s) for s in ("max_probability", "margin") for margin in (0.0, 0.5, 1.0, 1.5)),
)


def first_network(data: Path) -> ExitNetwork:
    """ResNet-20 with exits whose heads know nothing yet."""

    def classifier(width: int, classes: int) -> nn.Module:
        first = nn.Linear(width, HIDDEN, bias=False)  # the norm behind it has one
        return nn.Sequential(
            nn.BatchNorm1d(width), first, nn.BatchNorm1d(HIDDEN), nn.ReLU(inplace=True), nn.Linear(HIDDEN, classes)
        )

    (backbone,) = cifar.networks(data, NAMES[:1])
    return dynamic.wrap(backbone, torch.zeros(1, 3, 32, 32), exits=list(EXITS), classifier=classifier)


def headline_cascade(data: Path) -> dynamic.Cascade:
    """ResNet-20 with its trained exits, then the other networks as they were given."""
    first = first_network(data)
    load_weights(first.heads, HEADS)
    return dynamic.Cascade([first.eval(), *cifar.networks(data, NAMES[1:])], names=NAMES)


def train(data: Path, passes: int, epochs: int, checkpoint: str | None) -> None:
    """Train the heads and keep them."""
    torch.manual_seed(0)
    net = first_network(data)
    loader = Augmented(cifar.images(data, "train"), passes, size=50)
    report = dynamic.fit(
        net,
        loader,
        mode="heads",
        epochs=epochs,
        checkpoint=checkpoint,
        training=dynamic.TrainingConfig(memory_limit_mb=6000),
    )
    progress(str(report))
    save_weights(copy.deepcopy(net.heads).half(), HEADS)  # half the size, and what is evaluated from here on


def costs(records: dynamic.Records) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Body and exit of each stage, as shares of ResNet-56's latency."""
    return tuple(BODY[name] for name in records.stage_names), tuple(EXIT[name] for name in records.stage_names)


def operating_point(calibration: dynamic.Records, rule: Rule = RULE) -> tuple[dynamic.Ladder, dynamic.OperatingPoint]:
    """What a rule takes from the calibration half of the records, all of which choose."""
    found = _drop_0(calibration, rule.combine, rule.score, MARGINS[-1] if rule.margin is None else rule.margin)
    if rule.within is not None:
        for margin in reversed(MARGINS[:-1]):  # narrowest first: cost rises with the margin
            wider = _drop_0(calibration, rule.combine, rule.score, margin)
            if report(calibration, *wider)[1] > rule.within:
                break
            found = wider
    return found


@cache  # rules share halves and margins
def _drop_0(
    calibration: dynamic.Records, combine: Combination, score: Score, margin: float
) -> tuple[dynamic.Ladder, dynamic.OperatingPoint]:
    body, exit_ = costs(calibration)
    ladder = certify(
        parted(calibration, 1.0),
        (0.0,),
        combine=combine,
        score=score,
        margin=margin,
        body_cost=body,
        head_cost=exit_,
    )
    return ladder, drop_0(ladder)


def report(records: dynamic.Records, ladder: dynamic.Ladder, point: dynamic.OperatingPoint) -> tuple[float, float, Any]:
    """(accuracy minus ResNet-56's, mean cost as a share of ResNet-56's, share that leaves at each stage) of a half."""
    assert records.label is not None
    combiner = Combiner(ladder.temperature, ladder.score, combine=ladder.combine, backbone=ladder.backbone)
    found = replay(records.logits, combiner, thresholds=point.thresholds, backbone=records.backbone)
    cost = cost_to(plan(np.array(point.thresholds, np.float32), records.backbone), *costs(records))[found.stage]
    reference = records.logits[:, -1].argmax(axis=1) == records.label
    gain = float((found.prediction == records.label).mean() - reference.mean())
    return gain, float(cost.mean()), np.bincount(found.stage, minlength=records.stages) / len(records)


@cache
def halves(records: dynamic.Records, seed: int) -> tuple[dynamic.Records, dynamic.Records]:
    """(what chooses, what reports) of a split."""
    assert records.label is not None
    calibration, other = stratified_halves(records.label, seed)
    return records.select(calibration), records.select(other)


def over_splits(records: dynamic.Records, rule: Rule) -> dict[str, Any]:
    """What becomes of a rule on the report halves."""
    pairs = [halves(records, seed) for seed in range(SPLITS)]
    found = [report(other, *operating_point(calibration, rule)) for calibration, other in pairs]
    gain, cost = np.array([f[0] for f in found]), np.array([f[1] for f in found])
    return {
        "gain": {"mean": gain.mean(), "worst": gain.min(), "sd": gain.std(ddof=1)},
        "splits_accurate_enough": float((gain >= 0).mean()),
        "cost": {"mean": cost.mean(), "worst": cost.max()},
        "leave": np.mean([f[2] for f in found], axis=0).round(4).tolist(),
        "splits": [{"gain": round(g, 5), "cost": round(c, 5)} for g, c, _ in found],
    }


def main() -> None:
    """Train the heads where asked or needed, then try every rule on all splits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--train", action="store_true", help="train the heads again")
    parser.add_argument("--passes", type=int, default=8, help="times each training image is read")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--checkpoint", help="file to go on from when interrupted")
    options = parser.parse_args()
    data = data_folder(options.data)
    if options.train or not HEADS.is_file():
        train(data, options.passes, options.epochs, options.checkpoint)
    records = cifar.records(headline_cascade(data), cifar.images(data, "test"))
    assert records.label is not None
    alone = [float((records.logits[:, s].argmax(1) == records.label).mean()) for s in range(records.stages)]
    body, exit_ = costs(records)
    print(f"{'stage':20} {'accuracy alone':>15} {'body':>7} {'exit':>7}   (shares of ResNet-56's latency)")
    for name, accuracy, b, e in zip(records.stage_names, alone, body, exit_, strict=True):
        print(f"{name:20} {accuracy:15.4f} {b:7.3f} {e:7.3f}")
    print(f"\n{'rule':32}{'gain mean':>10}{'worst':>8}{'accurate':>10}{'cost':>8}{'worst':>7}   ({SPLITS} splits)")
    table = {}
    for rule in RULES:
        row = table[str(rule)] = over_splits(records, rule)
        print(
            f"{rule!s:32}{row['gain']['mean']:+10.2%}{row['gain']['worst']:+8.2%}{row['splits_accurate_enough']:10.0%}"
            f"{row['cost']['mean']:8.3f}{row['cost']['worst']:7.3f}{'   the headline' if rule == RULE else ''}",
        )
    stages = {"names": records.stage_names, "accuracy": alone, "body": body, "exit": exit_}
    print(save("cascades/cifar_exits", {"headline": str(RULE), "stages": stages, "rules": table}))


if __name__ == "__main__":
    main()
