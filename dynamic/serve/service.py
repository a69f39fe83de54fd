"""One bundle behind a queue: what HTTP and gRPC have in common."""

import asyncio
import hmac
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

import numpy as np

import dynamic
from dynamic.policies.errors import BundleError
from dynamic.runtime.requests.request_queue import Waiting
from dynamic.runtime.result import Result
from dynamic.runtime.runtime import Runtime
from dynamic.serve.held_bytes import OpenBodies
from dynamic.serve.metrics import Metrics
from dynamic.serve.options import ServeOptions, checked_name
from dynamic.serve.protocol.messages import Incoming, TensorInfo
from dynamic.serve.protocol.model_inputs import ModelInputs
from dynamic.serve.protocol.model_outputs import ModelOutputs
from dynamic.serve.request_errors import RequestError, request_error
from dynamic.serve.request_log import RequestLog, RequestRecord
from dynamic.serve.spans import span

T = TypeVar("T")
VERSION = "1"  # of the model: a server has one
PLATFORM = "dynamic_cascade"
EXTENSIONS = ("binary_tensor_data",)
NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_SWAP_S, _AGAIN_S = 10.0, 0.05  # while two parts have other bundles: how long it is asked again, and how often
_RESPONSE_MS = 2.0  # of a timeout, for the response to what has continued elsewhere
_NO_WAIT_MS = 1.0  # a request that has waited less is answered as one that comes now: it repeats the last decision


class Answer(Protocol):
    """What answers a request, as `Runtime.__call__` does."""

    def __call__(
        self, x: Any, *, waited_ms: float = 0.0, queue_length: int = 0, deadline_ms: float | None = None
    ) -> Result:
        """The answer."""
        ...


class Finish(Protocol):
    """What lets the rows of a result continue elsewhere, where it has `rests`."""

    def __call__(self, result: Result, ends_s: float | None, traceparent: str | None) -> Awaitable[Result]:
        """The whole result. `ends_s`: when it is late, in seconds since 1970. None: never."""
        ...


@dataclass
class _Job:
    """A request in the queue. `came` is its arrival. Its timeout is the usual one until its own is read.

    `work(job, queued)` answers it on a worker. `ends_s`: when its answer is late, in seconds since 1970. `respond`
    makes the response of a result, and `begun` is a result whose rows continue elsewhere.
    """

    work: "Callable[[_Job, float], Result]"
    came: float
    timeout_ms: float | None
    record: RequestRecord
    ends_s: float | None = None
    respond: Callable[[Result], Any] = lambda result: result
    begun: Result | None = None

    def read_head(self, incoming: Incoming[Any]) -> None:
        """Read the identifier and the timeout. Raises RequestError where they do not fit."""
        self.record.id = incoming.id
        own_ms = incoming.timeout_ms
        self.timeout_ms = self.timeout_ms if own_ms is None else own_ms

    @property
    def remaining_s(self) -> float | None:
        """Seconds in which it is still wanted. None: there is no limit."""
        return None if self.timeout_ms is None else self.timeout_ms / 1e3 - (time.perf_counter() - self.came)

    @property
    def left_s(self) -> float | None:
        """The same, and 0 once its time is over."""
        remaining_s = self.remaining_s
        return None if remaining_s is None else max(remaining_s, 0.0)

    def check_time(self) -> None:
        """Raises RequestError where its time is over."""
        remaining_s = self.remaining_s
        if remaining_s is not None and remaining_s <= 0:
            raise _expired(self.timeout_ms)


