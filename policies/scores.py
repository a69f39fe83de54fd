"""How confident an answer is, and how the answers of several stages are combined.

The loop of the engines, threshold search and replay all use these functions.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.errors import InputError, SettingError

Floats = NDArray[np.float32]

TINY = np.float32(1e-30)  # keeps the logarithm of a probability finite


def softmax(logits: NDArray[Any], temperature: float = 1.0) -> Floats:
    """Probabilities `[..., C]` of logits divided by `temperature` (Guo et al. 2017, eq. 9). NaN where not finite."""
    # in C order a sum over classes rounds the same way, whatever the memory layout of the logits
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


Score = Literal["max_probability", "margin", "negative_entropy", "patience"]
Combination = Literal["mean", "last", "backbones"]
SCORES: tuple[Score, ...] = get_args(Score)
COMBINE: tuple[Combination, ...] = get_args(Combination)
PATIENCE: Score = "patience"

_OF_ONE_ANSWER: dict[str, Callable[[Floats], Floats]] = {
    "max_probability": max_probability,
    "margin": margin,
    "negative_entropy": negative_entropy,
}


@dataclass(frozen=True)
class Running:
    """The answers so far of the rows that have not exited.

    Stages form groups. Each group gives one answer, that of its latest stage (see `Combiner`).

    Args:
        total: Sum of the probabilities of all answers `[B, C]`, that of the current group included.
        before: The sum without the current group `[B, C]`.
        answers: How many answers `total` holds.
        answers_before: How many `before` holds.
        count: The number of answers by row `[B]`, once rows differ.
        count_before: The same without the current group `[B]`.
        group: The current group. -1: none yet.
        label: Label of the latest answer `[B]`, for score "patience".
        same: How many answers directly before it had that label `[B]`. -1: there is no answer yet.
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
        """The same for some rows alone."""

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
        """The same at a stage of `group`. The answer of an earlier group is final."""
        if group == self.group:
            return self
        return replace(self, before=self.total, answers_before=self.answers, count_before=self.count, group=group)


class Combiner:
    """Turns the raw logits of each stage into answers and scores.

    Where the logits of a stage give no finite probabilities, the score of the row is NaN, so it does not exit there.
    The answer of the stages before counts then.

    Args:
        temperature: Logits are divided by it `[S]`.
        score: Confidence of an answer. "max_probability", "margin" and "negative_entropy" are of its probabilities.
            "patience" is how many answers directly before it gave the same class (Zhou et al. 2020).
        combine: "mean" averages the probabilities of the stages so far. "last" is the latest stage alone. "backbones"
            averages the latest answer of each backbone, so that an exit is replaced by the next one.
        backbone: Number of the backbone of each stage `[S]`. "backbones" needs it.

    Raises:
        SettingError: when the score or combination is unknown, or "backbones" has no `backbone`.

    Example:
        >>> combiner = dynamic.policies.Combiner((1.0, 1.0), "max_probability", combine="last")
        >>> logits = np.zeros((1, 4), np.float32)
        >>> answer, score, state = combiner.add(combiner.start(), 0, logits)
        >>> answer.tolist(), score.tolist()
        ([[0.25, 0.25, 0.25, 0.25]], [0.25])
    """

    def __init__(
        self,
        temperature: tuple[float, ...],
        score: Score,
        *,
        combine: Combination,
        backbone: tuple[int, ...] | None = None,
    ) -> None:
        check_score(score)
        self._temperature = temperature
        self._score = _OF_ONE_ANSWER.get(score)
        self._group = groups(combine, backbone, len(temperature))

    def start(self) -> Running:
        """The state before the first stage."""
        return Running()

    def add(self, state: Running, stage: int, logits: Floats) -> tuple[Floats, Floats, Running]:
        """Combine the answers so far with the logits of a stage.

        Args:
            state: The answers so far.
            stage: The number of the stage.
            logits: Its raw logits `[B, C]`.

        Returns:
            The probabilities of the answer `[B, C]`, its score `[B]`, and the new state.

        Raises:
            IndexError: when there is no such stage.

        Example:
            >>> combiner = dynamic.policies.Combiner((1.0, 1.0), "margin", combine="mean")
            >>> answer, score, state = combiner.add(combiner.start(), 0, np.zeros((2, 3), np.float32))
            >>> score.tolist()
            [0.0, 0.0]
        """
        return self.merge(state, stage, self.probability(stage, logits))

    def probability(self, stage: int, logits: Floats) -> Floats:
        """Return the probabilities of one stage alone.

        Args:
            stage: The number of the stage.
            logits: Its raw logits `[B, C]`.

        Returns:
            Probabilities `[B, C]`, NaN where the logits are not finite.

        Raises:
            IndexError: when there is no such stage.

        Example:
            >>> combiner = dynamic.policies.Combiner((2.0,), "margin", combine="last")
            >>> combiner.probability(0, np.zeros((1, 2), np.float32)).tolist()
            [[0.5, 0.5]]
        """
        return softmax(logits, self._temperature[stage])

    def merge(self, state: Running, stage: int, probability: Floats) -> tuple[Floats, Floats, Running]:
        """Combine the answers so far with the probabilities of a stage.

        Args:
            state: The answers so far.
            stage: The number of the stage.
            probability: Its probabilities `[B, C]`.

        Returns:
            The probabilities of the answer `[B, C]`, its score `[B]`, and the new state.

        Raises:
            IndexError: when there is no such stage.

        Example:
            >>> combiner = dynamic.policies.Combiner((1.0, 1.0), "max_probability", combine="mean")
            >>> first = np.array([[1.0, 0.0]], np.float32)
            >>> _, _, state = combiner.merge(combiner.start(), 0, first)
            >>> combiner.merge(state, 1, np.array([[0.5, 0.5]], np.float32))[0].tolist()
            [[0.75, 0.25]]
        """
        group = self._group[stage]
        if state.count is not None or math.isnan(probability.sum()):
            return self._merge_by_row(state.enter(group), probability)
        # overhead of every request: the same as `enter`, without the object
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
            patience, label = _patience(state, total)  # a row that is not finite has the same total as before
            score[good] = patience[good]
            same = np.where(good, patience, np.float32(-1) if state.same is None else state.same)
        answers = state.answers_before + 1
        after = replace(
            state, total=total, answers=answers, count=count, count_before=had_before, label=label, same=same
        )
        return answer, score, after


