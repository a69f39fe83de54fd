"""`python -m dynamic certify SHELF OUT --ask labels.csv`: rows that a person labels between two calls."""

from collections.abc import Sequence
from pathlib import Path

from dynamic.bundle.bundle import Bundle
from dynamic.data.answer_file import AnswerFile
from dynamic.policies.certification.few_labels.asking import Asking, DemandSettings
from dynamic.policies.certification.few_labels.label_plan import curve_text
from dynamic.policies.certification.ladders.settings import ScoreChoice
from dynamic.policies.errors import CalibrationError
from dynamic.policies.ladder import RiskName
from dynamic.policies.records import Records


def records_with_labels(
    bundle: Bundle,
    path: Path,
    max_drops: Sequence[float] | None,
    *,
    delta: float | None,
    risk: RiskName | None,
    score: ScoreChoice | None,
    budget: int | None,
    rows: int,
) -> Records | None:
    """The records with the labels of a file, or None where it has questions left.

    Args:
        bundle: A bundle whose records have no labels.
        path: The CSV file of rows and labels. It is made or extended.
        max_drops: Targets of the certificate.
        delta: The probability that a bound is wrong. None: as before.
        risk: What is bounded. None: as before.
        score: Confidence that is compared with thresholds. None: as before.
        budget: The most labels. None: as many as are likely to be worth it.
        rows: Rows that are written at a time.

    Returns:
        The records, or None.

    Raises:
        CalibrationError: when the records have labels already, or nobody is needed.
        InputError: when a row or label of the file is wrong.
        SettingError: when a setting is out of range.
    """
    records, ladder = bundle.records, bundle.ladder
    if records.is_labelled:
        raise CalibrationError(f"all {len(records)} records have labels, and nothing is left to ask: leave --ask out")
    before = ladder.certificate
    measure = risk or ("drop" if before is None else before.risk)
    if measure == "disagreement":
        raise CalibrationError("risk 'disagreement' needs no labels, the last network answers: leave --ask out")
    settings = DemandSettings.of(
        max_drops,
        delta=delta if delta is not None else 0.1 if before is None else before.delta,
        risk=measure,
        combine=ladder.combine,
        score=score or ladder.score,
        budget=budget,
        batch_size=rows,
    )
    asking = Asking(records, settings)
    store = AnswerFile(path, len(records), records.logits.shape[2])
    if not store.labels and not store.questions:
        print(f"about {asking.plan.labels} labels are likely, for {asking.plan.draws} inputs drawn at random")
        print(curve_text(asking.curve))
    questions, reason = asking.next_rows(store.labels)
    if len(questions):
        store.ask(questions.tolist())
        print(f"{len(store.questions)} rows of {path} have no label: fill them in and call again")
        return None
    print(f"{len(store.labels)} labels: {reason}")
    return asking.answered(store.labels)
