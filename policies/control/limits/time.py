"""The limits on time: an answer before the deadline, and latency from arrival to answer."""

from dynamic.policies.budget import Budget
from dynamic.policies.control.device_state import DeviceState
from dynamic.policies.control.limits.candidate_filter import UPGRADE_SHARE, CandidateFilter

# of time since the request came
_PASSED, _AFTER = ", {} of which went into queue and preprocessing", " after {} ms of queue and preprocessing,"


def deadline(candidates: CandidateFilter, budget: Budget, device: DeviceState, wait: bool) -> None:
    """Limit the time to the first answer. Points that the deadline does not cut come first among those that fit."""
    if budget.deadline_ms is None:
        return
    waited_ms, rows, slowdown = (device.waited_ms if wait else 0.0), device.rows, device.slowdown
    size = device.size if wait else None
    remaining_ms = budget.deadline_ms - waited_ms
    waits = (waited_ms,) if waited_ms else ()
    fits = candidates.keep(
        "deadline_ms",
        candidates.frontier.first_answer(rows, size=size),
        remaining_ms / slowdown,
        (
            "deadline_ms allows at most {} ms to a first answer" + (_PASSED if waits else ""),
            budget.deadline_ms,
            *waits,
        ),
        (
            "deadline_ms is violated: {} ms as profiled to a first answer, times {},"
            + (_AFTER if waits else "")
            + " is over {} ms. Raise deadline_ms or add an earlier exit",
            slowdown,
            *waits,
            budget.deadline_ms,
        ),
        upgrade_share=UPGRADE_SHARE,
    )
    if fits:
        whole = candidates.frontier.latency(budget.percentile, rows, spread=device.spread, size=size)
        note = "deadline_ms of {} ms does not cut it", budget.deadline_ms
        candidates.prefer(whole, remaining_ms / slowdown, note)


def latency(candidates: CandidateFilter, budget: Budget, device: DeviceState, wait: bool) -> None:
    """Limit the time of a request from arrival to answer, and also the time of the requests that wait behind it."""
    limit_ms = budget.latency_ms
    if limit_ms is None:
        return
    slowdown, size = device.slowdown, device.size if wait else None
    rank = candidates.frontier.latency(budget.percentile, device.rows, spread=device.spread, size=size)
    waited_ms, behind = (device.waited_ms, device.queue_length) if wait else (0.0, 0)
    waits = (waited_ms,) if waited_ms else ()
    fits = candidates.keep(
        "latency_ms",
        rank,
        (limit_ms - waited_ms) / slowdown,
        (
            "latency_ms allows at most {} ms" + (_PASSED if waits else ""),
            limit_ms,
            *waits,
        ),
        (
            "latency_ms is violated: {} ms as profiled, times {},"
            + (_AFTER if waits else "")
            + " is over {} ms. Raise latency_ms or add a faster exit",
            slowdown,
            *waits,
            limit_ms,
        ),
        upgrade_share=UPGRADE_SHARE,
    )
    if behind and fits:  # requests are served one after the other, so the last one waits for all
        mean, turns = candidates.frontier.latency(None, device.rows, size=size), behind / device.servers + 1
        if not candidates.prefer(mean, limit_ms / slowdown / turns, ("{} wait behind it", behind)):
            candidates.points = 1 << mean.first(candidates.points)
            candidates.notes.append(("{} wait behind it", behind))