def _patience(state: Running, total: Floats) -> tuple[Floats, NDArray[np.intp]]:
    """(score "patience" `[B]`, label `[B]`) of the answer whose sum is `total [B, C]`, after those in `state`."""
    label = total.argmax(axis=1)  # the same as of the average, without its rounding
    if state.same is None:
        return np.zeros(len(label), np.float32), label
    return (state.same + 1) * (label == state.label), label


def check_score(score: str) -> Score:
    """The score. Raises SettingError where there is none of that name."""
    if score not in SCORES:
        raise SettingError(f"score={score!r} is unknown: use one of {sorted(SCORES)}")
    return score


def check_combination(combine: str) -> Combination:
    """The combination. Raises SettingError where there is none of that name."""
    if combine not in COMBINE:
        raise SettingError(f"combine={combine!r} is unknown: use one of {COMBINE}")
    return combine


def groups(combine: Combination, backbone: tuple[int, ...] | None, stages: int) -> tuple[int, ...]:
    """The group of each stage `[S]`. Of all stages of a group, the latest answer counts.

    Args:
        combine: How answers are combined.
        backbone: Number of the backbone of each stage `[S]`.
        stages: S.

    Returns:
        The numbers of the groups.

    Raises:
        SettingError: when the combination is unknown, or "backbones" has no `backbone`.
    """
    check_combination(combine)
    if combine == "mean":
        return tuple(range(stages))
    if combine == "last":
        return (0,) * stages
    if backbone is None or len(backbone) != stages:
        raise SettingError(f"combine='backbones' needs the backbone of each of {stages} stages, it is {backbone}")
    return tuple(backbone)


@dataclass(frozen=True)
class ScoreBins:
    """A histogram of the scores of calibration inputs that exit at a stage.

    Args:
        edges: Edges of the bins in rising order `[E]`.
        counts: Calibration inputs by bin `[E + 1]`. Bin b holds `edges[b - 1] < score <= edges[b]`. NaN belongs to the
            lowest bin.

    Raises:
        InputError: when the edges do not rise or the counts do not fit.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        if not all(low < high for low, high in zip(self.edges, self.edges[1:], strict=False)):
            raise InputError(f"edges {self.edges} of score bins must rise")
        if len(self.counts) != len(self.edges) + 1 or min(self.counts) < 0:
            raise InputError(f"{len(self.edges)} edges need {len(self.edges) + 1} counts of 0 or more: {self.counts}")
