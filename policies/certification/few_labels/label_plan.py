"""How many inputs to draw for a certificate, and what a number of labels would save, from unlabelled scores alone.

A plan decides what a certificate costs, never whether it holds, where the inputs that it looks at are not drawn, or are
all of a finite batch. It depends on scores and settings, which are known before any label is.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.certification.ladders.counted_steps import LossTest
from dynamic.policies.certification.risks import Risk
from dynamic.policies.errors import CalibrationError

Floats = NDArray[np.float64]

CURVE = (50, 100, 200, 500, 1000, 2000, 5000, 10_000)  # labels, of which a curve says what they would save
_TOTALS = (0.5, 1.0, 2.0, 4.0, 8.0)  # risk of all inputs, in targets
_POWERS = (3.0, 6.0)  # of the share that exits, with which risk rises
_NORMAL = (-1.2816, -0.5244, 0.0, 0.5244, 1.2816)  # quantiles of the normal distribution at 0.1, 0.3, 0.5, 0.7 and 0.9
_MOST_LOSSES = 200  # that a plan allows
_HEAD, _HEAD_SHARE = 0.5, 0.1  # of the target is lost by this share of the most confident inputs, in two scenarios
_LITTLE = 0.01  # of the inputs. Fewer exits count as no certificate


@dataclass(frozen=True)
class LabelPlan:
    """How many inputs are drawn, and what is to be expected.

    Args:
        budget: The most labels.
        draws: Inputs that are drawn at random. Labels are asked for those of them that exit.
        labels: Labels that are likely to be asked for.
        saved: Share of inputs, weighted by cost, that is likely to be saved from the reference.
        chance: The chance that anything can be certified.
    """

    budget: int
    draws: int
    labels: int
    saved: float
    chance: float


@dataclass(frozen=True, eq=False)
class Outlook:
    """What is known of the steps of a path before any label is.

    Args:
        risk: What is bounded.
        open_share: Share of all inputs whose loss needs a label, at each step `[K]`. It rises.
        risks: Expected share of lost inputs at each step `[K]`. It rises.
        saved: Share of the cost of the reference that each step saves `[K]`. It rises.
        count: Inputs that can be drawn.
        batch: Inputs of the finite batch. None: the promise is for future inputs.
        nested: Whether losses only grow along the steps.
    """

    risk: Risk
    open_share: Floats
    risks: Floats
    saved: Floats
    count: int
    batch: int | None
    nested: bool

    def plan(self, targets: Sequence[float], level: float, budget: int) -> LabelPlan:
        """The number of draws that is likely to save most.

        Args:
            targets: The targets.
            level: Of each of them.
            budget: The most labels.

        Returns:
            The plan. It has no draws where nothing can be certified.
        """
        choices = {self.count} | {n for target in targets for n in self._choices(target, level)}
        plans = [self._expected(n, targets, level, budget) for n in sorted(choices) if n <= self.count]
        least = LabelPlan(budget, 0, 0, 0.0, 0.0)
        return max(plans, key=lambda plan: (self._worth(plan), -plan.draws), default=least)

    def curve(self, targets: Sequence[float], level: float, most: int) -> tuple[LabelPlan, ...]:
        """A plan for each of some budgets, up to the largest that there is."""
        budgets = [labels for labels in CURVE if labels < most]
        return tuple(self.plan(targets, level, labels) for labels in [*budgets, most])

    def plan_all(self, targets: Sequence[float], level: float, budget: int) -> LabelPlan:
        """The plan that draws every input."""
        return self._expected(self.count, targets, level, budget)

    def _worth(self, plan: LabelPlan) -> float:
        """What a plan saves. Labels of a finite batch are answers that the reference gives."""
        return plan.saved - (plan.labels / self.batch if self.batch is not None else 0.0)

    def _choices(self, target: float, level: float) -> list[int]:
        draws = []
        for lost in _losses():
            draws.append(fewest_draws(lost, target, level, self.batch, self.nested))
            if draws[-1] > self.count:
                break
        return draws

    def _expected(self, draws: int, targets: Sequence[float], level: float, budget: int) -> LabelPlan:
        """The plan of some draws. It averages over how far expected risks are wrong, and over the draws."""
        steps = len(self.risks)
        paid = int(np.searchsorted(self.open_share, (budget + 0.5) / draws, side="right"))  # steps within the budget
        saved, labels, certified = [], [], []
        for target in targets:
            most = allowed_losses(draws, target, level, self.batch, self.nested)
            if most < 0 or not steps:
                saved += [0.0]
                labels += [0.0]
                continue
            # the step at which each scenario loses one input too many, at some quantiles of the draw
            stops = self._stops(target, tuple(lost / draws for lost in _quantiles(most + 1)))
            last = np.minimum(stops, paid) - 1
            gains = np.where(last >= 0, self.saved[last], 0.0)
            saved.append(float(gains.mean()))
            certified.append(float((gains > _LITTLE).mean()))
            asked = draws * self.open_share[np.minimum(stops, steps - 1)]
            labels.append(float(np.minimum(asked, budget).mean()))
        chance = sum(certified) / len(targets)
        return LabelPlan(budget, draws, round(float(np.mean(labels))), float(np.mean(saved)), chance)

    def _stops(self, target: float, lost: tuple[float, ...]) -> NDArray[np.intp]:
        """The number of the step at which so many inputs are lost, in each scenario `[scenarios * len(lost)]`.

        Confidences without labels are too high for most networks, and too low for some. So one scenario believes them,
        and the others are common shapes: the risk of all inputs, in targets, times a power of the share that exits.
        """
        stops = [np.searchsorted(self.risks, lost)]
        for total in _TOTALS:
            shares = [np.minimum(np.divide(lost, total * target), 1.0) ** (1 / power) for power in _POWERS]
            stops += [np.searchsorted(self.saved, share * (self.saved[-1] + 1e-9)) for share in shares]
        for power in _POWERS:  # an input that is confident and wrong
            share = self.saved / (self.saved[-1] + 1e-9)
            risks = target * (_HEAD * np.minimum(share / _HEAD_SHARE, 1.0) + 4 * share**power)
            stops.append(np.searchsorted(risks, lost))
        return np.concatenate(stops)


@lru_cache(4096)
def allowed_losses(draws: int, target: float, level: float, batch: int | None, nested: bool) -> int:
    """The most lost inputs among `draws` that certify a target. -1: none does."""
    return LossTest(_PLAIN, draws, batch, nested).most_lost(target, level)


@lru_cache(4096)
def fewest_draws(lost: int, target: float, level: float, batch: int | None, nested: bool) -> int:
    """The fewest draws that certify a target although `lost` of them lose."""
    if target <= 0:
        return 2**31
    high = batch if batch is not None else math.ceil(20 * (lost + 3 + math.log(1 / level)) / target)
    low = lost + 1
    if LossTest(_PLAIN, high, batch, nested).p_value(lost, 0, target, level) > level:
        return high + 1
    while low < high:
        middle = (low + high) // 2
        if LossTest(_PLAIN, middle, batch, nested).p_value(lost, 0, target, level) <= level:
            high = middle
        else:
            low = middle + 1
    return low


_PLAIN = Risk("harm", lambda right, reference: np.zeros(len(right), np.int8))  # losses of 0 and 1 are counted


def curve_text(plans: Sequence[LabelPlan]) -> str:
    """Labels against what they would save, a line each."""
    lines = ["labels  likely to be asked  chance of a certificate  saved"]
    lines += [f"{p.budget:6}  {p.labels:18}  {p.chance:23.0%}  {p.saved:5.0%}" for p in plans]
    return "\n".join(lines)


def check_reachable(count: int, fewest: Mapping[float, int], risk: str) -> None:
    """Raise CalibrationError where there are fewer inputs than any target needs."""
    if all(draws > count for draws in fewest.values()):
        words = ", ".join(f"{draws} for {risk} {target:g}" for target, draws in fewest.items() if draws < 2**31)
        raise CalibrationError(
            f"{count} inputs are fewer than any certificate needs: {words or 'no number does for target 0'}. "
            "Give more inputs, larger max_drops or a larger delta"
        )


def _losses() -> list[int]:
    """0 to 10, then rising by a quarter."""
    losses, lost = list(range(11)), 12.0
    while lost < _MOST_LOSSES:
        losses.append(int(lost))
        lost *= 1.25
    return losses


def _quantiles(shape: int) -> list[float]:
    """Quantiles of the gamma distribution (Wilson, Hilferty 1931): expected losses at loss number `shape`."""
    return [max(shape * (1 - 1 / (9 * shape) + z / (3 * math.sqrt(shape))) ** 3, 0.02) for z in _NORMAL]
