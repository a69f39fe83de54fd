"""Temperature scaling, which calibrates probabilities (Guo et al. 2017)."""

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.records import SEARCH, UNKNOWN, Records

LOWEST, HIGHEST = 0.05, 20.0
_STEPS = 60


def fit_temperature(logits: NDArray[np.float32], label: NDArray[np.int64]) -> float:
    """The temperature in [0.05, 20] that minimizes the negative log likelihood of `label [N]` (section 4.2).

    The loss is convex in 1 / T, so its slope is bisected. Rows of `logits [N, C]` that are not finite are ignored. The
    temperature is 1.0 where no row is finite.
    """
    good = np.isfinite(logits).all(axis=1)
    z, y = logits[good].astype(np.float64), label[good]
    if len(z) == 0:
        return 1.0
    z -= z.max(axis=1, keepdims=True)
    own = z[np.arange(len(z)), y].mean()

    def slope(inverse: float) -> float:
        weight = np.exp(z * inverse)
        return float(((weight * z).sum(axis=1) / weight.sum(axis=1)).mean() - own)

    low, high = 1.0 / HIGHEST, 1.0 / LOWEST
    if slope(low) >= 0:
        return HIGHEST
    if slope(high) <= 0:
        return LOWEST
    for _ in range(_STEPS):
        middle = 0.5 * (low + high)
        if slope(middle) > 0:
            high = middle
        else:
            low = middle
        if high - low < 1e-5 * high:
            break
    return 2.0 / (low + high)


def fit_temperatures(records: Records) -> tuple[float, ...]:
    """A temperature for each stage `[S]`, from the labels of the search part alone. It is 1.0 without labels."""
    if records.label is None:
        return (1.0,) * records.stages
    search = (records.part == SEARCH) & (records.label != UNKNOWN)
    return tuple(
        fit_temperature(records.logits[search, stage], records.label[search]) for stage in range(records.stages)
    )
