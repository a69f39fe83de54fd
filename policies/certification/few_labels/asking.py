"""Labels on demand: only inputs whose label decides on the next step of a walk are asked about.

A label that is missing counts as the largest loss that it may give. So a certificate holds whichever inputs were asked
about, in whatever order, and wherever asking ended: losses are never smaller than the true ones, and p-values rise with
losses. What is asked about decides on the cost of a certificate alone.
"""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.certification.answers import Answers
from dynamic.policies.certification.few_labels.draw_record import DrawRecord, compared_logits
from dynamic.policies.certification.few_labels.label_plan import (
    LabelPlan,
    Outlook,
    check_reachable,
    curve_text,
    fewest_draws,
)
from dynamic.policies.certification.ladders.settings import ScoreChoice, check_settings
from dynamic.policies.certification.ladders.walks import (
    RecordParts,
    ScoreSearch,
    choosing_records,
    target_points,
    walk,
)
from dynamic.policies.certification.risks import Risk
from dynamic.policies.errors import CalibrationError, InputError, SettingError
from dynamic.policies.ladder import RiskName
from dynamic.policies.records import CERTIFY, SEARCH, UNKNOWN, Records
from dynamic.policies.scores import Combination, Score, check_combination
from dynamic.policies.validation.numbers import plain, plain_items

logger = logging.getLogger("dynamic")

Oracle = Callable[[NDArray[np.int64]], Any]
BATCH_SIZE = 10  # rows that are asked about at a time
_ORACLE_COST = 1000.0  # times that of all networks together: nobody measures a person
_CHOOSING = (
    0.25  # of the inputs choose what the others certify: how many are drawn, and the thresholds of several exits
)


class AnswerStore(Protocol):
    """Where answers are kept: see `dynamic.data.answer_file.AnswerFile`."""

    labels: dict[int, int]
    draw: Mapping[str, Any] | None

    @property
    def path(self) -> Path | None:
        """The checkpoint on disk. None: answers are in memory alone."""
        ...

    def add(self, answers: Mapping[int, int]) -> None:
        """Keep answers before anything else is asked."""
        ...

    def keep_draw(self, draw: Mapping[str, Any]) -> None:
        """Keep the draw that answers belong to, as plain JSON types, before the first question."""
        ...


