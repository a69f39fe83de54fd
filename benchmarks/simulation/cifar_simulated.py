"""What the simulations of CIFAR-10 share: records, a ladder from one half of them, costs profiled here, frontiers.

The cascade is ResNet-20 with the two exits of `cifar_exits.py`, then ResNet-32, 44 and 56 as they were given. Of every
network alone there is a frontier of one point of that same cascade: everything before it is switched off and not run.
So all contenders are charged from one table of costs, profiled once on this machine and kept in `out/`; devices scale
it. What cutting a network into stages costs in that table is charged to the network alone too: delete the file to
profile again.
"""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import dynamic
from benchmarks.cascades import cifar_exits
from benchmarks.harness import cifar
from benchmarks.harness.common import ROOT, progress
from dynamic.data import ImageSet, stratified_halves
from dynamic.offline.networks.checkpoints import load_weights
from dynamic.policies import Costs, Frontier, Ladder, OperatingPoint, Records
from dynamic.policies.certification.certificates import certify
from dynamic.policies.certification.replay import replay
from dynamic.policies.ladder import Interval
from dynamic.policies.records import SEARCH_SHARE, split
from dynamic.policies.scores import Combiner
from dynamic.policies.stage_plan import plan

TARGETS = (0.0, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05)
SEED = 0  # of the halves
OFF, ALL = math.inf, -math.inf


@dataclass(frozen=True, eq=False)
class Simulated:
    """The cascade's `frontier`, that of each network `alone`, and the `records` of the half that reports."""

    frontier: Frontier
    alone: dict[str, Frontier]
    records: Records


def simulated(data: Path) -> Simulated:
    """Everything that is simulated, made or taken from `out/`."""
    images = cifar.images(data, "test")
    cascade = whole_cascade(data)
    everything = cifar.records(cascade, images)
    costs = profiled(cascade, images)
    assert everything.label is not None
    calibration, report = stratified_halves(everything.label, SEED)
    chosen = everything.select(calibration)
    chosen = replace(chosen, part=split(None, len(chosen), search_share=SEARCH_SHARE, seed=SEED))
    body = tuple(whole[0] - head[0] for whole, head in zip(costs.latency_ms, costs.head_ms, strict=True))
    ladder = certify(chosen, TARGETS, body_cost=body, head_cost=tuple(head[0] for head in costs.head_ms))
    alone = {name: Frontier.of(only(ladder, chosen, name), costs) for name in cifar.NAMES}
    return Simulated(Frontier.of(ladder, costs), alone, everything.select(report))


def whole_cascade(data: Path) -> dynamic.Cascade:
    """All four networks, the first with its trained exits."""
    first = cifar_exits.first_network(data)
    load_weights(first.heads, cifar_exits.HEADS)
    return dynamic.Cascade([first.eval(), *cifar.networks(data, cifar.NAMES[1:])], names=cifar.NAMES)


def profiled(cascade: dynamic.Cascade, images: ImageSet) -> Costs:
    """Costs of the stages on this machine, ONNX Runtime, one thread: the quietest of eight profiles.

    From `out/` where they were profiled before.
    """
    kept = ROOT / "out" / f"costs-onnxruntime-{cascade.fingerprint()[:16]}.json"
    if not kept.is_file():
        progress(f"profiling {len(cascade.stages)} stages (kept in {kept})")
        few = images.select(np.arange(0, len(images), 50))
        bundle = dynamic.build(cascade, cifar.batches(few), preprocess=cifar.PREPROCESS)
        found = [bundle.profile(batch=(1, 8), seconds=4.0, threads=1, progress=False).costs for _ in range(8)]
        # where others work on the machine too, what they do now and then is in the tail
        costs = min((c for c in found if c is not None), key=lambda c: sum(row[0] for row in c.latency_p95_ms))
        kept.write_text(json.dumps(costs.to_json()))
    return Costs.from_json(json.loads(kept.read_text()))


def only(ladder: Ladder, records: Records, name: str) -> Ladder:
    """The same cascade with one point: that network alone, unaveraged, accuracy measured on `records`."""
    last = records.stage_names.index(name)
    thresholds = tuple(ALL if stage == last else OFF for stage in range(records.stages - 1))
    combiner = Combiner(ladder.temperature, ladder.score, combine=ladder.combine, backbone=ladder.backbone)
    played = replay(records.logits, combiner, thresholds=thresholds, backbone=records.backbone)
    todo = plan(np.array(thresholds, np.float32), records.backbone)
    ran = {records.backbone[stage] for stage in range(todo.deepest + 1) if todo.run[stage]}
    assert ran == {records.backbone[last]}
    assert (played.stage == last).all()
    assert records.label is not None
    right = float((played.prediction == records.label).mean())
    shares = tuple(float(stage == last) for stage in range(records.stages))
    accuracy, count = Interval(right, right, right), len(records)
    point = OperatingPoint(name, thresholds, tuple(sorted(ran)), 0.0, 0.0, None, None, count, accuracy, shares)
    return replace(ladder, points=(point,), certified=False)
