"""What a request yields."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.engines.contract import Output
from dynamic.engines.outputs import finite_rows, is_finite
from dynamic.engines.parts.rest import Rest
from dynamic.policies.decision import Decision
from dynamic.policies.ladder import Interval
from dynamic.policies.words.short_repr import fields_repr, short_repr, wrapped

_SHOWN = 10  # inputs of a batch that are printed


class _Answer:
    """What one request yields. Fields that most callers never read are worked out when they are read."""

    __slots__ = (
        "_classes",
        "_label",
        "_output",
        "_probability",
        "certified",
        "decision",
        "id",
        "latency_ms",
        "waited_ms",
    )

    def __init__(
        self,
        id: int,
        output: Output,
        classes: Sequence[str] | None,
        latency_ms: float,
        decision: Decision,
        certified: bool,
        waited_ms: float = 0.0,
    ) -> None:
        self.id, self._output, self._classes = id, output, classes
        self.latency_ms, self.waited_ms = latency_ms, waited_ms
        self.decision, self.certified = decision, certified
        self._label: NDArray[np.int64] | None = None

    @property
    def class_names(self) -> Sequence[str] | None:
        """The names of all classes in label order. None: they have none."""
        return self._classes

    @property
    def rests(self) -> tuple[Rest, ...]:
        """Rows that continue elsewhere, for `Runtime.resume`. Empty but in the head of a split cascade."""
        return self._output.rests

    def _answers(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The labels `[B]` and their probabilities `[B]`."""
        if self._label is None:
            label, self._probability = answers(self._output.logits)
            self._label = label
        return self._label, self._probability

    def _request(self) -> str:
        """What is known of the whole request, in words."""
        waited = f", {self.waited_ms:.3f} of them waiting" if self.waited_ms else ""
        covered = "certified" if self.certified else "not certified"
        return wrapped(f"{self.latency_ms:.3f} ms{waited}, {covered}. {self.decision.reason}")


class Names(tuple[str | None, ...]):
    """Names of classes, a tuple. Compared with one name it gives a mask `[B]`, as an array of labels does.

    A plain tuple is never equal to a name. So `batch.name == "cat"` would be False for a batch of one cat.

    Example:
        >>> names = dynamic.runtime.result.Names(("cat", "dog"))
        >>> (names == "cat").tolist(), (names != "cat").tolist(), names == ("cat", "dog")
        ([True, False], [False, True], True)
    """

    __slots__ = ()
    __hash__ = tuple.__hash__

    def __eq__(self, other: object) -> Any:
        if isinstance(other, str):
            return np.array([name == other for name in self], bool)
        return tuple.__eq__(self, other)

    def __ne__(self, other: object) -> Any:
        if isinstance(other, str):
            return ~(self == other)
        return tuple.__ne__(self, other)


class Prediction(_Answer):
    """The answer to one input.

    It is certified where the budget's own `max_drop` holds for it. Without a `max_drop`, it is where the certificate of
    the ladder covers it. It is not certified in these cases:

    - The ladder is not certified, or was measured on another engine, precision, cascade or preprocessing.
    - The operating point has no bound, or promises a larger drop than `max_drop` (see `decision.point.bound`).
    - A deadline ended the request early, or a sub-model does not load.
    - The answer is not finite, or the input holds NaN or infinity and those of the calibration did not.
    - Inputs have drifted from those of the calibration. That is noticed some 128 requests later at most.

    Args:
        id: The number of the request, for `Runtime.feedback`.
        output: What the engine returned, one row.
        classes: The names of the classes. None: they have none.
        latency_ms: From arrival to answer, preprocessing included.
        decision: The decision that the request ran under.
        certified: Whether a certificate holds for this answer.
        waited_ms: The part of `latency_ms` in the queue.

    Example:
        >>> with bundle.runtime() as run:
        ...     answer = run(x)
        >>> answer.label in range(4), answer.name in "abcd", answer.stage in (0, 1)
        (True, True, True)
    """

    __slots__ = ()

    @property
    def label(self) -> int:
        """The number of the class. -1 where no stage gave a finite answer."""
        return int(self._answers()[0][0])

    @property
    def name(self) -> str | None:
        """The name of the class. None where classes have no names, or without an answer."""
        return names_of(self._classes, (self.label,))[0]

    @property
    def probability(self) -> float:
        """The probability of the label."""
        return float(self._answers()[1][0])

    @property
    def stage(self) -> int:
        """The stage that the answer came from."""
        return int(self._output.stage[0])

    @property
    def score(self) -> float:
        """The confidence of that stage, as thresholds are compared with it."""
        return float(self._output.score[0])

    @property
    def log_probs(self) -> NDArray[np.float32]:
        """Logarithms `[C]` of the probabilities of all classes."""
        row: NDArray[np.float32] = self._output.logits[0]
        return row

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """The probabilities `[C]` of all classes."""
        return np.exp(self.log_probs)

    def plot(self, image: Any = None, axes: Any = None) -> Any:
        """Draw the image that was answered, with the likeliest classes below it.

        It needs matplotlib, which the extra "plot" brings.

        Args:
            image: The image: an array `[H, W]`, `[H, W, C]` or `[C, H, W]`, an image of PIL, or a path. None: there is
                none, and the likeliest classes are bars.
            axes: Axes of matplotlib to draw into. None: new ones.

        Returns:
            The axes.

        Raises:
            InputError: It is no image.
            ModuleNotFoundError: matplotlib is missing.

        Example:
            >>> with bundle.runtime() as run:
            ...     answer = run(x)
            >>> len(answer.plot().patches)  # a bar for each of 4 classes
            4
        """
        from dynamic import plot  # on first use: no runtime needs pictures

        return plot(self, axes, image=image)

    def __str__(self) -> str:
        return f"{_in_words(self.label, self.name, self.probability, self.stage)}\n{self._request()}"

    def __repr__(self) -> str:
        names = [] if self.name is None else [f"name={self.name!r}"]
        covered = "certified" if self.certified else "not certified"
        rest = [f"probability={self.probability:.3f}", f"stage={self.stage}", f"{self.latency_ms:.3g} ms", covered]
        return short_repr("Prediction", [f"label={self.label}", *names, *rest])


