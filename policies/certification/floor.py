"""The least accuracy that a point of a ladder may have, and stages that are no better than chance."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.errors import SettingError
from dynamic.policies.records import UNKNOWN, Records
from dynamic.policies.validation.numbers import plain

SHARE = 0.5  # of the accuracy of the reference beyond chance. The default floor requires it of every point
_CLEAR = 2.0  # standard errors above chance, below which a stage counts as chance


@dataclass(frozen=True)
class Level:
    """How often a stage alone is right.

    Args:
        stage: Name of the stage.
        right: Share of right answers.
        chance: Share of the most common class.
        count: Inputs.
    """

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
    """The level of every stage. Without labels it is the agreement with the last stage."""
    if records.label is not None and not records.is_labelled:
        records = records.select(records.label != UNKNOWN)
    answers = _answers(records)  # [N, S]
    correct = records.label if records.label is not None else answers[:, -1]
    count = len(correct)
    if not count:
        return ()
    chance = float(np.bincount(correct).max()) / count
    return tuple(
        Level(name, float((answers[:, stage] == correct).mean()), chance, count)
        for stage, name in enumerate(records.stage_names)
    )


def floor_of(records: Records, floor: float | None) -> float | None:
    """The floor of accuracy, or of agreement without labels.

    Args:
        records: Records that choose.
        floor: The floor that the user gives. 0: no floor. None: halfway between chance and the reference, or no floor
            where the reference itself is at chance.

    Returns:
        The floor. None: there is no floor.

    Raises:
        SettingError: when the floor is not a fraction.
    """
    if floor is not None:
        check_floor(floor)
        return floor or None
    stages = levels(records)
    if not stages or stages[-1].at_chance:
        return None
    reference = stages[-1]
    return reference.chance + SHARE * (reference.right - reference.chance)


def check_floor(floor: float | None) -> None:
    """Raise SettingError on a floor that is not a fraction."""
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
