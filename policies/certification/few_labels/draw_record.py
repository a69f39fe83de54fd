"""The one draw of a checkpoint: whoever continues must not draw again.

A certificate holds for one draw of inputs. Another target or seed gives another draw, and so would another budget. The
best of several draws is wrong more often than each of them: each is a look at the whole of delta.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from dynamic.policies.errors import CorruptError, InputError, SettingError
from dynamic.policies.records import Records
from dynamic.policies.validation.fields import flag, items, mapping, number, text, whole

_SCORES = 64  # inputs whose logits are compared
_TOLERANCE = 0.01  # of a logit, relative and absolute: another machine rounds otherwise
_MOST_DIFFERENT = 4  # of these inputs


@dataclass(frozen=True)
class DrawRecord:
    """What the first question fixed.

    Args:
        inputs: Inputs that there are.
        draws: Inputs that were drawn.
        seed: Of the draw.
        targets: Of the certificate, in rising order.
        delta: The probability that a bound is wrong.
        risk: What is bounded.
        combine: How answers of stages are combined.
        score: Confidence of an answer.
        is_batch: Whether the promise is for these inputs alone.
        logits: The largest logit of the first stage for some inputs, evenly spaced.
    """

    inputs: int
    draws: int
    seed: int
    targets: tuple[float, ...]
    delta: float
    risk: str
    combine: str
    score: str
    is_batch: bool
    logits: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """All fields as plain JSON types."""
        return asdict(self) | {"targets": list(self.targets), "logits": list(self.logits)}

    @classmethod
    def from_json(cls, value: Any) -> "DrawRecord":
        """The inverse of `to_json`. Raises CorruptError where a field is missing or wrong."""
        try:
            return cls._read(mapping(value, "draw", [field.name for field in fields(cls)]))
        except ValueError as error:
            raise CorruptError(
                f"the draw of this checkpoint does not read ({error}): restore it. A new draw of the same inputs would "
                "spend the guarantee"
            ) from error

    @classmethod
    def _read(cls, data: Mapping[str, Any]) -> "DrawRecord":
        return cls(
            inputs=whole(data["inputs"], "inputs"),
            draws=whole(data["draws"], "draws"),
            seed=whole(data["seed"], "seed"),
            targets=items(data["targets"], "targets", number),
            delta=number(data["delta"], "delta"),
            risk=text(data["risk"], "risk"),
            combine=text(data["combine"], "combine"),
            score=text(data["score"], "score"),
            is_batch=flag(data["is_batch"], "is_batch"),
            logits=items(data["logits"], "logits", number),
        )

    def check_continues(self, earlier: "DrawRecord") -> None:
        """Raise SettingError or InputError where this draw is another look than the one of an earlier call."""
        for name in ("inputs", "seed", "targets", "delta", "risk", "combine", "score", "is_batch"):
            own, before = getattr(self, name), getattr(earlier, name)
            if own != before:
                raise SettingError(
                    f"{name}={own!r}, and the answers of this checkpoint were asked for with {before!r}. A second look "
                    "at the same inputs spends the guarantee: keep the settings, or ask about new inputs"
                )
        differ = ~np.isclose(self.logits, earlier.logits, rtol=_TOLERANCE, atol=_TOLERANCE)
        if differ.sum() > _MOST_DIFFERENT:
            raise InputError(
                f"{differ.sum()} of {len(differ)} inputs have other logits than when the answers of this checkpoint "
                "were asked for: give the same inputs in the same order (no shuffle=True), or another checkpoint"
            )


def compared_logits(records: Records) -> tuple[float, ...]:
    """The largest logit of the first stage for some inputs, evenly spaced. Six digits."""
    rows = np.unique(np.linspace(0, len(records) - 1, _SCORES).astype(np.int64))
    return tuple(float(f"{value:.6g}") for value in np.nan_to_num(records.logits[rows, 0].max(axis=1)))
