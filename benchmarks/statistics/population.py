"""Populations whose every risk is known: what cascades say about the 10,000 test images of CIFAR-10."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

import dynamic
from benchmarks.cascades import frozen_exits
from benchmarks.harness import cifar
from benchmarks.harness.common import WEIGHTS, required
from dynamic.policies.certification.answers import Answers
from dynamic.policies.certification.replay import cost_to
from dynamic.policies.certification.risks import RISKS
from dynamic.policies.ladder import RiskName
from dynamic.policies.scores import Combiner
from dynamic.policies.stage_plan import plan

NAMES = ("resnet20", "resnet32", "resnet56")
EXITS = ("layer2.2", "layer2", "layer3.5")  # of ResNet-56: after 12, 18 and 24 of its 27 blocks


class Population:
    """True risks and mean costs of thresholds under a combiner.

    Args:
        records: All there is.
        combiner: How logits become answers and scores.
        body: Cost of the body of each stage `[S]`.
        head: Cost of the head of each stage `[S]`.
        risk: What is measured.
    """

    def __init__(
        self,
        records: dynamic.Records,
        combiner: Combiner,
        body: Sequence[float],
        head: Sequence[float],
        risk: RiskName = "drop",
    ) -> None:
        self._answers = Answers(records, combiner, RISKS[risk], body=body, head=head)
        self._backbone, self._costs = records.backbone, (body, head)

    def truth(self, thresholds: Sequence[float]) -> tuple[float, float]:
        """(risk, cost)."""
        stage, loss = self._answers.exits_under(thresholds)
        cost = cost_to(plan(np.array(thresholds, np.float32), self._backbone), *self._costs)
        return float(loss.mean()), float(cost[stage].mean())


def family(data: Path) -> dynamic.Records:
    """ResNet-20, ResNet-32 and ResNet-56 with six exits on the test images. Costs are shares of ResNet-56 alone."""
    required(WEIGHTS / "frozen_exits_heads.safetensors", "python -m benchmarks.cascades.frozen_exits --train")
    last = frozen_exits.trained(argparse.Namespace(data=data, train=False)).eval()
    cascade = dynamic.Cascade([*cifar.networks(data, NAMES[:-1]), last], names=NAMES)
    records = cifar.records(cascade, cifar.images(data, "test"))
    whole = sum(m for m, b in zip(records.macs, records.backbone, strict=True) if b == records.backbone[-1])
    return replace(
        records, macs=tuple(m / whole for m in records.macs), head_macs=tuple(m / whole for m in records.head_macs)
    )


def with_stages(records: dynamic.Records, names: Sequence[str]) -> dynamic.Records:
    """Records of a cascade of some stages. The body of an exit that is left out belongs to the next stage."""
    kept = [stage for stage, name in enumerate(records.stage_names) if name in names]
    body, first = [], {b: records.backbone.index(b) for b in records.backbone}
    for stage in kept:
        own = records.backbone[stage]
        body.append(sum(records.macs[first[own] : stage + 1]))
        first[own] = stage + 1
    numbers = sorted({records.backbone[stage] for stage in kept})
    return replace(
        records,
        logits=np.ascontiguousarray(records.logits[:, kept]),
        backbone=tuple(numbers.index(records.backbone[stage]) for stage in kept),
        macs=tuple(body),
        head_macs=tuple(records.head_macs[stage] for stage in kept),
        stage_names=tuple(records.stage_names[stage] for stage in kept),
    )


def cascades(records: dynamic.Records) -> dict[str, dynamic.Records]:
    """Cascades of several exits, by name."""
    exits = tuple(f"resnet56@{name}" for name in EXITS)
    stages = {"three": NAMES, "exits": (*exits, NAMES[-1]), "three and exits": (*NAMES, *exits)}
    return {name: with_stages(records, chosen) for name, chosen in stages.items()}


def two_stages(records: dynamic.Records) -> dict[str, dynamic.Records]:
    """Cascades of one stage of some records and the last one, by the name of the first."""
    last = records.stage_names[-1]
    return {name: with_stages(records, (name, last)) for name in records.stage_names[:-1]}
