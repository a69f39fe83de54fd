"""Operating points from the reference to the cheapest. A ladder holds accuracies, and no costs of a device."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, NamedTuple, cast, get_args

from dynamic.policies.errors import CorruptError, SchemaError
from dynamic.policies.scores import Combination, Score, ScoreBins, check_combination, check_score
from dynamic.policies.validation.fields import flag, fraction, items, mapping, maybe, number, text, whole, word
from dynamic.policies.words.short_repr import fields_repr, short_repr
from dynamic.policies.words.tables import table

SCHEMA = 2  # 2: points have histograms of exits
RiskName = Literal["drop", "harm", "disagreement", "error"]  # see `dynamic.policies.certification.risks`
KINDS: tuple[RiskName, ...] = get_args(RiskName)
_MOST_STAGES = 1000
_ROUNDING = 1e-9
_LATER = ("batch", "labels")  # fields of a certificate that older bundles lack
# float32 rounds scores, so a threshold may lie a little outside
_SCORE_RANGES: dict[Score, tuple[float, float]] = {
    "max_probability": (-1e-3, 1.001),
    "margin": (-1e-3, 1.001),
    "negative_entropy": (-100.0, 1e-3),
    "patience": (-1.0, 1e3),
}


class Interval(NamedTuple):
    """A measured figure with its 95% interval.

    Args:
        low: Lower end.
        mid: The measured figure.
        high: Upper end.

    Example:
        >>> ladder.points[0].accuracy.low <= ladder.points[0].accuracy.mid
        True
    """

    low: float
    mid: float
    high: float


@dataclass(frozen=True)
class OperatingPoint:
    """Which stages may run, and at which scores inputs exit.

    Figures are measured on `n` records that did not choose the thresholds.

    Args:
        name: Such as "reference", "drop 0.01" or "cheapest".
        thresholds: An input exits where `threshold < score` `[S-1]`. Infinity switches the exit off.
        backbones: Numbers of the backbones that it needs.
        target: The risk that it was chosen for, 0 for the reference. None: for no target.
        risk: The measured risk, of the `kind`.
        bound: Upper bound of the risk. All bounds of a ladder hold at once, with probability 1 - `delta`. None: not
            certified.
        delta: The probability that a bound of the ladder is wrong. None: not certified.
        n: Records that it was measured on.
        accuracy: Accuracy with its 95% interval. Without labels it is the agreement with the reference.
        shares: Shares of inputs that exit at each stage `[S]`.
        kind: The risk: "drop", "harm", "disagreement" or "error".
        drop: Signed accuracy drop to the reference on these records. None: without labels.
        exits: For each stage a histogram of the scores of the calibration inputs that exit there `[S]`, for the drift
            test. Empty: unknown.

    Example:
        >>> point = ladder.points[0]
        >>> point.name, point.target, point.promised_drop
        ('reference', 0.0, 0.0)
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
    kind: RiskName = "drop"
    drop: float | None = None
    exits: tuple[ScoreBins, ...] = field(default=(), hash=False)  # hundreds of numbers

    def __post_init__(self) -> None:
        object.__setattr__(self, "accuracy", Interval(*self.accuracy))

    def __repr__(self) -> str:
        shares = " ".join(f"{share:.0%}" for share in self.shares)
        return short_repr("OperatingPoint", [*self.words(), f"exits {shares}"])

    def words(self) -> list[str]:
        """Its name, what is certified of it, and its accuracy or agreement, as a person reads them."""
        bound = "not certified" if self.bound is None else f"{self.kind} <= {self.bound:.4g}"
        return [repr(self.name), bound, f"{'agreement' if self.drop is None else 'accuracy'} {self.accuracy.mid:.4f}"]

    @property
    def promised_drop(self) -> float:
        """The drop that a budget may count on: the bound, or at least the measured risk where there is none.

        Harm and disagreement are never less than the drop, so a bound on them also bounds the drop. A bound on errors
        does not. Then the reference promises 0 and any other point 1.
        """
        if self.kind == "error":
            return 0.0 if all(threshold == math.inf for threshold in self.thresholds) else 1.0
        if self.bound is not None:
            return self.bound
        return max(self.target or 0.0, self.risk)


@dataclass(frozen=True)
class Missing:
    """A target for which no point was certified.

    Args:
        target: The risk that was asked for.
        risk: Measured risk of the first thresholds that more records could certify. None: there are none.
        needed: Certifying records, or groups, that suffice in half of the cases if that risk is the true one. None: no
            number does.
        likely: Those that suffice in nine of ten cases. None: no number does, or it is not known.
    """

    target: float
    risk: float | None
    needed: int | None
    likely: int | None = None

    def __repr__(self) -> str:
        return fields_repr(self)


