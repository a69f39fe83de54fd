"""From records to a ladder whose points keep what they promise.

Thresholds come from the search part of the records: a path of them, from the safest to the cheapest, by losses that are
expected under what all stages together hold of an input, so that a few hundred records do. The other part certifies.
For each target the path is walked from its safe end, each step a test that the risk is above the target there, until
one cannot be rejected: fixed sequence testing (Angelopoulos et al. 2021, "Learn then Test"), so that however long the
path is, a walk errs with no more than its level. Levels add up to delta over the targets; a walk that gets to the end
hands its level to another (Bretz et al. 2009, sequentially rejective graphs). So all bounds of a ladder hold together
with probability 1 - delta, and a policy may move among the points on anything that inputs do not tell of.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from numbers import Real
from types import NoneType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.certification.answers import Answers
from dynamic.policies.certification.bounds import betting_p, upper_bound
from dynamic.policies.certification.drift import score_bins
from dynamic.policies.certification.floor import check_floor, floor_of, levels
from dynamic.policies.certification.replay import replay, shares
from dynamic.policies.certification.risks import Evidence, Risk, Sample, risk_named, test_name
from dynamic.policies.certification.temperature import fit_temperatures
from dynamic.policies.certification.threshold_search import QUANTILES, Candidate, Search
from dynamic.policies.errors import CalibrationError, SettingError
from dynamic.policies.ladder import Certificate, Interval, Ladder, Missing, OperatingPoint
from dynamic.policies.records import CERTIFY, SEARCH, Records, check_usable
from dynamic.policies.scores import SCORES, Combiner
from dynamic.policies.stage_plan import plan
from dynamic.policies.validation.numbers import plain, plain_items

MAX_DROPS = (0.0, 0.005, 0.01, 0.02, 0.05)
AUTO = "auto"
_TWO_SIDED_95 = 1.959964  # quantile of the normal distribution
_FINE = 20  # quantiles of scores on the path
_EXTREME = 0.025  # of delta: for a bound on the most accurate, the cheapest and, of errors, the reference each
_ERRORS = 1.5  # standard errors that a bound is above what was measured, about: the path is of the least sum of both


def certify(
    records: Records,
    max_drops: Sequence[float] | None = None,
    delta: float = 0.1,
    *,
    risk: str = "drop",
    combine: str = "backbones",
    score: str = "max_probability",
    body_cost: Sequence[float] | None = None,
    head_cost: Sequence[float] | None = None,
    margin: float = 1.0,
    strict: bool = False,
    floor: float | None = None,
) -> Ladder:
    """A ladder of operating points: the reference, the most accurate, one for each target, the cheapest.

    With probability at least 1 - `delta` over the draw of the certifying records, the risk of every point is at most
    its bound, all at once. `max_drops`: targets, bounds that are wished for (0, 0.005, 0.01, 0.02 and 0.05, but 0 for
    the risk "drop" alone). `risk`: "drop", accuracy lost to the reference (the last backbone alone); "harm", the
    reference right and the answer wrong; "disagreement" with the reference, which needs no labels; "error", a wrong
    answer. `score`: "auto" takes the one whose points cost least on the search part.

    Temperatures, score and thresholds see part 0 of the records only. Costs `[S]` of stage bodies and heads are
    multiply-adds unless given. Groups in the records are what was drawn independently: bounds are then of the risk of a
    random input of a random group. A target that nothing cheaper than the reference was certified for has no point, and
    the certificate says how many records would do. Where that is so of all, the ladder is not certified: points are
    then chosen with `margin` standard errors between their risk and their target, and measured. `strict` raises
    instead.

    `floor`: the accuracy that every point must keep, certified like the rest (agreement with the reference without
    labels; None: halfway between chance and the reference; 0: no floor). A point below it is left out, as is a "best"
    point that measures below the reference; the ladder's `left_out` says so. Leaving out spends no guarantee, since all
    bounds hold at once.

    Raises CalibrationError without records, a second class, or labels that the risk needs; SettingError on a target or
    delta or floor out of range, an unknown risk, score or combination.
    """
    max_drops, delta, floor, margin = plain_items(max_drops), plain(delta), plain(floor), plain(margin)
    measure, targets = check_settings(max_drops, delta, risk, score)
    check_floor(floor)
    check_usable(records)
    searched, held_out = records.select(records.part == SEARCH), records.select(records.part == CERTIFY)
    temperature = fit_temperatures(records)
    work = _Work(searched, held_out, measure, combine, body_cost, head_cost, temperature)
    found = work.best(targets) if score == AUTO else work.search(score)
    least = floor_of(searched, floor)
    most = math.inf if least is None else 1 - least if measure.of_reference else levels(searched)[-1].right - least
    certified = _certified(work, found, targets, delta, most)
    certificate = Certificate(
        risk=risk,
        delta=delta,
        test=test_name(measure, records.group is not None),
        images=len(held_out),
        groups=None if records.group is None else work.sample.units,
        search_images=len(searched),
        date=datetime.now(UTC).date().isoformat(),
        missing=certified.missing,
    )
    if strict and not certified.points:
        raise CalibrationError(
            f"nothing can be certified: {shortage(certificate)}; give more held-out inputs, larger max_drops or delta"
        )
    search = found.search if certified.points else work.search(found.score, expected=False).search
    points = certified.points or _uncertified(search, targets, margin, most)
    combiner = work.combiner(found.score)
    measured = held_out if len(held_out) else records
    nobody = (math.inf,) * (records.stages - 1)
    reference = replay(measured.logits, combiner, nobody, records.backbone).prediction
    every = [_measure(measured, reference, combiner, measure, point, delta) for point in points]
    early = search.least_cost()
    replaced = least is not None and all(p.candidate.thresholds != early.thresholds for p in points)
    excluded = {"": _left_early(early, records.stage_names, least)} if replaced else {}
    excluded |= {point.name: why for point in every[1:] if (why := _excluded(point, every[0], least, most)) is not None}
    return Ladder(
        temperature=temperature,
        score=found.score,
        combine=combine,
        backbone=records.backbone,
        stage_names=records.stage_names,
        points=tuple(point for point in every if point.name not in excluded),
        fingerprint=records.fingerprint,
        certified=bool(certified.points),
        certificate=certificate,
        scores=score_bins(records, combiner),
        floor=least,
        left_out=tuple(excluded.values()),
    )


def _left_early(early: Candidate, stage_names: Sequence[str], floor: float | None) -> str:
    """What the cheapest thresholds would lose."""
    stage = next((s for s, threshold in enumerate(early.thresholds) if threshold == -math.inf), len(early.thresholds))
    return (
        f"everyone at {stage_names[stage]!r}: risk {early.risk:.4f} where thresholds were chosen, which does not keep "
        f"the floor {floor:.4f}, left out"
    )


def _excluded(point: OperatingPoint, reference: OperatingPoint, floor: float | None, most: float) -> str | None:
    """Why a measured point is no point of the ladder, or None where it is one."""
    right = point.accuracy.mid
    if floor is not None and right < floor:
        return f"{point.name}: accuracy {right:.4f} is below the floor {floor:.4f}, left out"
    if floor is not None and point.target is None and point.bound is not None and point.bound > most:
        kept = f"{most:.4f}, which keeps the floor {floor:.4f}"
        return f"{point.name}: its bound {point.bound:.4f} is above {kept}, left out"
    if point.name == "best" and right < reference.accuracy[1]:
        return f"best: measured {right:.4f}, below the reference's {reference.accuracy[1]:.4f}, left out"
    return None


def check_settings(max_drops: Sequence[float] | None, delta: float, risk: str, score: str) -> tuple[Risk, list[float]]:
    """(the risk, its targets once each, rising); raises SettingError as `certify` does, before anything is run."""
    measure = risk_named(risk)
    if not _is_number(delta) or not 0 < delta < 1:
        raise SettingError(f"delta={delta!r} must be a number in (0, 1), e.g. 0.1")
    if score not in (*SCORES, AUTO):
        raise SettingError(f"score={score!r} is not known; use one of {sorted((*SCORES, AUTO))}")
    return measure, _targets(max_drops, measure)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def shortage(certificate: Certificate) -> str:
    """What a certificate of the targets that are missing would take, in words."""
    unit = "records" if certificate.groups is None else "groups"
    have = certificate.images if certificate.groups is None else certificate.groups
    targets: dict[str, list[str]] = {}  # by what is said of them
    for entry in certificate.missing:
        if entry.needed is not None:
            said = f"measured {entry.risk:.4f}, about {entry.needed} certifying {unit} would do"
        elif entry.risk is not None:
            said = f"measured {entry.risk:.4f}, nothing that was tried lost less than that; more {unit} may find better"
        else:
            said = "nothing cheaper to try" if have else "nothing to measure on"
        targets.setdefault(said, []).append(f"{entry.target:g}")
    wants = (f"{certificate.risk} {', '.join(some)}: {said}" for said, some in targets.items())
    return f"{have} {unit} certify; " + "; ".join(wants)


@dataclass(frozen=True)
class _Chosen:
    """Thresholds on their way to the ladder."""

    name: str
    candidate: Candidate
    target: float | None = None
    bound: float | None = None


@dataclass(frozen=True)
class _Certified:
    """The points that have bounds (none: nothing could be certified) and the targets without one."""

    points: tuple[_Chosen, ...]
    missing: tuple[Missing, ...]


@dataclass(frozen=True)
class _Found:
    """A search under one score."""

    score: str
    search: Search


@dataclass(frozen=True, eq=False)
class _Work:
    """The two parts of the records and how they are read."""

    searched: Records
    held_out: Records
    risk: Risk
    combine: str
    body_cost: Sequence[float] | None
    head_cost: Sequence[float] | None
    temperature: tuple[float, ...]

    @property
    def sample(self) -> Sample:
        return Sample(len(self.held_out), self.held_out.group)

    @property
    def errors(self) -> float:
        """Standard errors of the search part that equal `_ERRORS` of the certifying part."""
        return _ERRORS * math.sqrt(len(self.searched) / max(len(self.held_out), 1)) if len(self.held_out) else 0.0

    def combiner(self, score: str) -> Combiner:
        return Combiner(self.temperature, score, self.combine, self.searched.backbone)

    def search(self, score: str, expected: bool = True) -> _Found:
        quantiles = _FINE if expected else QUANTILES
        return _Found(
            score,
            Search(self.searched, self.combiner(score), self.body_cost, self.head_cost, quantiles, self.risk, expected),
        )

    def path(self, found: _Found) -> list[Candidate]:
        """What is worth certifying: cheaper than the reference, the safest first."""
        return [c for c in found.search.path(self.errors) if c.cost < found.search.reference.cost]

    def best(self, targets: Sequence[float]) -> _Found:
        """The score whose thresholds cost least for the targets, on average, where they were chosen."""

        def cost(found: _Found) -> float:
            path, dearest = self.path(found), found.search.reference.cost
            kept = ([c.cost for c in path if c.risk + self.errors * c.risk_se <= target] for target in targets)
            return sum(min(costs, default=dearest) for costs in kept)

        return min((self.search(score) for score in SCORES), key=cost)


def _certified(work: _Work, found: _Found, targets: Sequence[float], delta: float, most: float) -> _Certified:
    path = work.path(found)
    if not len(work.held_out):
        return _Certified((), tuple(Missing(target, None, None) for target in targets))
    answers = Answers(work.held_out, work.combiner(found.score), work.risk, work.body_cost, work.head_cost)
    sample = work.sample

    def evidence(candidate: Candidate) -> Evidence:
        return Evidence(work.risk, sample, answers.leaving(candidate.thresholds)[1])

    level = delta * (1 - 3 * _EXTREME) / max(len(targets), 1)
    steps = [evidence(candidate) for candidate in path]
    reached = _walk(steps, targets, level)
    points, missing = [], []
    for target in targets:
        last = max(reached[t] for t in targets if t <= target) - 1
        if last >= 0:
            points.append(_Chosen(f"{work.risk.name} {target:g}", path[last], target, target))
        else:
            # the first may just have been unlucky; what would do already comes after one that does not
            forecasts = ((step.needed(target, level), step.mean) for step in steps[:10])
            forecast = [(n, mean) for n, mean in forecasts if n is not None and n > sample.units]
            needed, risk = min(forecast, default=(None, steps[0].mean if steps else None))
            missing.append(Missing(target, risk, needed))
    if not points:
        return _Certified((), tuple(missing))

    def bounded(name: str, candidate: Candidate) -> _Chosen:
        own, least = evidence(candidate), delta * _EXTREME
        if own.p_value(0.0, least) <= least:
            return _Chosen(name, candidate, None, 0.0)
        bound = upper_bound(lambda target: own.p_value(target, least), least)
        return _Chosen(name, candidate, None, math.ceil(bound * 1e4) / 1e4)

    search = found.search
    reference = _Chosen("reference", search.reference, 0.0, 0.0)
    if work.risk.of_reference:
        reference = bounded("reference", search.reference)
    best = search.most_accurate(work.errors)
    ends = [bounded("cheapest", _least(search, most, work.errors))]
    if best.risk < search.reference.risk:
        ends.append(bounded("best", best))
    return _Certified(tuple(_in_order(reference, [*points, *ends])), tuple(missing))


def _walk(steps: Sequence[Evidence], targets: Sequence[float], level: float) -> dict[float, int]:
    """How many steps of the path each target's walk rejected, all errors together below the sum of the levels."""
    levels, reached = dict.fromkeys(targets, level), dict.fromkeys(targets, 0)
    walking = sorted(targets, reverse=True)  # the loosest are the likeliest to arrive and hand their level on
    arrived = True
    while arrived:
        arrived = False
        for target in list(walking):
            at, own = reached[target], levels[target]
            while at < len(steps) and steps[at].p_value(target, own) <= own:
                at += 1
            reached[target] = at
            if at == len(steps):
                heir = next((t for t in walking if t < target), None)
                heir = next((t for t in walking if t != target), None) if heir is None else heir
                walking.remove(target)
                if heir is not None:
                    levels[heir] += own
                    arrived = True
    return reached


