"""The contract of a policy: a pure function from frontier, budget, snapshot and state to a decision."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from dynamic.policies.budget import Budget
from dynamic.policies.frontier import CostedPoint, Frontier
from dynamic.policies.snapshot import Snapshot
from dynamic.policies.words.short_repr import short_repr, wrapped


class Sentence:
    """A field of text, or of an object whose `str` is the text. The text is built when it is first read."""

    def __set_name__(self, owner: type[Any], name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type[Any]) -> str:
        if instance is None:
            return "no reason given"  # the default value of the dataclass field
        words = instance.__dict__[self._name] = str(instance.__dict__[self._name])
        return words

    def __set__(self, instance: Any, words: object) -> None:
        instance.__dict__[self._name] = words


@dataclass(frozen=True, eq=False)
class Decision:
    """The operating point for the next request.

    Args:
        point: The point that runs.
        feasible: Whether it meets every limit of the budget.
        violated_limits: Names of the budget's fields that it does not meet.
        reason: Why this point runs, in words. An object whose `str` is the text is turned into text when it is read.
        keep_loaded: Backbones that may remain in memory. Those of the point always do. None: all that are loaded.
        slowdown: How much longer than profiled a request is expected to take now.
        one_request_only: Whether the point is for this request alone, because it has waited, or
            is of another size.

    Example:
        >>> decision = dynamic.Decision(frontier.cheapest, reason="the cheapest point")
        >>> decision.feasible, decision.reason
        (True, 'the cheapest point')
    """

    point: CostedPoint
    feasible: bool = True
    violated_limits: tuple[str, ...] = ()
    reason: Sentence = Sentence()
    keep_loaded: frozenset[int] | None = None
    slowdown: float = 1.0
    one_request_only: bool = False

    def __str__(self) -> str:
        return wrapped(str(self.reason))

    def __repr__(self) -> str:
        violated = f", violates {', '.join(self.violated_limits)}" if self.violated_limits else ""
        return short_repr("Decision", [f"{self.point.name!r}{violated}", f"reason={self.reason!r}"])


@dataclass(frozen=True, eq=False)
class Feedback:
    """What requests of one decision took, for the policy to learn from.

    Args:
        point: The point that ran.
        stages: `[N]`, for each request the stage of its deepest exit. The oldest request comes first. N is 0 where
            nothing but `drift` has changed.
        rows: `[N]`, inputs in each request.
        latency_ms: `[N]`, time of the work alone, without the wait in a queue.
        expected_ms: `[N]`, time that the profile predicts for this stage. 0 where the measured time has no meaning,
            such as after a network was loaded.
        threads: Threads of the engine.
        snapshot: The readings that the requests ran under.
        drift: Whether inputs differ from those of the calibration.

    Example:
        >>> now = dynamic.Snapshot(0.0)
        >>> two = dynamic.policies.Feedback(frontier.cheapest, [0, 0], [1, 1], [12, 9], [10, 10], 2, now)
        >>> sum(two.latency_ms) / sum(two.expected_ms)
        1.05
    """

    point: CostedPoint
    stages: Sequence[int]
    rows: Sequence[int]
    latency_ms: Sequence[float]
    expected_ms: Sequence[float]
    threads: int
    snapshot: Snapshot
    drift: bool = False


class Policy(Protocol):
    """Chooses a point of the frontier for requests. It has no memory but the state that it is given.

    A policy of your own inherits from this class and defines `decide`. The state of a policy without memory is None.
    With `decides_each_request = False` a runtime repeats a decision until the readings, the budget or the queue change,
    a request is slow or fails, or 128 requests were observed.

    Example:
        >>> class Cheapest(dynamic.Policy):
        ...     def decide(self, frontier, budget, snapshot, state):
        ...         return dynamic.Decision(frontier.cheapest, reason="always the cheapest"), state
        >>> policy = Cheapest()
        >>> decision, state = policy.decide(frontier, dynamic.Budget(), dynamic.Snapshot(0.0), policy.initial())
        >>> decision.point is frontier.cheapest
        True
    """

    decides_each_request: ClassVar[bool] = True

    def initial(self) -> Any:
        """The state before the first request."""
        return None

    @abstractmethod
    def decide(self, frontier: Frontier, budget: Budget, snapshot: Snapshot, state: Any) -> tuple[Decision, Any]:
        """Choose the point for the next request.

        Args:
            frontier: The points and their costs on this device.
            budget: The user's limits.
            snapshot: The newest readings, and the request that is about to run.
            state: The state after the last call.

        Returns:
            The decision, and the state after it. The same arguments always give the same result.

        Raises:
            Exception: of any kind. A runtime then logs it and repeats the last good decision.

        Example:
            >>> policy = dynamic.BudgetPolicy()
            >>> decision, state = policy.decide(frontier, dynamic.Budget(), dynamic.Snapshot(0.0), policy.initial())
            >>> decision.feasible
            True
        """

    def observe(self, state: Any, feedback: Feedback) -> Any:
        """Learn from requests that were answered. A runtime calls it before the next decision.

        Args:
            state: The state after the last call.
            feedback: What requests of one decision took.

        Returns:
            The state after it. Without a definition of your own it is the same one.

        Raises:
            Exception: of any kind. A runtime then logs it and continues with the last good state.

        Example:
            >>> policy = dynamic.policies.FixedPolicy("reference")
            >>> feedback = dynamic.policies.Feedback(frontier.cheapest, [0], [1], [12], [10], 2, dynamic.Snapshot(0.0))
            >>> policy.observe(None, feedback) is None
            True
        """
        return state
