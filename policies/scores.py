"""How sure an answer is, and how the answers of several stages become one.

One truth for the engines' loop, for threshold search and for replay.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.errors import BudgetError

Floats = NDArray[np.float32]

TINY = np.float32(1e-30)  # keeps the logarithm of a probability finite


def softmax(logits: NDArray[Any], temperature: float = 1.0) -> Floats:
    """Probabilities `[..., C]` of logits divided by `temperature` (Guo et al. 2017, eq. 9); NaN where not finite."""
    # rows lie together: a sum over classes then rounds the same way whatever the memory layout of what was given
    scaled: Floats = np.multiply(logits, np.float32(1.0 / temperature), order="C")
    with np.errstate(invalid="ignore"):  # inf - inf: the row becomes NaN, as documented
        scaled -= scaled.max(axis=-1, keepdims=True)
        np.exp(scaled, out=scaled)
        scaled /= scaled.sum(axis=-1, keepdims=True)
    return scaled


def max_probability(probability: Floats) -> Floats:
    """The largest probability (Teerapittayanon et al. 2016 use its entropy instead)."""
    return probability.max(axis=-1)  # type: ignore[no-any-return]


def margin(probability: Floats) -> Floats:
    """Largest minus second largest probability."""
    top = np.partition(probability, -2, axis=-1)
    return top[..., -1] - top[..., -2]


def negative_entropy(probability: Floats) -> Floats:
    """Minus the entropy in nats (Teerapittayanon et al. 2016, BranchyNet, eq. 1)."""
    terms = np.multiply(probability, np.log(np.maximum(probability, TINY)), order="C")  # see softmax
    return terms.sum(axis=-1)  # type: ignore[no-any-return]


SCORES: dict[str, Callable[[Floats], Floats]] = {
    "max_probability": max_probability,
    "margin": margin,
    "negative_entropy": negative_entropy,
}
COMBINE = ("mean", "last")


@dataclass(frozen=True)
class Running:
    """What is known of the rows still in the batch.

    `total [B, C]`: sum of the probabilities of the stages evaluated so far ("mean"), or the latest answer
    ("last"). `stages`: how many are in it; `count [B]`: the same by row, once rows differ.
    """

    total: Floats | None = None
    stages: int = 0
    count: Floats | None = None

    def select(self, rows: NDArray[np.intp]) -> "Running":
        """The same for these rows alone."""
        return Running(
            None if self.total is None else self.total[rows],
            self.stages,
            None if self.count is None else self.count[rows],
        )


class Combiner:
    """Turns each stage's raw logits into answers and scores.

    Logits are divided by the stage's temperature. "mean" averages the probabilities of the stages evaluated so
    far, "last" takes the latest stage's own. Where a stage's logits give no finite probabilities, the row gets score
    NaN there (so it does not leave) and that stage is left out: the answer of the stages before stands.

    Raises BudgetError on an unknown score or combination.
    """

    def __init__(self, temperature: tuple[float, ...], score: str, combine: str) -> None:
        if score not in SCORES:
            raise BudgetError(f"score={score!r} is not known; use one of {sorted(SCORES)}")
        if combine not in COMBINE:
            raise BudgetError(f"combine={combine!r} is not known; use one of {COMBINE}")
        self._temperature = temperature
        self._score = SCORES[score]
        self._mean = combine == "mean"

    def start(self) -> Running:
        """Nothing evaluated yet."""
        return Running()

    def add(self, state: Running, stage: int, logits: Floats) -> tuple[Floats, Floats, Running]:
        """Take in a stage's raw `logits [B, C]`: (the answer's probabilities `[B, C]`, score `[B]`, new state)."""
        return self.merge(state, self.probability(stage, logits))

    def probability(self, stage: int, logits: Floats) -> Floats:
        """The stage's own probabilities `[B, C]`; NaN where its logits give none."""
        return softmax(logits, self._temperature[stage])

    def merge(self, state: Running, probability: Floats) -> tuple[Floats, Floats, Running]:
        """Take in a stage's probabilities `[B, C]`: (the answer's `[B, C]`, score `[B]`, new state)."""
        if state.count is not None or np.isnan(probability.sum()):
            return self._merge_by_row(state, probability)
        if not self._mean or state.total is None:
            return probability, self._score(probability), Running(probability, 1)
        total = state.total + probability
        average = total * np.float32(1.0 / (state.stages + 1))
        return average, self._score(average), Running(total, state.stages + 1)

    def _merge_by_row(self, state: Running, probability: Floats) -> tuple[Floats, Floats, Running]:
        good: NDArray[np.bool_] = np.asarray(np.isfinite(probability).all(axis=1))  # [B]
        before = np.zeros_like(probability) if state.total is None else state.total
        had = np.full(len(good), state.stages, np.float32) if state.count is None else state.count
        if self._mean:
            count = had + good
            total = before + np.where(good[:, None], probability, np.float32(0))
        else:
            count = np.maximum(had, good).astype(np.float32)
            total = np.where(good[:, None], probability, before)
        answer = np.where(count[:, None] > 0, total / np.maximum(count, 1)[:, None], np.float32(np.nan))
        score = np.full(len(good), np.nan, np.float32)
        score[good] = self._score(answer[good])
        return answer, score, Running(total, state.stages + 1, count)