def _least(search: Search, most: float, margin: float) -> Candidate:
    """The cheapest thresholds whose risk, plus `margin` standard errors, is at most `most`."""
    least = search.least_cost()
    if least.risk + margin * least.risk_se <= most:
        return least
    return search.cheapest(most, margin) or search.reference


def _uncertified(search: Search, targets: Sequence[float], margin: float, most: float) -> list[_Chosen]:
    """The points that a search alone would take: an estimate, no bound."""
    chosen: list[_Chosen] = []
    best = search.most_accurate(margin)
    if best.risk < search.reference.risk:
        chosen.append(_Chosen("best", best, 0.0))
    for target in targets:
        cheapest = search.cheapest(target, margin)
        if cheapest is not None:
            chosen.append(_Chosen(f"{search.risk.name} {target:g}", cheapest, target))
    chosen.append(_Chosen("cheapest", _least(search, most, margin)))
    return _in_order(_Chosen("reference", search.reference, None if search.risk.of_reference else 0.0), chosen)


def _in_order(reference: _Chosen, others: Sequence[_Chosen]) -> list[_Chosen]:
    """The reference, then from dear to cheap; the same thresholds once, under their least target and bound."""
    kept: dict[tuple[float, ...], _Chosen] = {}
    for point in sorted(others, key=lambda p: math.inf if p.target is None else p.target):
        thresholds = point.candidate.thresholds
        first = kept.setdefault(thresholds, point)
        if first.bound is not None and point.bound is not None:
            kept[thresholds] = replace(first, bound=min(first.bound, point.bound))
    kept.pop(reference.candidate.thresholds, None)
    return [reference, *sorted(kept.values(), key=lambda p: -p.candidate.cost)]


