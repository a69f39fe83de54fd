"""The numpy reference of the stage loop, on records instead of inputs. Engines give the same answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.scores import Combiner
from dynamic.policies.stage_plan import StagePlan, plan


@dataclass(frozen=True, eq=False)
class Replay:
    """The answers to N records under given thresholds.

    Args:
        stage: The stage at which each record exits `[N]`.
        prediction: Its class `[N]`. -1: there is no finite answer.
        score: Its score there `[N]`.

    Example:
        >>> run = dynamic.policies.Replay(np.array([1]), np.array([3]), np.array([0.9], np.float32))
        >>> run.prediction.tolist()
        [3]
    """

    stage: NDArray[np.int64]
    prediction: NDArray[np.int64]
    score: NDArray[np.float32]


def replay(
    logits: NDArray[np.float32],
    combiner: Combiner,
    *,
    thresholds: NDArray[np.float32] | Sequence[float],
    backbone: tuple[int, ...],
) -> Replay:
    """Answer records under given thresholds, as an engine does with inputs.

    Args:
        logits: Raw logits of every stage `[N, S, C]`.
        combiner: How logits become answers and scores.
        thresholds: A record exits where `threshold < score` `[S-1]`.
        backbone: Number of the backbone of each stage `[S]`.

    Returns:
        Stage, prediction and score of each record.

    Raises:
        SettingError: when the number of thresholds is wrong or one is NaN.

    Example:
        >>> combiner = dynamic.policies.Combiner((1.0, 1.0), "max_probability", combine="last")
        >>> logits = np.array([[[0.0, 9.0], [9.0, 0.0]], [[0.0, 0.1], [9.0, 0.0]]], np.float32)
        >>> run = dynamic.policies.replay(logits, combiner, thresholds=(0.9,), backbone=(0, 0))
        >>> run.stage.tolist(), run.prediction.tolist()
        ([0, 1], [1, 0])
    """
    limits = np.asarray(thresholds, np.float32)
    stages = plan(limits, backbone)
    count, last = len(logits), logits.shape[1] - 1
    stage = np.full(count, last, np.int64)
    prediction = np.full(count, -1, np.int64)
    score = np.full(count, np.nan, np.float32)
    waiting = np.ones(count, bool)
    state = combiner.start()
    for number in range(last + 1):
        if not stages.on[number]:
            continue
        answer, confidence, state = combiner.add(state, number, logits[:, number])
        exits = waiting if number == last else waiting & (limits[number] < confidence)
        stage[exits], score[exits] = number, confidence[exits]
        prediction[exits] = predictions(answer[exits])
        waiting = waiting & ~exits
    return Replay(stage, prediction, score)


def predictions(probability: NDArray[np.float32]) -> NDArray[np.int64]:
    """The most likely class of `probability [B, C]`, -1 where it is NaN."""
    return np.where(np.isnan(probability).any(axis=1), -1, probability.argmax(axis=1)).astype(np.int64)


def cost_to(stages: StagePlan, body: Sequence[float], head: Sequence[float]) -> NDArray[np.float64]:
    """Cost of an input that exits at each stage `[S]`: the bodies that run and the heads that are evaluated."""
    return np.cumsum(
        [(body[s] if stages.run[s] else 0.0) + (head[s] if stages.on[s] else 0.0) for s in range(len(stages.on))]
    )


def shares(stage: NDArray[np.int64], stages: int) -> tuple[float, ...]:
    """Share of inputs that exit at each stage `[S]`."""
    return tuple((np.bincount(stage, minlength=stages) / max(len(stage), 1)).tolist())
