"""Every threshold setting of a grid, tried in plain loops and float64: the search must not be worse than the best."""

import itertools
import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from policy_cases import INF
from scipy.special import softmax

from dynamic.policies.records import Records

TEMPERATURE = (1.0, 1.5, 0.8, 1.2, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Tried:
    """One setting that was tried."""

    cost: float
    drop: float
    drop_se: float

    def meets(self, drop: float, margin: float) -> bool:
        return self.drop + margin * self.drop_se <= drop + 1e-12


def figures(cost: NDArray[Any], correct: NDArray[Any], reference: NDArray[Any]) -> Tried:
    """Mean cost, mean drop, and the standard error of a mean of paired differences."""
    lost = reference.astype(float) - correct
    return Tried(float(cost.mean()), float(lost.mean()), float(lost.std() / math.sqrt(len(lost))))


def stage_costs(on: set[int], backbone: tuple[int, ...], body: Any, head: Any) -> list[float]:
    """What an input has cost at each stage: bodies that lead to an exit that is on, and heads that are on."""
    total, found = 0.0, []
    for s, b in enumerate(backbone):
        if any(backbone[later] == b and later >= s for later in on):
            total += body[s]
        total += head[s] if s in on else 0.0
        found.append(total)
    return found


class Everything:
    """What each stage of each set of exits would answer, and how surely."""

    def __init__(self, records: Records, combine: str) -> None:
        self.records, self.combine, self.stages = records, combine, records.stages
        with np.errstate(invalid="ignore"):
            self.own = [
                softmax(records.logits[:, s].astype(float) / TEMPERATURE[s], axis=1) for s in range(self.stages)
            ]
        self.reference = self.right(self.own[-1])

    def right(self, p: NDArray[Any]) -> NDArray[Any]:
        return ~np.isnan(p).any(axis=1) & (p.argmax(axis=1) == self.records.label)

    def answers(self, on: list[int]) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
        """(score, correct) at each of the exits that are on; a stage of NaN has no score and no say."""
        scores, correct = [], []
        answer = np.full_like(self.own[0], np.nan)
        votes: dict[int, NDArray[Any]] = {}  # the latest answer of what has one vote, NaN where there is none
        for s in on:
            good = ~np.isnan(self.own[s]).any(axis=1, keepdims=True)
            voter = {"mean": s, "last": 0, "backbones": self.records.backbone[s]}[self.combine]
            votes[voter] = np.where(good, self.own[s], votes.get(voter, answer * np.nan))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # rows without any vote
                answer = np.nanmean(list(votes.values()), axis=0)
            scores.append(np.where(good[:, 0], answer.max(axis=1), np.nan))
            correct.append(self.right(answer))
        return scores, correct

    def outcome(self, thresholds: tuple[float, ...]) -> Tried:
        """One threshold vector."""
        on = [s for s in range(self.stages) if s == self.stages - 1 or thresholds[s] != INF]
        scores, correct = self.answers(on)
        spent = stage_costs(set(on), self.records.backbone, self.records.macs, self.records.head_macs)
        cost, right = np.full(len(self.records), spent[-1]), correct[-1].copy()
        for j in reversed(range(len(on) - 1)):
            leaves = np.float32(thresholds[on[j]]) < scores[j].astype(np.float32)
            cost[leaves], right[leaves] = spent[on[j]], correct[j][leaves]
        return figures(cost, right, self.reference)

    def grid(self, quantiles: int = 16) -> list[Tried]:
        """Every set of exits, each exit at -inf and its quantiles; +inf is the set without it."""
        found = []
        for size in range(self.stages):
            for chosen in itertools.combinations(range(self.stages - 1), size):
                on = [*chosen, self.stages - 1]
                scores, correct = self.answers(on)
                spent = stage_costs(set(on), self.records.backbone, self.records.macs, self.records.head_macs)
                leaves = []
                for score in scores[:-1]:
                    ordered = np.sort(np.where(np.isnan(score), -INF, score))
                    marks = [ordered[i * len(ordered) // (quantiles + 1)] for i in range(1, quantiles + 1)]
                    leaves.append([score > mark for mark in (-INF, *sorted(set(marks)))])
                for choice in itertools.product(*leaves):
                    cost, right = np.full(len(self.records), spent[-1]), correct[-1].copy()
                    for j in reversed(range(size)):
                        cost = np.where(choice[j], spent[on[j]], cost)
                        right = np.where(choice[j], correct[j], right)
                    found.append(figures(cost, right, self.reference))
        return found
