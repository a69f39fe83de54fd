"""Counts of what a runtime has done."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from dynamic.runtime.result import FeedbackEstimate, Statistics

_FOLDED = 256  # requests whose entries are summed up at once: 0.1 us a request, where summing up each takes 1 us

# of a request: point, stages [B], stages of its cascade, certified, complete, latency_ms, waited_ms
_Entry = tuple[str, Sequence[int], int, bool, bool, float, float]


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

    def plus(self, entries: Sequence[_Entry]) -> "_Totals":
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

    Several threads need a lock to enter them. `statistics` takes none and waits for nobody, since a signal handler may
    ask while its own thread is entering a request: what it reads is replaced as a whole, never changed in place.
    """

    def __init__(self, stages: int) -> None:
        self.changes = self.engine_failures = self.policy_failures = 0
        self._counts: tuple[_Totals, list[_Entry]] = (_Totals((0,) * stages), [])  # with what came after the sums

    def enter(
        self,
        point: str,
        stages: Sequence[int],
        of: int,
        certified: bool,
        complete: bool,
        latency_ms: float,
        waited_ms: float,
    ) -> None:
        """Count a request whose inputs left at `stages [B]`, `of` so many that its cascade has."""
        totals, entries = self._counts
        entries.append((point, stages, of, certified, complete, latency_ms, waited_ms))
        if len(entries) >= _FOLDED:
            self._counts = totals.plus(entries), []

    def begin(self, count: int) -> None:
        """From now on there are so many stages: where that is another number, their counts begin anew."""
        totals, entries = self._counts
        if count != len(totals.stages):
            self._counts = replace(totals.plus(entries), stages=(0,) * count), []

    def statistics(
        self,
        drift: bool | None,
        feedback: FeedbackEstimate | None,
        shed: int,
        queue_longest: int,
        limits_without_sensor: tuple[str, ...] = (),
        near_duplicates: int = 0,
    ) -> Statistics:
        """All of it, with what others know."""
        before, entries = self._counts
        totals = before.plus(entries[:])  # a copy: another thread may append
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
