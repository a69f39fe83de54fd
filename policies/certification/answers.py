"""The answers of every set of exits on some records, with their losses and costs."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.certification.opinion_pool import belief
from dynamic.policies.certification.replay import cost_to, predictions
from dynamic.policies.certification.risks import Risk
from dynamic.policies.errors import SettingError
from dynamic.policies.records import Records
from dynamic.policies.scores import Combiner, Running
from dynamic.policies.stage_plan import plan

Floats = NDArray[Any]  # float64, or float32 where it holds counts
Losses = NDArray[Any]  # int8, or float32 where they are expected values
_NONE = np.empty(0, np.int8)


@dataclass(frozen=True, eq=False)
class EvaluatedExit:
    """One exit of a set, evaluated after the earlier ones.

    Args:
        stage: Its number.
        score: Score of each record there `[N]`. NaN is -inf, so it never exits.
        loss: Loss of an exit here `[N]`: int8 in {-1, 0, 1}, or float32 for expected values.
        square: Its square `[N]`.
        best: The least loss that a label may give `[N]`. It differs from `loss` where a label is needed and missing,
            and `loss` is then the largest. None: all losses are known.
        answer: Predictions `[N]`, where labels are asked for on demand. None otherwise.
    """

    stage: int
    score: NDArray[np.float32]
    loss: Losses
    square: Losses
    best: Losses | None = None
    answer: NDArray[np.int64] | None = None

    @cached_property
    def most_confident_first(self) -> NDArray[np.intp]:
        """Records in the order in which they exit under a falling threshold `[N]`."""
        return np.argsort(-self.score, kind="stable")


@dataclass(frozen=True, eq=False)
class Exits:
    """A set of k exits that are on, and the last stage.

    Args:
        stages: The exits in order, and the last stage.
        cost: Cost of an input that exits at each of them `[k + 1]`.
    """

    stages: tuple[EvaluatedExit, ...]
    cost: Floats

    @cached_property
    def loss(self) -> Losses:
        """Losses `[k + 1, N]`."""
        return np.stack([stage.loss for stage in self.stages])

    @cached_property
    def square(self) -> Losses:
        """Squares of the losses `[k + 1, N]`."""
        return np.stack([stage.square for stage in self.stages])

    @cached_property
    def best(self) -> Losses:
        """The least losses that missing labels may give `[k + 1, N]`."""
        return np.stack([stage.loss if stage.best is None else stage.best for stage in self.stages])

    def exit_numbers(self, limits: Sequence[float]) -> NDArray[np.intp]:
        """Number, in this set, of the exit of each record under thresholds `limits [k]`: `[N]`."""
        passed = np.zeros(len(self.stages[0].score), np.int8)  # exits that a record has passed
        continues = np.ones(len(passed), bool)
        for limit, stage in zip(limits, self.stages, strict=False):
            continues &= stage.score <= np.float32(limit)
            passed += continues
        return passed.astype(np.intp)

    def losses_at(self, at: NDArray[np.intp]) -> tuple[Losses, Losses]:
        """(loss `[N]`, its square `[N]`) of each record that exits at number `at [N]`."""
        where = at * len(at) + np.arange(len(at))
        return self.loss.ravel().take(where), self.square.ravel().take(where)


class Answers:
    """Evaluates sets of exits on records.

    Args:
        records: N records.
        combiner: How logits become answers and scores.
        risk: What is measured. It may need labels.
        body: Cost of the body of each stage `[S]`, in any one unit. None: multiply-adds.
        head: Cost of the head of each stage `[S]`, in the same unit. None: multiply-adds.
        expected: Whether losses are expected values under what all stages together predict (see `belief`). They
            distinguish thresholds that the labels of a few hundred inputs cannot. Where the correct answer is the
            reference's, the stages before the reference predict it, and the loss of the last stage is the real one.

    Raises:
        SettingError: when costs are not S numbers of 0 or more.
        CalibrationError: when the risk needs labels and there are none.
    """

    def __init__(
        self,
        records: Records,
        combiner: Combiner,
        risk: Risk,
        *,
        body: Sequence[float] | None = None,
        head: Sequence[float] | None = None,
        expected: bool = False,
    ) -> None:
        self.body = records.macs if body is None else tuple(body)
        self.head = records.head_macs if head is None else tuple(head)
        for name, cost in (("body_cost", self.body), ("head_cost", self.head)):
            if len(cost) != records.stages:
                raise SettingError(f"{name} has {len(cost)} entries for {records.stages} stages: give one for each")
            if not all(0 <= value < np.inf for value in cost):
                raise SettingError(f"{name} is {list(cost)}: costs are numbers of 0 or more, in any one unit")
        self.count = len(records)
        self._backbone, self._combiner, self._risk = records.backbone, combiner, risk
        # probabilities for all sets of exits [S][N, C]. In memory class by class the maximum is many times as fast
        self._probability = [
            np.asfortranarray(combiner.probability(s, records.logits[:, s])) for s in range(records.stages)
        ]
        last = combiner.merge(combiner.start(), records.stages - 1, self._probability[-1])[0]
        self._chosen = predictions(last)  # [N], by the reference
        self._correct = risk.correct_answers(records, self._chosen)  # [N]
        self._reference = _right(last, self._correct)  # [N]
        self._unknown = self._correct < 0  # [N], labels that are missing, or answers of the reference
        self._on_demand = records.on_demand
        self._belief = None
        if expected and (risk.needs_labels or records.stages > 1):
            before = records.stages if risk.needs_labels else records.stages - 1
            self._belief = belief(self._probability[:before], self._correct)
        self._path: list[tuple[EvaluatedExit, Running]] = []  # the exits of the latest set
        self._sets: dict[tuple[int, ...], Exits] = {}

    @property
    def stages(self) -> int:
        """Number of stages."""
        return len(self._backbone)

    def exits(self, chosen: tuple[int, ...]) -> Exits:
        """Evaluate the exits of a set in order. What it has in common with the latest set is reused.

        Only one path of states is in memory. With many classes a state is as large as the probabilities of a stage.
        """
        common = 0
        while common < min(len(chosen), len(self._path)) and self._path[common][0].stage == chosen[common]:
            common += 1
        del self._path[common:]
        for stage in chosen[common:]:
            self._path.append(self._evaluate(stage))
        last = self.stages - 1
        limits = np.array([0.0 if s in chosen else np.inf for s in range(last)], np.float32)
        cost = cost_to(plan(limits, self._backbone), self.body, self.head)
        stages = (*(exit_ for exit_, _ in self._path), self._evaluate(last)[0])
        return Exits(stages, cost[[*chosen, last]])

    def exits_under(self, thresholds: Sequence[float]) -> tuple[NDArray[np.intp], Losses]:
        """(stage at which each record exits `[N]`, its loss there `[N]`) under `thresholds [S-1]`."""
        chosen = tuple(s for s, limit in enumerate(thresholds) if limit != np.inf)
        exits = self.exits_of(chosen)
        at = exits.exit_numbers([thresholds[s] for s in chosen])
        return np.array([*chosen, self.stages - 1])[at], exits.losses_at(at)[0]

    def exits_of(self, chosen: tuple[int, ...]) -> Exits:
        """The exits of a set, which are evaluated once and stay in memory."""
        if chosen not in self._sets:
            self._sets[chosen] = self.exits(chosen)
        return self._sets[chosen]

    def open_under(self, thresholds: Sequence[float]) -> NDArray[np.bool_]:
        """Where a missing label decides on the loss under `thresholds [S-1]`: `[N]`."""
        at, _ = self.exits_under(thresholds)
        chosen = tuple(s for s, limit in enumerate(thresholds) if limit != np.inf)
        exits = self.exits_of(chosen)
        number = np.searchsorted(np.array([*chosen, self.stages - 1]), at)
        where = number * len(at) + np.arange(len(at))
        return np.asarray(exits.best.ravel().take(where) != exits.loss.ravel().take(where))

    def labelled(self, label: NDArray[np.int64]) -> "Answers":
        """The same answers of records whose labels are asked for on demand, with other labels `[N]`."""
        fresh = copy.copy(self)
        fresh._correct, fresh._unknown, fresh._reference = label, label < 0, self._chosen == label
        fresh._path = []
        fresh._sets = {
            chosen: Exits(tuple(fresh._labelled_exit(stage) for stage in exits.stages), exits.cost)
            for chosen, exits in self._sets.items()
        }
        return fresh

    def _labelled_exit(self, exit_: EvaluatedExit) -> EvaluatedExit:
        """An exit with its losses, as far as labels are known."""
        answer = exit_.answer
        assert answer is not None
        # what the reference answers is missing too where it is the one that is asked
        same = (
            answer == self._chosen if self._risk.needs_labels else np.full(len(answer), exit_.stage == self.stages - 1)
        )
        worst, least = self._risk.open_losses(same)
        loss = self._risk.loss(answer == self._correct, self._reference)
        if not self._risk.needs_labels and exit_.stage == self.stages - 1:
            loss = least
        loss, best = np.where(self._unknown, worst, loss), np.where(self._unknown, least, loss)
        return replace(exit_, loss=loss, square=np.abs(loss), best=best)

    def clear(self) -> None:
        """Free the memory of the evaluation. Nothing can be evaluated afterwards."""
        self._path.clear()
        self._sets.clear()
        self._probability.clear()

    def _evaluate(self, stage: int) -> tuple[EvaluatedExit, Running]:
        """A stage after those on the path."""
        state = self._path[-1][1] if self._path else self._combiner.start()
        answer, confidence, after = self._combiner.merge(state, stage, self._probability[stage])
        score = np.where(np.isnan(confidence), np.float32(-np.inf), confidence)
        if self._belief is None or (stage == self.stages - 1 and not self._risk.needs_labels):
            if self._on_demand:
                return self._labelled_exit(EvaluatedExit(stage, score, _NONE, _NONE, answer=predictions(answer))), after
            loss, best = self._risk.loss(_right(answer, self._correct), self._reference), None
            if self._unknown.any():
                worst, least = self._risk.open_losses(predictions(answer) == self._chosen)
                loss, best = np.where(self._unknown, worst, loss), np.where(self._unknown, least, loss)
            return EvaluatedExit(stage, score, loss, np.abs(loss), best), after
        return EvaluatedExit(stage, score, *self._expected(predictions(answer), self._belief)), after

    def _expected(self, chosen: NDArray[np.int64], belief: NDArray[np.float32]) -> tuple[Losses, Losses]:
        """(loss, its square) of answers `[N]`, expected over the label: this answer, the reference's, or another."""
        same, rows = chosen == self._chosen, np.arange(len(chosen))
        own = np.where(chosen < 0, np.float32(0.0), belief[rows, chosen])
        if not self._risk.needs_labels:  # what the reference answers is not used here: it is what `own` is about
            return 1 - own, 1 - own
        other = np.where(same | (self._chosen < 0), np.float32(0.0), belief[rows, self._chosen])
        yes, no = np.ones_like(same), np.zeros_like(same)
        cases = ((own, yes, same), (other, no, yes), (1 - own - other, no, no))
        loss = sum((chance * self._risk.loss(right, theirs) for chance, right, theirs in cases), np.float32(0.0))
        square = sum(
            (chance * np.abs(self._risk.loss(right, theirs)) for chance, right, theirs in cases), np.float32(0.0)
        )
        return np.asarray(loss, np.float32), np.asarray(square, np.float32)


def _right(answer: NDArray[np.float32], correct: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Where the prediction is the correct one `[N]`. -1: there is no prediction."""
    likeliest = answer == answer.max(axis=1, keepdims=True)
    if np.count_nonzero(likeliest) == len(correct) and not np.isnan(answer.sum()) and correct.min() >= 0:  # no ties
        return np.asarray(likeliest[np.arange(len(correct)), correct])
    return np.asarray(predictions(answer) == correct)
