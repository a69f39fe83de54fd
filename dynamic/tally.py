"""Counts of what a runtime has done."""

from collections import Counter
from collections.abc import Sequence

from dynamic.result import FeedbackEstimate, Statistics


class Tally:
    """Requests answered, counted one by one. Not safe for several threads at once."""

    def __init__(self, stages: int) -> None:
        self.changes = self.engine_failures = self.policy_failures = 0
        self._requests = self._sure = self._cut = 0
        self._latency_ms = self._waited_ms = 0.0
        self._points: Counter[str] = Counter()
        self._stages = [0] * stages  # [S], inputs that left at each
        self._inputs = 0

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
        self._requests += 1
        self._sure += certified
        self._cut += not complete
        self._latency_ms += latency_ms
        self._waited_ms += waited_ms
        self._points[point] += 1
        self._inputs += len(stages)
        if of == len(self._stages):  # or another bundle is at work by now
            for stage in stages:
                self._stages[stage] += 1

    def begin(self, count: int) -> None:
        """From now on there are so many stages: where that is another number, their counts begin anew."""
        if count != len(self._stages):
            self._stages = [0] * count

    def statistics(
        self,
        drift: bool | None,
        feedback: FeedbackEstimate | None,
        shed: int,
        queue_longest: int,
        limits_without_sensor: tuple[str, ...] = (),
    ) -> Statistics:
        """All of it, with what others know."""
        requests, counted = max(self._requests, 1), max(sum(self._stages), 1)
        return Statistics(
            requests=self._requests,
            inputs=self._inputs,
            stage_shares=tuple(count / counted for count in self._stages),
            point_shares={name: n / requests for name, n in self._points.items()},
            decision_changes=self.changes,
            certified_share=self._sure / requests,
            mean_latency_ms=self._latency_ms / requests,
            drift=drift,
            feedback=feedback,
            deadline_cuts=self._cut,
            mean_waited_ms=self._waited_ms / requests,
            shed=shed,
            queue_longest=queue_longest,
            engine_failures=self.engine_failures,
            policy_failures=self.policy_failures,
            limits_without_sensor=limits_without_sensor,
        )
