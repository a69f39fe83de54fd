"""One bundle behind a queue: what HTTP and gRPC have in common."""

import asyncio
import hmac
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

import dynamic
from dynamic.runtime.requests.request_queue import Waiting
from dynamic.runtime.runtime import Runtime
from dynamic.serve.held_bytes import OpenBodies
from dynamic.serve.metrics import Metrics
from dynamic.serve.options import ServeOptions, checked_name
from dynamic.serve.protocol.messages import Incoming, TensorInfo
from dynamic.serve.protocol.model_inputs import ModelInputs
from dynamic.serve.protocol.model_outputs import ModelOutputs
from dynamic.serve.request_errors import RequestError, request_error
from dynamic.serve.request_log import RequestLog, RequestRecord

T = TypeVar("T")
VERSION = "1"  # of the model: a server has one
PLATFORM = "dynamic_cascade"
EXTENSIONS = ("binary_tensor_data",)
_NO_WAIT_MS = 1.0  # a request that has waited less is answered as one that comes now: it repeats the last decision


@dataclass
class _Job:
    """A request in the queue. `came` is its arrival. Its timeout is the usual one until its own is read."""

    incoming: Incoming[Any]
    came: float
    timeout_ms: float | None
    record: RequestRecord

    def read_head(self) -> None:
        """Read the identifier and the timeout. Raises RequestError where they do not fit."""
        self.record.id = self.incoming.id
        own_ms = self.incoming.timeout_ms
        self.timeout_ms = self.timeout_ms if own_ms is None else own_ms

    @property
    def remaining_s(self) -> float | None:
        """Seconds in which it is still wanted. None: there is no limit."""
        return None if self.timeout_ms is None else self.timeout_ms / 1e3 - (time.perf_counter() - self.came)

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
    """

    def __init__(self, run: Runtime, options: ServeOptions) -> None:
        self.run, self.options = run, options
        bundle = run.bundle
        self.name = options.name or checked_name(bundle.folder.resolve().name)
        self.inputs = ModelInputs(bundle, options.max_batch, options.max_megapixels)
        self.outputs = ModelOutputs(bundle)
        self.waiting: Waiting[Any] = Waiting(options.queue, options.workers, self._work)
        self.bodies = OpenBodies(options.most_open_bytes)
        self.closing = False
        self.metrics = Metrics(run, self.waiting, time.perf_counter)
        self.log = RequestLog() if options.log_json else None
        self._token = None if options.token is None else options.token.encode()

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

    async def infer(self, protocol: str, receive: Callable[[], Awaitable[Incoming[T]]]) -> T:
        """Answer a request.

        Args:
            protocol: "http" or "grpc".
            receive: Checks who asks, and reads the request.

        Returns:
            The response.

        Raises:
            RequestError: There is no answer.
        """
        came, record = time.perf_counter(), RequestRecord(protocol)
        try:
            incoming = await receive()
            outer_ms = incoming.outer_timeout_ms
            job = _Job(incoming, came, self.options.timeout_ms if outer_ms is None else outer_ms, record)
            if not incoming.is_large:
                job.read_head()
            response: T = await self._answered(job)
            record.outcome = "answered"
            return response
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

    async def _answered(self, job: _Job) -> Any:
        remaining_s = job.remaining_s
        submitted = self.waiting.submit(job, time.perf_counter())  # the upload is no wait for a worker
        future = asyncio.wrap_future(submitted)
        try:
            async with asyncio.timeout(None if remaining_s is None else max(remaining_s, 0.0)):
                return await future
        except TimeoutError as error:
            raise _expired(job.timeout_ms) from error
        finally:
            submitted.cancel()  # at once: asyncio does so in its next round, and until then it would count as waiting

    def _work(self, job: _Job, queued: float) -> Any:
        """The response of a request, on a worker."""
        job.check_time()
        if job.incoming.is_large:
            job.read_head()
            job.check_time()
        request = job.incoming.content()
        self.outputs.check(request.outputs)
        x = self.inputs.of(request)
        record = job.record
        record.waited_ms = (time.perf_counter() - queued) * 1e3
        behind = len(self.waiting)
        if record.waited_ms < _NO_WAIT_MS and not behind:
            result = self.run(x)
        else:
            result = self.run(x, waited_ms=record.waited_ms, queue_length=behind)
        decision = result.decision
        record.stages = dict(Counter(np.atleast_1d(result.stage).tolist()))
        record.rows = sum(record.stages.values())
        record.point, record.certified = decision.point.name, result.certified
        record.violated_limits = decision.violated_limits
        return job.incoming.response(self.outputs.of(result, request.outputs))

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
