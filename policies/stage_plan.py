"""Which stages run under given thresholds. Engines, costs, search and replay all use this one function."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.errors import SettingError


@dataclass(frozen=True)
class StagePlan:
    """The stages and exits that a vector of thresholds needs.

    A stage whose exit is off still runs when a later exit of its backbone is on. A backbone whose exits are all off
    does not run. The last exit is always on.

    Args:
        on: Whether each exit is evaluated `[S]`. Its head runs, and its answer counts.
        run: Whether the body of each stage runs `[S]`.
        deepest: The stage at which every input has exited: the first with threshold -inf, else the last. Only an input
            with NaN logits goes beyond it.
    """

    on: tuple[bool, ...]
    run: tuple[bool, ...]
    deepest: int


def check_thresholds(thresholds: NDArray[np.float32], stages: int) -> NDArray[np.float32]:
    """The thresholds as float32 `[S-1]`.

    Args:
        thresholds: One for each stage but the last.
        stages: S.

    Returns:
        The array.

    Raises:
        SettingError: when the length is wrong or a threshold is NaN.
    """
    array = np.asarray(thresholds, dtype=np.float32)
    if array.shape != (stages - 1,):
        raise SettingError(f"thresholds have shape {array.shape}, {stages} stages need ({stages - 1},)")
    if np.isnan(array).any():
        raise SettingError(f"thresholds {array.tolist()} contain NaN: use +inf to switch an exit off")
    return array


def plan(thresholds: NDArray[np.float32], backbone: tuple[int, ...]) -> StagePlan:
    """The plan of thresholds for the stages of a cascade.

    Args:
        thresholds: One for each stage but the last `[S-1]`.
        backbone: Number of the backbone of each stage `[S]`.

    Returns:
        The plan.

    Raises:
        SettingError: when the length is wrong or a threshold is NaN.
    """
    array = check_thresholds(thresholds, len(backbone))
    on = (*(bool(t) for t in array != np.inf), True)
    run = tuple(
        any(on[later] for later in range(stage, len(on)) if backbone[later] == backbone[stage])
        for stage in range(len(on))
    )
    everybody = np.flatnonzero(array == -np.inf)
    return StagePlan(on, run, int(everybody[0]) if len(everybody) else len(on) - 1)
