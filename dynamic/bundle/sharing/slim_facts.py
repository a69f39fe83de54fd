"""What a slim bundle says of itself in its manifest: the limits it was made for, and what it leaves out."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dynamic.policies.validation.fields import flag, items, mapping, maybe, number, text
from dynamic.policies.words.short_repr import fields_repr


@dataclass(frozen=True)
class SlimFacts:
    """For which limits `dynamic.slim` made a bundle, and what the bundle lacks.

    Args:
        memory_mb: Resident memory of the process in 10^6 bytes. None: no limit.
        disk_mb: Size of the folder in 10^6 bytes. None: no limit.
        device: Name of the device. None: none was named.
        has_reference: Whether the reference is still among the operating points.
        left_out: What the bundle lacks, one sentence for each.
    """

    memory_mb: float | None
    disk_mb: float | None
    device: str | None
    has_reference: bool
    left_out: tuple[str, ...]

    def __repr__(self) -> str:
        return fields_repr(self)

    def __str__(self) -> str:
        """The limits, in words."""
        limits = [
            f"{name} {value:g} MB"
            for name, value in (("memory", self.memory_mb), ("disk", self.disk_mb))
            if value is not None
        ]
        device = [] if self.device is None else [self.device]
        return f"made for {', '.join([*device, *limits]) or 'this engine'}"

    @classmethod
    def from_json(cls, data: Any, name: str = "slim") -> "SlimFacts":
        """What `to_json` gave. Raises ValueError on anything else."""
        fields: Mapping[str, Any] = mapping(data, name, cls.__dataclass_fields__)
        return cls(
            memory_mb=maybe(fields["memory_mb"], f"{name}.memory_mb", _size),
            disk_mb=maybe(fields["disk_mb"], f"{name}.disk_mb", _size),
            device=maybe(fields["device"], f"{name}.device", text),
            has_reference=flag(fields["has_reference"], f"{name}.has_reference"),
            left_out=items(fields["left_out"], f"{name}.left_out", text),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self) | {"left_out": list(self.left_out)}


def _size(value: Any, name: str) -> float:
    return number(value, name, 0.0)
