"""The default policy: what the limits of a budget leave of the frontier on this device now, and the best of that."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, cast

from dynamic.policies.budget import PRIORITY, Budget
from dynamic.policies.control.device_state import DeviceState
from dynamic.policies.control.limits import LIMITS, SLOW, CandidateFilter, Limit, active, stay
from dynamic.policies.control.reasons import Note, Reason
from dynamic.policies.control.switching import Cooldown, SwitchDelay
from dynamic.policies.decision import Decision, Feedback, Policy
from dynamic.policies.errors import SettingError
from dynamic.policies.fast_paths import fast_replace
from dynamic.policies.frontier import CostedPoint, Frontier
from dynamic.policies.snapshot import Snapshot

_NO_DECISION = Decision(cast(CostedPoint, None))  # every field is replaced
_LOADED: Note = ("a request that waits takes a point whose networks are loaded",)


@dataclass(frozen=True)
class BudgetState:
    """What is known of the device (`seen`), the point that runs, and how long a better one must last to replace it.

    `rest`: what heat or a battery has forced is not undone before; `limits` that can bind under the `budget`.
    """

    seen: DeviceState = field(default_factory=DeviceState)
    current: int | None = None
    hold: SwitchDelay = field(default_factory=SwitchDelay)
    rest: Cooldown = field(default_factory=Cooldown)
    budget: Budget | None = None
    frontier: Frontier | None = None
    limits: tuple[Limit, ...] = ()


class BudgetPolicy(Policy):
    """Limits are applied in the order of the budget's `priority`; those not among `limits` are left out.

    A limit that nothing left can meet gives way: what comes closest to it stays, and the decision names it.
    With `max_drop` or `min_accuracy` given, the fastest point that is left runs (the user has said what accuracy
    savings may cost); without them the most accurate.

    `limits=("drop",)` decides by accuracy alone, whatever the device does; ("latency", "deadline") by time alone,
    ("memory",), ("battery",), ("temperature",) and ("energy",) likewise.

    Where inputs have drifted from those of the calibration, what a point loses on them is not known: unless the budget
    says `on_drift="report"`, the point of the least promised drop runs. Of equals it is the first: the reference, whose
    drop is 0 whatever the inputs are, where the other limits allow it.

    Latency is the profiled one times a slowdown: the fair share that other processes' load leaves
    (busy cores b of c, t threads wanted: b + t in place of t), times what requests took beyond that. Where requests
    scatter more than when they were profiled, percentiles are taken of that scatter. Memory is that of the process
    before any network was loaded, and what it was seen to take beyond that, plus the backbones of a point.

    What forces a change is followed at once, a load or a temperature within some ten requests. A change to a better
    point that nothing forces must be better for 16 requests in a row, and twice as many each time that such a change
    was soon forced back by what follows single requests (up to 4,096), so that noise makes few changes in any thousand
    requests. What heat or a battery has forced out rests for 5 minutes, and twice as long each time that it is soon
    forced out again (up to 20). A request that has waited gets a faster point for itself alone, and a new budget is
    followed at once.

    Raises SettingError on a limit that does not exist.
    """

    def __init__(self, limits: Sequence[str] = PRIORITY) -> None:
        for name in limits:
            if name not in LIMITS:
                raise SettingError(f"limits name {name!r}, which is none of {PRIORITY}")
        self.limits = tuple(limits)

    sieve: ClassVar[type[CandidateFilter]] = CandidateFilter
    decides_each_request: ClassVar[bool] = False

    def initial(self) -> BudgetState:
        """Nothing seen."""
        return BudgetState()

    def decide(
        self, frontier: Frontier, budget: Budget, snapshot: Snapshot, state: BudgetState
    ) -> tuple[Decision, BudgetState]:
        """The point for the next request, with the reason; see the class."""
        seen = state.seen
        new = (budget is not state.budget and budget != state.budget) or frontier is not state.frontier
        if snapshot is not seen.snapshot or new:  # another budget asks other things of the same snapshot
            seen = seen.with_snapshot(frontier, budget, snapshot)
        current, hold, rest = (None, SwitchDelay(), Cooldown()) if new else (state.current, state.hold, state.rest)
        limits = active(budget, self.limits) if new else state.limits
        sieve = self._sift(limits, frontier, current, budget, seen, wait=False)
        rank = frontier.mean if _saves(budget) else frontier.accuracy
        left, barred, held = sieve.left, math.inf, None
        if current is not None:
            most = rest.most(seen.time_s)
            left = left & frontier.effort.below(most) or left
            barred = most if left != sieve.left else math.inf
        best = rank.first(left)
        if current is None:
            base = best
        elif best == current:
            base, hold = best, hold.stay()
        elif not sieve.left >> current & 1:
            slow = sieve.lost_to in SLOW
            base, hold = best, hold.forced(noisy=not slow)
            if slow:
                rest = rest.forced(seen.time_s, frontier.effort.figures[current])
        elif not rest.over(seen.time_s):
            base = current
        else:
            longer = hold.wait()
            if longer is None:
                base, hold, rest = best, hold.changed(), rest.changed(seen.time_s)
            else:
                base, hold = current, longer
                held = hold
        point = base
        if seen.waited_ms or seen.queue_length:
            sieve = self._sift(limits, frontier, current, budget, seen, wait=True)
            if not sieve.left >> base & 1:
                # to load a network for one request would make all those behind it wait
                left, barred = sieve.left & frontier.held(seen.resident) or sieve.left, math.inf
                sieve.notes += [_LOADED] if left != sieve.left else []
                point = rank.first(left)
            else:
                left = sieve.left & frontier.effort.below(barred) or sieve.left
        chosen = frontier.points[point]
        keep_loaded = stay(frontier, budget, seen, chosen.backbones) if "memory" in self.limits else None
        there = seen.resident | chosen.backbones if keep_loaded is None else keep_loaded
        if there != seen.resident or (keep_loaded is None) != seen.everything:
            seen = fast_replace(seen, resident=there, everything=keep_loaded is None, loaded_s=seen.time_s)
        decision = fast_replace(
            _NO_DECISION,
            point=chosen,
            feasible=not sieve.violated_limits,
            violated_limits=tuple(sieve.violated_limits),
            reason=Reason(frontier, point, left, rank, sieve.notes, sieve.spared, budget, seen, held, rest, barred),
            keep_loaded=keep_loaded,
            slowdown=seen.slowdown,
            one_request_only=point != base,
        )
        return decision, fast_replace(
            state, seen=seen, current=base, hold=hold, rest=rest, budget=budget, frontier=frontier, limits=limits
        )

    def observe(self, state: BudgetState, feedback: Feedback) -> BudgetState:
        """Take in what a request took, beyond what the load it ran under explains, and whether inputs have drifted."""
        effort = (feedback.point.energy_mj or feedback.point.cpu_ms)[0]
        return fast_replace(state, seen=state.seen.with_feedback(feedback, effort))

    def _sift(
        self,
        limits: Sequence[Limit],
        frontier: Frontier,
        current: int | None,
        budget: Budget,
        seen: DeviceState,
        wait: bool,
    ) -> CandidateFilter:
        sieve = self.sieve(frontier, current)
        for limit in limits:
            sieve.apply(limit, budget, seen, wait)
        return sieve


def _saves(budget: Budget) -> bool:
    """Whether the user has said what accuracy savings may cost."""
    return budget.max_drop is not None or budget.min_accuracy is not None
