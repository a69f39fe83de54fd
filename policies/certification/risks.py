"""What can be certified: losses of an answer, compared with the reference, and bounds of their mean."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.certification.bounds import betting_p, binomial_p, hypergeometric_p, signed_p
from dynamic.policies.errors import CalibrationError, SettingError
from dynamic.policies.ladder import RiskName
from dynamic.policies.records import Records

Losses = NDArray[np.int8]
Rights = NDArray[np.bool_]

ROUNDING = 1e-9  # a target of 0.02 allows 200 of 10,000 inputs, however it is rounded
SPARE = 0.025  # of the level, for the nuisance parameter of a signed loss (beta of Berger and Boos)


@dataclass(frozen=True)
class Risk:
    """The mean of a loss in {-1, 0, 1}.

    Args:
        name: Of the risk.
        loss: Losses `[N]` from two arrays `[N]`: whether an answer is correct, and whether the reference's is. The
            correct answer is the label, or that of the reference where no labels are needed.
        signed: Whether the loss can be -1.
        needs_labels: Whether labels are needed.
        of_reference: Whether the reference itself can have a loss.
    """

    name: RiskName
    loss: Callable[[Rights, Rights], Losses]
    signed: bool = False
    needs_labels: bool = True
    of_reference: bool = False

    def correct_answers(self, records: Records, reference: NDArray[np.int64]) -> NDArray[np.int64]:
        """The correct answer of each record.

        Args:
            records: N records.
            reference: Predictions of the reference `[N]`.

        Returns:
            Labels, or these predictions where no labels are needed `[N]`.

        Raises:
            CalibrationError: when labels are needed and missing.
        """
        if not self.needs_labels:
            # on demand the reference itself was asked, and its answers are the labels
            return records.label if records.on_demand and records.label is not None else reference
        if records.label is None:
            without = next(name for name, risk in RISKS.items() if not risk.needs_labels)
            raise CalibrationError(
                f"risk={self.name!r} needs labels and these records have none: give a loader of (inputs, labels), or "
                f"use risk={without!r}, which compares with the last network's answers and needs none"
            )
        return records.label

    def open_losses(self, same: Rights) -> tuple[Losses, Losses]:
        """The worst and the best loss where the correct answer is not known.

        Args:
            same: Whether an answer is that of the reference `[N]`.

        Returns:
            The largest and the least loss that any correct answer gives `[N]`. Where both are equal, nobody has to be
            asked: equal answers have no drop.
        """
        differ, none = (~same).astype(np.int8), np.zeros(len(same), np.int8)
        if self.of_reference:
            return np.ones_like(none), none
        return differ, -differ if self.signed else none


def _drop(right: Rights, reference_right: Rights) -> Losses:
    return reference_right.astype(np.int8) - right.astype(np.int8)


def _harm(right: Rights, reference_right: Rights) -> Losses:
    return (reference_right & ~right).astype(np.int8)


def _wrong(right: Rights, reference_right: Rights) -> Losses:
    return (~right).astype(np.int8)


RISKS: dict[RiskName, Risk] = {
    # accuracy lost to the reference, as in max_drop: right answers of the reference minus right answers
    "drop": Risk("drop", _drop, signed=True),
    # the reference is right and the answer is wrong
    "harm": Risk("harm", _harm),
    # another answer than the reference's
    "disagreement": Risk("disagreement", _wrong, needs_labels=False),
    # a wrong answer (Jazbec et al. 2024, "Fast yet Safe")
    "error": Risk("error", _wrong, of_reference=True),
}


def risk_named(name: str) -> Risk:
    """The risk of a name. Raises SettingError where there is none."""
    if not isinstance(name, str) or name not in RISKS:
        raise SettingError(f"risk={name!r} is unknown: use one of {sorted(RISKS)}")
    return RISKS[name]


@dataclass(frozen=True, eq=False)
class Sample:
    """The records that certify.

    With groups, the risk is that of a random input of a random group. Every group counts the same, and the groups must
    be drawn independently instead of the inputs.

    Args:
        count: Number of records N.
        group: Group of each record `[N]`. None: records are independent.
        batch: Inputs of the finite batch that the records are drawn from. None: the promise is for future inputs.
    """

    count: int
    group: NDArray[Any] | None = None
    batch: int | None = None

    @cached_property
    def _group(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """(number of the group of each record `[N]`, records in each group `[G]`)."""
        _, number, size = np.unique(np.asarray(self.group), return_inverse=True, return_counts=True)
        return number.reshape(-1), size

    @property
    def units(self) -> int:
        """How many independent draws there are: groups where there are groups, records otherwise."""
        return self.count if self.group is None else len(self._group[1])

    def unit_means(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """The mean of `values [N]` of each unit."""
        if self.group is None:
            return values.astype(np.float64)
        number, size = self._group
        return np.bincount(number, values.astype(np.float64), len(size)) / size

    def mean(self, values: NDArray[Any]) -> float:
        """The mean over units."""
        return float(self.unit_means(values).mean())


@dataclass(frozen=True, eq=False)
class Evidence:
    """p-values for "the risk of these thresholds is above a target", from a sample.

    Args:
        risk: What is measured.
        sample: The records.
        losses: Their losses under the thresholds `[N]`.
        opened: Where a missing label decides on the loss, which is then the largest that there may be `[N]`. None:
            nowhere.
    """

    risk: Risk
    sample: Sample
    losses: Losses
    opened: Rights | None = None

    @cached_property
    def best(self) -> "Evidence":
        """The evidence if every missing label gave the least loss."""
        if self.opened is None or not self.opened.any():
            return self
        least = -1 if self.risk.signed else 0
        return Evidence(self.risk, self.sample, np.where(self.opened, least, self.losses).astype(np.int8))

    @cached_property
    def mean(self) -> float:
        """The measured risk."""
        return self.sample.mean(self.losses)

    @cached_property
    def _counts(self) -> tuple[int, int]:
        return int(np.count_nonzero(self.losses > 0)), int(np.count_nonzero(self.losses < 0))

    @cached_property
    def _means(self) -> NDArray[np.float64]:
        return self.sample.unit_means(self.losses)

    def p_value(self, target: float, level: float, times: float = 1.0, luck: float = 0.0) -> float:
        """A p-value to compare with `level`. What is rejected at a level is rejected at every larger one.

        Args:
            target: The risk under the hypothesis.
            level: The level of the test.
            times: As if each record had occurred so many times.
            luck: As if the mean were higher by so many standard errors.

        Returns:
            The p-value.
        """
        if self.sample.group is not None:
            worse = luck * self._means.std() / math.sqrt(times * len(self._means)) if luck else 0.0
            return betting_p(np.minimum(self._means + worse, 1.0), target, times)
        lost, gained = (round(times * count) for count in self._counts)
        if luck:
            square = times * (sum(self._counts) - self.sample.count * self.mean**2)
            lost += round(luck * math.sqrt(max(square, 0.0)))
        count = round(times * self.sample.count)
        if self.sample.batch is not None:  # losses alone: the drop is at most that
            total = max(round(times * self.sample.batch), count)
            return hypergeometric_p(lost, count, total, int(target * total + ROUNDING) + 1)
        if self.risk.signed:
            return signed_p(lost, gained, count, target, SPARE * level)
        return binomial_p(lost, count, target)

    def needed(self, target: float, level: float, luck: float = 0.0) -> int | None:
        """Units that suffice in half of the cases if the measured risk is the true one. None: no number does.

        With `luck` they suffice although their risk is so many standard errors higher. 1.28 is nine cases of ten.
        """
        if not self.sample.units or self.mean >= target:
            return None
        enough = 1
        while self.p_value(target, level, enough, luck) > level:
            enough *= 2
            if enough * self.sample.units > 100_000_000:
                return None
        low, high = enough / 2, float(enough)
        for _ in range(12):
            middle = 0.5 * (low + high)
            low, high = (low, middle) if self.p_value(target, level, middle, luck) <= level else (middle, high)
        return math.ceil(high * self.sample.units)


def batch_test_name(batch: int) -> str:
    """The test of one finite batch, in words."""
    return f"exact hypergeometric, for one batch of {batch} inputs"


def test_name(risk: Risk, grouped: bool) -> str:
    """The test that gives the p-values, in words."""
    if grouped:
        return "betting on groups (Waudby-Smith and Ramdas 2024)"
    if risk.signed:
        return "exact, nuisance bounded (Berger and Boos 1994)"
    return "exact binomial"
