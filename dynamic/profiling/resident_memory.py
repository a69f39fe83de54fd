"""Resident memory of each backbone, measured in separate processes."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from dynamic.engines.route_choice import CascadeEngine
from dynamic.safe_path import child_command


@dataclass(frozen=True)
class BackboneMemory:
    """Memory of the backbones of a cascade.

    Args:
        memory_mb: Resident memory of each backbone in 10^6 bytes.
        row_mb: Memory of one more row while each backbone runs. Empty: not measured.
        not_measured: What could not be measured.
    """

    memory_mb: tuple[float, ...]
    row_mb: tuple[float, ...] = ()
    not_measured: tuple[str, ...] = ()


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
        sizes_mb = [_resident_mb(folder, backbone, engine) for backbone in backbones]
        return BackboneMemory(tuple(stays for _, stays in sizes_mb), tuple(row for row, _ in sizes_mb))
    except (OSError, subprocess.SubprocessError, ValueError):
        files = [folder / "backbones" / f"{b}.weights" for b in backbones]
        size = [file.stat().st_size / 1e6 if file.exists() else 0.0 for file in files]  # none: it shares another's
        return BackboneMemory(tuple(size), not_measured=("resident memory (the size of the weights is used instead)",))


def _resident_mb(folder: Path, backbone: int, engine: CascadeEngine) -> tuple[float, float]:
    """Growth of a fresh process for each row while it runs one backbone, and after it has."""
    asked = [os.path.abspath(folder), str(backbone), str(engine.threads), engine.name, engine.precision]
    done = subprocess.run(
        child_command("dynamic.profiling.footprint", *asked, untrusted=(str(folder),)),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    row, stays = (max(0.0, float(word)) for word in done.stdout.split()[-2:])
    return row, stays