class BatchResult(_Answer):
    """The answers to a batch of B inputs. Iterating over it gives a `Prediction` for each row.

    `id`, `latency_ms`, `waited_ms`, `decision` and `certified` are of the whole request. For the last see `Prediction`.

    Args:
        id: The number of the request, for `Runtime.feedback`.
        output: What the engine returned, B rows.
        classes: The names of the classes. None: they have none.
        latency_ms: From arrival to answer, preprocessing included.
        decision: The decision that the request ran under.
        certified: Whether a certificate holds for all of these answers.
        waited_ms: The part of `latency_ms` in the queue.

    Example:
        >>> with bundle.runtime() as run:
        ...     batch = run(inputs[:3])
        >>> len(batch), batch.label.shape, batch.log_probs.shape
        (3, (3,), (3, 4))
        >>> [answer.name for answer in batch] == list(batch.name)
        True
    """

    __slots__ = ()

    @property
    def label(self) -> NDArray[np.int64]:
        """The numbers of the classes `[B]`. -1 where no stage gave a finite answer."""
        return self._answers()[0]

    @property
    def name(self) -> "Names":
        """The names of the classes, one for each row. `batch.name == "cat"` is a mask `[B]`, as of labels."""
        return Names(names_of(self._classes, self.label.tolist()))

    @property
    def probability(self) -> NDArray[np.float32]:
        """The probabilities `[B]` of the labels."""
        return self._answers()[1]

    @property
    def stage(self) -> NDArray[np.int64]:
        """The stages `[B]` that the answers came from."""
        return self._output.stage

    @property
    def score(self) -> NDArray[np.float32]:
        """The confidences `[B]` of these stages, as thresholds are compared with them."""
        return self._output.score

    @property
    def log_probs(self) -> NDArray[np.float32]:
        """Logarithms `[B, C]` of the probabilities of all classes."""
        return self._output.logits

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """The probabilities `[B, C]` of all classes."""
        return np.exp(self.log_probs)

    def __len__(self) -> int:
        return len(self._output.logits)

    def __getitem__(self, row: int) -> Prediction:
        row = range(len(self))[row]
        output = self._output
        one = Output(
            output.logits[row : row + 1], output.stage[row : row + 1], output.score[row : row + 1], output.complete
        )
        return Prediction(self.id, one, self._classes, self.latency_ms, self.decision, self.certified, self.waited_ms)

    def __iter__(self) -> Iterator[Prediction]:
        return (self[row] for row in range(len(self)))

    def plot(self, images: Any, axes: Any = None) -> Any:
        """Draw the first 16 images of the batch, each with its likeliest classes below it.

        It needs matplotlib, which the extra "plot" brings.

        Args:
            images: The images in the order of the answers, each as for `Prediction.plot`.
            axes: Not for a batch, which has several.

        Returns:
            An array of axes `[N]`.

        Raises:
            InputError: The number of images is another, one is no image, or axes are given.
            ModuleNotFoundError: matplotlib is missing.

        Example:
            >>> with bundle.runtime() as run:
            ...     batch = run(inputs[:3])
            >>> len(batch.plot(np.zeros((3, 8, 8))))
            3
        """
        from dynamic import plot  # on first use: no runtime needs pictures

        return plot(self, axes, image=images)

    def __str__(self) -> str:
        count, shown = len(self), slice(_SHOWN)
        rows = zip(self.label[shown], self.name[shown], self.probability[shown], self.stage[shown], strict=True)
        lines = [_in_words(*row) for row in rows]
        lines += [f"... {count - _SHOWN} more"] * (count > _SHOWN)
        return "\n".join([*lines, self._request()])

    def __repr__(self) -> str:
        stages, counts = np.unique(self.stage, return_counts=True)
        exits = ", ".join(f"{count} at stage {stage}" for stage, count in zip(stages, counts, strict=True))
        covered = "certified" if self.certified else "not certified"
        return short_repr("BatchResult", [f"{len(self)} inputs: {exits}", f"{self.latency_ms:.3g} ms", covered])


