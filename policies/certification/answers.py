"""What every set of exits would have answered on some records, and what that would have lost and cost."""

from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, eq=False)
class EvaluatedExit:
    """One exit, evaluated after those before it in its set.

    `score [N]` (NaN as -inf: never leaves), `loss [N]` of leaving here and its `square [N]`: int8 in {-1, 0, 1}, or
    float32 where they are expected values.
    """

    stage: int
    score: NDArray[np.float32]
    loss: Losses
    square: Losses

    @cached_property
    def surest_first(self) -> NDArray[np.intp]:
        """Records in the order in which a falling threshold lets them go `[N]`."""
        return np.argsort(-self.score, kind="stable")


@dataclass(frozen=True, eq=False)
class Exits:
    """One set of exits switched on: k of them and the last stage; `cost [k + 1]` of an input that leaves there."""

    stages: tuple[EvaluatedExit, ...]
    cost: Floats

    @cached_property
    def loss(self) -> Losses:
        """`[k + 1, N]`."""
        return np.stack([stage.loss for stage in self.stages])

    @cached_property
    def square(self) -> Losses:
        """`[k + 1, N]`."""
        return np.stack([stage.square for stage in self.stages])

    def left_at(self, limits: Sequence[float]) -> NDArray[np.intp]:
        """The number of the exit, of this set, that each record leaves at under `limits [k]`: `[N]`."""
        passed = np.zeros(len(self.stages[0].score), np.int8)  # how many exits a record has not left at
        stays = np.ones(len(passed), bool)
        for limit, stage in zip(limits, self.stages, strict=False):
            stays &= stage.score <= np.float32(limit)
            passed += stays
        return passed.astype(np.intp)

    def lost_at(self, at: NDArray[np.intp]) -> tuple[Losses, Losses]:
        """(loss [N], its square [N]) of each record where it leaves at exit `at [N]`."""
        where = at * len(at) + np.arange(len(at))
        return self.loss.ravel().take(where), self.square.ravel().take(where)


class Answers:
    """Evaluates sets of exits on `records`, of which it may ask for labels as the `risk` needs them.

    `body`, `head`: cost of each stage's body and head `[S]`, in any one unit; multiply-adds unless given. `expected`:
    losses are expected values under what all stages together hold of the input (see `belief`): as good as that is, they
    tell thresholds apart that the labels of a few hundred inputs cannot.
    """

    def __init__(
        self,
        records: Records,
        combiner: Combiner,
        risk: Risk,
        body: Sequence[float] | None = None,
        head: Sequence[float] | None = None,
        expected: bool = False,
    ) -> None:
        self.body = records.macs if body is None else tuple(body)
        self.head = records.head_macs if head is None else tuple(head)
        for name, cost in (("body_cost", self.body), ("head_cost", self.head)):
            if len(cost) != records.stages:
                raise SettingError(f"{name} has {len(cost)} entries for {records.stages} stages; give one for each")
            if not all(0 <= value < np.inf for value in cost):
                raise SettingError(f"{name} is {list(cost)}; costs are numbers of 0 or more, in any one unit")
        self.count = len(records)
        self._backbone, self._combiner, self._risk = records.backbone, combiner, risk
        # class probabilities once for all sets of exits [S][N, C]; in memory class by class, which is many times as
        # fast to take the largest of, and the same to the last bit
        self._probability = [
            np.asfortranarray(combiner.probability(s, records.logits[:, s])) for s in range(records.stages)
        ]
        last = combiner.merge(combiner.start(), records.stages - 1, self._probability[-1])[0]
        self._chosen = predictions(last)  # [N], by the reference
        self._wanted = risk.wanted(records, self._chosen)  # [N]
        self._reference = _right(last, self._wanted)  # [N]
        self._belief = belief(self._probability, self._wanted) if expected and risk.needs_labels else None
        self._path: list[tuple[EvaluatedExit, Running]] = []  # the exits of the set asked for last
        self._sets: dict[tuple[int, ...], Exits] = {}

    @property
    def stages(self) -> int:
        """S."""
        return len(self._backbone)

    def exits(self, chosen: tuple[int, ...]) -> Exits:
        """Evaluate `chosen` in order, keeping what the set asked for last has in common with it.

        Only one path of states is held: with many classes each is as large as a stage's probabilities.
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

    def leaving(self, thresholds: Sequence[float]) -> tuple[NDArray[np.intp], Losses]:
        """(stage that each record leaves at [N], its loss there [N]) under `thresholds [S-1]`."""
        chosen = tuple(s for s, limit in enumerate(thresholds) if limit != np.inf)
        if chosen not in self._sets:
            self._sets[chosen] = self.exits(chosen)
        exits = self._sets[chosen]
        at = exits.left_at([thresholds[s] for s in chosen])
        return np.array([*chosen, self.stages - 1])[at], exits.lost_at(at)[0]

    def forget(self) -> None:
        """Give back what evaluating takes; nothing can be asked afterwards."""
        self._path.clear()
        self._sets.clear()
        self._probability.clear()

    def _evaluate(self, stage: int) -> tuple[EvaluatedExit, Running]:
        """A stage after those on the path."""
        state = self._path[-1][1] if self._path else self._combiner.start()
        answer, sure, after = self._combiner.merge(state, stage, self._probability[stage])
        score = np.where(np.isnan(sure), np.float32(-np.inf), sure)
        if self._belief is None:
            loss = self._risk.loss(_right(answer, self._wanted), self._reference)
            return EvaluatedExit(stage, score, loss, np.abs(loss)), after
        return EvaluatedExit(stage, score, *self._expected(predictions(answer), self._belief)), after

    def _expected(self, chosen: NDArray[np.int64], belief: NDArray[np.float32]) -> tuple[Losses, Losses]:
        """(loss, its square) of answers `[N]` over what the label may be: theirs, the reference's, or another."""
        same, rows = chosen == self._chosen, np.arange(len(chosen))
        own = np.where(chosen < 0, np.float32(0.0), belief[rows, chosen])
        other = np.where(same | (self._chosen < 0), np.float32(0.0), belief[rows, self._chosen])
        yes, no = np.ones_like(same), np.zeros_like(same)
        cases = ((own, yes, same), (other, no, yes), (1 - own - other, no, no))
        loss = sum((chance * self._risk.loss(right, theirs) for chance, right, theirs in cases), np.float32(0.0))
        square = sum(
            (chance * np.abs(self._risk.loss(right, theirs)) for chance, right, theirs in cases), np.float32(0.0)
        )
        return np.asarray(loss, np.float32), np.asarray(square, np.float32)


def _right(answer: NDArray[np.float32], wanted: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Where the prediction is the one wanted `[N]` (-1: none)."""
    likeliest = answer == answer.max(axis=1, keepdims=True)
    if np.count_nonzero(likeliest) == len(wanted) and not np.isnan(answer.sum()) and wanted.min() >= 0:  # no ties
        return np.asarray(likeliest[np.arange(len(wanted)), wanted])
    return np.asarray(predictions(answer) == wanted)
