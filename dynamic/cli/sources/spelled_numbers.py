"""Numbers and sizes as options spell them."""

import math
from typing import Any

from dynamic.policies.errors import SettingError


def numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """`0.5,0.4` as numbers. Raises SettingError with the `option` on anything else."""
    try:
        values = None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise SettingError(f"{option} {text!r}: give numbers with commas between them, 0.485,0.456,0.406") from error
    if values is not None and not all(math.isfinite(value) for value in values):
        raise SettingError(f"{option} {text!r} is not finite: give numbers such as 0.485,0.456,0.406")
    return values


def size(option: str, text: str | None) -> int | tuple[int, int] | None:
    """`224`, or `224x320` as (height, width). Raises SettingError with the `option` on anything else."""
    sides = None if text is None else _sides(text)
    if text is not None and (sides is None or len(sides) > 2):
        raise SettingError(f"{option} {text!r}: give a whole number, 224, or HEIGHTxWIDTH, 224x320")
    return None if not sides else sides[0] if len(sides) == 1 else (sides[0], sides[1])


def shape(option: str, text: str | None) -> tuple[int, ...] | None:
    """`3x224x224` as the shape of one input. Raises SettingError with the `option` on anything else."""
    sides = None if text is None else _sides(text)
    if text is not None and sides is None:
        raise SettingError(f"{option} {text!r}: give the sizes of one input, such as CHANNELSxHEIGHTxWIDTH, 3x224x224")
    return sides


def positive(option: str, value: float | None) -> None:
    """Raises SettingError with the `option` on a number below 1."""
    if value is not None and not value >= 1:
        raise SettingError(f"{option} {value} must be at least 1")


def not_negative(option: str, value: float | None) -> None:
    """Raises SettingError with the `option` on a number below 0."""
    if value is not None and not value >= 0:
        raise SettingError(f"{option} {value} must be at least 0, and 0 means none")


def _sides(text: str) -> tuple[int, ...] | None:
    try:
        sides: Any = tuple(int(part) for part in text.split("x"))
    except ValueError:
        return None
    return sides if all(side >= 1 for side in sides) else None
