"""Requests that came one by one, answered together. No row waits longer than its deadline allows."""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from dynamic.bundle.contract import DeployedBundle
from dynamic.engines.contract import Output
from dynamic.engines.outputs import is_finite
from dynamic.engines.parts.rest import part_of
from dynamic.policies.errors import ClosedError
from dynamic.runtime.result import BatchResult, Prediction, Result
from dynamic.serve.answering import Answering, RequestArrays

_NO_WAIT_MS = 1.0  # a batch that has waited less is answered as one that comes now: it repeats the last decision
_MARGIN = 2.0  # times the expected time: a row with less left than that gets a deadline of its own
_CLOSED = "this server is ending and takes no more requests: send it to another one"


class _Urgency(IntEnum):
    """The order of the parts of a batch."""

    LATE = 0  # there is no time for a full answer, but perhaps for an exit
    NEAR = 1  # there is just time for a full answer
    OVER = 2  # no answer is in time: one that still may be comes before
    NONE = 3


@dataclass(eq=False)
class _Request:
    """A request that waits for its batch. Times are of the clock, in seconds."""

    x: Any
    bundle: DeployedBundle  # that it was read for
    read: RequestArrays
    came: float
    ends: float | None
    behind: int
    future: "Future[Result]" = field(default_factory=Future)

    @cached_property
    def rows(self) -> int:
        return len(next(iter(self.read.arrays.values())))

    @cached_property
    def kind(self) -> tuple[Any, ...]:
        """What requests of one batch share. One with values that are not finite shares nothing: it runs alone."""
        finite = all(map(is_finite, self.read.arrays.values()))
        shapes = tuple((name, array.shape[1:]) for name, array in sorted(self.read.arrays.items()))
        return id(self.bundle), self.read.kind, shapes, finite or id(self)


