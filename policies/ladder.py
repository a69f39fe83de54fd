"""Operating points from the reference to the cheapest. A ladder knows accuracy and no device."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dynamic.policies.drift import ScoreBins
from dynamic.policies.errors import CorruptError, SchemaError

SCHEMA = 1


@dataclass(frozen=True)
class Point:
    """Which stages are allowed and when inputs leave them.

    `thresholds [S-1]` (an input leaves where `threshold < score`; inf: exit off); `backbones` it needs;
    `target`: the risk it was chosen for (0 for the reference; None: for none); `risk`: as measured on `n` records that
    thresholds were not chosen on, of the `kind` that is bounded (see `dynamic.policies.risks`); `bound`: what the risk
    is at most, with all other bounds of the ladder, with probability 1 - `delta` (None: not certified); `drop`: signed
    accuracy drop to the reference on the same records (None without labels); `accuracy` (low, mid, high) there, 95%
    interval, or agreement with the reference where there are no labels; `shares [S]` of inputs leaving at each stage.
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
    kind: str = "drop"
    drop: float | None = None

    @property
    def promised_drop(self) -> float:
        """The drop that a budget may count on: the bound where there is one, else at least what was measured.

        Harm and disagreement are never less than the drop, so that a bound on them bounds it. One on errors does not:
        then nothing short of everything (1) is promised but by the reference, where no exit is on.
        """
        if self.kind == "error":
            return 0.0 if all(threshold == math.inf for threshold in self.thresholds) else 1.0
        if self.bound is not None:
            return self.bound
        return max(self.target or 0.0, self.risk)


@dataclass(frozen=True)
class Missing:
    """A target that nothing was certified for: the `risk` measured of the first thresholds that could be (None: none).

    `needed`: certifying records, or groups, that would do if that risk were the true one (None: no number would).
    """

    target: float
    risk: float | None
    needed: int | None


@dataclass(frozen=True)
class Certificate:
    """What the ladder's bounds rest on: void where anything of it, or of the ladder's fingerprint, changes.

    With probability at least 1 - `delta` over the draw of the calibration data, the `risk` of every point with a bound
    is at most that bound. `test`: where the p-values come from; `images` that certified (in `groups`, if they come in
    groups), after `search_images` had chosen; the `date`, ISO; targets that are `missing`.
    """

    risk: str
    delta: float
    test: str
    images: int
    groups: int | None
    search_images: int
    date: str
    missing: tuple[Missing, ...] = ()


@dataclass(frozen=True)
class Ladder:
    """Operating points of one cascade, the reference first, then from dear to cheap.

    `temperature [S]`, `score` and `combine` say how logits become answers; `backbone [S]`; `fingerprint`: what
    it was measured on. `certified`: whether any point but the reference has a bound; an uncertified ladder runs, and
    every result says so. `certificate`: what the bounds rest on (None: nobody tried). `scores [S]`: what calibration
    inputs scored at each stage where it is the first evaluated, to notice drift by (empty: unknown). `floor`: the
    accuracy that every point keeps (None: no floor); `left_out`: what is no point, and why.
    """

    temperature: tuple[float, ...]
    score: str
    combine: str
    backbone: tuple[int, ...]
    stage_names: tuple[str, ...]
    points: tuple[Point, ...]
    fingerprint: str
    certified: bool
    certificate: Certificate | None = None
    scores: tuple[ScoreBins, ...] = ()
    floor: float | None = None
    left_out: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; infinite thresholds as "inf" and "-inf"."""
        data = asdict(self) | {"schema": SCHEMA}
        for point in data["points"]:
            point["thresholds"] = [_number(t) for t in point["thresholds"]]
        for bins in data["scores"]:
            bins["edges"] = [_number(edge) for edge in bins["edges"]]
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
                certificate=_certificate(data["certificate"]),
                scores=tuple(
                    ScoreBins(tuple(map(float, bins["edges"])), tuple(map(int, bins["counts"])))
                    for bins in data["scores"]
                ),
                floor=data.get("floor"),  # bundles of the first version have none
                left_out=tuple(data.get("left_out", ())),
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
        kind=data["kind"],
        drop=data["drop"],
    )


def _certificate(data: Mapping[str, Any] | None) -> Certificate | None:
    if data is None:
        return None
    missing = tuple(Missing(**entry) for entry in data["missing"])
    return Certificate(**{**data, "missing": missing})


def _number(value: float) -> float | str:
    """A float as JSON has it: infinite ones as text."""
    return value if math.isfinite(value) else str(value)
