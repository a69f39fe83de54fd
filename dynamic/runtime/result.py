"""What a request yields."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dynamic.engines.outputs import finite_rows, is_finite
from dynamic.policies.decision import Decision

_SHOWN = 10  # inputs of a batch that are printed


@dataclass(frozen=True)
class Result:
    """Answers of one request of B inputs; `id`, to hand in their labels by (`Runtime.feedback`).

    `logits [B, C]` (softmax gives probabilities), `label [B]` (-1 where no stage gave a finite answer), `name`
    and `probability` of each label, `stage [B]` each answer came from, its `score [B]`; `latency_ms` from arrival
    to answer, preprocessing included, and `waited_ms` in a queue (`Runtime.submit`), which is part of it; the
    `decision` it ran under.

    `certified`: whether the budget's own `max_drop` holds for this answer. Without a `max_drop`: whether the ladder's
    certificate covers it. Not so where the ladder is not certified, or was on another engine, precision, cascade or
    preprocessing (the fingerprint differs); where its point has no bound, or promises a larger drop than `max_drop`
    (`decision.point.bound` says which it promises); where a deadline cut it short; while a sub-model is missing;
    where a row has no finite answer; where inputs hold NaN or infinity and the calibration's did not; and once inputs
    have drifted from those of the calibration.
    """

    id: int
    logits: NDArray[np.float32]
    label: NDArray[np.int64]
    name: tuple[str | None, ...]
    probability: NDArray[np.float32]
    stage: NDArray[np.int64]
    score: NDArray[np.float32]
    latency_ms: float
    decision: Decision
    certified: bool
    waited_ms: float = 0.0

    def __str__(self) -> str:
        count, shown = len(self.label), slice(_SHOWN)
        rows = zip(self.label[shown], self.name[shown], self.probability[shown], self.stage[shown], strict=True)
        lines = [
            "no finite answer" if label < 0 else f"{name or label}, probability {probability:.3f}, stage {stage}"
            for label, name, probability, stage in rows
        ]
        lines += [f"... {count - _SHOWN} more"] * (count > _SHOWN)
        waited = f", {self.waited_ms:.3f} of them waiting" if self.waited_ms else ""
        covered = "certified" if self.certified else "not certified"
        return "\n".join([*lines, f"{self.latency_ms:.3f} ms{waited}; {covered}; {self.decision.reason}"])


@dataclass(frozen=True)
class FeedbackEstimate:
    """How many of the answers were right whose labels were handed in: the answers to `count` inputs.

    `accuracy` (low, mid, high), 95% interval (Wilson 1927); `expected`: what the ladder measured at the points that
    gave these answers, mean over inputs (None where it was measured without labels).
    """

    count: int
    accuracy: tuple[float, float, float]
    expected: float | None


@dataclass(frozen=True)
class Statistics:
    """What a runtime did so far.

    A bundle that is swapped in starts `drift` again, and `stage_shares` where its number of stages differs.

    Args:
        requests: How many were answered.
        inputs: How many inputs these had.
        stage_shares: Share of inputs that each stage answered `[S]`.
        point_shares: Share of inputs by operating point.
        decision_changes: How often the operating point changed.
        certified_share: Share of requests whose result is `certified`, each under the budget of its moment.
        mean_latency_ms: From arrival to answer.
        drift: Whether inputs have drifted from those of the calibration. None: drift is not tested.
        feedback: What the labels that were given show. None: there were none.
        deadline_cuts: Requests that a deadline cut short.
        mean_waited_ms: In the queue.
        shed: Requests that were refused because too many waited.
        queue_longest: The most requests that waited at once.
        engine_failures: How often an engine failed.
        policy_failures: How often a policy failed.
        limits_without_sensor: A sentence for each limit of the budget that nothing on this device measures now.
        near_duplicates: Inputs that were not tested for drift, since they repeated a scene.

    Example:
        >>> with bundle.runtime(monitor=dynamic.FixedMonitor()) as run:
        ...     answer = run(x)
        ...     run.stats().requests
        1
    """

    requests: int
    inputs: int
    stage_shares: tuple[float, ...]
    point_shares: dict[str, float]
    decision_changes: int
    certified_share: float
    mean_latency_ms: float
    drift: bool | None
    feedback: FeedbackEstimate | None
    deadline_cuts: int = 0
    mean_waited_ms: float = 0.0
    shed: int = 0
    queue_longest: int = 0
    engine_failures: int = 0
    policy_failures: int = 0
    limits_without_sensor: tuple[str, ...] = ()
    near_duplicates: int = 0


def answers(logits: NDArray[np.float32], finite: bool | None = None) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(label [B], its probability [B]) of answer logits `[B, C]`, normalized or not.

    `finite`: whether all logits are, where that is known. The label is -1 where a logit is not finite, and the
    probability NaN where one is NaN.
    """
    if finite is None:
        finite = is_finite(logits)
    if not finite:
        return _answers_of_some(logits)
    top = np.maximum.reduce(logits, axis=1, keepdims=True)  # [B, 1]
    total = np.add.reduce(np.exp(logits - top), axis=1)  # [B], the top's part is exp(0) = 1
    return logits.argmax(axis=1).astype(np.int64, copy=False), np.reciprocal(total)


def _answers_of_some(logits: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    with np.errstate(invalid="ignore"):  # inf - inf
        total = np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)
    label = np.where(finite_rows(logits), logits.argmax(axis=1), -1).astype(np.int64)
    return label, np.reciprocal(total)


def names_of(classes: Sequence[str] | None, labels: Iterable[int]) -> tuple[str | None, ...]:
    """Class names of `labels`; None where there are none, or for the label -1 (no finite answer)."""
    return tuple(classes[label] if classes is not None and label >= 0 else None for label in labels)
