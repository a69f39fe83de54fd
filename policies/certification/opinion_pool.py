"""What stages together predict for an input: a logarithmic opinion pool with weights fitted to the right answers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.scores import softmax

Floats = NDArray[np.float32]

_MOST = 2000  # records that the weights are fitted on. There are only as many weights as stages
_MOST_VALUES = 2**20  # that are float64 at a time: with 1,000 classes all of them take half a gigabyte
_ROUNDS = 25
_RIDGE = 1e-3  # moves weights that the records do not determine to equal ones
_LOWEST = -30.0  # of a logarithm, so that a probability of 0 does not exclude a class


def belief(probability: Sequence[Floats], label: NDArray[np.int64]) -> Floats:
    """Probabilities of the label `[N, C]` from those of the stages `[S][N, C]`. A row without finite ones is uniform.

    Negative labels are unknown, and the weights are equal where all are. The probabilities are proportional to the
    product of p_s ** w_s (Genest and Zidek 1986, the logarithmic pool). The weights `[S]` maximize the likelihood,
    which is a convex problem that damped Newton steps solve.
    """
    logs = [np.nan_to_num(np.maximum(np.log(np.maximum(p, 1e-30)), _LOWEST), nan=0.0) for p in probability]
    labelled_rows = np.flatnonzero(label >= 0)
    few = labelled_rows[:: max(1, len(labelled_rows) // _MOST)]
    weight = _fit(np.stack([log[few] for log in logs], axis=-1), label[few])
    return softmax(sum((np.float32(w) * log for w, log in zip(weight, logs, strict=True)), np.zeros_like(logs[0])))


def _fit(logs: Floats, label: NDArray[np.int64]) -> NDArray[np.float64]:
    """Weights `[S]` for `logs [N, C, S]`."""
    count, classes, stages = logs.shape
    if not count:
        return np.full(stages, 1.0 / stages)
    own = logs[np.arange(count), label].astype(np.float64).mean(axis=0)  # [S]
    equal = np.full(stages, 1.0 / stages)
    rows = max(1, _MOST_VALUES // (classes * stages))
    blocks = [slice(start, start + rows) for start in range(0, count, rows)]

    def loss(weight: NDArray[np.float64]) -> tuple[float, Any]:
        pooled = np.concatenate([logs[block].astype(np.float64) @ weight for block in blocks])  # [N, C]
        top = pooled.max(axis=1, keepdims=True)
        chance = np.exp(pooled - top)
        total = chance.sum(axis=1, keepdims=True)
        value = float((np.log(total) + top).mean() - own @ weight + 0.5 * _RIDGE * np.sum((weight - equal) ** 2))
        return value, chance / total

    weight = equal
    value, chance = loss(weight)
    for _ in range(_ROUNDS):
        means, curve = [], np.zeros((stages, stages))
        for block in blocks:
            some, doubles = chance[block], logs[block].astype(np.float64)
            means.append(np.einsum("nc,ncs->ns", some, doubles))
            curve += np.einsum("nc,ncs,nct->st", some, doubles, doubles, optimize=True)
        mean = np.concatenate(means)
        slope = mean.mean(axis=0) - own + _RIDGE * (weight - equal)
        curve = curve / count - mean.T @ mean / count
        step = np.linalg.solve(curve + _RIDGE * np.eye(stages), slope)
        size = 1.0
        while size > 1e-4:
            tried, chances = loss(weight - size * step)
            if tried <= value:
                break
            size /= 2
        else:
            break
        gained, weight, value, chance = value - tried, weight - size * step, tried, chances
        if gained < 1e-9:
            break
    return weight
