"""What can be certified: losses of an answer beside the reference's, and how their mean is bounded."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.certification.bounds import betting_p, binomial_p, signed_p
from dynamic.policies.errors import CalibrationError, SettingError
from dynamic.policies.records import Records

Losses = NDArray[np.int8]
Rights = NDArray[np.bool_]

_SPARE = 0.025  # of the level: what a signed loss's nuisance may cost (Berger and Boos's beta)


@dataclass(frozen=True)
class Risk:
    """The mean of a loss in {-1, 0, 1}.

    `loss(right, reference_right)`, each `[N]`: whether an answer, and the reference's, is the one wanted: the label, or
    the reference's own where the risk needs no labels. `signed`: the loss can be -1. `of_reference`: the reference
    itself can lose.
    """

    name: str
    loss: Callable[[Rights, Rights], Losses]
    signed: bool = False
    needs_labels: bool = True
    of_reference: bool = False

    def wanted(self, records: Records, reference: NDArray[np.int64]) -> NDArray[np.int64]:
        """The answer wanted of each record `[N]`, `reference [N]` being the reference's.

        Raises CalibrationError where labels are needed and missing.
        """
        if not self.needs_labels:
            return reference
        if records.label is None:
            without = next(name for name, risk in RISKS.items() if not risk.needs_labels)
            raise CalibrationError(
                f"risk={self.name!r} needs labels and these records have none: give a loader of (inputs, labels), or "
                f"use risk={without!r}, which compares with the last network's answers and needs none"
            )
        return records.label


def _drop(right: Rights, reference_right: Rights) -> Losses:
    return reference_right.astype(np.int8) - right.astype(np.int8)


def _harm(right: Rights, reference_right: Rights) -> Losses:
    return (reference_right & ~right).astype(np.int8)


def _wrong(right: Rights, reference_right: Rights) -> Losses:
    return (~right).astype(np.int8)


RISKS = {
    # accuracy lost to the reference, what max_drop means: right answers of the reference minus right answers
    "drop": Risk("drop", _drop, signed=True),
    # the reference right and the answer given wrong
    "harm": Risk("harm", _harm),
    # another answer than the reference's
    "disagreement": Risk("disagreement", _wrong, needs_labels=False),
    # a wrong answer (Jazbec et al. 2024, "Fast yet Safe")
    "error": Risk("error", _wrong, of_reference=True),
}


def risk_named(name: str) -> Risk:
    """The risk; raises SettingError where there is none of that name."""
    if not isinstance(name, str) or name not in RISKS:
        raise SettingError(f"risk={name!r} is not known; use one of {sorted(RISKS)}")
    return RISKS[name]


@dataclass(frozen=True, eq=False)
class Sample:
    """The records that certify: how many, and which belong together.

    With groups, the risk is that of a random input of a random group: every group counts the same, and groups, not
    inputs, are what must have been drawn independently.
    """

    count: int
    group: NDArray[Any] | None = None

    @cached_property
    def _group(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """(number of the group of each record [N], records in each group [G])."""
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
    """What a sample says of the risk of one choice of thresholds: p-values for "it is above a target"."""

    risk: Risk
    sample: Sample
    losses: Losses

    @cached_property
    def mean(self) -> float:
        """The risk measured."""
        return self.sample.mean(self.losses)

    @cached_property
    def _counts(self) -> tuple[int, int]:
        return int(np.count_nonzero(self.losses > 0)), int(np.count_nonzero(self.losses < 0))

    @cached_property
    def _means(self) -> NDArray[np.float64]:
        return self.sample.unit_means(self.losses)

    def p_value(self, target: float, level: float, times: float = 1.0) -> float:
        """To be compared with `level`: what is rejected at a level is at every larger one, as `certify` needs.

        `times`: as if the same had been seen so many times as often.
        """
        if self.sample.group is not None:
            return betting_p(self._means, target, times)
        lost, gained = (round(times * count) for count in self._counts)
        count = round(times * self.sample.count)
        if self.risk.signed:
            return signed_p(lost, gained, count, target, _SPARE * level)
        return binomial_p(lost, count, target)

    def needed(self, target: float, level: float) -> int | None:
        """So many units would do if what was measured were the true risk; None where no number would."""
        if not self.sample.units or self.mean >= target:
            return None
        enough = 1
        while self.p_value(target, level, enough) > level:
            enough *= 2
            if enough * self.sample.units > 100_000_000:
                return None
        low, high = enough / 2, float(enough)
        for _ in range(12):
            middle = 0.5 * (low + high)
            low, high = (low, middle) if self.p_value(target, level, middle) <= level else (middle, high)
        return math.ceil(high * self.sample.units)


def test_name(risk: Risk, grouped: bool) -> str:
    """Where the p-values come from, in words."""
    if grouped:
        return "betting on groups (Waudby-Smith and Ramdas 2024)"
    if risk.signed:
        return "exact, nuisance bounded (Berger and Boos 1994)"
    return "exact binomial"
