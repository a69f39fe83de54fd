"""What engines would have done: the numpy reference of the stage loop, on records instead of inputs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.scores import Combiner
from dynamic.policies.stage_plan import StagePlan, plan


@dataclass(frozen=True, eq=False)
class Replay:
    """For each of N records: the `stage [N]` it leaves at, the `prediction [N]` (-1: none) and the `score [N]`."""

    stage: NDArray[np.int64]
    prediction: NDArray[np.int64]
    score: NDArray[np.float32]


def replay(
    logits: NDArray[np.float32],
    combiner: Combiner,
    thresholds: NDArray[np.float32] | Sequence[float],
    backbone: tuple[int, ...],
) -> Replay:
    """Run recorded `logits [N, S, C]` under `thresholds [S-1]`.

    Raises SettingError on thresholds of wrong length or NaN.
    """
    limits = np.asarray(thresholds, np.float32)
    todo = plan(limits, backbone)
    count, last = len(logits), logits.shape[1] - 1
    stage = np.full(count, last, np.int64)
    prediction = np.full(count, -1, np.int64)
    score = np.full(count, np.nan, np.float32)
    waiting = np.ones(count, bool)
    state = combiner.start()
    for number in range(last + 1):
        if not todo.on[number]:
            continue
        answer, sure, state = combiner.add(state, number, logits[:, number])
        leaves = waiting if number == last else waiting & (limits[number] < sure)
        stage[leaves], score[leaves] = number, sure[leaves]
        prediction[leaves] = predictions(answer[leaves])
        waiting = waiting & ~leaves
    return Replay(stage, prediction, score)


def predictions(probability: NDArray[np.float32]) -> NDArray[np.int64]:
    """The likeliest class of `probability [B, C]`; -1 where it is NaN."""
    return np.where(np.isnan(probability).any(axis=1), -1, probability.argmax(axis=1)).astype(np.int64)


def cost_to(todo: StagePlan, body: Sequence[float], head: Sequence[float]) -> NDArray[np.float64]:
    """What an input has cost that leaves at each stage `[S]`: bodies run and heads evaluated until there."""
    return np.cumsum(
        [(body[s] if todo.run[s] else 0.0) + (head[s] if todo.on[s] else 0.0) for s in range(len(todo.on))]
    )


def shares(stage: NDArray[np.int64], stages: int) -> tuple[float, ...]:
    """Share of inputs that leave at each stage `[S]`."""
    return tuple((np.bincount(stage, minlength=stages) / max(len(stage), 1)).tolist())