def _targets(given: Sequence[float] | None, risk: Risk) -> list[float]:
    """The targets once each, rising."""
    if isinstance(given, str) or not isinstance(given, (Iterable, NoneType)):
        raise SettingError(f"max_drops={given!r} must be a sequence of targets, such as ({given},)")
    for target in given or ():
        if not _is_number(target):
            raise SettingError(f"max_drops holds {target!r}; a drop is a number in [0, 1), 0.01 for one point")
    targets = sorted(set(MAX_DROPS if given is None else given))
    if given is None and not risk.signed:
        targets = [target for target in targets if target > 0]
    if not targets:
        raise SettingError("max_drops is empty; give at least one, 0.01 for one point, or None for the usual five")
    for target in targets:
        if not 0 <= target < 1:
            raise SettingError(f"max_drops holds {target}; a drop is a fraction in [0, 1), 0.01 for one point")
        if target == 0 and not risk.signed:
            raise SettingError(
                f"max_drops holds 0, and no data can show that {risk.name!r} never happens: give more than 0, or "
                "risk='drop', of which what is gained elsewhere makes up for losses"
            )
    return targets


def _measure(
    records: Records, reference: NDArray[np.int64], combiner: Combiner, risk: Risk, chosen: _Chosen, delta: float
) -> OperatingPoint:
    """The point as it did on `records`, of which the reference predicts `reference [N]`."""
    found = replay(records.logits, combiner, chosen.candidate.thresholds, records.backbone)
    wanted = risk.wanted(records, reference)
    loss = risk.loss(found.prediction == wanted, reference == wanted)
    sample = Sample(len(records), records.group)
    right = found.prediction == (reference if records.label is None else records.label)
    todo = plan(np.array(chosen.candidate.thresholds, np.float32), records.backbone)
    needed = {b for s, b in enumerate(records.backbone) if todo.run[s] and s <= todo.deepest}
    drop = None if records.label is None else sample.mean((reference == records.label).astype(np.int8) - right)
    return OperatingPoint(
        name=chosen.name,
        thresholds=chosen.candidate.thresholds,
        backbones=tuple(sorted(needed)),
        target=chosen.target,
        risk=sample.mean(loss),
        bound=chosen.bound,
        delta=None if chosen.bound is None else delta,
        n=len(records),
        accuracy=Interval(*_interval(sample, right)),
        shares=shares(found.stage, records.stages),
        kind=risk.name,
        drop=drop,
    )


def _interval(sample: Sample, right: NDArray[Any]) -> tuple[float, float, float]:
    """(low, share, high) of right answers, 95%; of groups by betting on each side."""
    if sample.group is None:
        return wilson(int(right.sum()), sample.count)
    means = sample.unit_means(right)
    low = 1 - upper_bound(lambda target: betting_p(1 - means, target), 0.025, high=1 - 1e-9)
    high = upper_bound(lambda target: betting_p(means, target), 0.025, high=1 - 1e-9)
    return low, float(means.mean()), high


def wilson(successes: int, count: int) -> tuple[float, float, float]:
    """(low, share, high): the 95% score interval of a binomial share (Wilson 1927)."""
    share, z2 = successes / count, _TWO_SIDED_95**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _TWO_SIDED_95 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return max(0.0, middle - half), share, min(1.0, middle + half)
