"""Counts of what a runtime has done."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from dynamic.runtime.result import FeedbackEstimate, Statistics

_FOLDED = 256  # requests whose entries are summed up at once: 0.1 us a request, where summing up each takes 1 us


class Entry(NamedTuple):
    """What is counted of one request."""

    point: str
    stages: Sequence[int]  # [B], where its rows exited
    stage_count: int  # of its cascade
    certified: bool
    complete: bool
    latency_ms: float
    waited_ms: float


@dataclass(frozen=True)
class _Totals:
    """Sums over requests. `stages [S]`: inputs that left at each."""

    stages: tuple[int, ...]
    requests: int = 0
    inputs: int = 0
    certified: int = 0
    cut: int = 0
    latency_ms: float = 0.0
    waited_ms: float = 0.0
    points: Mapping[str, int] = field(default_factory=dict)

    def plus(self, entries: Sequence[Entry]) -> "_Totals":
        """These sums with more requests."""
        stages, points = list(self.stages), Counter(self.points)
        requests, inputs, certified, cut = self.requests, self.inputs, self.certified, self.cut
        latency_ms, waited_ms = self.latency_ms, self.waited_ms
        for point, left_at, of, sure, complete, took_ms, queued_ms in entries:
            requests += 1
            inputs += len(left_at)
            certified += sure
            cut += not complete
            latency_ms += took_ms
            waited_ms += queued_ms
            points[point] += 1
            if of == len(stages):  # or another bundle is at work by now
                for stage in left_at:
                    stages[stage] += 1
        return _Totals(tuple(stages), requests, inputs, certified, cut, latency_ms, waited_ms, points)


class RuntimeCounters:
    """Requests answered, counted one by one.

    Several threads need a lock to enter them. `statistics` takes none, since a signal handler may call it while its own
    thread enters a request. What it reads is replaced as a whole, never changed in place.
    """

    def __init__(self, stages: int) -> None:
        self.changes = self.engine_failures = self.policy_failures = 0
        # the sums, what came after them, and the numbers of the requests that were entered last
        self._counts: tuple[_Totals, list[Entry], frozenset[int]] = (_Totals((0,) * stages), [], frozenset())

    def enter(self, entries: Sequence[Entry], ids: frozenset[int]) -> None:
        """Count requests, which have these numbers."""
        totals, before, _ = self._counts
        every = [*before, *entries]
        self._counts = (totals.plus(every), [], ids) if len(every) >= _FOLDED else (totals, every, ids)

    def begin(self, count: int) -> None:
        """From now on there are so many stages: where that is another number, their counts begin anew."""
        totals, entries, ids = self._counts
        if count != len(totals.stages):
            self._counts = replace(totals.plus(entries), stages=(0,) * count), [], ids

    def statistics(
        self,
        drift: bool | None,
        feedback: FeedbackEstimate | None,
        shed: int,
        queue_longest: int,
        limits_without_sensor: tuple[str, ...] = (),
        near_duplicates: int = 0,
        waiting: Sequence[tuple[int, Entry]] = (),
    ) -> Statistics:
        """All of it, with what others know. `waiting`: requests, by number, that are entered later."""
        before, entries, ids = self._counts
        totals = before.plus([*entries, *(entry for number, entry in waiting if number not in ids)])
        requests, counted = max(totals.requests, 1), max(sum(totals.stages), 1)
        return Statistics(
            requests=totals.requests,
            inputs=totals.inputs,
            stage_shares=tuple(count / counted for count in totals.stages),
            point_shares={name: n / requests for name, n in totals.points.items()},
            decision_changes=self.changes,
            certified_share=totals.certified / requests,
            mean_latency_ms=totals.latency_ms / requests,
            drift=drift,
            feedback=feedback,
            deadline_cuts=totals.cut,
            mean_waited_ms=totals.waited_ms / requests,
            shed=shed,
            queue_longest=queue_longest,
            engine_failures=self.engine_failures,
            policy_failures=self.policy_failures,
            limits_without_sensor=limits_without_sensor,
            near_duplicates=near_duplicates,
        )