Result = Prediction | BatchResult  # of a request: one input, or a batch


def _in_words(label: int, name: str | None, probability: float, stage: int) -> str:
    if label < 0:
        return "no finite answer"
    return f"{name or label}, probability {probability:.3f}, stage {stage}"


@dataclass(frozen=True)
class FeedbackEstimate:
    """How many of the answers were right whose labels were handed in.

    Args:
        count: Inputs with a label.
        accuracy: Of these answers, with its 95% interval (Wilson 1927).
        expected: What the ladder measured at the points that gave them, mean over inputs. None without labels there.
    """

    count: int
    accuracy: Interval
    expected: float | None


@dataclass(frozen=True)
class Statistics:
    """What a runtime has done so far.

    A bundle that is swapped in begins `drift` anew, and `stage_shares` where it has another number of stages.

    Args:
        requests: Requests answered.
        inputs: Their inputs.
        stage_shares: `[S]`, the share of inputs that exited at each stage.
        point_shares: The share of requests of each operating point, by name.
        decision_changes: How often the point changed.
        certified_share: Of requests, each under the budget of that moment.
        mean_latency_ms: From arrival to answer.
        drift: Whether inputs have drifted from those of the calibration. None: they are not watched.
        feedback: What labels that were handed in show. None: there were none.
        deadline_cuts: Requests that a deadline ended early.
        mean_waited_ms: The mean time in the queue.
        shed: Requests dropped because too many waited.
        queue_longest: As many as ever waited at once.
        engine_failures: How often an engine failed, whoever answered instead.
        policy_failures: How often the policy failed.
        limits_without_sensor: A sentence for each limit of the budget that nothing on this device measures now.
        near_duplicates: Inputs that were not tested for drift, since they repeated a scene.

    Example:
        >>> with bundle.runtime() as run:
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

    def __repr__(self) -> str:
        return fields_repr(self)

    def __str__(self) -> str:
        """The figures a person asks for first, in a few lines."""
        stages = ", ".join(f"stage {s} {share:.1%}" for s, share in enumerate(self.stage_shares))
        points = ", ".join(f"{name!r} {share:.1%}" for name, share in self.point_shares.items())
        drift = {None: "not watched", False: "none", True: "inputs have drifted, answers are not certified"}[self.drift]
        lines = [
            f"{self.requests} requests of {self.inputs} inputs, mean {self.mean_latency_ms:.3f} ms, "
            f"{self.mean_waited_ms:.3f} of them waiting, {self.certified_share:.0%} certified",
            f"exits: {stages}",
            f"points: {points}, {self.decision_changes} changes",
            f"drift: {drift}",
        ]
        troubles = {
            "cut by a deadline": self.deadline_cuts,
            "shed": self.shed,
            "engine failures": self.engine_failures,
            "policy failures": self.policy_failures,
        }
        lines += [", ".join(f"{what}: {count}" for what, count in troubles.items() if count)] * any(troubles.values())
        return wrapped("\n".join([*lines, *self.limits_without_sensor]), "    ")

    def plot(self, axes: Any = None) -> Any:
        """Draw the share of inputs that exited at each stage, and of requests at each operating point.

        It needs matplotlib, which the extra "plot" brings.

        Args:
            axes: Axes of matplotlib to draw into. None: new ones.

        Returns:
            The axes.

        Raises:
            ModuleNotFoundError: matplotlib is missing.

        Example:
            >>> with bundle.runtime() as run:
            ...     answer = run(x)
            ...     axes = run.stats().plot()
            >>> len(axes.patches)
            3
        """
        from dynamic import plot  # on first use: no runtime needs pictures

        return plot(self, axes)


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
    """Class names of `labels`. None where there are none, or for the label -1 (no finite answer)."""
    return tuple(classes[label] if classes is not None and label >= 0 else None for label in labels)
