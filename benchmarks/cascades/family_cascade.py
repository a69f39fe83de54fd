"""The whole family in one cascade, certified: ResNet-56's accuracy at how much of its latency?

    python -m benchmarks.cascades.family_cascade [--train]

int8 versions of two shallow and wide students (`family_students.py`) and of ResNet-20, 32 and 56, then ResNet-56 as it
was given, the reference. Students, ranges of int8, heads and places of exits come from training images; that students
were wanted, and then that they learn from more copies and the smaller one for longer, came from what cascades before
took on these test images (0.34 of the latency, 0.28). Test images are split in half, 20 times: one half chooses
thresholds, which exits and networks are used at all among them (its quarter that searches), and certifies that no more
than 0.005 of accuracy is lost to ResNet-56 (the rest); the other half reports. As in `headline.py` all is calibrated
through the engine and precision that is timed, in processes that take turns, one request behind the other, each side in
its best setting.

Where nothing can be certified for 0.005, ResNet-56 alone runs, and that is what is reported. Costs that the search
goes by are profiled once for each engine and kept in results/. The goal: at least ResNet-56's accuracy on average over
the splits, at 0.28 or less of its mean latency on ONNX Runtime. int8 networks compete alone too. Without timing,
`--modelled` adds up profiled stages.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import dynamic
from benchmarks.cascades import family_networks
from benchmarks.cascades.cifar_cascade import parted
from benchmarks.cascades.cifar_exits import halves
from benchmarks.cascades.headline import measure
from benchmarks.cascades.headline_contenders import Prepared
from benchmarks.harness import cifar
from benchmarks.harness.alternating import ENGINES, circumstances, engines_here, not_measured
from benchmarks.harness.common import RESULTS, add_data_option, data_folder, progress, save
from dynamic.policies.certification.replay import cost_to, replay
from dynamic.policies.records import SEARCH_SHARE
from dynamic.policies.scores import Combiner
from dynamic.policies.stage_plan import plan
from dynamic.profiling.machine import machine_name

TARGET, SPLITS = 0.005, 20
GOALS = {"onnxruntime f32": 0.28, "openvino f32": 0.28}  # asked for on ONNX Runtime; OpenVINO stands beside it
COSTS = RESULTS / "cascades" / "family_costs.json"
Costs = tuple[tuple[float, ...], tuple[float, ...]]  # ms of bodies and heads [S]


def costs(cascade: dynamic.Cascade, images: Any, name: str) -> Costs:
    """What stages take on this machine, for one request on an engine; measured once."""
    known = json.loads(COSTS.read_text()) if COSTS.is_file() else {}
    made_for = {"cascade": cascade.fingerprint(), "machine": machine_name()}
    if name not in known or known[name]["made for"] != made_for:
        progress(f"profiling on {name} (kept in {COSTS})")
        engine, precision = ENGINES[name]
        few = cifar.batches(images.select(np.arange(0, len(images), 20)))
        bundle = dynamic.build(cascade, few, engine=engine, precision=precision, progress=False)
        found = bundle.profile(batch=(1,), seconds=6.0, progress=False).costs
        assert found is not None
        whole, head = ([row[0] for row in table] for table in (found.latency_ms, found.head_ms))
        body = [a - b for a, b in zip(whole, head, strict=True)]
        known[name] = {
            "made for": made_for,
            "names": [s.name for s in bundle.spec.stages],
            "body_ms": body,
            "head_ms": head,
        }
        COSTS.write_text(json.dumps(known, indent=1) + "\n")
    return tuple(known[name]["body_ms"]), tuple(known[name]["head_ms"])


def chooser(spent: Costs) -> Callable[[dynamic.Records], tuple[dynamic.Ladder, dynamic.OperatingPoint]]:
    """The point certified for the target, or the reference where there is none."""

    def choose(half: dynamic.Records) -> tuple[dynamic.Ladder, dynamic.OperatingPoint]:
        body, head = spent
        ladder = dynamic.certify(parted(half, SEARCH_SHARE), (TARGET,), body_cost=body, head_cost=head, score="margin")
        found = [p for p in ladder.points if p.target == TARGET] if ladder.certified else []
        return ladder, found[0] if found else ladder.points[0]

    return choose


def modelled(records: dynamic.Records, spent: Costs) -> dict[str, Any]:
    """Accuracy and latency on the report halves, stages added up."""
    rows: list[dict[str, Any]] = []
    for seed in range(SPLITS):
        half, other = halves(records, seed)
        ladder, point = chooser(spent)(half)
        combiner = Combiner(ladder.temperature, ladder.score, combine=ladder.combine, backbone=ladder.backbone)
        found = replay(other.logits, combiner, thresholds=point.thresholds, backbone=records.backbone)
        todo = plan(np.array(point.thresholds, np.float32), records.backbone)
        ms = cost_to(todo, *spent)[found.stage].mean() / spent[0][-1]
        assert other.label is not None
        own = other.logits[:, -1].argmax(1) == other.label
        gain = float((found.prediction == other.label).mean() - own.mean())
        rows.append({"gain": gain, "cost": float(ms), "point": point.name, "bound": point.bound})
    gains, costs_each = ([row[k] for row in rows] for k in ("gain", "cost"))
    print(f"{'split':>6}{'gain':>9}{'cost':>8}  (stages added up)")
    for seed, row in enumerate(rows):
        print(f"{seed:6}{row['gain']:+9.2%}{row['cost']:8.3f}  {row['point']}")
    print(f"{'mean':>6}{statistics.fmean(gains):+9.2%}{statistics.fmean(costs_each):8.3f}")
    return {"gain": statistics.fmean(gains), "cost": statistics.fmean(costs_each), "splits": rows}


def main() -> None:
    """Everything, by engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--train", action="store_true", help="train the heads, choose exits")
    parser.add_argument("--passes", type=int, default=1, help="times each training image is read by the heads")
    parser.add_argument("--epochs", type=int, default=8, help="of the heads")
    parser.add_argument("--modelled", action="store_true", help="stages added up only, no turns")
    parser.add_argument("--requests", type=int, default=800, help="timed on the first split; half of it on the others")
    parser.add_argument("--splits", type=int, default=SPLITS)
    parser.add_argument("--engines", nargs="+", choices=list(GOALS), default=list(GOALS), metavar="ENGINE")
    options = parser.parse_args()
    data = data_folder(options.data)
    if options.train or not family_networks.up_to_date():
        family_networks.train(data, options.passes, options.epochs)
    cascade = family_networks.cascade(data)
    images = cifar.images(data, "test")
    here, skipped = engines_here(options.engines)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in here:
            spent = costs(cascade, images, name)
            print(f"\n{name}: ms of body and head of each stage")
            for stage, body, head in zip(cascade.stages, *spent, strict=True):
                print(f"  {stage.name:28}{body:8.3f}{head:8.3f}")
            engine, _ = ENGINES[name]
            figures[name] = {"modelled": modelled(cifar.records(cascade, images, engine), spent)}
            if not options.modelled:
                own = Path(folder) / name.replace(" ", "-")
                own.mkdir()
                prepared = Prepared(data, own, cascade, chooser(spent), family_networks.alone(data))
                figures[name] |= measure(prepared, name, options.requests, 0, options.splits, GOALS)
    if options.modelled:
        return
    print(circumstances())
    kept = RESULTS / "cascades" / "family_cascade.json"
    if kept.is_file() and len(options.engines) < len(GOALS):  # the others stay as they were measured
        figures = json.loads(kept.read_text(encoding="utf-8"))["engines"] | figures
    facts = {"target": TARGET, "cascade": cascade.names, "skipped": skipped, "not_measured": not_measured()}
    print(save("cascades/family_cascade", facts | {"engines": figures}))


if __name__ == "__main__":
    main()
