"""What commands print about a bundle, as text and as JSON."""

import json
from dataclasses import asdict
from typing import Any

from dynamic.bundle.bundle import Bundle
from dynamic.bundle.tables import ladder_text
from dynamic.policies.costing.costed_point import CostedPoint


def bundle_lines(bundle: Bundle) -> str:
    """The ladder of a bundle, where the bundle lies, and what comes next."""
    return (
        f"{ladder_text(bundle.ladder)}\n\n"
        f"bundle of {len(bundle.records)} inputs for engine {bundle.engine}: {bundle.folder}\n"
        f"next: dynamic profile {bundle.folder}"
    )


def bundle_json(bundle: Bundle) -> str:
    """The same for a program."""
    certificate = bundle.ladder.certificate
    return json.dumps(
        {
            "folder": str(bundle.folder),
            "engine": bundle.engine,
            "precision": bundle.precision,
            "inputs": len(bundle.records),
            "stages": list(bundle.ladder.stage_names),
            "points": [
                {
                    "name": point.name,
                    "accuracy": point.accuracy.mid,
                    "risk": point.risk,
                    "bound": point.bound,
                    "shares": list(point.shares),
                }
                for point in bundle.ladder.points
            ],
            "certificate": None if certificate is None else asdict(certificate),
        }
    )


def point_json(point: CostedPoint) -> dict[str, Any]:
    """What a point costs on this machine, at the smallest batch."""
    return {
        "name": point.name,
        "accuracy": point.operating_point.accuracy.mid,
        "mean_ms": point.mean_ms[0],
        "p95_ms": point.p95_ms[0],
        "cpu_ms": point.cpu_ms[0],
        "memory_mb": point.memory_mb,
        "energy_mj": None if point.energy_mj is None else point.energy_mj[0],
    }
