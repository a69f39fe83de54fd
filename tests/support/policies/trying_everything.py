"""Every threshold setting of a grid, tried in plain loops and float64: the search must not be worse than the best."""

import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from support.policy_cases import INF

from dynamic.policies.records import Records

TEMPERATURE = (1.0, 1.5, 0.8, 1.2, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Tried:
    """One setting that was tried."""

    cost: float
    risk: float
    risk_se: float

    def bound(self, margin: float) -> float:
        return self.risk + margin * self.risk_se

    def meets(self, target: float, margin: float) -> bool:
        return self.bound(margin) <= target + 1e-12


# what an answer loses, given what the reference says and the label; -1: no answer
LOSSES: dict[str, Callable[[NDArray[Any], NDArray[Any], NDArray[Any]], NDArray[Any]]] = {
    "drop": lambda own, reference, label: 1.0 * (reference == label) - (own == label),
    "harm": lambda own, reference, label: 1.0 * ((reference == label) & (own != label)),
    "disagreement": lambda own, reference, label: 1.0 * (own != reference),
    "error": lambda own, reference, label: 1.0 * (own != label),
}


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

    def __init__(self, records: Records, combine: str, risk: str = "drop") -> None:
        self.records, self.combine, self.stages, self.loss = records, combine, records.stages, LOSSES[risk]
        with np.errstate(invalid="ignore"):
            self.own = [
                softmax(records.logits[:, s].astype(float) / TEMPERATURE[s], axis=1) for s in range(self.stages)
            ]
        self.reference = self.said(self.own[-1])

    def said(self, p: NDArray[Any]) -> NDArray[Any]:
        return np.where(np.isnan(p).any(axis=1), -1, p.argmax(axis=1))

    def figures(self, cost: NDArray[Any], said: NDArray[Any]) -> Tried:
        """Mean cost, mean loss, and the standard error of that mean."""
        label = self.reference if self.records.label is None else self.records.label
        lost = self.loss(said, self.reference, label)
        return Tried(float(cost.mean()), float(lost.mean()), float(lost.std() / math.sqrt(len(lost))))

    def answers(self, on: list[int]) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
        """(score, class) at each of the exits that are on; a stage of NaN has no score and no say."""
        scores, classes = [], []
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
            classes.append(self.said(answer))
        return scores, classes

    def outcome(self, thresholds: tuple[float, ...]) -> Tried:
        """One threshold vector."""
        on = [s for s in range(self.stages) if s == self.stages - 1 or thresholds[s] != INF]
        scores, classes = self.answers(on)
        spent = stage_costs(set(on), self.records.backbone, self.records.macs, self.records.head_macs)
        cost, said = np.full(len(self.records), spent[-1]), classes[-1].copy()
        for j in reversed(range(len(on) - 1)):
            leaves = np.float32(thresholds[on[j]]) < scores[j].astype(np.float32)
            cost[leaves], said[leaves] = spent[on[j]], classes[j][leaves]
        return self.figures(cost, said)

    def grid(self, quantiles: int = 16) -> list[Tried]:
        """Every set of exits, each exit at -inf and its quantiles; +inf is the set without it."""
        found = []
        for size in range(self.stages):
            for chosen in itertools.combinations(range(self.stages - 1), size):
                on = [*chosen, self.stages - 1]
                scores, classes = self.answers(on)
                spent = stage_costs(set(on), self.records.backbone, self.records.macs, self.records.head_macs)
                leaves = []
                for score in scores[:-1]:
                    ordered = np.sort(np.where(np.isnan(score), -INF, score))
                    marks = [ordered[i * len(ordered) // (quantiles + 1)] for i in range(1, quantiles + 1)]
                    leaves.append([score > mark for mark in (-INF, *sorted(set(marks)))])
                for choice in itertools.product(*leaves):
                    cost, said = np.full(len(self.records), spent[-1]), classes[-1].copy()
                    for j in reversed(range(size)):
                        cost = np.where(choice[j], spent[on[j]], cost)
                        said = np.where(choice[j], classes[j], said)
                    found.append(self.figures(cost, said))
        return found
