"""Operating points from the reference to the cheapest. A ladder knows accuracy and no device."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

from dynamic.policies.errors import CorruptError, SchemaError
from dynamic.policies.scores import COMBINE, SCORES, ScoreBins
from dynamic.policies.validation.fields import flag, fraction, items, mapping, maybe, number, text, whole, word

SCHEMA = 1
KINDS = ("drop", "harm", "disagreement", "error")  # of risks, see `dynamic.policies.certification.risks`
_MOST_STAGES = 1000
_ROUNDING = 1e-9
# float32 rounds scores, so a threshold may lie a little outside
_SCORE_RANGES = {
    "max_probability": (-1e-3, 1.001),
    "margin": (-1e-3, 1.001),
    "negative_entropy": (-100.0, 1e-3),
    "patience": (-1.0, 1e3),
}


class Interval(NamedTuple):
    """A measured figure with its 95% interval."""

    low: float
    mid: float
    high: float


@dataclass(frozen=True)
class OperatingPoint:
    """Which stages are allowed and when inputs leave them.

    `thresholds [S-1]` (an input leaves where `threshold < score`; inf: exit off); `backbones` it needs;
    `target`: the risk it was chosen for (0 for the reference; None: for none); `risk`: as measured on `n` records that
    thresholds were not chosen on, of the `kind` that is bounded (see `certification/risks.py`); `bound`: what the risk
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
    accuracy: Interval
    shares: tuple[float, ...]
    kind: str = "drop"
    drop: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "accuracy", Interval(*self.accuracy))

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
    points: tuple[OperatingPoint, ...]
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
            schema = whole(data["schema"], "schema", 1)
            if schema > SCHEMA:
                raise SchemaError(
                    f"the ladder has schema {schema}, this version reads up to {SCHEMA}: update dynamic-inference"
                )
            names = items(data["stage_names"], "stage_names", text, most=_MOST_STAGES)
            stages = len(names)
            ladder = cls(
                temperature=items(data["temperature"], "temperature", _temperature, stages),
                score=word(data["score"], "score", SCORES),
                combine=word(data["combine"], "combine", COMBINE),
                backbone=items(data["backbone"], "backbone", _backbone, stages),
                stage_names=names,
                points=items(data["points"], "points", lambda value, name: _point(value, name, stages)),
                fingerprint=text(data["fingerprint"], "fingerprint"),
                certified=flag(data["certified"], "certified"),
                certificate=maybe(data["certificate"], "certificate", _certificate),
                scores=items(data["scores"], "scores", _bins, stages if data["scores"] else 0),
                floor=maybe(data.get("floor"), "floor", fraction),  # bundles of the first version have none
                left_out=items(data.get("left_out", ()), "left_out", text),
            )
            _check_points(ladder)
            return ladder
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise CorruptError(f"the ladder does not read ({reason}); build the bundle again") from error


def _check_points(ladder: Ladder) -> None:
    """Raises ValueError where points contradict each other or the stages."""
    if not ladder.points:
        raise ValueError("points has 0 entries, the reference is always one")
    known, (low, high) = set(ladder.backbone), _SCORE_RANGES[ladder.score]
    for point in ladder.points:
        if any(math.isfinite(limit) and not low <= limit <= high for limit in point.thresholds):
            raise ValueError(
                f"point {point.name!r:.80} has thresholds {point.thresholds}, scores run from {low} to {high}"
            )
        if not point.backbones or not known.issuperset(point.backbones):
            raise ValueError(f"point {point.name!r} needs backbones {point.backbones}, there are {sorted(known)}")
    if ladder.certified and all(point.bound is None for point in ladder.points):
        raise ValueError("certified=True, and no point has a bound")


def _temperature(value: Any, name: str) -> float:
    return number(value, name, 1e-9, 1e9)


def _backbone(value: Any, name: str) -> int:
    return whole(value, name, 0, _MOST_STAGES)


def _threshold(value: Any, name: str) -> float:
    return number(value, name, -math.inf, math.inf)


def _share(value: Any, name: str) -> float:
    """A fraction that was computed: rounding may leave it a little outside."""
    return number(value, name, -_ROUNDING, 1.0 + _ROUNDING)


def _count(value: Any, name: str) -> int:
    return whole(value, name)


def _change(value: Any, name: str) -> float:
    """A risk or a drop: at most everything, either way."""
    return number(value, name, -1.0 - _ROUNDING, 1.0 + _ROUNDING)


def _level(value: Any, name: str) -> float:
    return number(value, name, 1e-12, 1.0)


def _bins(value: Any, name: str) -> ScoreBins:
    data = mapping(value, name, ("edges", "counts"))
    edges = items(data["edges"], f"{name}.edges", _threshold)
    return ScoreBins(edges, items(data["counts"], f"{name}.counts", _count, len(edges) + 1))


def _point(value: Any, name: str, stages: int) -> OperatingPoint:
    data = mapping(value, name, [f.name for f in fields(OperatingPoint)])
    low, mid, high = items(data["accuracy"], f"{name}.accuracy", _share, 3)
    if not low - _ROUNDING <= mid <= high + _ROUNDING:
        raise ValueError(f"{name}.accuracy={[low, mid, high]} must rise")
    point = OperatingPoint(
        name=text(data["name"], f"{name}.name"),
        thresholds=items(data["thresholds"], f"{name}.thresholds", _threshold, stages - 1),
        backbones=items(data["backbones"], f"{name}.backbones", _backbone),
        target=maybe(data["target"], f"{name}.target", _change),
        risk=_change(data["risk"], f"{name}.risk"),
        bound=maybe(data["bound"], f"{name}.bound", _change),
        delta=maybe(data["delta"], f"{name}.delta", _level),
        n=_count(data["n"], f"{name}.n"),
        accuracy=Interval(low, mid, high),
        shares=items(data["shares"], f"{name}.shares", _share, stages),
        kind=word(data["kind"], f"{name}.kind", KINDS),
        drop=maybe(data["drop"], f"{name}.drop", _change),
    )
    if not abs(sum(point.shares) - 1) < 1e-6:
        raise ValueError(f"{name}.shares={point.shares} must add up to 1")
    return point


def _certificate(value: Any, name: str) -> Certificate:
    data = mapping(value, name, [f.name for f in fields(Certificate)])
    return Certificate(
        risk=word(data["risk"], f"{name}.risk", KINDS),
        delta=_level(data["delta"], f"{name}.delta"),
        test=text(data["test"], f"{name}.test"),
        images=_count(data["images"], f"{name}.images"),
        groups=maybe(data["groups"], f"{name}.groups", _count),
        search_images=_count(data["search_images"], f"{name}.search_images"),
        date=text(data["date"], f"{name}.date"),
        missing=items(data["missing"], f"{name}.missing", _missing),
    )


def _missing(value: Any, name: str) -> Missing:
    data = mapping(value, name, ("target", "risk", "needed"))
    return Missing(
        target=_change(data["target"], f"{name}.target"),
        risk=maybe(data["risk"], f"{name}.risk", _change),
        needed=maybe(data["needed"], f"{name}.needed", _count),
    )


def _number(value: float) -> float | str:
    """A float as JSON has it: infinite ones as text."""
    return value if math.isfinite(value) else str(value)
