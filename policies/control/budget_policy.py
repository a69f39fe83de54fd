"""The default policy: the best of the points that the limits of a budget allow on this device now."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, cast

from dynamic.policies.budget import PRIORITY, Budget, LimitName
from dynamic.policies.control.device_state import DeviceState
from dynamic.policies.control.feasibility import saves
from dynamic.policies.control.limits import LIMITS, SLOW, active, backbones_in_memory
from dynamic.policies.control.limits.candidate_filter import CandidateFilter, Limit
from dynamic.policies.control.reasons import Note, Reason
from dynamic.policies.control.switching import Cooldown, SwitchDelay
from dynamic.policies.decision import Decision, Feedback, Policy
from dynamic.policies.errors import SettingError
from dynamic.policies.fast_paths import fast_replace
from dynamic.policies.frontier import CostedPoint, Frontier
from dynamic.policies.snapshot import Snapshot

_NO_DECISION = Decision(cast(CostedPoint, None))  # every field is replaced
_LOADED: Note = ("A request that waits, or is larger, uses a point whose networks are loaded",)


@dataclass(frozen=True)
class BudgetState:
    """The state of a `BudgetPolicy` between two decisions.

    Args:
        device: Readings, and what is derived from them.
        current: Number of the point that runs. None: none yet.
        switch_delay: How long a better point must remain better.
        cooldown: A time without expensive points, after heat or a battery has excluded one.
        budget: The budget of the last decision.
        frontier: The frontier of the last decision.
        limits: The limits that can bind under this budget.
        requests: Requests that ran since the last decision.
    """

    device: DeviceState = field(default_factory=DeviceState)
    current: int | None = None
    switch_delay: SwitchDelay = field(default_factory=SwitchDelay)
    cooldown: Cooldown = field(default_factory=Cooldown)
    budget: Budget | None = None
    frontier: Frontier | None = None
    limits: tuple[Limit, ...] = ()
    requests: int = 0


class BudgetPolicy(Policy):
    """Applies the limits of the budget, and runs the best of the points that they allow.

    Limits are applied in the order of the budget's `priority`. Where no point meets a limit, it is violated. The points
    that come closest to it remain, and the decision names it. With `max_drop` or `min_accuracy` the fastest of the
    remaining points runs, because the user accepts a loss of accuracy for savings. Without them the most accurate
    runs.

    After drift the drop of a point on the new inputs is unknown. Then the point of the least promised drop runs, unless
    the budget has `on_drift="report"`.

    The latency of a point is the profiled one times a slowdown. One factor of the slowdown is the load of other
    processes: with b busy cores of c, and t threads, b + t threads share c cores. The other factor is what requests
    took beyond that. Where requests scatter more than during the profile, percentiles include this scatter.

    A point that a limit excludes is replaced at once. A better point runs after it was better for 16 requests, and
    after two decisions at least. It takes twice as many requests where the last change was soon forced back, up to
    4,096. A point that heat or a battery has excluded is skipped for 5 minutes, and for twice as long where it is soon
    excluded again, up to 20 minutes. A request that has waited gets a faster point for itself alone. So does one whose
    inputs are larger than the example's, where dimensions are dynamic, and a smaller one gets a better point. A new
    budget is applied at once.

    Args:
        limits: Names of the limits that count, as in `Budget.priority`. ("latency", "deadline") decides by time alone.

    Raises:
        SettingError: when there is no limit of a name.

    Example:
        >>> policy = dynamic.BudgetPolicy(limits=("drop",))
        >>> decision, _ = policy.decide(frontier, dynamic.Budget(), dynamic.Snapshot(0.0), policy.initial())
        >>> decision.feasible, "most accurate" in decision.reason
        (True, True)
    """

    def __init__(self, limits: Sequence[LimitName] = PRIORITY) -> None:
        for name in limits:
            if name not in LIMITS:
                raise SettingError(f"limits name {name!r}, which is none of {PRIORITY}")
        self.limits = tuple(limits)

    candidate_filter: ClassVar[type[CandidateFilter]] = CandidateFilter
    decides_each_request: ClassVar[bool] = False

    def initial(self) -> BudgetState:
        """The state before the first request."""
        return BudgetState()

    def decide(
        self, frontier: Frontier, budget: Budget, snapshot: Snapshot, state: BudgetState
    ) -> tuple[Decision, BudgetState]:
        """Choose the point for the next request.

        Args:
            frontier: The points and their costs on this device.
            budget: The user's limits.
            snapshot: The newest readings, and the request that is about to run.
            state: The state after the last call.

        Returns:
            The decision with its reason, and the state after it.

        Raises:
            AttributeError: when the state is of another policy.

        Example:
            >>> policy = dynamic.BudgetPolicy()
            >>> tight = dynamic.Budget(latency_ms=1e-6)
            >>> decision, state = policy.decide(frontier, tight, dynamic.Snapshot(0.0), policy.initial())
            >>> decision.feasible, decision.violated_limits
            (False, ('latency_ms',))
        """
        device = state.device
        new = (budget is not state.budget and budget != state.budget) or frontier is not state.frontier
        if snapshot is not device.snapshot or new:  # another budget uses other readings of the same snapshot
            device = device.with_snapshot(frontier, budget, snapshot)
        current, switch_delay, cooldown = state.current, state.switch_delay, state.cooldown
        if new:
            current, switch_delay, cooldown = None, SwitchDelay(), Cooldown()
        limits = active(budget, self.limits) if new else state.limits
        requests = max(state.requests, 1)  # a decision that nobody asked for again stands for one
        candidates = self._filter(limits, frontier, current, budget, device, wait=False)
        rank = frontier.mean if saves(budget) else frontier.accuracy
        points, effort_limit, waiting = candidates.points, math.inf, None
        most = math.inf if current is None else cooldown.effort_limit(device.time_s)
        if current is not None:
            points = points & frontier.effort.below(most) or points
            effort_limit = most if points != candidates.points else math.inf
        best = rank.first(points)
        if current is None:
            base = best
        elif best == current:
            base, switch_delay = best, switch_delay.confirm(requests)
        elif not candidates.points >> current & 1:
            slow = candidates.excluded_by in SLOW
            base, switch_delay = best, switch_delay.after_exclusion(noisy=not slow)
            if slow:
                cooldown = cooldown.after_exclusion(device.time_s, frontier.effort.figures[current])
        elif not cooldown.is_over(device.time_s):
            base = current
        else:
            longer = switch_delay.wait(requests)
            if longer is None:
                base, switch_delay = best, switch_delay.after_change()
                cooldown = cooldown.after_change(device.time_s)
            else:
                base, switch_delay = current, longer
                waiting = switch_delay
        point, usual = base, candidates.points
        resized = device.size is not None and device.size != frontier.costs.size
        if device.waited_ms or device.queue_length or resized:
            better = 0
            if resized:
                better = usual & rank.before(base)  # these are delayed, or skipped after heat: for this request too
                rank = frontier.ranked("mean" if saves(budget) else "accuracy", device.size)
            candidates = self._filter(limits, frontier, current, budget, device, wait=True)
            if not candidates.points >> base & 1:
                # to load a network for one request would delay all requests behind it
                points, effort_limit = candidates.points & frontier.within(device.resident), math.inf
                points = points or candidates.points
                candidates.notes += [_LOADED] if points != candidates.points else []
                point = rank.first(points)
            else:
                points = candidates.points & frontier.effort.below(most) or candidates.points
                effort_limit = most if points != candidates.points else math.inf
                if resized:  # what is excluded at the size of the example, or ranked behind, and is not at this one
                    loaded = frontier.within(device.resident | frontier.points[base].backbones)
                    point = rank.first(points & loaded & ~better | 1 << base)
        chosen = frontier.points[point]
        keep_loaded = None
        if "memory" in self.limits:
            keep_loaded = backbones_in_memory(frontier, budget, device, chosen.backbones)
        resident = device.resident | chosen.backbones if keep_loaded is None else keep_loaded
        if resident != device.resident or (keep_loaded is None) != device.everything:
            device = fast_replace(device, resident=resident, everything=keep_loaded is None, loaded_s=device.time_s)
        decision = fast_replace(
            _NO_DECISION,
            point=chosen,
            feasible=not candidates.violated_limits,
            violated_limits=tuple(candidates.violated_limits),
            reason=Reason(
                frontier,
                point,
                points,
                rank,
                candidates.notes,
                candidates.upgrade_notes,
                budget,
                device,
                waiting,
                cooldown,
                effort_limit,
            ),
            keep_loaded=keep_loaded,
            slowdown=device.slowdown,
            one_request_only=point != base,
        )
        return decision, fast_replace(
            state,
            device=device,
            current=base,
            switch_delay=switch_delay,
            cooldown=cooldown,
            budget=budget,
            frontier=frontier,
            limits=limits,
            requests=0,
        )

    def observe(self, state: BudgetState, feedback: Feedback) -> BudgetState:
        """Learn from requests: their time beyond what the load explains, their effort, and drift.

        Args:
            state: The state after the last call.
            feedback: What requests of one decision took.

        Returns:
            The state after it.

        Raises:
            AttributeError: when the state is of another policy.

        Example:
            >>> policy = dynamic.BudgetPolicy()
            >>> slow = dynamic.policies.Feedback(frontier.points[0], [1], [1], [20.0], [10.0], 1, dynamic.Snapshot(0.0))
            >>> policy.observe(policy.initial(), slow).device.slowdown > 1
            True
        """
        effort = (feedback.point.energy_mj or feedback.point.cpu_ms)[0]
        requests = state.requests + len(feedback.stages)
        return fast_replace(state, device=state.device.with_feedback(feedback, effort), requests=requests)

    def _filter(
        self,
        limits: Sequence[Limit],
        frontier: Frontier,
        current: int | None,
        budget: Budget,
        device: DeviceState,
        wait: bool,
    ) -> CandidateFilter:
        candidates = self.candidate_filter(frontier, current)
        for limit in limits:
            candidates.apply(limit, budget, device, wait)
        return candidates
