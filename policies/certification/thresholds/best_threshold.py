"""The cheapest threshold of one exit at full resolution, with the thresholds of the others fixed."""

from collections.abc import Sequence

import numpy as np

from dynamic.policies.certification.answers import Exits
from dynamic.policies.certification.thresholds.grids import is_within, midpoints, risk_and_se


def best_threshold(exits: Exits, limits: Sequence[float], j: int, *, target: float, margin: float) -> float | None:
    """The cheapest threshold of exit number j, of all that separate the records.

    Args:
        exits: The set of exits.
        limits: Their thresholds.
        j: The number of the exit whose threshold may change.
        target: Limit of the risk.
        margin: Standard errors that are added to the risk.

    Returns:
        The threshold. None: no threshold is within the target.
    """
    later = exits.exit_numbers([*limits[:j], np.inf, *limits[j + 1 :]])  # without exits at j
    order = exits.stages[j].most_confident_first
    order = order[later[order] > j]  # of the records that get there, the most confident exit first
    if len(order) == 0:
        return None
    score = exits.stages[j].score[order]
    fixed, fixed_square = exits.losses_at(later)
    changed = exits.stages[j].loss[order] - fixed[order]
    changed_square = exits.stages[j].square[order] - fixed_square[order]
    cost = np.cumsum((exits.cost[j] - exits.cost)[later[order]])  # up to a constant
    loss = fixed.sum(dtype=np.float64) + np.cumsum(changed, dtype=np.float64)
    square = fixed_square.sum(dtype=np.float64) + np.cumsum(changed_square, dtype=np.float64)
    risk, error = risk_and_se(loss, square, len(later))
    separates = np.append(score[:-1] > score[1:], True) & (score > -np.inf)  # equal scores exit together
    cost = np.where(separates & is_within(risk + margin * error, target), cost, np.inf)
    best = int(cost.argmin())
    if not np.isfinite(cost[best]):
        return None
    lower = score[best + 1] if best + 1 < len(score) else np.float32(-np.inf)
    return float(midpoints(np.array([lower]), score[best : best + 1])[0])