@dataclass(frozen=True)
class Certificate:
    """What the bounds of a ladder rest on. It is void when the ladder or its fingerprint changes.

    With probability at least 1 - `delta` over the draw of the calibration data, all bounds hold at once.

    Args:
        risk: What is bounded.
        delta: The probability that a bound is wrong.
        test: The test that gives the p-values, in words.
        images: Records that certified.
        groups: Groups that these records form. None: they are independent.
        search_images: Records that chose the thresholds.
        date: ISO date.
        missing: Targets without a certified point.
        batch: Inputs of the one finite batch that the bounds are for. None: they are for future inputs.
        labels: Records that certified with a label, where labels were asked for on demand. None: all have one, or none
            is needed.
    """

    risk: RiskName
    delta: float
    test: str
    images: int
    groups: int | None
    search_images: int
    date: str
    missing: tuple[Missing, ...] = ()
    batch: int | None = None
    labels: int | None = None

    def __repr__(self) -> str:
        return fields_repr(self)


@dataclass(frozen=True)
class Ladder:
    """Operating points of one cascade: the reference first, then from expensive to cheap.

    Args:
        temperature: Logits are divided by it `[S]`.
        score: Confidence of an answer, see `Combiner`.
        combine: How answers of stages are combined, see `Combiner`.
        backbone: Number of the backbone of each stage `[S]`.
        stage_names: Names of the stages `[S]`.
        points: The operating points.
        fingerprint: What they were measured on.
        certified: Whether any point but the reference has a bound. A ladder without one runs, and no result is
            certified then.
        certificate: What the bounds rest on. None: `certify` was not called.
        floor: The accuracy that every point reaches. None: there is no floor.
        left_out: Points that the ladder lacks, with the reason, in words.

    Example:
        >>> ladder.points[0].name, ladder.score
        ('reference', 'max_probability')
    """

    temperature: tuple[float, ...]
    score: Score
    combine: Combination
    backbone: tuple[int, ...]
    stage_names: tuple[str, ...]
    points: tuple[OperatingPoint, ...]
    fingerprint: str
    certified: bool
    certificate: Certificate | None = None
    floor: float | None = None
    left_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Every point with what is certified of it, its measured figures and its exits."""
        risk = self.points[0].kind if self.certificate is None else self.certificate.risk
        labelled = all(point.drop is not None for point in self.points)
        accuracy = "accuracy" if labelled else "agreement"
        head = ("point", f"{risk} <=", "measured", accuracy, "95% interval", "exits by stage")
        rows = (
            (
                point.name,
                "no" if point.bound is None else f"{point.bound:.4g}",
                f"{point.risk:.4f}",
                f"{point.accuracy.mid:.4f}",
                f"{point.accuracy.low:.4f}-{point.accuracy.high:.4f}",
                " ".join(f"{share:4.0%}" for share in point.shares),
            )
            for point in self.points
        )
        return table(head, rows, text_last=True)

    def __repr__(self) -> str:
        state = "certified" if self.certified else "not certified"
        names = ", ".join(point.name for point in self.points)
        return short_repr("Ladder", [f"{len(self.points)} points: {names}", state, f"score {self.score}"])

    def plot(self, axes: Any = None) -> Any:
        """Draw the points: their accuracy, and the share of inputs that exit at each stage.

        It needs matplotlib, which the extra "plot" brings.

        Args:
            axes: Axes of matplotlib to draw into. None: new ones.

        Returns:
            The axes.

        Raises:
            ModuleNotFoundError: matplotlib is missing.

        Example:
            >>> len(ladder.plot().containers) == len(ladder.stage_names)
            True
        """
        from dynamic import plot  # on first use: the core knows no pictures

        return plot(self, axes)

    def to_json(self) -> dict[str, Any]:
        """All fields as plain JSON types. Infinite thresholds are "inf" and "-inf"."""
        data = asdict(self) | {"schema": SCHEMA}
        for point in data["points"]:
            point["thresholds"] = [_number(t) for t in point["thresholds"]]
            for bins in point["exits"]:
                bins["edges"] = [_number(edge) for edge in bins["edges"]]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Ladder":
        """The ladder that `to_json` described.

        Args:
            data: The mapping from the file.

        Returns:
            The ladder.

        Raises:
            SchemaError: when a newer version of the library wrote it.
            CorruptError: when a field is missing, does not read or contradicts another.

        Example:
            >>> dynamic.Ladder.from_json(ladder.to_json()) == ladder
            True
        """
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
                score=check_score(text(data["score"], "score")),
                combine=check_combination(text(data["combine"], "combine")),
                backbone=items(data["backbone"], "backbone", _backbone, stages),
                stage_names=names,
                points=items(data["points"], "points", lambda value, name: _point(value, name, stages)),
                fingerprint=text(data["fingerprint"], "fingerprint"),
                certified=flag(data["certified"], "certified"),
                certificate=maybe(data["certificate"], "certificate", _certificate),
                floor=maybe(data.get("floor"), "floor", fraction),  # earlier bundles have none
                left_out=items(data.get("left_out", ()), "left_out", text),
            )
            _check_points(ladder)
            return ladder
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise CorruptError(f"the ladder does not read ({reason}): build the bundle again") from error


def _check_points(ladder: Ladder) -> None:
    """Raise ValueError where points contradict each other or the stages."""
    if not ladder.points:
        raise ValueError("points has 0 entries, the reference is always one")
    backbones, (low, high) = set(ladder.backbone), _SCORE_RANGES[ladder.score]
    for point in ladder.points:
        if any(math.isfinite(limit) and not low <= limit <= high for limit in point.thresholds):
            raise ValueError(
                f"point {point.name!r:.80} has thresholds {point.thresholds}, scores run from {low} to {high}"
            )
        if not point.backbones or not backbones.issuperset(point.backbones):
            raise ValueError(f"point {point.name!r} needs backbones {point.backbones}, there are {sorted(backbones)}")
    if ladder.certified and all(point.bound is None for point in ladder.points):
        raise ValueError("certified=True, and no point has a bound")


def _temperature(value: Any, name: str) -> float:
    return number(value, name, 1e-9, 1e9)


def _backbone(value: Any, name: str) -> int:
    return whole(value, name, 0, _MOST_STAGES)


def _threshold(value: Any, name: str) -> float:
    return number(value, name, -math.inf, math.inf)


def _share(value: Any, name: str) -> float:
    """A fraction that was computed. Rounding may put it a little outside of [0, 1]."""
    return number(value, name, -_ROUNDING, 1.0 + _ROUNDING)


def _count(value: Any, name: str) -> int:
    return whole(value, name)


def _change(value: Any, name: str) -> float:
    """A risk or a drop, from -1 to 1."""
    return number(value, name, -1.0 - _ROUNDING, 1.0 + _ROUNDING)


def _level(value: Any, name: str) -> float:
    return number(value, name, 1e-12, 1.0)


def _kind(value: Any, name: str) -> RiskName:
    return cast(RiskName, word(value, name, KINDS))


def _bins(value: Any, name: str) -> ScoreBins:
    data = mapping(value, name, ("edges", "counts"))
    edges = items(data["edges"], f"{name}.edges", _threshold)
    return ScoreBins(edges, items(data["counts"], f"{name}.counts", _count, len(edges) + 1))


def _point(value: Any, name: str, stages: int) -> OperatingPoint:
    required = [f.name for f in fields(OperatingPoint) if f.name != "exits"]
    data = mapping(value, name, required, ("exits",))  # earlier bundles have none
    bins = data.get("exits", ())
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
        kind=_kind(data["kind"], f"{name}.kind"),
        drop=maybe(data["drop"], f"{name}.drop", _change),
        exits=items(bins, f"{name}.exits", _bins, stages if bins else 0),
    )
    if not abs(sum(point.shares) - 1) < 1e-6:
        raise ValueError(f"{name}.shares={point.shares} must add up to 1")
    return point


def _certificate(value: Any, name: str) -> Certificate:
    required = [f.name for f in fields(Certificate) if f.name not in _LATER]
    data = mapping(value, name, required, _LATER)
    return Certificate(
        risk=_kind(data["risk"], f"{name}.risk"),
        delta=_level(data["delta"], f"{name}.delta"),
        test=text(data["test"], f"{name}.test"),
        images=_count(data["images"], f"{name}.images"),
        groups=maybe(data["groups"], f"{name}.groups", _count),
        search_images=_count(data["search_images"], f"{name}.search_images"),
        date=text(data["date"], f"{name}.date"),
        missing=items(data["missing"], f"{name}.missing", _missing),
        batch=maybe(data.get("batch"), f"{name}.batch", _count),
        labels=maybe(data.get("labels"), f"{name}.labels", _count),
    )


def _missing(value: Any, name: str) -> Missing:
    data = mapping(value, name, ("target", "risk", "needed"), ("likely",))
    return Missing(
        target=_change(data["target"], f"{name}.target"),
        risk=maybe(data["risk"], f"{name}.risk", _change),
        needed=maybe(data["needed"], f"{name}.needed", _count),
        likely=maybe(data.get("likely"), f"{name}.likely", _count),
    )


def _number(value: float) -> float | str:
    """A float as JSON has it. Infinite ones are text."""
    return value if math.isfinite(value) else str(value)
