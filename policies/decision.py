"""The contract of a policy: pure, state in and state out."""

from dataclasses import dataclass
from typing import Any, Protocol

from dynamic.policies.budget import Budget
from dynamic.policies.frontier import Frontier, FrontierPoint
from dynamic.policies.snapshot import Snapshot


@dataclass(frozen=True, eq=False)
class Decision:
    """The operating point for the next request.

    `feasible`: it meets every limit; `gave_way`: names of the budget's fields that it does not; `reason`: one sentence.
    """

    point: FrontierPoint
    feasible: bool
    gave_way: tuple[str, ...]
    reason: str


@dataclass(frozen=True, eq=False)
class Feedback:
    """What a request of `rows` inputs took: `latency_ms` against `expected_ms` for the stage it got to.

    `threads`: what the engine asks of the processor.
    """

    point: FrontierPoint
    stage: int
    rows: int
    latency_ms: float
    expected_ms: float
    threads: int
    snapshot: Snapshot


class Policy(Protocol):
    """Chooses a point of the frontier for each request; keeps nothing between calls but the state it is given."""

    def initial(self) -> Any:
        """The state before anything was seen."""

    def decide(self, frontier: Frontier, budget: Budget, snapshot: Snapshot, state: Any) -> tuple[Decision, Any]:
        """The decision and the state after it."""

    def observe(self, state: Any, feedback: Feedback) -> Any:
        """The state after a request was answered."""
