"""Resident memory of each backbone, measured in separate processes."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from dynamic.engines.contract import CascadeSpec
from dynamic.engines.model_files.external_data import external_files
from dynamic.engines.route_choice import CascadeEngine
from dynamic.safe_path import child_command


@dataclass(frozen=True)
class BackboneMemory:
    """Memory of the backbones of a cascade.

    Args:
        memory_mb: Resident memory of each backbone in 10^6 bytes.
        row_mb: Memory of one more row while each backbone runs. Empty: not measured.
        not_measured: What could not be measured.
        process_mb: Resident memory of the process before any backbone is loaded, engine included. None: not measured.
    """

    memory_mb: tuple[float, ...]
    row_mb: tuple[float, ...] = ()
    not_measured: tuple[str, ...] = ()
    process_mb: float | None = None


def backbone_memory(engine: CascadeEngine, folder: Path | None) -> BackboneMemory:
    """Measure the memory of each backbone.

    Args:
        engine: The engine.
        folder: The bundle. None: memory is not measured.

    Returns:
        The memory. Where a process fails, the size of the weights is used instead.
    """
    backbones = engine.spec.backbones
    if folder is None or engine.name == "torch":
        nothing = tuple(0.0 for _ in backbones)
        return BackboneMemory(nothing, not_measured=(f"resident memory on engine {engine.name!r}",))
    try:
        process_mb, row_mb, memory_mb = zip(*(_resident_mb(folder, b, engine) for b in backbones), strict=True)
        return BackboneMemory(memory_mb, row_mb, process_mb=max(process_mb))
    except (OSError, subprocess.SubprocessError, ValueError):
        size = _weights_mb(folder, engine.spec)
        return BackboneMemory(size, not_measured=("resident memory (the size of the weights is used instead)",))


def _weights_mb(folder: Path, spec: CascadeSpec) -> tuple[float, ...]:
    """Size of the weights of each backbone. A file that several share counts for the first."""
    counted: set[str] = set()
    sizes = dict.fromkeys(spec.backbones, 0.0)
    for stage in spec.stages:
        try:
            named = set(external_files(folder / stage.graph, stage.graph)) - counted
            sizes[stage.backbone] += sum((folder / name).stat().st_size for name in named) / 1e6
        except (OSError, ValueError):
            continue
        counted |= named
    return tuple(sizes.values())


def _resident_mb(folder: Path, backbone: int, engine: CascadeEngine) -> tuple[float, float, float]:
    """Memory of a fresh process, its growth for each row while it runs one backbone, and after it has."""
    asked = [os.path.abspath(folder), str(backbone), str(engine.threads), engine.name, engine.precision]
    done = subprocess.run(
        child_command("dynamic.profiling.footprint", *asked, untrusted=(str(folder),)),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    process, row, stays = (max(0.0, float(word)) for word in done.stdout.split()[-3:])
    return process, row, stays
