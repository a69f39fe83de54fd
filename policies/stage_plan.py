"""Which stages run under given thresholds: one truth for engines, costs, search and replay."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.errors import SettingError


@dataclass(frozen=True)
class StagePlan:
    """What a threshold vector asks for.

    `on [S]`: the exit is evaluated (its head run, its answer averaged in). `run [S]`: the stage's body is
    run. A stage with its exit off still runs when a later exit of its backbone is on; a backbone with all
    exits off is not run. The last exit is always on. `deepest`: the stage at which every input has left: the first
    with threshold -inf, else the last (only an input with NaN logits goes beyond it).
    """

    on: tuple[bool, ...]
    run: tuple[bool, ...]
    deepest: int


def check_thresholds(thresholds: NDArray[np.float32], stages: int) -> NDArray[np.float32]:
    """The thresholds as float32 `[S-1]`; raises SettingError on a wrong length or NaN."""
    array = np.asarray(thresholds, dtype=np.float32)
    if array.shape != (stages - 1,):
        raise SettingError(f"thresholds have shape {array.shape}; {stages} stages need ({stages - 1},)")
    if np.isnan(array).any():
        raise SettingError(f"thresholds {array.tolist()} hold NaN; use +inf to switch an exit off")
    return array


def plan(thresholds: NDArray[np.float32], backbone: tuple[int, ...]) -> StagePlan:
    """The plan of `thresholds [S-1]` for stages that belong to `backbone [S]`.

    Raises SettingError on a wrong length or NaN.
    """
    array = check_thresholds(thresholds, len(backbone))
    on = (*(bool(t) for t in array != np.inf), True)
    run = tuple(
        any(on[later] for later in range(stage, len(on)) if backbone[later] == backbone[stage])
        for stage in range(len(on))
    )
    everybody = np.flatnonzero(array == -np.inf)
    return StagePlan(on, run, int(everybody[0]) if len(everybody) else len(on) - 1)
