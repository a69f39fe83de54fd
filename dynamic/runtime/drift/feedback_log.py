"""Labels that are handed in for answers given earlier, and how often those were right."""

import operator
from array import array
from collections.abc import Iterable, Sequence

from dynamic.policies.certification.certificates import wilson
from dynamic.policies.errors import InputError
from dynamic.policies.ladder import Interval, OperatingPoint
from dynamic.runtime.result import FeedbackEstimate

KEPT = 10_000  # results whose answers are remembered

Label = int | str


# a result's id, the labels [B] it answered with (None once the true ones have come), and at which point: one is made
# for every request, so no dataclass
_Answered = tuple[int, "array[int] | None", OperatingPoint]


class FeedbackLog:
    """The answers of the latest results, and how often they were right. Not safe for several threads at once.

    Args:
        classes: How many classes there are.
        names: Their names. None: they have none.
    """

    def __init__(self, classes: int, names: Sequence[str] | None) -> None:
        self._classes, self._names = classes, names
        self._entries: list[_Answered | None] = [None] * KEPT  # a result's place is its id modulo KEPT
        self._next = 0
        # inputs whose labels came, right answers among them, and the expected number of those: replaced as a whole, so
        # that a signal handler may read it at any moment
        self._counts: tuple[int, int, float | None] = (0, 0, 0.0)

    def enter(self, number: int, labels: Sequence[int], point: OperatingPoint) -> None:
        """Keep the answers `labels [B]` (-1: none) that `point` gave in the request of this number."""
        self._entries[number % KEPT] = number, array("i", labels), point
        self._next = max(self._next, number + 1)

    def feedback(self, result_id: int, label: Label | Iterable[Label]) -> None:
        """Count the answers of a result, given the true `label [B]` (see `Runtime.feedback`)."""
        number, answers, point = self._find(result_id)
        wanted = _listed(label)
        if len(wanted) != len(answers):
            raise InputError(
                f"{len(wanted)} labels for result {number}, which has {len(answers)} rows: give one for each, in order"
            )
        right = [self._is(answer, truth) for answer, truth in zip(answers, wanted, strict=True)]
        self._entries[number % KEPT] = number, None, point
        count, correct, expected = self._counts
        if point.drop is None or expected is None:  # measured without labels: that is no accuracy
            expected = None
        else:
            expected += len(right) * point.accuracy.mid
        self._counts = count + len(right), correct + sum(right), expected

    def estimate(self) -> FeedbackEstimate | None:
        """How often answers were right whose labels came. None before any."""
        count, correct, expected = self._counts
        if not count:
            return None
        mean = None if expected is None else expected / count
        return FeedbackEstimate(count, Interval(*wilson(correct, count)), mean)

    def _find(self, result_id: int) -> tuple[int, "array[int]", OperatingPoint]:
        try:
            number = operator.index(result_id)
        except TypeError as error:
            raise InputError(f"a {type(result_id).__name__} is no result's id: give result.id") from error
        if not 0 <= number < self._next:
            raise InputError(f"no result has the id {number}: give result.id, of a result of this runtime")
        entry = self._entries[number % KEPT]
        if entry is None or entry[0] != number:
            raise InputError(
                f"result {number} is too old: the answers of the latest {KEPT} are kept, so hand labels in sooner"
            )
        _, answers, point = entry
        if answers is None:
            raise InputError(f"result {number} has its label already, which was counted once: the first stands")
        return number, answers, point

    def _is(self, answer: int, truth: Label) -> bool:
        if isinstance(truth, str):
            if self._names is None:
                raise InputError(f"label {truth!r}: this bundle has no class names, so give the class's number")
            if truth not in self._names:
                raise InputError(f"label {truth!r} is none of the bundle's classes: see bundle.classes")
            return answer >= 0 and self._names[answer] == truth
        try:
            if isinstance(truth, bool):
                raise TypeError
            number = operator.index(truth)
        except TypeError as error:
            raise InputError(f"label {truth!r} is neither a class's number nor its name") from error
        if not 0 <= number < self._classes:
            raise InputError(
                f"label {number} is out of range: the {self._classes} classes are 0 to {self._classes - 1}"
            )
        return answer == number


def _listed(label: Label | Iterable[Label]) -> list[Label]:
    """One label, or several, as a list."""
    try:
        return [label] if isinstance(label, str) else list(label)  # type: ignore[arg-type]
    except TypeError:  # not iterable, an array without dimensions neither
        return [label]  # type: ignore[list-item]