class Service:
    """Answers requests of every protocol with one runtime, on `options.workers` threads behind a queue.

    Args:
        run: The runtime. The service does not close it.
        options: What is accepted.
        answer: What answers on a worker, such as `Batches`. None: the runtime, one request at a time.
        workers: How many requests may be with `answer` at once. None: `options.workers`.
        finish: Where rows of a result continue. None: `answer` leaves none.
    """

    def __init__(
        self,
        run: Runtime,
        options: ServeOptions,
        answer: Answer | None = None,
        workers: int | None = None,
        finish: Finish | None = None,
    ) -> None:
        self.run, self.options, self._finish = run, options, finish
        self._answer: Answer = answer or run
        self.name = options.name or checked_name(run.bundle.folder.resolve().name)
        self.about: Mapping[str, Any] = {}  # more of the model, for its metadata
        self.follow()
        self.waiting: Waiting[Any] = Waiting(options.queue, workers or options.workers, self._work)
        self.bodies = OpenBodies(options.most_open_bytes)
        self.closing = False
        self.metrics = Metrics(run, self.waiting, time.perf_counter, continues=finish is not None)
        self.log = RequestLog() if options.log_json else None
        self._token = None if options.token is None else options.token.encode()

    def follow(self) -> None:
        """Take the inputs and outputs of the bundle that is at work now, after a swap."""
        bundle = self.run.bundle
        self.inputs = ModelInputs(bundle, self.options.max_batch, self.options.max_megapixels)
        self.outputs = ModelOutputs(bundle)

    @property
    def ready(self) -> bool:
        """Whether requests are answered."""
        return not self.closing

    def check_token(self, authorization: str | None) -> None:
        """Raises RequestError where a token is needed and another is given, or none."""
        if self._token is None:
            return
        kind, _, token = (authorization or "").partition(" ")
        sent = token.strip().encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(sent, self._token) or kind.lower() != "bearer":
            why = "no token is given" if not authorization else "the token is another"
            raise RequestError(
                "unauthorized", f"{why}: send the header 'Authorization: Bearer TOKEN' with the server's"
            )

    def check_model(self, name: str, version: str = "") -> None:
        """Raises RequestError where there is no such model."""
        if name != self.name:
            raise RequestError("unknown", f"there is no model {name!r:.60}: this server has {self.name!r}")
        if version not in ("", VERSION):
            raise RequestError("unknown", f"there is no version {version!r:.60} of {name!r}: it has {VERSION!r}")

    def server_metadata(self) -> dict[str, Any]:
        """What the server is."""
        return {"name": "dynamic", "version": dynamic.__version__, "extensions": list(EXTENSIONS)}

    def model_metadata(self) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
        """The inputs and the outputs of the model."""
        return self.inputs.metadata, self.outputs.metadata

    async def infer(
        self, protocol: str, receive: Callable[[], Awaitable[Incoming[T]]], headers: Mapping[str, str] = NO_HEADERS
    ) -> T:
        """Answer a request.

        Args:
            protocol: "http" or "grpc".
            receive: Checks who asks, and reads the request.
            headers: Of the request, with names in lower case. `traceparent` is read.

        Returns:
            The response.

        Raises:
            RequestError: There is no answer.
        """
        with self._recorded(protocol, headers) as (came, record, traceparent):
            incoming = await receive()
            outer_ms = incoming.outer_timeout_ms
            timeout_ms = self.options.timeout_ms if outer_ms is None else outer_ms
            job = _Job(partial(self._respond, incoming), came, timeout_ms, record, incoming.deadline_s)
            if not incoming.is_large:
                job.read_head(incoming)
            response: T = await self._answered(job, traceparent)
            return response

    async def call(
        self, protocol: str, x: Any, deadline_s: float | None = None, headers: Mapping[str, str] = NO_HEADERS
    ) -> Result:
        """Answer an input that is in memory already.

        Args:
            protocol: The name that it has in metrics and logs.
            x: As for `Runtime.__call__`.
            deadline_s: When its answer is late, in seconds since 1970. The budget's deadline holds where it is nearer.
                None: never, but for the budget's deadline.
            headers: As of a request of HTTP. `traceparent` is read.

        Returns:
            The answer.

        Raises:
            RequestError: There is none.
        """
        with self._recorded(protocol, headers) as (came, record, traceparent):
            job = _Job(partial(self._result, x), came, self.options.timeout_ms, record, deadline_s)
            result: Result = await self._answered(job, traceparent)
            return result

    @contextmanager
    def _recorded(self, protocol: str, headers: Mapping[str, str]) -> Iterator[tuple[float, RequestRecord, str | None]]:
        """When a request came, its record, which is counted at the end, and its span. Errors become RequestError."""
        came, record = time.perf_counter(), RequestRecord(protocol)
        with span(f"infer {self.name}", headers, record) as traceparent, self._counted(came, record):
            yield came, record, traceparent

    @contextmanager
    def _counted(self, came: float, record: RequestRecord) -> Iterator[None]:
        try:
            yield
            record.outcome = "answered"
        except asyncio.CancelledError:
            record.outcome, record.error = "expired", "the client has gone"
            raise
        except Exception as error:
            refused = request_error(error, self.options.queue)
            record.outcome, record.error = refused.outcome, str(refused)
            raise refused from error
        finally:
            record.latency_ms = (time.perf_counter() - came) * 1e3
            self.metrics.count(record)
            if self.log is not None:
                self.log.write(record)

    async def _answered(self, job: _Job, traceparent: str | None) -> Any:
        until = time.perf_counter() + _SWAP_S
        while True:
            try:
                return await self._answered_once(job, traceparent)
            except TimeoutError as error:
                raise _expired(job.timeout_ms) from error
            except BundleError:  # what finishes it has another bundle than this one, for a moment
                if self._finish is None or time.perf_counter() >= until:
                    raise
                job.begun = None
                await asyncio.sleep(_AGAIN_S)

    async def _answered_once(self, job: _Job, traceparent: str | None) -> Any:
        submitted = self.waiting.submit(job, time.perf_counter())  # the upload is no wait for a worker
        future = asyncio.wrap_future(submitted)
        try:
            async with asyncio.timeout(job.left_s):
                response = await future
            begun = job.begun
            if begun is None or self._finish is None:
                return response
            # rows with an answer end by `ends_s`, and have one whatever the rest of the cascade does
            async with asyncio.timeout(None if all(rest.is_answered for rest in begun.rests) else job.left_s):
                result = await self._finish(begun, self._ends_s(job), traceparent)
            return await asyncio.to_thread(self._responded, job, result)
        finally:
            submitted.cancel()  # at once: asyncio does so in its next round, and until then it would count as waiting

    def _work(self, job: _Job, queued: float) -> Any:
        """The response to a request, on a worker. None where some of its rows continue elsewhere."""
        job.check_time()
        result = job.work(job, queued)
        if result.rests:
            job.begun = result
            return None
        return self._responded(job, result)

    def _responded(self, job: _Job, result: Result) -> Any:
        """The response that a result makes. It enters the record."""
        record, decision = job.record, result.decision
        record.stages = dict(Counter(np.atleast_1d(result.stage).tolist()))
        record.rows = sum(record.stages.values())
        record.point, record.certified = decision.point.name, result.certified
        record.violated_limits, record.complete = decision.violated_limits, result._output.complete
        return job.respond(result)

    def _ends_s(self, job: _Job) -> float | None:
        """When the answer to a request is late, in seconds since 1970: its deadline, the budget's, or its timeout."""
        came_s = time.time() - (time.perf_counter() - job.came)
        ends_s = [] if job.ends_s is None else [job.ends_s]
        if self.run.budget.deadline_ms is not None:
            ends_s.append(came_s + self.run.budget.deadline_ms / 1e3)
        if job.timeout_ms is not None:
            ends_s.append(came_s + max(job.timeout_ms - _RESPONSE_MS, 0.0) / 1e3)
        return min(ends_s, default=None)

    def _respond(self, incoming: Incoming[T], job: _Job, queued: float) -> Result:
        """The answer to a request of a protocol."""
        if incoming.is_large:
            job.read_head(incoming)
            job.check_time()
        request = incoming.content()
        inputs, outputs = self.inputs, self.outputs
        outputs.check(request.outputs)
        job.respond = lambda result: incoming.response(outputs.of(result, request.outputs))
        return self._result(inputs.of(request), job, queued)

    def _result(self, x: Any, job: _Job, queued: float) -> Result:
        """The answer to an input."""
        record, now = job.record, time.perf_counter()
        record.waited_ms = (now - queued) * 1e3
        behind = len(self.waiting)
        limits: dict[str, Any] = {}
        if record.waited_ms >= _NO_WAIT_MS or behind:
            limits = {"waited_ms": record.waited_ms, "queue_length": behind}
        if job.ends_s is not None:  # on the wall clock, which may be of another machine
            left_ms = (job.ends_s - time.time()) * 1e3
            limits |= {"waited_ms": record.waited_ms, "deadline_ms": max(record.waited_ms + left_ms, 0.0)}
        return self._answer(x, **limits)

    def drain(self, timeout_s: float) -> bool:
        """Take no more requests, and wait until those accepted are answered. Returns whether all of them are."""
        self.closing = True
        idle, ends_s = not self.waiting.busy and not len(self.waiting), time.monotonic() + timeout_s
        self.waiting.close(drain=True, timeout_s=timeout_s)
        return not self.waiting.busy and (idle or time.monotonic() < ends_s)


def _expired(timeout_ms: float | None) -> RequestError:
    return RequestError(
        "expired",
        f"not answered within its timeout of {timeout_ms or 0.0:g} ms: give a longer one, or send fewer at a time",
    )
