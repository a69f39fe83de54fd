"""Whether a built cascade is useful: its operating points beside each of its networks alone, on the same data."""

from dataclasses import dataclass

import numpy as np

from dynamic.bundle.bundle import Bundle
from dynamic.policies.certification.risks import Sample
from dynamic.policies.costing.latency import mean_ms
from dynamic.policies.errors import CalibrationError
from dynamic.policies.frontier import Frontier
from dynamic.policies.ladder import Interval, OperatingPoint
from dynamic.policies.records import CERTIFY
from dynamic.policies.stage_plan import plan

_CLEAR = 0.9  # of the time of another: a rule of thumb for what is called faster


@dataclass(frozen=True)
class Alone:
    """One network of a cascade, run alone: accuracy on the records that certify, latency of one input here."""

    name: str
    accuracy: float
    mean_ms: float
    memory_mb: float


def networks_alone(bundle: Bundle) -> list[Alone]:
    """Each network of a bundle alone, with all earlier exits off, in the order of the cascade.

    BundleError before `bundle.profile()`, CalibrationError where its records have no labels.
    """
    costs, records = bundle.frontier.costs, bundle.records
    if not records.is_labelled:
        raise CalibrationError("the bundle's records have no labels: build it from a loader of (inputs, labels)")
    certifying = records.select(records.part == CERTIFY) if (records.part == CERTIFY).any() else records
    assert certifying.label is not None
    sample = Sample(len(certifying), certifying.group)
    rows = []
    for backbone in bundle.spec.backbones:
        stage = max(s for s, b in enumerate(bundle.spec.backbone) if b == backbone)
        accuracy = sample.mean(certifying.logits[:, stage].argmax(1) == certifying.label)
        thresholds = np.full(records.stages - 1, np.inf, np.float32)
        thresholds[stage : stage + 1] = -np.inf  # the last stage has no threshold
        shares = tuple(float(s == stage) for s in range(records.stages))
        point = OperatingPoint(
            "",
            tuple(thresholds),
            (backbone,),
            None,
            0.0,
            None,
            None,
            len(certifying),
            Interval(0.0, accuracy, 1.0),
            shares,
        )
        latency_ms = mean_ms(point, plan(thresholds, records.backbone), costs, costs.batch[0])
        rows.append(Alone(records.stage_names[stage], accuracy, latency_ms, costs.memory_mb[backbone]))
    return rows


def advice(bundle: Bundle) -> str:
    """A line for each network alone, and for each point that uses several stages.

    The line of a point names the fastest network alone that is no less accurate, if there is one. Both are measured on
    the records that certify. So a network alone that looks better is measured, not certified.
    """
    alone = networks_alone(bundle)
    frontier: Frontier = bundle.frontier
    count = frontier.points[0].operating_point.n
    lines = [
        f"the cascade beside its networks alone, accuracy of {count} calibration inputs, mean latency of one here:"
    ]
    lines += [f"  {a.name} alone: {a.accuracy:.4f}, {a.mean_ms:.3f} ms, {a.memory_mb:.1f} MB" for a in alone]
    several = [p for p in frontier.points if max(p.shares) < 1]
    for p in several:
        accuracy, latency_ms = p.accuracy.mid, p.mean_ms[0]
        rivals = [a for a in alone if a.accuracy >= accuracy]
        what = f"  {p.name!r}: {accuracy:.4f}, {latency_ms:.3f} ms, {p.memory_mb:.1f} MB: "
        if not rivals:
            lines.append(f"{what}no network alone is as accurate")
            continue
        best = min(rivals, key=lambda a: a.mean_ms)
        if best.mean_ms <= latency_ms:
            lines.append(
                f"{what}{best.name} alone is no less accurate in {best.mean_ms / latency_ms:.2f} of the time: USE THAT"
            )
        else:
            # both are sums of medians of stages, not measurements of whole requests
            close = " (too close, and the network alone is simpler)" if latency_ms > _CLEAR * best.mean_ms else ""
            share = f"{latency_ms / best.mean_ms:.2f} of the time of {best.name}"
            lines.append(f"{what}{share}, the fastest alone as accurate{close}")
    if not several:
        lines.append("  every point is one network alone: ship that network, no cascade is needed")
    return "\n".join(lines)
