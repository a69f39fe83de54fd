"""How sure an answer is, and how the answers of several stages become one.

One truth for the engines' loop, for threshold search and for replay.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.errors import InputError, SettingError

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


_OF_ONE_ANSWER: dict[str, Callable[[Floats], Floats]] = {
    "max_probability": max_probability,
    "margin": margin,
    "negative_entropy": negative_entropy,
}
PATIENCE = "patience"
SCORES = (*_OF_ONE_ANSWER, PATIENCE)
COMBINE = ("mean", "last", "backbones")


@dataclass(frozen=True)
class Running:
    """What is known of the rows still in the batch.

    Stages come in groups, of which each gives one answer, that of its latest stage (see `Combiner`). `total [B, C]`:
    sum of the answers' probabilities, that of the current `group` included; `before [B, C]`: the sum without it.
    `answers`, `answers_before`: how many are in them; `count [B]`, `count_before [B]`: the same by row, once rows
    differ. With score "patience", `label [B]` of the latest answer and `same [B]`, how many answers directly before it
    had that label (-1: there is no answer yet).
    """

    total: Floats | None = None
    before: Floats | None = None
    answers: int = 0
    answers_before: int = 0
    count: Floats | None = None
    count_before: Floats | None = None
    group: int = -1
    label: NDArray[np.intp] | None = None
    same: Floats | None = None

    def select(self, rows: NDArray[np.intp]) -> "Running":
        """The same for these rows alone."""

        def some(array: NDArray[Any] | None) -> NDArray[Any] | None:
            return None if array is None else array[rows]

        return Running(
            some(self.total),
            some(self.before),
            self.answers,
            self.answers_before,
            some(self.count),
            some(self.count_before),
            self.group,
            some(self.label),
            some(self.same),
        )

    def enter(self, group: int) -> "Running":
        """The same at a stage of `group`: the answer of a group that is over stands."""
        if group == self.group:
            return self
        return replace(self, before=self.total, answers_before=self.answers, count_before=self.count, group=group)


class Combiner:
    """Turns each stage's raw logits into answers and scores.

    Logits are divided by the stage's temperature. `combine`: "mean" averages the probabilities of the stages evaluated
    so far; "last" takes the latest stage's own; "backbones" averages over the backbones so far the latest answer of
    each, so that an exit is replaced by those behind it while networks vote. Where a stage's logits give no finite
    probabilities, the row gets score NaN there (so it does not leave) and that stage is left out: the answer of the
    stages before stands.

    `score`: one of the functions above, of the answer's probabilities, or "patience": how many answers directly before
    this one gave the same class, in an unbroken run (Zhou et al. 2020, BERT Loses Patience).

    Raises SettingError on an unknown score or combination, or "backbones" without `backbone [S]`.
    """

    def __init__(
        self, temperature: tuple[float, ...], score: str, combine: str, backbone: tuple[int, ...] | None = None
    ) -> None:
        if score not in SCORES:
            raise SettingError(f"score={score!r} is not known; use one of {sorted(SCORES)}")
        self._temperature = temperature
        self._score = _OF_ONE_ANSWER.get(score)
        self._group = groups(combine, backbone, len(temperature))

    def start(self) -> Running:
        """Nothing evaluated yet."""
        return Running()

    def add(self, state: Running, stage: int, logits: Floats) -> tuple[Floats, Floats, Running]:
        """Take in a stage's raw `logits [B, C]`: (the answer's probabilities `[B, C]`, score `[B]`, new state)."""
        return self.merge(state, stage, self.probability(stage, logits))

    def probability(self, stage: int, logits: Floats) -> Floats:
        """The stage's own probabilities `[B, C]`; NaN where its logits give none."""
        return softmax(logits, self._temperature[stage])

    def merge(self, state: Running, stage: int, probability: Floats) -> tuple[Floats, Floats, Running]:
        """Take in a stage's probabilities `[B, C]`: (the answer's `[B, C]`, score `[B]`, new state)."""
        group = self._group[stage]
        if state.count is not None or math.isnan(probability.sum()):
            return self._merge_by_row(state.enter(group), probability)
        # this is overhead of every request: what `enter` gives, but not made for its own sake
        new = group != state.group
        before, answers = (state.total, state.answers) if new else (state.before, state.answers_before)
        total = probability if before is None else before + probability
        answer = total if answers == 0 else total * np.float32(1.0 / (answers + 1))
        if self._score is not None:
            return answer, self._score(answer), Running(total, before, answers + 1, answers, None, None, group)
        same, label = _patience(state, total)
        return answer, same, Running(total, before, answers + 1, answers, None, None, group, label, same)

    def _merge_by_row(self, state: Running, probability: Floats) -> tuple[Floats, Floats, Running]:
        good: NDArray[np.bool_] = np.asarray(np.isfinite(probability).all(axis=1))  # [B]
        nothing = np.zeros_like(probability)
        before = nothing if state.before is None else state.before
        old = nothing if state.total is None else state.total
        had = np.full(len(good), state.answers, np.float32) if state.count is None else state.count
        had_before = (
            np.full(len(good), state.answers_before, np.float32) if state.count_before is None else state.count_before
        )
        total = np.where(good[:, None], before + probability, old)
        count = np.where(good, had_before + 1, had).astype(np.float32)
        answer = np.where(count[:, None] > 0, total / np.maximum(count, 1)[:, None], np.float32(np.nan))
        score = np.full(len(good), np.nan, np.float32)
        label = same = None
        if self._score is not None:
            score[good] = self._score(answer[good])
        else:
            told, label = _patience(state, total)  # of a row that is not good as before: its total is
            score[good] = told[good]
            same = np.where(good, told, np.float32(-1) if state.same is None else state.same)
        answers = state.answers_before + 1
        after = replace(
            state, total=total, answers=answers, count=count, count_before=had_before, label=label, same=same
        )
        return answer, score, after


def _patience(state: Running, total: Floats) -> tuple[Floats, NDArray[np.intp]]:
    """(score "patience" `[B]`, label `[B]`) of the answer whose sum is `total [B, C]`, after those in `state`."""
    label = total.argmax(axis=1)  # the average's own, but not rounded once more
    if state.same is None:
        return np.zeros(len(label), np.float32), label
    return (state.same + 1) * (label == state.label), label


def groups(combine: str, backbone: tuple[int, ...] | None, stages: int) -> tuple[int, ...]:
    """The group of each stage `[S]`: of all that share one, the latest answers alone.

    Raises SettingError on an unknown combination, or "backbones" where `backbone [S]` is not known.
    """
    if combine not in COMBINE:
        raise SettingError(f"combine={combine!r} is not known; use one of {COMBINE}")
    if combine == "mean":
        return tuple(range(stages))
    if combine == "last":
        return (0,) * stages
    if backbone is None or len(backbone) != stages:
        raise SettingError(f"combine='backbones' needs the backbone of each of {stages} stages; it is {backbone}")
    return tuple(backbone)


@dataclass(frozen=True)
class ScoreBins:
    """What calibration inputs scored at a stage that is the first to be evaluated.

    `edges [E]`, rising; `counts [E + 1]`: calibration inputs by bin, bin b holding `edges[b - 1] < score <= edges[b]`;
    NaN lies in the lowest. Raises InputError where edges do not rise or counts do not fit them.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        if not all(low < high for low, high in zip(self.edges, self.edges[1:], strict=False)):
            raise InputError(f"edges {self.edges} of score bins must rise")
        if len(self.counts) != len(self.edges) + 1 or min(self.counts) < 0:
            raise InputError(f"{len(self.edges)} edges need {len(self.edges) + 1} counts, none negative: {self.counts}")