class Batches:
    """Answers requests as `run(x)` does, several at once. Call it from as many threads as there may be requests.

    A batch runs once it is full, or its oldest request has waited `wait_ms`, or a request of it has no time left. While
    one batch runs, the next one fills. Requests whose deadline is near run first, stage by stage. Those without time
    for a full answer get the answer of the last exit in time, which is not certified. Those that still have it run
    apart from them. Time passes while a part runs, so the rest is split again before each. Requests of other shapes,
    and those with values that are not finite, run in batches of their own. So none changes the answer to another.

    Args:
        answering: Reads and answers requests. Its runtime is not closed.
        most_rows: Rows of a batch. A request with more runs alone.
        wait_ms: How long a request waits at most for others.
        clock: Seconds.
    """

    def __init__(
        self, answering: Answering, most_rows: int, wait_ms: float, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._answering, self._run = answering, answering.run
        self._most_rows, self._wait_s, self._clock = most_rows, wait_ms / 1e3, clock
        self._waiting: list[_Request] = []
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="dynamic-batches", daemon=True)
        self._thread.start()

    def __call__(
        self, x: Any, *, waited_ms: float = 0.0, queue_length: int = 0, deadline_ms: float | None = None
    ) -> Result:
        """The answer to a request, see `Runtime.__call__`. Raises what that raises."""
        came = self._clock() - waited_ms / 1e3
        bundle = self._run.bundle
        read = self._answering.read(bundle, x)
        limits_ms = [limit for limit in (deadline_ms, self._run.budget.deadline_ms) if limit is not None]
        ends = came + min(limits_ms) / 1e3 if limits_ms else None
        request = _Request(x, bundle, read, came, ends, queue_length)
        _ = request.kind  # here, on as many threads as there are requests
        with self._changed:
            if self._closed:
                raise ClosedError(_CLOSED)
            self._waiting.append(request)
            self._changed.notify()
        return request.future.result()

    def hurry(self) -> None:
        """Let no batch wait for more requests any more."""
        with self._changed:
            self._wait_s = 0.0
            self._changed.notify()

    def close(self) -> None:
        """Answer what waits, and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _serve(self) -> None:
        while True:
            batch: list[_Request] = []
            try:
                batch = self._next()
                if not batch:
                    return
                self._answer_all(batch)
            except BaseException as error:  # one more and nobody would answer: the thread is the only one
                self._fail(batch, error)

    def _answer_all(self, batch: list[_Request]) -> None:
        """Answer a batch in parts. What is urgent is asked before each of them: time has passed meanwhile."""
        while batch:
            part, batch = self._split(batch)
            self._answer(part)

    def _fail(self, batch: list[_Request], error: BaseException) -> None:
        """Raise it for those of a batch that have no answer yet. Without a batch: for all that wait."""
        if not batch:
            with self._changed:
                batch, self._waiting = self._waiting, []
        for request in batch:
            if not request.future.done():
                request.future.set_exception(error)

    def _next(self) -> list[_Request]:
        """The requests of the next batch, once it need not wait any more. None once there will be no more."""
        with self._changed:
            while True:
                batches = self._batches()
                left_s, _, batch = min(
                    ((self._left_s(batch), number, batch) for number, batch in enumerate(batches)),
                    default=(None, 0, list[_Request]()),
                )
                if left_s is None and self._closed:
                    return []
                if left_s is not None and (left_s <= 0 or self._closed):
                    chosen = set(map(id, batch))
                    self._waiting = [request for request in self._waiting if id(request) not in chosen]
                    return batch
                self._changed.wait(left_s)

    def _batches(self) -> list[list[_Request]]:
        """The oldest requests of each kind that fit into one batch, in the order of the oldest of all."""
        batches: dict[Any, list[_Request]] = {}
        rows: Counter[Any] = Counter()
        for request in self._waiting:
            batch = batches.setdefault(request.kind, [])
            if not batch or rows[request.kind] + request.rows <= self._most_rows:
                batch.append(request)
                rows[request.kind] += request.rows
        return list(batches.values())

    def _left_s(self, batch: Sequence[_Request]) -> float:
        """Seconds for which a batch may wait for more."""
        if sum(request.rows for request in batch) >= self._most_rows or batch[0].bundle is not self._run.bundle:
            return 0.0  # it is full, or nobody comes any more for a bundle that was swapped out
        until = batch[0].came + self._wait_s
        ends = [request.ends for request in batch if request.ends is not None]
        if ends:
            until = min(until, min(ends) - _MARGIN * self._expected_s(batch))
        return until - self._clock()

    def _expected_s(self, batch: Sequence[_Request]) -> float:
        """What a batch takes where all of its rows run all stages."""
        return self._answering.expected_ms(batch[0].read, sum(request.rows for request in batch)) / 1e3

    def _split(self, batch: list[_Request]) -> tuple[list[_Request], list[_Request]]:
        """The part that runs next, and the rest. Those of a part share the nearest deadline among them."""
        margin_s, now = _MARGIN * self._expected_s(batch), self._clock()
        left_s = {id(one): one.ends - now for one in batch if one.ends is not None and one.ends - now < margin_s}
        alive = [one for one in batch if left_s.get(id(one), 0.0) > 0]
        whole_s = self._expected_s(alive) if alive else 0.0

        def rank(request: _Request) -> _Urgency:
            if id(request) not in left_s:
                return _Urgency.NONE
            left = left_s[id(request)]
            return _Urgency.OVER if left <= 0 else _Urgency.LATE if left < whole_s else _Urgency.NEAR

        ranks = [rank(request) for request in batch]
        first = min(ranks)
        pairs = list(zip(batch, ranks, strict=True))
        return [one for one, its in pairs if its is first], [one for one, its in pairs if its is not first]

    def _answer(self, batch: list[_Request]) -> None:
        try:
            result = self._result(batch)
        except BaseException as error:
            if len(batch) > 1:  # perhaps they are too many for the memory, or one of them is at fault
                for request in batch:
                    self._answer([request])
            else:
                batch[0].future.set_exception(error)
            return
        bounds = np.cumsum([0, *(request.rows for request in batch)]).tolist()
        ended = self._clock()
        for request, (start, end) in zip(batch, pairwise(bounds), strict=True):
            request.future.set_result(_part(result, request, start, end, ended))

    def _result(self, batch: list[_Request]) -> Result:
        """The answer to all rows, from the bundle that they were read for."""
        while True:
            bundle = self._run.bundle
            for request in batch:
                if request.bundle is not bundle:  # another one was swapped in meanwhile
                    request.bundle, request.read = bundle, self._answering.read(bundle, request.x)
            first = batch[0].read.arrays
            arrays = first if len(batch) == 1 else {n: np.concatenate([r.read.arrays[n] for r in batch]) for n in first}
            result = self._answering(batch[0].read, arrays, **self._limits(batch))
            if self._run.bundle is bundle:
                return result

    def _limits(self, batch: Sequence[_Request]) -> dict[str, Any]:
        """The arguments of the runtime beside the inputs."""
        came, now = min(request.came for request in batch), self._clock()
        waited_ms = max(now - came, 0.0) * 1e3
        # in batches: each of them takes the one runtime once. Rows elsewhere count by whole batches alone
        behind = math.ceil((len(self._waiting) + max(request.behind for request in batch)) / self._most_rows)
        behind += self._answering.elsewhere // self._most_rows
        limits: dict[str, Any] = {}
        if waited_ms >= _NO_WAIT_MS or behind:
            limits |= {"waited_ms": waited_ms, "queue_length": behind}
        ends = [request.ends for request in batch if request.ends is not None]
        if len(ends) == len(batch) and min(ends) - now < _MARGIN * self._expected_s(batch):
            limits |= {"waited_ms": waited_ms, "deadline_ms": max(min(ends) - came, 0.0) * 1e3}
        return limits


def _part(result: Result, request: _Request, start: int, end: int, ended: float) -> Result:
    """The rows of a request, in its own words: its latency, and one answer where it had no batch dimension."""
    whole = result._output
    rests = part_of(whole.rests, start, end)
    output = Output(whole.logits[start:end], whole.stage[start:end], whole.score[start:end], whole.complete, rests)
    latency_ms = (ended - request.came) * 1e3
    waited_ms = max(result.waited_ms - (result.latency_ms - latency_ms), 0.0)
    kind = Prediction if request.read.is_single else BatchResult
    return kind(result.id, output, request.bundle.classes, latency_ms, result.decision, result.certified, waited_ms)
