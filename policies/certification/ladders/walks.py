"""Walks along a path of thresholds, from the safest to the cheapest, each step a test on the certifying records."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dynamic.policies.certification.answers import Answers
from dynamic.policies.certification.bounds import upper_bound
from dynamic.policies.certification.ladders.chosen_points import ChosenPoint, cheapest_within, in_order
from dynamic.policies.certification.ladders.counted_steps import LossTest
from dynamic.policies.certification.ladders.step_paths import OneExitPath, SearchedPath, StepPath
from dynamic.policies.certification.risks import Evidence, Risk, Sample
from dynamic.policies.certification.threshold_search import QUANTILES, Candidate, Search
from dynamic.policies.ladder import Missing
from dynamic.policies.records import Records
from dynamic.policies.scores import SCORES, Combination, Combiner, Score

FINE_QUANTILES = 20  # of scores on the path
EXTREME_SHARE = 0.025  # of delta for each bound of the most accurate, the cheapest and, for errors, the reference
STANDARD_ERRORS = 1.5  # about how far a bound is above the measured risk. The path minimizes the sum of both


@dataclass(frozen=True)
class ScoreSearch:
    """A search under one score."""

    score: Score
    search: Search


@dataclass(frozen=True)
class CertifiedPoints:
    """The points with a bound, and the targets without one. No points: nothing could be certified."""

    points: tuple[ChosenPoint, ...]
    missing: tuple[Missing, ...]


@dataclass(frozen=True, eq=False)
class RecordParts:
    """The two parts of the records, and how their logits become answers.

    Args:
        search_records: Records that choose.
        certify_records: Records that certify.
        risk: What is bounded.
        combine: How answers of stages are combined.
        body_cost: Cost of the body of each stage `[S]`. None: multiply-adds.
        head_cost: Cost of the head of each stage `[S]`. None: multiply-adds.
        temperature: Logits are divided by it `[S]`.
    """

    search_records: Records
    certify_records: Records
    risk: Risk
    combine: Combination
    body_cost: Sequence[float] | None
    head_cost: Sequence[float] | None
    temperature: tuple[float, ...]

    @property
    def sample(self) -> Sample:
        """The certifying records as a sample."""
        return Sample(len(self.certify_records), self.certify_records.group)

    @property
    def errors(self) -> float:
        """Standard errors of the search part that equal `STANDARD_ERRORS` of the certifying part."""
        certifying = len(self.certify_records)
        return STANDARD_ERRORS * math.sqrt(len(self.search_records) / certifying) if certifying else 0.0

    @property
    def has_one_exit(self) -> bool:
        """Whether one threshold is free, and records are independent."""
        return self.search_records.stages == 2 and self.certify_records.group is None

    @property
    def is_nested(self) -> bool:
        """Whether losses only grow as thresholds fall: inputs that continue get the answer of the reference."""
        return self.combine == "last" and not self.risk.of_reference

    def combiner(self, score: Score) -> Combiner:
        """The combiner with this score."""
        return Combiner(self.temperature, score, combine=self.combine, backbone=self.search_records.backbone)

    def search(self, score: Score, expected: bool = True) -> ScoreSearch:
        """The search with this score."""
        search = Search(
            self.search_records,
            self.combiner(score),
            body=self.body_cost,
            head=self.head_cost,
            quantiles=FINE_QUANTILES if expected else QUANTILES,
            risk=self.risk,
            expected=expected,
        )
        return ScoreSearch(score, search)

    def path(self, search: Search) -> list[Candidate]:
        """The thresholds that are cheaper than the reference, the safest first."""
        return [c for c in search.path(self.errors) if c.cost < search.reference.cost]

    def best_search(self, targets: Sequence[float]) -> ScoreSearch:
        """The search with the score whose thresholds cost least on the search part, on average over the targets."""

        def cost(one: ScoreSearch) -> float:
            path, most = self.path(one.search), one.search.reference.cost
            within = ([c.cost for c in path if c.risk + self.errors * c.risk_se <= target] for target in targets)
            return sum(min(costs, default=most) for costs in within)

        return min((self.search(score) for score in SCORES), key=cost)


def certified_points(
    parts: RecordParts, one: ScoreSearch, targets: Sequence[float], *, delta: float, risk_limit: float
) -> CertifiedPoints:
    """The points of a ladder with their bounds.

    Args:
        parts: The records.
        one: The search on the search part.
        targets: In rising order.
        delta: The probability that any bound is wrong.
        risk_limit: The cheapest point must measure a risk within it on the search part.

    Returns:
        Points and missing targets.
    """
    if not len(parts.certify_records):
        return CertifiedPoints((), tuple(Missing(target, None, None) for target in targets))
    answers = Answers(
        parts.certify_records, parts.combiner(one.score), parts.risk, body=parts.body_cost, head=parts.head_cost
    )
    sample = parts.sample

    def evidence(candidate: Candidate) -> Evidence:
        return Evidence(parts.risk, sample, answers.exits_under(candidate.thresholds)[1])

    level = delta * (1 - 3 * EXTREME_SHARE) / max(len(targets), 1)
    path: StepPath
    if parts.has_one_exit:
        test = LossTest(parts.risk, len(parts.certify_records), nested=parts.is_nested)
        path = OneExitPath(
            answers.exits((0,)), test, search=one.search, evidence=evidence, margin=parts.errors, level=level
        )
    else:
        path = SearchedPath.of(parts.path(one.search), evidence)
    reached = walk_by(path.first_failure, len(path), targets, level)
    points, missing = [], []
    for target in targets:
        last = max(reached[t] for t in targets if t <= target) - 1
        if last >= 0 and path.candidate(last).cost < one.search.reference.cost:
            points.append(ChosenPoint(f"{parts.risk.name} {target:g}", path.candidate(last), target, target))
        else:
            missing.append(path.missing(target, level))
    if not points:
        return CertifiedPoints((), tuple(missing))

    def bounded(name: str, candidate: Candidate) -> ChosenPoint:
        own, least = evidence(candidate), delta * EXTREME_SHARE
        if own.p_value(0.0, least) <= least:
            return ChosenPoint(name, candidate, None, 0.0)
        bound = upper_bound(lambda target: own.p_value(target, least), least)
        return ChosenPoint(name, candidate, None, math.ceil(bound * 1e4) / 1e4)

    search = one.search
    reference = ChosenPoint("reference", search.reference, 0.0, 0.0)
    if parts.risk.of_reference:
        reference = bounded("reference", search.reference)
    best = search.most_accurate(parts.errors)
    ends = [bounded("cheapest", cheapest_within(search, risk_limit, parts.errors))]
    if best.risk < search.reference.risk:
        ends.append(bounded("best", best))
    return CertifiedPoints(tuple(in_order(reference, [*points, *ends])), tuple(missing))


def walk(steps: Sequence[Evidence], targets: Sequence[float], level: float) -> dict[float, int]:
    """The number of steps that the walk of each target rejects.

    A walk that reaches the end of the path hands its level to another target. The probability of any error is below
    the sum of the levels (Bretz et al. 2009).

    Args:
        steps: Evidence on the thresholds of the path, the safest first.
        targets: One walk for each.
        level: Of each walk at the start.

    Returns:
        The number of steps by target.
    """

    def first_failure(target: float, own: float, at: int) -> int:
        while at < len(steps) and steps[at].p_value(target, own) <= own:
            at += 1
        return at

    return walk_by(first_failure, len(steps), targets, level)


def walk_by(
    first_failure: Callable[[float, float, int], int], count: int, targets: Sequence[float], level: float
) -> dict[float, int]:
    """The number of steps that the walk of each target rejects, where steps are tested by a function.

    Args:
        first_failure: Target, level and number of a step -> number of the first step from there on that is not
            rejected.
        count: Number of steps.
        targets: One walk for each.
        level: Of each walk at the start.

    Returns:
        The number of steps by target.
    """
    levels, reached = dict.fromkeys(targets, level), dict.fromkeys(targets, 0)
    walking = sorted(targets, reverse=True)  # the largest are the most likely to reach the end
    arrived = True
    while arrived:
        arrived = False
        for target in list(walking):
            own = levels[target]
            at = reached[target] = first_failure(target, own, reached[target])
            if at == count:
                heir = next((t for t in walking if t < target), None)
                heir = next((t for t in walking if t != target), None) if heir is None else heir
                walking.remove(target)
                if heir is not None:
                    levels[heir] += own
                    arrived = True
    return reached
