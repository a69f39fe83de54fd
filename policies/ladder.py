"""Operating points from the reference to the cheapest. A ladder knows accuracy and no device."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dynamic.policies.errors import CorruptError, SchemaError

SCHEMA = 1


@dataclass(frozen=True)
class Point:
    """Which stages are allowed and when inputs leave them.

    `thresholds [S-1]` (an input leaves where `threshold < score`; inf: exit off); `backbones` it needs;
    `target`: the drop it was chosen for (0 for the reference; None: for none); `risk`: signed accuracy drop to
    the reference measured on `n` records it was not chosen on; `bound` at `delta` (None: not certified);
    `accuracy` (low, mid, high) on the same records, 95% interval; `shares [S]` of inputs leaving at each stage.
    """

    name: str
    thresholds: tuple[float, ...]
    backbones: tuple[int, ...]
    target: float | None
    risk: float
    bound: float | None
    delta: float | None
    n: int
    accuracy: tuple[float, float, float]
    shares: tuple[float, ...]

    @property
    def promised_drop(self) -> float:
        """The drop that a budget may count on: the target where a bound stands behind it, else at least the risk."""
        if self.target is not None and self.bound is not None:
            return self.target
        return max(self.target or 0.0, self.risk)


@dataclass(frozen=True)
class Ladder:
    """Operating points of one cascade, the reference first, then from dear to cheap.

    `temperature [S]`, `score` and `combine` say how logits become answers; `backbone [S]`; `fingerprint`: what
    it was measured on. `certified`: whether the bounds hold jointly at their delta; an uncertified ladder runs,
    and every result says so.
    """

    temperature: tuple[float, ...]
    score: str
    combine: str
    backbone: tuple[int, ...]
    stage_names: tuple[str, ...]
    points: tuple[Point, ...]
    fingerprint: str
    certified: bool

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; infinite thresholds as "inf" and "-inf"."""
        data = asdict(self) | {"schema": SCHEMA}
        for point in data["points"]:
            point["thresholds"] = [t if math.isfinite(t) else str(t) for t in point["thresholds"]]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Ladder":
        """What `to_json` gave; raises SchemaError on a newer schema, CorruptError on anything that does not read."""
        try:
            if data["schema"] > SCHEMA:
                raise SchemaError(
                    f"the ladder has schema {data['schema']}, this version reads up to {SCHEMA}: "
                    "update dynamic-inference"
                )
            return cls(
                temperature=tuple(map(float, data["temperature"])),
                score=data["score"],
                combine=data["combine"],
                backbone=tuple(map(int, data["backbone"])),
                stage_names=tuple(data["stage_names"]),
                points=tuple(_point(point) for point in data["points"]),
                fingerprint=data["fingerprint"],
                certified=bool(data["certified"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptError(f"the ladder does not read ({error!r}); build the bundle again") from error


def _point(data: Mapping[str, Any]) -> Point:
    low, mid, high = map(float, data["accuracy"])
    return Point(
        name=data["name"],
        thresholds=tuple(map(float, data["thresholds"])),
        backbones=tuple(map(int, data["backbones"])),
        target=data["target"],
        risk=float(data["risk"]),
        bound=data["bound"],
        delta=data["delta"],
        n=int(data["n"]),
        accuracy=(low, mid, high),
        shares=tuple(map(float, data["shares"])),
    )
