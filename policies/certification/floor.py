"""The least accuracy that a point of a ladder may have, and stages that know nothing."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.errors import SettingError
from dynamic.policies.records import Records
from dynamic.policies.validation.numbers import plain

SHARE = 0.5  # of what the reference knows beyond chance: what a point must keep unless another floor is given
_CLEAR = 2.0  # standard errors above chance: less is no knowledge


@dataclass(frozen=True)
class Level:
    """How often a stage is `right` alone, beside `chance`: always answering with the commonest class."""

    stage: str
    right: float
    chance: float
    count: int

    @property
    def at_chance(self) -> bool:
        """Whether the stage is not clearly better than chance."""
        error = math.sqrt(max(self.right * (1 - self.right), 1e-12) / self.count)
        return self.right <= self.chance + _CLEAR * error

    def __str__(self) -> str:
        return (
            f"{self.stage!r} is right in {self.right:.1%} of {self.count} inputs, where the commonest class alone is "
            f"{self.chance:.1%}"
        )


def levels(records: Records) -> tuple[Level, ...]:
    """The level of every stage; agreement with the last stage where records have no labels."""
    answers = _answers(records)  # [N, S]
    wanted = records.label if records.label is not None else answers[:, -1]
    count = len(wanted)
    if not count:
        return ()
    chance = float(np.bincount(wanted).max()) / count
    return tuple(
        Level(name, float((answers[:, stage] == wanted).mean()), chance, count)
        for stage, name in enumerate(records.stage_names)
    )


def floor_of(records: Records, floor: float | None) -> float | None:
    """The floor of accuracy (of agreement without labels): the one that is given, or the default; None: no floor.

    The default is halfway between chance and what the reference reaches on these records. There is none where the
    reference itself is at chance. Raises SettingError on a floor that is no fraction.
    """
    if floor is not None:
        check_floor(floor)
        return floor or None
    known = levels(records)
    if not known or known[-1].at_chance:
        return None
    reference = known[-1]
    return reference.chance + SHARE * (reference.right - reference.chance)


def check_floor(floor: float | None) -> None:
    """Raises SettingError on a floor that is no fraction."""
    floor = plain(floor)
    if floor is None:
        return
    if isinstance(floor, bool) or not isinstance(floor, (int, float)) or not 0 <= floor < 1:
        raise SettingError(
            f"floor={floor!r} must be an accuracy in [0, 1), 0.6 for 60%, 0 for no floor, or None for halfway between "
            "chance and the reference"
        )


def _answers(records: Records) -> NDArray[np.int64]:
    answers: NDArray[np.int64] = records.logits.argmax(axis=2).astype(np.int64)
    return answers
