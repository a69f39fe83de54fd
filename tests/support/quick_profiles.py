"""Profiles that take little time. Most tests need costs and do not look at them: tests/profiling measures in full."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dynamic.profiling import stage_profile
from dynamic.profiling.resident_memory import BackboneMemory

_MOST_S = 0.03  # for each batch size and route
_memories: dict[Any, BackboneMemory] = {}


def be_quick(patch: pytest.MonkeyPatch) -> None:
    """Let `profile` measure for a moment, once however busy the machine is, and each bundle's memory once."""
    faster, memory = stage_profile._faster, stage_profile.backbone_memory

    def quick(engine: Any, rows: int, seconds: float, clock: Callable[[], float]) -> Any:
        return faster(engine, rows, min(seconds, _MOST_S), clock)

    def remembered(engine: Any, folder: Path | None) -> BackboneMemory:
        key = (engine.name, engine.precision, engine.threads, engine.spec.backbones, folder and _sizes(folder))
        if key not in _memories:
            _memories[key] = memory(engine, folder)
        return _memories[key]

    patch.setattr(stage_profile, "_faster", quick)
    patch.setattr(stage_profile, "backbone_memory", remembered)
    patch.setattr(stage_profile, "ATTEMPTS", 1)


def _sizes(folder: Path) -> tuple[tuple[str, int], ...]:
    """Name and size of each file of a bundle's networks: networks of equal sizes take the same memory."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in (".onnx", ".weights"))
    return tuple((path.relative_to(folder).as_posix(), path.stat().st_size) for path in files)