@dataclass(frozen=True)
class DemandSettings:
    """What a certificate is asked for.

    Args:
        targets: In rising order.
        delta: The probability that a bound is wrong.
        risk: What is bounded.
        combine: How answers of stages are combined.
        score: Confidence of an answer.
        budget: The most labels. None: as many as the plan takes.
        batch_size: Rows that are asked about at a time.
        seed: Of the inputs that are drawn.
    """

    targets: tuple[float, ...]
    delta: float
    risk: Risk
    combine: Combination
    score: Score
    budget: int | None
    batch_size: int
    seed: int

    @classmethod
    def of(
        cls,
        max_drops: Sequence[float] | None,
        *,
        delta: float = 0.1,
        risk: RiskName = "drop",
        combine: Combination = "last",
        score: ScoreChoice = "max_probability",
        budget: int | None = None,
        batch_size: int = BATCH_SIZE,
        seed: int = 0,
    ) -> "DemandSettings":
        """The settings, checked. Raises SettingError where one is out of range."""
        measure, targets = check_settings(plain_items(max_drops), plain(delta), risk=risk, score=score)
        budget, batch_size = plain(budget), plain(batch_size)
        for name, value in (("budget", budget), ("batch_size", batch_size)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise SettingError(f"{name}={value!r} must be a whole number of 1 or more, such as 200")
        if not measure.needs_labels and combine != "last":
            raise SettingError(
                f"combine={combine!r} averages answers, and the reference is asked for some alone: use combine='last'"
            )
        if score == "auto":
            raise SettingError("score='auto' chooses by labels, and labels are asked for on demand: name one score")
        if max_drops is None:
            targets = [target for target in targets if target > 0]
        if 0.0 in targets:
            raise SettingError("max_drops holds 0, and labels on demand start where nothing is lost: give more than 0")
        return cls(tuple(targets), plain(delta), measure, check_combination(combine), score, budget, batch_size, seed)


@dataclass(frozen=True, eq=False)
class Demand:
    """Records of which some labels were asked for.

    Args:
        records: With these labels, for `certify` with the same settings.
        plan: What was likely before.
        question_count: Labels that were asked for.
        reason: Why asking ended, in words.
    """

    records: Records
    plan: LabelPlan
    question_count: int
    reason: str


class Asking:
    """The questions of a certificate, one batch after the other.

    Args:
        records: Records of all inputs, whose labels are not used.
        settings: What the certificate is asked for.
        finite: Whether the records are one finite batch that the promise is for.

    Raises:
        CalibrationError: when there are fewer inputs than any certificate needs, or they have groups.
        SettingError: when the budget is above the number of inputs.
    """

    def __init__(self, records: Records, settings: DemandSettings, *, finite: bool = False) -> None:
        if records.group is not None:
            raise CalibrationError("labels on demand need independent inputs, and these have groups: label them all")
        self.settings = settings
        count = len(records)
        if settings.budget is not None and settings.budget > count:
            raise SettingError(f"budget={settings.budget} is above the {count} inputs: give at most {count}")
        unknown, batch = np.full(count, UNKNOWN, np.int64), count if finite else None
        part = np.full(count, SEARCH, np.int8)
        self._empty = self._labelled(replace(records, label=unknown, part=part, on_demand=True, batch=batch), {})
        self._parts = self._records_of(choosing_records(self._empty), self._empty)
        self._search = self._parts.search(settings.score)
        self._level = self._parts.level(settings.delta, settings.targets)
        fewest = {x: fewest_draws(0, x, self._level, batch, self._parts.is_nested) for x in settings.targets}
        check_reachable(count, fewest, settings.risk.name)
        self._order = np.random.default_rng(settings.seed).permutation(count)  # [N]
        self.outlook, self.plan = self._planned(min(fewest.values()))
        self._draw(self.plan.draws)

    def _planned(self, fewest: int) -> tuple[Outlook, LabelPlan]:
        """What is known of the steps, and how many inputs are drawn.

        The scores of a finite batch are fixed, so any of them may plan. For future inputs the number of draws must not
        depend on inputs that are drawn, so the last in order plan, and are never drawn. Where the others would be too
        few for any certificate, all are drawn, whatever their scores are.
        """
        count, settings, finite = len(self._empty), self.settings, self._empty.finite
        drawable = count if finite else int(count * (1 - _CHOOSING))
        budget = settings.budget or count
        if finite or drawable < fewest:
            outlook = _outlook(self._parts, self._search, settings.targets, count)
            plan = outlook.plan if finite else outlook.plan_all
            return outlook, plan(settings.targets, self._level, budget)
        parts = self._records_of(self._empty.select(np.sort(self._order[drawable:])), self._empty)
        outlook = _outlook(parts, parts.search(settings.score), settings.targets, drawable)
        return outlook, outlook.plan(settings.targets, self._level, budget)

    def resumed(self, store: AnswerStore) -> "Asking":
        """The questions of the draw that a store has answers of. It keeps this one where it has none.

        Raises:
            CorruptError: when the draw does not read.
            InputError: when its answers are about other inputs.
            SettingError: when they were asked for with other settings. The budget alone may be another one.
        """
        own = self.draw_record
        if store.draw is None:
            store.keep_draw(own.to_json())
            return self
        earlier = DrawRecord.from_json(store.draw)
        own.check_continues(earlier)
        if earlier.draws == own.draws:
            return self
        fresh = copy.copy(self)
        fresh.plan = replace(self.plan, draws=earlier.draws)
        fresh._draw(earlier.draws)
        return fresh

    @property
    def draw_record(self) -> DrawRecord:
        """What a checkpoint keeps of the draw."""
        settings = self.settings
        return DrawRecord(
            len(self._empty),
            self.plan.draws,
            settings.seed,
            settings.targets,
            settings.delta,
            settings.risk.name,
            settings.combine,
            settings.score,
            self._empty.finite,
            compared_logits(self._empty),
        )

    def other_draw(self, seed: int) -> "Asking":
        """The questions of another draw of a finite batch."""
        fresh = copy.copy(self)
        fresh._order = np.random.default_rng(seed).permutation(len(self._empty))
        fresh._draw(self.plan.draws)
        return fresh

    def _draw(self, draws: int) -> None:
        self.take(self._order[: max(draws, 1)])

    def take(self, rows: NDArray[np.intp]) -> None:
        """Let these rows certify. They must be drawn at random, as `other_draw` does."""
        count = len(self._empty)
        part = np.full(count, SEARCH, np.int8)
        part[rows] = CERTIFY
        self._sample_rows = np.flatnonzero(part)
        self._places = {row: place for place, row in enumerate(self._sample_rows.tolist())}
        self.records = replace(self._empty, part=part)
        self._parts = replace(self._parts, certify_records=self.records.select(self._sample_rows))
        if count and self.records.stages > 2 and not self.records.finite:
            self._parts = replace(self._parts, search_records=choosing_records(self.records))
            self._search = self._parts.search(self.settings.score)
        self._answers = self._parts.answers(self.settings.score)
        stage = self._parts.free_exit(self._search.search, self.settings.targets)
        if stage is not None:
            self._answers.exits_of((stage,))
        else:
            for candidate in self._parts.path(self._search.search):
                self._answers.exits_under(candidate.thresholds)

    @cached_property
    def curve(self) -> tuple[LabelPlan, ...]:
        """Labels against what they would save."""
        return self.outlook.curve(self.settings.targets, self._level, len(self._empty))

    def next_rows(self, labels: Mapping[int, int]) -> tuple[NDArray[np.int64], str]:
        """The rows to ask about next.

        Args:
            labels: Those that are known, by row.

        Returns:
            The rows, and, where there are none, the reason why.
        """
        label = self._labels(labels)
        question_count = int((label != UNKNOWN).sum())
        path = self._parts.steps(self._search, self.settings.targets, self._level, self._answers.labelled(label))
        targets = self.settings.targets
        least, most = walk(path, targets, self._level), walk(path.best, targets, self._level)
        open_targets = [target for target in targets if most[target] > least[target]]
        if not open_targets:
            return np.empty(0, np.int64), "more labels cannot help: every step is decided"
        step = min(max(most[target] for target in open_targets), len(path) - 1)
        rows = self._sample_rows[path.open_rows(step)]
        left = len(self.records) if self.settings.budget is None else self.settings.budget - question_count
        if left <= 0:
            return np.empty(0, np.int64), self._spent(labels, len(rows))
        return rows[: min(self.settings.batch_size, left)], ""

    def _spent(self, labels: Mapping[int, int], open_rows: int) -> str:
        """Why asking ends at the budget, and what a larger one can give."""
        spent = f"the budget of {self.settings.budget} labels is spent"
        lacking = [f"{target:g}" for target, limits in self.thresholds(labels).items() if limits is None]
        if not lacking:
            return spent
        return (
            f"{spent}, and nothing is certified for {self.settings.risk.name} {', '.join(lacking)}. Up to {open_rows} "
            "more labels can help: call again with a larger budget and the same checkpoint"
        )

    def thresholds(self, labels: Mapping[int, int]) -> dict[float, tuple[float, ...] | None]:
        """The thresholds that these labels certify for each target, as `certify` gives them. None: there are none."""
        answers = self._answers.labelled(self._labels(labels))
        points = target_points(self._parts, self._search, self.settings.targets, self._level, answers)
        return {target: None if point is None else point.candidate.thresholds for target, point in points.items()}

    def _labels(self, labels: Mapping[int, int]) -> NDArray[np.int64]:
        """The labels of the inputs drawn, by their place."""
        label = np.full(len(self._sample_rows), UNKNOWN, np.int64)
        for row, answer in labels.items():
            if row in self._places:
                label[self._places[row]] = answer
        return label

    def answered(self, labels: Mapping[int, int]) -> Records:
        """The records with these labels."""
        sample_rows = set(self._sample_rows.tolist())
        return self._labelled(self.records, {row: label for row, label in labels.items() if row in sample_rows})

    def _labelled(self, records: Records, labels: Mapping[int, int]) -> Records:
        """These records with labels by their place. For "disagreement" they are answers of the reference."""
        label = np.full(len(records), UNKNOWN, np.int64)
        label[list(labels)] = list(labels.values())
        if self.settings.risk.needs_labels:
            return replace(records, label=label)
        logits = records.logits.copy()
        logits[:, -1] = 0.0
        logits[list(labels), -1, list(labels.values())] = 1.0
        return replace(records, logits=logits, label=label)

    def _records_of(self, choosing: Records, certifying: Records) -> RecordParts:
        settings = self.settings
        return RecordParts(choosing, certifying, settings.risk, settings.combine, None, None, (1.0,) * choosing.stages)


def ask(asking: Asking, oracle: Oracle, store: AnswerStore) -> Demand:
    """Ask an oracle until more labels cannot help or the budget is spent.

    Args:
        asking: The questions.
        oracle: Rows `[K]` -> their labels `[K]`: a person, a network or a service.
        store: Where each answer is kept before the next question. Answers that it has are not asked for again.

    Returns:
        The records with these labels.

    Raises:
        CalibrationError: when the oracle raises, or has no answer yet.
        InputError: when it answers something else than one class for each row, or the store is about other inputs.
        SettingError: when the store has answers that were asked for with other settings.
    """
    asking = asking.resumed(store)
    plan = asking.plan
    if logger.isEnabledFor(logging.INFO):
        words = "about %d labels are likely, for %d inputs drawn at random\n%s"
        logger.info(words, plan.labels, plan.draws, curve_text(asking.curve))
    while True:
        rows, reason = asking.next_rows(store.labels)
        if not len(rows):
            break
        store.add(_answers(oracle, rows, store, asking.records.logits.shape[2]))
    records = asking.answered(store.labels)
    question_count = int((records.part[list(store.labels)] == CERTIFY).sum())
    is_certified = any(limits is not None for limits in asking.thresholds(store.labels).values())
    level = logging.INFO if is_certified else logging.WARNING
    logger.log(level, "%d labels were asked for: %s", question_count, reason)
    return Demand(records, plan, question_count, reason)


def with_oracle_stage(records: Records) -> Records:
    """Records with one more stage, the oracle, which is the reference. It counts as more expensive than all others."""
    count, _, classes = records.logits.shape
    last = np.zeros((count, 1, classes), np.float32)
    return replace(
        records,
        logits=np.concatenate([records.logits, last], axis=1),
        backbone=(*records.backbone, max(records.backbone) + 1),
        macs=(*records.macs, _ORACLE_COST * (sum(records.macs) + sum(records.head_macs) + 1.0)),
        head_macs=(*records.head_macs, 0.0),
        stage_names=(*records.stage_names, "oracle"),
    )


def _answers(oracle: Oracle, rows: NDArray[np.int64], store: AnswerStore, classes: int) -> dict[int, int]:
    """The answers by row."""
    try:
        reply = oracle(rows.copy())
    except Exception as error:
        raise CalibrationError(
            f"the oracle raised {type(error).__name__} on rows {_some(rows)} ({error}): mend it and {_again(store)}"
        ) from error
    if reply is None:
        raise CalibrationError(f"the oracle has no answer yet on rows {_some(rows)}: when it has, {_again(store)}")
    indices = f"for {len(rows)} rows: give a class index, an integer from 0 to {classes - 1}, for each row"
    try:
        labels = np.asarray(reply)
    except ValueError as error:
        raise InputError(f"the oracle answered lists of different lengths {indices}") from error
    if labels.shape != rows.shape or labels.dtype.kind not in "iu":
        raise InputError(f"the oracle answered {labels.dtype} {list(labels.shape)} {indices}")
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise InputError(
            f"the oracle answered class {wrong[0]}, and the cascade has {classes} classes, 0 to {classes - 1}: ask "
            "about the classes of the cascade"
        )
    return dict(zip(rows.tolist(), labels.tolist(), strict=True))


def _again(store: AnswerStore) -> str:
    """The remedy, and how many answers are kept."""
    if store.path is None:
        return "call again"
    sentence = f". {len(store.labels)} earlier answers are in the checkpoint" if store.labels else ""
    return f"call again with the same checkpoint{sentence}"


def _some(rows: NDArray[np.int64]) -> str:
    return f"{', '.join(map(str, rows[:3].tolist()))}{' ...' if len(rows) > 3 else ''}"


def _outlook(parts: RecordParts, one: ScoreSearch, targets: Sequence[float], drawable: int) -> Outlook:
    """What is known of the steps of a path from unlabelled logits. So many inputs can be drawn."""
    records = parts.search_records
    combiner = parts.combiner(one.score)
    open_answers = Answers(records, combiner, parts.risk)
    expected = Answers(records, combiner, parts.risk, expected=True)
    stage = parts.free_exit(one.search, targets)
    if stage is not None:
        opened, losses = open_answers.exits((stage,)), expected.exits((stage,))
        order = opened.stages[0].most_confident_first
        lost = (losses.loss + losses.square) / 2

        def along(values: NDArray[Any]) -> NDArray[np.float64]:
            here, there = values[0][order].astype(float), values[1][order].astype(float)
            return np.asarray((there.sum() + np.cumsum(here - there)) / len(records))

        saved = np.arange(1, len(records) + 1) / len(records)
        open_share, risks = along(opened.loss != opened.best), along(lost)
    else:
        path = parts.path(one.search)
        open_share = np.array([open_answers.open_under(c.thresholds).mean() for c in path])
        risks = np.array([c.risk for c in path])
        saved = np.array([1 - c.cost / one.search.reference.cost for c in path])
    rising = np.maximum.accumulate
    return Outlook(
        parts.risk,
        rising(open_share),
        rising(risks),
        rising(saved),
        drawable,
        parts.batch,
        parts.is_nested,
    )
