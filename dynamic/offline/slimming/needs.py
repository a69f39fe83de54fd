"""What an operating point needs of memory and disk, and which points of a ladder fit limits together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dynamic.engines.contract import CascadeSpec
from dynamic.engines.model_files.external_data import external_files
from dynamic.policies.ladder import OperatingPoint
from dynamic.profiling.resident_memory import BackboneMemory


def network_files(folder: Path, spec: CascadeSpec) -> dict[int, frozenset[str]]:
    """The files of each backbone: graphs of its stages, and weights that these name.

    Args:
        folder: The bundle's folder.
        spec: The cascade.

    Returns:
        Names in the bundle, by the number of the backbone. Backbones may share files.

    Raises:
        ValueError: A graph does not read.
    """
    files: dict[int, set[str]] = {b: set() for b in spec.backbones}
    for stage in spec.stages:
        for graph in (stage.graph, stage.body_graph):
            if graph is not None:
                files[stage.backbone] |= {graph, *external_files(folder / graph, graph)}
    return {b: frozenset(names) for b, names in files.items()}


@dataclass(frozen=True)
class Needs:
    """What operating points need.

    Args:
        memory: Memory of the process and of each backbone.
        files: Names of the files of each backbone.
        bytes: Size of each file by name.
    """

    memory: BackboneMemory
    files: Mapping[int, frozenset[str]]
    bytes: Mapping[str, int]

    def memory_mb(self, point: OperatingPoint) -> float:
        """Resident memory of the process while a point answers one input, in 10^6 bytes."""
        row_mb = max((self.memory.row_mb[b] for b in point.backbones), default=0.0) if self.memory.row_mb else 0.0
        return (self.memory.process_mb or 0.0) + sum(self.memory.memory_mb[b] for b in point.backbones) + row_mb

    def disk_mb(self, backbones: frozenset[int]) -> float:
        """Size of the files of these backbones together, in 10^6 bytes."""
        names = frozenset[str]().union(*(self.files[b] for b in backbones))
        return sum(self.bytes[name] for name in names) / 1e6


def choose(points: Sequence[OperatingPoint], needs: Needs, disk_mb: float) -> list[OperatingPoint]:
    """The points that fit the disk together. The first that fits is kept, then each other for which there is room.

    Args:
        points: From the most expensive to the cheapest, which is from accurate to less so.
        needs: What they need.
        disk_mb: Room for files of networks. Infinity: no limit.

    Returns:
        The points, in their order. Empty: none fits.
    """
    choice: list[OperatingPoint] = []
    held: frozenset[int] = frozenset()
    for point in points:
        backbones = held | frozenset(point.backbones)
        if needs.disk_mb(backbones) <= disk_mb:
            choice.append(point)
            held = backbones
    return choice
