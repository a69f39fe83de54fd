"""The settings of `certify`, checked before anything runs."""

from collections.abc import Iterable, Sequence
from numbers import Real
from types import NoneType
from typing import Any, Literal, get_args

from dynamic.policies.certification.risks import Risk, risk_named
from dynamic.policies.errors import SettingError
from dynamic.policies.scores import Score

ScoreChoice = Literal[Score, "auto"]
SCORE_CHOICES: tuple[ScoreChoice, ...] = get_args(ScoreChoice)
AUTO = "auto"
MAX_DROPS = (0.0, 0.005, 0.01, 0.02, 0.05)


def check_settings(
    max_drops: Sequence[float] | None, delta: float, *, risk: str, score: str
) -> tuple[Risk, list[float]]:
    """The risk, and its targets in rising order.

    Args:
        max_drops: Targets. None: the usual five.
        delta: The probability that a bound is wrong.
        risk: Name of the risk.
        score: Name of the score, or "auto".

    Returns:
        The risk, and each target once.

    Raises:
        SettingError: as `certify` does.
    """
    measure = risk_named(risk)
    if not _is_number(delta) or not 0 < delta < 1:
        raise SettingError(f"delta={delta!r} must be a number in (0, 1), e.g. 0.1")
    check_score_choice(score)
    return measure, _targets(max_drops, measure)


def check_score_choice(score: str) -> ScoreChoice:
    """The option. Raises SettingError where there is none of that name."""
    if score not in SCORE_CHOICES:
        raise SettingError(f"score={score!r} is unknown: use one of {sorted(SCORE_CHOICES)}")
    return score


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _targets(max_drops: Sequence[float] | None, risk: Risk) -> list[float]:
    """The targets in rising order, each once."""
    if isinstance(max_drops, str) or not isinstance(max_drops, (Iterable, NoneType)):
        raise SettingError(f"max_drops={max_drops!r} must be a sequence of targets, such as ({max_drops},)")
    for target in max_drops or ():
        if not _is_number(target):
            raise SettingError(f"max_drops holds {target!r}: a drop is a number in [0, 1), 0.01 for one point")
    targets = sorted(set(MAX_DROPS if max_drops is None else max_drops))
    if max_drops is None and not risk.signed:
        targets = [target for target in targets if target > 0]
    if not targets:
        raise SettingError("max_drops is empty: give at least one, 0.01 for one point, or None for the usual five")
    for target in targets:
        if not 0 <= target < 1:
            raise SettingError(f"max_drops holds {target}: a drop is a fraction in [0, 1), 0.01 for one point")
        if target == 0 and not risk.signed:
            raise SettingError(
                f"max_drops holds 0, and no data can show that {risk.name!r} never happens: give more than 0, or "
                "risk='drop', where gains make up for losses"
            )
    return targets
