"""What loggers write of a training run and of a bundle, as flat names and plain values."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dynamic.bundle.bundle import Bundle

if TYPE_CHECKING:
    from dynamic.offline.training.fit_report import FitReport


def fit_figures(report: "FitReport") -> dict[str, float]:
    """Duration, and the held-out accuracy of each exit where there is one."""
    held_out = {f"held_out_accuracy/{level.stage}": float(level.right) for level in report.held_out}
    return {"fit_seconds": report.seconds, **held_out}


def bundle_figures(bundle: Bundle) -> dict[str, float]:
    """What was measured and certified of every operating point, and the share of inputs that exits at each stage."""
    figures: dict[str, float] = {}
    for point in bundle.ladder.points:
        figures[f"{point.name}/accuracy"] = point.accuracy.mid
        figures[f"{point.name}/{point.kind}"] = point.risk
        if point.bound is not None:
            figures[f"{point.name}/{point.kind}_bound"] = point.bound
        for stage, share in zip(bundle.spec.stages, point.shares, strict=True):
            figures[f"{point.name}/exits/{stage.name}"] = share
    return figures


def bundle_facts(bundle: Bundle) -> dict[str, str]:
    """What tells one bundle from another."""
    return {
        "certified": str(bundle.ladder.certified),
        "fingerprint": bundle.ladder.fingerprint,
        "stages": ", ".join(stage.name for stage in bundle.spec.stages),
        "calibration_inputs": str(len(bundle.records)),
    }


def settings_text(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings as texts. Those that were not given are left out."""
    return {name: str(value) for name, value in settings.items() if value is not None}
