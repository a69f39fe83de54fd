"""Everything that a report shows, as data: what a bundle holds, and what follows from its records and costs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dynamic.bundle.tables import certificate_text
from dynamic.policies.budget import Budget
from dynamic.policies.certification.ladders.point_sentences import point_sentences
from dynamic.report.page.answers import Example, PointAnswers, point_answers
from dynamic.report.page.day import Day, simulated_day
from dynamic.report.page.evidence import Evidence, evidence_of
from dynamic.report.page.point_rows import PointRow, point_rows
from dynamic.report.page.stage_figures import (
    Calibration,
    ReliabilityBin,
    ScoreBin,
    StageCost,
    reliability,
    score_bins,
    stage_costs,
)
from dynamic.report.reported_bundle import ReportedBundle
from dynamic.report.stages_alone import Alone, accuracy_word, ladder_word, stages_alone

_PICTURE_BYTES = 1_200_000  # in all: a page stays below 3 MB


@dataclass(frozen=True)
class Content:
    """The data of a page.

    Args:
        engine: Engine and precision of the calibration.
        machine: Where costs were measured. None: nowhere.
        stages: Names of the stages.
        ladder_word: What accuracies of points and of stages alone are, on the bundle's own records: of labels, or
            agreement with the reference.
        accuracy_word: The same of the inputs that this report measures on.
        score_word: The score that thresholds are compared with.
        source: What answers are measured on.
        certificate: What the bounds rest on, in words.
        points: The operating points.
        alone: Each stage alone. Empty: not profiled.
        answers: The answers of each point.
        pictures: Pictures of the inputs that `answers` names, as data URIs by their number.
        texts: Beginnings of these inputs, where they are texts.
        stage_costs: Costs of each stage. Empty: not profiled.
        scores: Histograms of scores.
        reliability: Reliability of each stage.
        calibration: Temperatures.
        day: A simulated day. None: not profiled.
        missing: What the page lacks, with the reason and the remedy.
    """

    engine: str
    machine: str | None
    stages: tuple[str, ...]
    ladder_word: str
    accuracy_word: str
    score_word: str
    source: str
    certificate: str
    points: tuple[PointRow, ...]
    alone: tuple[Alone, ...]
    answers: tuple[PointAnswers, ...]
    pictures: Mapping[int, str]
    texts: Mapping[int, str]
    stage_costs: tuple[StageCost, ...]
    scores: tuple[ScoreBin, ...]
    reliability: tuple[ReliabilityBin, ...]
    calibration: tuple[Calibration, ...]
    day: Day | None
    missing: tuple[str, ...]


def content_of(
    bundle: ReportedBundle,
    eval_loader: Iterable[Any] | None,
    *,
    device: str,
    budget: Budget | None,
    seed: int,
    progress: bool | None,
) -> Content:
    """Collect the data. See `Bundle.report`."""
    ladder, frontier = bundle.ladder, None if bundle.costs is None else bundle.frontier
    evidence = evidence_of(bundle, eval_loader, progress)
    bins, errors = reliability(ladder, evidence)
    answers = point_answers(ladder, evidence, bundle.classes)
    pictures, left_out = _pictures(answers, evidence)
    return Content(
        engine=f"{bundle.engine} {bundle.precision}",
        machine=None if bundle.costs is None else f"{bundle.costs.machine}, {bundle.costs.threads} threads",
        stages=ladder.stage_names,
        ladder_word=ladder_word(ladder),
        accuracy_word=accuracy_word(evidence.labelled),
        score_word=ladder.score.replace("_", " "),
        source=evidence.source,
        certificate=certificate_text(ladder),
        points=point_rows(ladder, frontier, point_sentences(ladder)),
        alone=() if frontier is None else tuple(stages_alone(frontier, bundle.records)),
        answers=answers,
        pictures=pictures,
        texts={one.record: evidence.texts[one.record] for own in answers for one in _shown(own) if evidence.texts},
        stage_costs=() if bundle.costs is None else stage_costs(bundle.costs, ladder),
        scores=score_bins(ladder, evidence),
        reliability=bins,
        calibration=errors,
        day=None
        if frontier is None
        else simulated_day(frontier, evidence.records, device=device, budget=budget, seed=seed),
        missing=(*_missing(bundle, evidence, eval_loader is not None), *left_out),
    )


def _pictures(answers: Iterable[PointAnswers], evidence: Evidence) -> tuple[dict[int, str], list[str]]:
    """The pictures of examples, each once, and a message where not all of them fit."""
    pictures: dict[int, str] = {}
    if not evidence.thumbnails:
        return pictures, []
    room, left_out = _PICTURE_BYTES, set()
    for own in answers:
        for one in _shown(own):
            if one.record in pictures or one.record in left_out:
                continue
            picture = evidence.picture(one.record)
            if len(picture) <= room:
                pictures[one.record] = picture
                room -= len(picture)
            else:
                left_out.add(one.record)
    words = f"Example pictures: {len(left_out)} of {len(pictures) + len(left_out)} are left out to keep the page small."
    return pictures, [words] if left_out else []


def _shown(own: PointAnswers) -> Iterable[Example]:
    """The inputs that the page shows of a point."""
    return (*own.wrong, *(example for stage in own.stages for example in (*stage.easy, *stage.hard)))


def _missing(bundle: ReportedBundle, evidence: Evidence, has_loader: bool) -> tuple[str, ...]:
    lines = []
    if bundle.costs is None:
        lines.append(
            "Costs: this bundle was not profiled on this machine, so there are no latencies, no frontier, no budgets "
            "and no simulated day. Run bundle.profile() and make the report again."
        )
    else:
        lines += [f"Not measured by the profile: {what}." for what in bundle.costs.not_measured]
        lines += [f"Doubtful costs: {doubt}." for doubt in bundle.costs.doubts]
    if not evidence.labelled:
        lines.append(
            "Labels: the records have none for some inputs. What is called right here is agreement with the reference."
        )
    if not evidence.shows_inputs:
        remedy = "give images or texts with eval_loader (on the shell --inputs)"
        lines.append(f"Examples: {'these inputs are neither images nor texts' if has_loader else remedy}.")
    if bundle.ladder.certificate is None or not bundle.ladder.certified:
        lines.append("Certificates: no bound stands behind the points. They are estimates.")
    return tuple(lines)
