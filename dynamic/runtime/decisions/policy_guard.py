"""Whatever a policy does, requests are answered: faults are counted and logged, and the last good decision holds."""

import logging
import math
from collections.abc import Callable
from typing import Any

from dynamic.policies.budget import Budget
from dynamic.policies.decision import Decision, Feedback, Policy
from dynamic.policies.fast_paths import fast_replace
from dynamic.policies.frontier import CostedPoint, Frontier
from dynamic.policies.snapshot import Snapshot

logger = logging.getLogger("dynamic")


class Guard:
    """A policy that cannot fail, with its state. Not safe for several threads at once.

    Where `decide` raises, or gives what cannot be run, the last good decision holds. Before any, the first point of the
    frontier runs, the reference. The state remains as it was. `report` logs each kind of fault once.

    Args:
        policy: The policy.
        failed: Called for each fault.
    """

    def __init__(self, policy: Policy, failed: Callable[[], None]) -> None:
        self.policy, self._count = policy, failed
        self._reported: set[str] = set()
        self._unreported: list[tuple[str, Exception]] = []
        self._state: Any = None
        self._replaced: Any = None  # the state before a decision that the next one takes the place of
        self._last: Decision | None = None  # good on `_frontier`
        self._frontier: Frontier | None = None
        self._points: frozenset[CostedPoint] = frozenset()

    @property
    def decides_each_request(self) -> bool:
        """Whether the policy wants to decide for every request, also where nothing has changed."""
        return bool(getattr(self.policy, "decides_each_request", True))

    def begin(self) -> None:
        """Take the initial state of the policy. To be called first."""
        try:
            self._state = self.policy.initial()
        except Exception as error:
            self._failed("initial", error)

    def decide(self, frontier: Frontier, budget: Budget, snapshot: Snapshot) -> Decision:
        """What the policy decides, or what stands in for it."""
        if frontier is not self._frontier:
            self._frontier, self._points = frontier, frozenset(frontier.points)
            if self._last is not None and self._last.point not in self._points:
                self._last = None
        if self._replaced is not None:
            self._state, self._replaced = self._replaced, None
        try:
            decision, state = self.policy.decide(frontier, budget, snapshot, self._state)
            if not isinstance(decision, Decision):
                raise TypeError(f"{decision!r:.80} is no Decision")
            if decision.point not in self._points:
                raise ValueError(f"the point {decision.point!r:.80} is not one of the frontier it was given")
            if not 0 < decision.slowdown < math.inf:
                raise ValueError(f"slowdown={decision.slowdown!r} must be a positive number, 1 for as profiled")
            if decision.keep_loaded is not None and not isinstance(decision.keep_loaded, frozenset):
                raise TypeError(f"resident={decision.keep_loaded!r} must be a frozenset of backbones, or None for all")
        except Exception as error:
            return self._instead(frontier, error)
        self._state = state
        if not decision.one_request_only:  # that is for one request alone
            self._last = decision
        return decision

    def decide_if(
        self, frontier: Frontier, budget: Budget, snapshot: Snapshot, accepts: Callable[[Decision], bool]
    ) -> Decision | None:
        """What the policy decides, where that is accepted. Otherwise None, and its state is as before.

        Where nothing is observed until the next decision, that one takes the place of this one.
        """
        good = self._last
        state = self._state if self._replaced is None else self._replaced
        decision = self.decide(frontier, budget, snapshot)
        if accepts(decision):
            self._replaced = state
            return decision
        self._state, self._last = state, good
        return None

    def decide_alone(self, frontier: Frontier, budget: Budget, snapshot: Snapshot) -> Decision:
        """What the policy decides for one request with a budget of its own. Its state is as before."""
        state, replaced, good = self._state, self._replaced, self._last
        decision = self.decide(frontier, budget, snapshot)
        self._state, self._replaced = state, replaced
        self._last = good if good is None or good.point in self._points else None
        return fast_replace(decision, one_request_only=True)

    def observe(self, feedback: Feedback) -> None:
        """Let the policy take in what a request took."""
        self._replaced = None
        try:
            self._state = self.policy.observe(self._state, feedback)
        except Exception as error:
            self._failed("observe", error)

    def _instead(self, frontier: Frontier, error: Exception) -> Decision:
        self._failed("decide", error)
        last = self._last
        if last is None:
            reason = f"the policy failed before its first decision ({error!r}): the safest point runs"
            return Decision(frontier.points[0], feasible=False, reason=reason)
        reason = f"the policy failed ({error!r}): its last decision stands"
        return Decision(last.point, last.feasible, last.violated_limits, reason, last.keep_loaded, last.slowdown)

    def _failed(self, what: str, error: Exception) -> None:
        self._count()
        kind = f"{what} {type(error).__name__}"
        if kind not in self._reported and len(self._reported) < 100:
            self._reported.add(kind)
            self._unreported.append((what, error))

    def report(self) -> None:
        """Log the faults. Not under a lock that requests need, since a log handler may wait for a request."""
        while self._unreported:
            what, error = self._unreported.pop(0)
            logger.warning(
                "policy %s failed in %s: %r. Requests are answered, by its last good decision (told once, counted in "
                "stats().policy_failures)",
                type(self.policy).__name__,
                what,
                error,
                exc_info=error,
            )
