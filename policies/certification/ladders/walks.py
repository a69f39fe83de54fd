"""Walks along a path of thresholds, from the safest to the cheapest, each step a test on the certifying records."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dynamic.policies.certification.answers import Answers
from dynamic.policies.certification.bounds import upper_bound
from dynamic.policies.certification.ladders.chosen_points import ChosenPoint, cheapest_within, in_order
from dynamic.policies.certification.ladders.counted_steps import LossTest
from dynamic.policies.certification.ladders.step_paths import OneExitPath, SearchedPath, StepPath, Steps
from dynamic.policies.certification.risks import ROUNDING, Evidence, Risk, Sample
from dynamic.policies.certification.threshold_search import QUANTILES, Candidate, Search
from dynamic.policies.ladder import Missing
from dynamic.policies.records import SEARCH, UNKNOWN, Records
from dynamic.policies.scores import SCORES, Combination, Combiner, Score

FINE_QUANTILES = 20  # of scores on the path
EXTREME_SHARE = 0.025  # of delta for each bound of the most accurate, the cheapest and, for errors, the reference
# share of the cost that a search over several exits loses, times the losses that a certificate is likely to allow. One
# exit too many costs little in one network, and a whole network elsewhere. With fewer than 10 losses the first steps of
# a search fail, at any saving tried (CIFAR-10, three to six stages: benchmarks.statistics.few_labels_before). Labels on
# demand leave none to choose by, so beliefs order the steps of a search badly: 0.1 costs exits 0.736 and not 0.670 at
# drop 0.02 and 200 labels, and 0.2 to 1 are equal. All were chosen on seeds 0 to 39 of these benchmarks
SEARCH_LOSS, SEARCH_LOSS_OF_EXITS = 2.0, 0.5
FEW_LOSSES_LOSS, SOME_LOSSES = 0.5, 10.0
ON_DEMAND_LOSS = 0.3
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


def choosing_records(records: Records) -> Records:
    """The records that choose where labels were asked for on demand: they have no labels.

    One threshold is free of any choice, so all records show what it costs. For a finite batch all scores are known, and
    thresholds may be any function of them. Otherwise inputs that were not drawn choose.
    """
    chosen = records if records.finite or records.stages == 2 else records.select(records.part == SEARCH)
    return replace(chosen, label=np.full(len(chosen), UNKNOWN, np.int64))


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
        return Sample(len(self.certify_records), self.certify_records.group, self.batch)

    @property
    def batch(self) -> int | None:
        """Inputs of the finite batch that a certificate is for. None: it is for future inputs."""
        return self.certify_records.batch

    @property
    def errors(self) -> float:
        """Standard errors of the search part that equal `STANDARD_ERRORS` of the certifying part."""
        certifying = len(self.certify_records)
        return STANDARD_ERRORS * math.sqrt(len(self.search_records) / certifying) if certifying else 0.0

    def level(self, delta: float, targets: Sequence[float]) -> float:
        """The level of each target. Labels on demand leave none for the most accurate and the cheapest thresholds."""
        rest = 0.0 if self.certify_records.on_demand else 3 * EXTREME_SHARE
        return delta * (1 - rest) / max(len(targets), 1)

    def answers(self, score: Score) -> Answers:
        """What the certifying records answer."""
        return Answers(self.certify_records, self.combiner(score), self.risk, body=self.body_cost, head=self.head_cost)

    def steps(self, one: ScoreSearch, targets: Sequence[float], level: float, answers: Answers) -> StepPath:
        """The steps of the walks, with what the certifying records say of them."""
        sample = self.sample

        def evidence(candidate: Candidate) -> Evidence:
            opened = answers.open_under(candidate.thresholds)
            return Evidence(self.risk, sample, answers.exits_under(candidate.thresholds)[1], opened)

        stage = self.free_exit(one.search, targets)
        if stage is None:
            return SearchedPath.of(self.path(one.search), evidence)
        test = LossTest(self.risk, len(self.certify_records), self.batch, self.is_nested)
        return OneExitPath(
            answers.exits_of((stage,)),
            test,
            stages=answers.stages,
            search=one.search,
            evidence=evidence,
            margin=None if self.certify_records.on_demand else self.errors,
            level=level,
        )

    def free_exit(self, search: Search, targets: Sequence[float]) -> int | None:
        """The only exit whose threshold is free. None: a search chooses the thresholds of several exits.

        A search pays where several exits save more than it loses: its path is chosen by few records, and their number
        decides how much it loses. It loses less where all exits are those of one network.

        Labels on demand leave no label to choose by. The exit is then the one of the least expected cost at the
        targets, among the exits of all networks, under losses that unlabelled scores expect. This spends nothing of
        delta. The records that choose are independent of those that certify, or all scores of a finite batch, and no
        label is looked at. Given them, the thresholds of this exit are a fixed sequence of hypotheses, so the first
        true one is rejected with probability at most the level, whichever exit it is (Bauer 1991, Angelopoulos et al.
        2021, "Learn then Test", Proposition 2). `counted_steps` has the proof for one exit.
        """
        if self.has_one_exit:
            return 0
        grouped, stages = self.certify_records.group is not None, self.search_records.stages
        if grouped or stages < 2 or self.risk.of_reference:
            return None  # the first exits may gain where the reference loses too, and one exit does not find that
        if self.certify_records.on_demand:
            return search.single_exit(targets, self.errors, ON_DEMAND_LOSS)
        losses = len(self.certify_records) * sum(targets) / len(targets)  # that targets allow
        lost = SEARCH_LOSS_OF_EXITS if len(set(self.search_records.backbone)) == 1 else SEARCH_LOSS
        worth = FEW_LOSSES_LOSS if losses < SOME_LOSSES else lost / losses
        return search.single_exit(targets, self.errors, worth)

    @property
    def has_one_exit(self) -> bool:
        """Whether one threshold is free, and records are independent."""
        return self.search_records.stages == 2 and self.certify_records.group is None

    @property
    def is_nested(self) -> bool:
        """Whether losses only grow as thresholds fall: inputs that continue get the answer of the reference."""
        return self.combine == "last" and not self.risk.of_reference

    def with_free_exits(self, search: Search, target: float, candidate: Candidate | None) -> Candidate | None:
        """The thresholds, or lower ones that need no label, because so few inputs of a batch exit under them.

        The share that exits bounds the risk, where inputs that continue lose nothing. In a finite batch that share is
        known, so this spends nothing of delta.
        """
        if self.batch is None or not self.has_one_exit or not self.is_nested:
            return candidate
        free = search.candidate((search.threshold_for(int(target * self.batch + ROUNDING)),))
        return free if candidate is None or free.cost < candidate.cost else candidate

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
    level = parts.level(delta, targets)
    path = parts.steps(one, targets, level, parts.answers(one.score))
    chosen = points_of(parts, one, targets, level, path)
    points = [point for point in chosen.values() if point is not None]
    missing = [path.missing(target, level) for target, point in chosen.items() if point is None]
    if not points:
        return CertifiedPoints((), tuple(missing))
    if parts.certify_records.on_demand:
        first = ChosenPoint(
            "reference", one.search.reference, *((None, None) if parts.risk.of_reference else (0.0, 0.0))
        )
        return CertifiedPoints(tuple(in_order(first, points)), tuple(missing))

    def bounded(name: str, candidate: Candidate) -> ChosenPoint:
        own, least = path.evidence(candidate), delta * EXTREME_SHARE
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


def target_points(
    parts: RecordParts, one: ScoreSearch, targets: Sequence[float], level: float, answers: Answers
) -> dict[float, ChosenPoint | None]:
    """The point that certifying records with these answers give for each target. None: there is none."""
    return points_of(parts, one, targets, level, parts.steps(one, targets, level, answers))


def points_of(
    parts: RecordParts, one: ScoreSearch, targets: Sequence[float], level: float, path: StepPath
) -> dict[float, ChosenPoint | None]:
    """The last step that each walk rejects, as a point. None: there is none that is cheaper than the reference."""
    reached = walk(path, targets, level)
    points: dict[float, ChosenPoint | None] = {}
    for target in targets:
        last = max(reached[t] for t in targets if t <= target) - 1
        candidate = parts.with_free_exits(one.search, target, path.candidate(last) if last >= 0 else None)
        cheaper = candidate is not None and candidate.cost < one.search.reference.cost
        name = f"{parts.risk.name} {target:g}"
        points[target] = ChosenPoint(name, candidate, target, target) if candidate is not None and cheaper else None
    return points


def walk(steps: Steps, targets: Sequence[float], level: float) -> dict[float, int]:
    """The number of steps that the walk of each target rejects.

    A walk that reaches the end of the path hands its level to another target. The probability of any error is below
    the sum of the levels (Bretz et al. 2009).

    Args:
        steps: The steps of the path, the safest first.
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
            at = reached[target] = steps.first_failure(target, own, reached[target])
            if at == len(steps):
                heir = next((t for t in walking if t < target), None)
                heir = next((t for t in walking if t != target), None) if heir is None else heir
                walking.remove(target)
                if heir is not None:
                    levels[heir] += own
                    arrived = True
    return reached
