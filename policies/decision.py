"""The contract of a policy: pure, state in and state out."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from dynamic.policies.budget import Budget
from dynamic.policies.frontier import CostedPoint, Frontier
from dynamic.policies.snapshot import Snapshot


class Sentence:
    """A field given as text, or as an object whose `str` is the text: few are ever read, so words wait until one is."""

    def __set_name__(self, owner: type[Any], name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type[Any]) -> str:
        if instance is None:
            return "no reason given"  # the default that a dataclass finds
        words = instance.__dict__[self._name] = str(instance.__dict__[self._name])
        return words

    def __set__(self, instance: Any, words: object) -> None:
        instance.__dict__[self._name] = words


@dataclass(frozen=True, eq=False)
class Decision:
    """The operating point for the next request.

    `feasible`: it meets every limit; `violated_limits`: names of the budget's fields that it does not; `reason`: one
    sentence, or an object whose `str` is one. `keep_loaded`: backbones that may stay in memory, the point's own always
    (None: all that are there). `slowdown`: how much longer than profiled requests are expected to take now.
    `one_request_only`: this point is for this request alone, since it has waited, and no change of what runs.
    """

    point: CostedPoint
    feasible: bool = True
    violated_limits: tuple[str, ...] = ()
    reason: Sentence = Sentence()
    keep_loaded: frozenset[int] | None = None
    slowdown: float = 1.0
    one_request_only: bool = False


@dataclass(frozen=True, eq=False)
class Feedback:
    """What a request of `rows` inputs took: `latency_ms` against `expected_ms` for the stage it got to.

    `latency_ms` is of the work alone, without the wait in a queue. `expected_ms` is 0 where what it took says nothing,
    as where a network had to be loaded. `threads`: what the engine asks of the processor. `drift`: whether inputs no
    longer look like those of the calibration.
    """

    point: CostedPoint
    stage: int
    rows: int
    latency_ms: float
    expected_ms: float
    threads: int
    snapshot: Snapshot
    drift: bool = False


class Policy(Protocol):
    """Chooses a point of the frontier for each request; keeps nothing between calls but the state it is given.

    A policy of one's own is a class with this one for its base and `decide` alone: without memory the state stays None.
    """

    # False: a decision holds until a snapshot, the budget, the queue or 16 observations change something
    decides_each_request: ClassVar[bool] = True

    def initial(self) -> Any:
        """The state before anything was seen."""
        return None

    @abstractmethod
    def decide(self, frontier: Frontier, budget: Budget, snapshot: Snapshot, state: Any) -> tuple[Decision, Any]:
        """The decision and the state after it."""

    def observe(self, state: Any, feedback: Feedback) -> Any:
        """The state after a request was answered."""
        return state
