"""From records to a ladder of operating points whose bounds hold.

The search part of the records chooses thresholds: a path of them, from the safest to the cheapest. Its losses are
expected values under what all stages together predict, so a few hundred records suffice. The other part
certifies. For each target a walk starts at the safe end of the path. Each step tests the hypothesis that the risk is
above the target there, and the walk ends at the first one that cannot be rejected. This is fixed sequence testing
(Angelopoulos et al. 2021, "Learn then Test"), so the length of the path does not matter for the error of a walk.
Levels of the targets add up to delta. A walk that reaches the end hands its level to another (Bretz et al. 2009,
sequentially rejective graphs). So all bounds of a ladder hold at once with probability 1 - delta. A policy may switch
between the points on anything that is independent of the inputs.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from dynamic.policies.certification.drift import exit_bins
from dynamic.policies.certification.floor import check_floor, floor_of, levels
from dynamic.policies.certification.ladders.chosen_points import uncertified_points
from dynamic.policies.certification.ladders.measured_points import below_floor, measured_point, why_excluded, wilson
from dynamic.policies.certification.ladders.settings import ScoreChoice, check_settings
from dynamic.policies.certification.ladders.shortage import shortage, shortage_lines
from dynamic.policies.certification.ladders.walks import RecordParts, certified_points, choosing_records
from dynamic.policies.certification.replay import replay
from dynamic.policies.certification.risks import batch_test_name, test_name
from dynamic.policies.certification.temperature import fit_temperatures
from dynamic.policies.errors import CalibrationError, SettingError
from dynamic.policies.ladder import Certificate, Ladder, RiskName
from dynamic.policies.records import CERTIFY, SEARCH, Records, check_usable
from dynamic.policies.scores import Combination, check_combination
from dynamic.policies.validation.numbers import plain, plain_items

__all__ = ["certify", "check_settings", "shortage", "shortage_lines", "wilson"]


def certify(
    records: Records,
    max_drops: Sequence[float] | None = None,
    *,
    delta: float = 0.1,
    risk: RiskName = "drop",
    combine: Combination = "backbones",
    score: ScoreChoice = "max_probability",
    body_cost: Sequence[float] | None = None,
    head_cost: Sequence[float] | None = None,
    margin: float = 1.0,
    strict: bool = False,
    floor: float | None = None,
) -> Ladder:
    """Certify a ladder of operating points: the reference, the most accurate, one for each target, the cheapest.

    With probability at least 1 - `delta` over the draw of the certifying records, the risk of every point is at most
    its bound, for all points at once. Temperatures, score and thresholds use part 0 of the records alone. Where records
    have groups, bounds are of the risk of a random input of a random group.

    A target for which nothing cheaper than the reference was certified has no point, and the certificate has the number
    of records it needs. Where that is so of all targets, the ladder is not certified. Its points are then estimates.

    Args:
        records: Calibration records of both parts.
        max_drops: Targets for the risk, 0.01 for one percentage point. None: 0, 0.005, 0.01, 0.02 and 0.05. The target
            0 is for the risk "drop" alone.
        delta: The probability that a bound is wrong.
        risk: What is bounded. "drop" is accuracy lost to the reference, which is the last backbone alone. "harm": the
            reference is right and the answer is wrong. "disagreement" with the reference needs no labels. "error": the
            answer is wrong.
        combine: How answers of stages are combined, see `Combiner`.
        score: Confidence of an answer, see `Combiner`. "auto" takes the score whose points cost least on part 0.
        body_cost: Cost of the body of each stage `[S]`, in any one unit. None: multiply-adds.
        head_cost: Cost of the head of each stage `[S]`, in the same unit. None: multiply-adds.
        margin: Standard errors between risk and target in a ladder that is not certified.
        strict: Whether a ladder that is not certified is an error.
        floor: The accuracy that every point must reach. Points below it are left out. None: halfway between chance and
            the reference. 0: no floor. Without labels it is the agreement with the reference.

    Returns:
        The ladder. `certificate` is what its bounds rest on, and `left_out` lists the points that it lacks.

    Raises:
        CalibrationError: when there are no records, one class alone, no labels that the risk needs, or no certified
            point under `strict`.
        SettingError: when a target, `delta` or `floor` is out of range, or a risk, score or combination is unknown.

    Example:
        >>> ladder = dynamic.certify(records, (0.05,), delta=0.1)
        >>> ladder.points[0].name, ladder.certificate.delta
        ('reference', 0.1)
    """
    max_drops, delta, floor, margin = plain_items(max_drops), plain(delta), plain(floor), plain(margin)
    measure, targets = check_settings(max_drops, delta, risk=risk, score=score)
    check_floor(floor)
    check_combination(combine)
    check_usable(records)
    search_records, certify_records = records.select(records.part == SEARCH), records.select(records.part == CERTIFY)
    if records.batch is not None and records.batch != len(records):
        raise CalibrationError(
            f"the {len(records)} records are a part of a batch of {records.batch} inputs: certify the whole batch"
        )
    if records.on_demand:
        search_records = choosing_records(records)
        if score == "auto":
            raise SettingError("score='auto' chooses by labels, and these were asked for on demand: name one score")
    temperature = fit_temperatures(records)
    parts = RecordParts(search_records, certify_records, measure, combine, body_cost, head_cost, temperature)
    one = parts.best_search(targets) if score == "auto" else parts.search(score)
    least = floor_of(search_records, floor)
    risk_limit = math.inf
    if least is not None:
        risk_limit = 1 - least if measure.of_reference else levels(search_records)[-1].right - least
    certified = certified_points(parts, one, targets, delta=delta, risk_limit=risk_limit)
    certificate = Certificate(
        risk=measure.name,
        delta=delta,
        test=batch_test_name(len(records)) if records.finite else test_name(measure, records.group is not None),
        images=len(certify_records),
        groups=None if records.group is None else parts.sample.units,
        # on demand all inputs show what the only exit costs, and none of them chooses
        search_images=0 if records.on_demand and len(search_records) == len(records) else len(search_records),
        date=datetime.now(UTC).date().isoformat(),
        missing=certified.missing,
        batch=records.batch,
        labels=certify_records.label_count if records.on_demand else None,
    )
    if strict and not certified.points:
        raise CalibrationError(
            f"nothing can be certified. {shortage(certificate)}. Give more held-out inputs, or larger max_drops= or "
            "delta="
        )
    search = one.search if certified.points or records.on_demand else parts.search(one.score, expected=False).search
    points = certified.points or uncertified_points(search, targets, margin=margin, risk_limit=risk_limit)
    combiner = parts.combiner(one.score)
    measured = certify_records if len(certify_records) else records
    all_off = (math.inf,) * (records.stages - 1)
    reference = replay(measured.logits, combiner, thresholds=all_off, backbone=records.backbone).prediction
    every = [
        measured_point(measured, reference, combiner=combiner, risk=measure, chosen=point, delta=delta)
        for point in points
    ]
    cheapest, left_out = search.least_cost(), {}
    if least is not None and all(p.candidate.thresholds != cheapest.thresholds for p in points):
        left_out[""] = below_floor(cheapest, records.stage_names, least)
    for point in every[1:]:
        why = why_excluded(point, every[0], floor=least, risk_limit=risk_limit)
        if why is not None:
            left_out[point.name] = why
    offers = [point for point in every if point.name not in left_out]
    exits = exit_bins(records, combiner, [point.thresholds for point in offers])
    return Ladder(
        temperature=temperature,
        score=one.score,
        combine=combine,
        backbone=records.backbone,
        stage_names=records.stage_names,
        points=tuple(replace(point, exits=own) for point, own in zip(offers, exits, strict=True)),
        fingerprint=records.fingerprint,
        certified=bool(certified.points),
        certificate=certificate,
        floor=least,
        left_out=tuple(left_out.values()),
    )
