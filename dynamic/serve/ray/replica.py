"""A replica: one runtime behind a queue and batches, asked over HTTP and by handles."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import replace
from typing import Any

from dynamic.bundle.bundle_reader import load
from dynamic.policies.errors import BundleError, ClosedError, DynamicError, InputError, ShedError
from dynamic.runtime.result import Result
from dynamic.runtime.runtime import Runtime
from dynamic.serve.answering import Answering, WholeRequests
from dynamic.serve.batches import Batches
from dynamic.serve.http.application import application
from dynamic.serve.opening import open_runtime
from dynamic.serve.ray.settings import ReplicaSettings, UserConfig
from dynamic.serve.ray.split.continued_requests import ContinuedRequests
from dynamic.serve.ray.split.hops import HopReply, HopRequest, Hops
from dynamic.serve.ray.split.scaling import HEAD_ROWS, PASSED_ROWS, ROW_MS, Rates
from dynamic.serve.request_errors import Outcome, RequestError
from dynamic.serve.service import Service

logger = logging.getLogger("dynamic")

_ERRORS: Mapping[Outcome, type[DynamicError]] = {"shed": ShedError, "closing": ClosedError, "invalid": InputError}
_DRAIN_S = 5.0  # Ray waits for requests before it ends a replica: what is left then has no reader
Message = MutableMapping[str, Any]


class Replica:
    """Answers requests with the bundle and the budget of the last `reconfigure`.

    Where the cascade is split, it is the head or the tail. Rows that continue go from the head to the tail.

    Args:
        settings: What does not change.
        tail: The handle of the tail, for the head. None: there is none.
    """

    def __init__(self, settings: ReplicaSettings, tail: Any = None) -> None:
        self._settings = settings
        self._hops, self._rates = None if tail is None else Hops(tail, settings.split.hop_ms), Rates()
        self._continued: ContinuedRequests | None = None  # of the tail
        self._config: UserConfig | None = None
        self._changing = asyncio.Lock()
        self._run: Runtime | None = None

    async def run(self, x: Any, *, deadline_s: float | None = None, traceparent: str | None = None) -> Result:
        """Answer one input or a batch, as `run(x)` does.

        Args:
            x: As for `run(x)`.
            deadline_s: When its answer is late, in seconds since 1970 as `time.time()` gives them. From then on, the
                last exit in time answers, and the answer is not certified. The budget's deadline holds where it is
                nearer. None: that of the budget.
            traceparent: The span that this one is a child of, in the words of W3C Trace Context. None: there is none.

        Returns:
            A `Prediction` for one input, a `BatchResult` for a batch.

        Raises:
            InputError: A shape or type does not fit.
            ShedError: Too many requests wait.
            ClosedError: The replica is ending.
            BundleError: Head and tail had other bundles for more than 10 s, and no exit has answered.
            DynamicError: The request failed for another reason.
        """
        try:
            headers = {} if traceparent is None else {"traceparent": traceparent}
            return await self._service.call("handle", x, deadline_s, headers)
        except RequestError as error:
            if isinstance(error.__cause__, BundleError):
                raise BundleError(str(error)) from None
            raise _ERRORS.get(error.outcome, DynamicError)(str(error)) from None

    async def resume(
        self, passed: HopRequest, *, deadline_s: float | None = None, traceparent: str | None = None
    ) -> HopReply:
        """Answer rows that the head has passed on. Arguments and errors are those of `run`."""
        result = await self.run(passed, deadline_s=deadline_s, traceparent=traceparent)
        return HopReply(result._output, result.certified)

    async def explain(self) -> str:
        """Why the cascade is split, or is not."""
        return self._settings.split.reason

    async def state(self) -> dict[str, Any]:
        """What is at work: the process, the folder of the bundle, the budget, and how many requests were answered."""
        run, waiting = self._runtime, self._service.waiting
        stats = run.stats()
        return {
            "pid": os.getpid(),
            "bundle": str(run.bundle.folder),
            "budget": run.budget.to_json(),
            "requests": stats.requests,
            "inputs": stats.inputs,
            "shed": waiting.shed,
            "split": self._settings.split.to_json(),
            "kept_exits": 0 if self._hops is None else self._hops.exit_answers,
        }

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What the policy gets that decides how many replicas there are, see `dynamic.serve.ray.split.scaling`."""
        if self._continued is not None:
            return {ROW_MS: self._continued.row_ms}
        passed = 0 if self._hops is None else self._hops.passed
        return self._rates({HEAD_ROWS: self._runtime.stats().inputs, PASSED_ROWS: passed})

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Take a budget, or another bundle, while requests run. What cannot be taken is logged, and changes nothing.

        Args:
            user_config: See `UserConfig`.
        """
        async with self._changing:
            if self._run is None:
                await asyncio.to_thread(self._open, UserConfig.from_json(user_config))
                return
            try:
                await asyncio.to_thread(self._change, UserConfig.from_json(user_config))
            except Exception as error:  # raised, Ray would end a replica that answers
                logger.error("%s is not taken, what was at work continues: %s", user_config, error)

    def _open(self, config: UserConfig) -> None:
        settings = self._settings
        options = replace(settings.options, workers=1)  # of the runtime: batches come one after another
        part = settings.split.part(settings.is_head)
        how = {"engine": settings.engine, "threads": settings.threads, "part": part}
        run = open_runtime(load(config.folder), config.budget, options, **how)
        self._batches = Batches(self._answering(run), settings.options.max_batch, settings.batch_wait_ms)
        self._service = Service(run, settings.options, self._batches, settings.workers, self._hops)
        self._service.about = {"split": settings.split.to_json()}
        self._http = application(self._service)
        self._run, self._config = run, config

    def _answering(self, run: Runtime) -> Answering:
        split, hops = self._settings.split, self._hops
        if not self._settings.is_head:
            self._continued = ContinuedRequests(run, split.rest_ms)
            return self._continued
        return WholeRequests(run) if hops is None else WholeRequests(run, lambda: hops.outstanding)

    def _change(self, config: UserConfig) -> None:
        old, run = self._config, self._runtime
        assert old is not None
        if (config.folder, config.digest) == (old.folder, old.digest):
            run.budget = config.budget
        else:
            run.swap(load(config.folder), config.budget)  # both or none
            self._service.follow()
        self._config = config

    @property
    def _runtime(self) -> Runtime:
        assert self._run is not None, "Ray calls reconfigure before any request"
        return self._run

    def __serve_build_asgi_app__(self) -> Callable[..., Awaitable[None]]:
        """The application that Ray hands requests of HTTP to. Ray asks for it before the bundle is known."""

        async def app(scope: Message, receive: Callable[..., Awaitable[Message]], send: Any) -> None:
            if scope["type"] == "lifespan":
                for event in ("startup", "shutdown"):
                    await receive()
                    await send({"type": f"lifespan.{event}.complete"})
            else:
                await self._http(scope, receive, send)

        return app  # a function: uvicorn takes a method for an application of ASGI 2

    def close(self) -> None:
        """Answer what was accepted, and end. Ray calls it through `__del__`."""
        if self._run is not None:
            self._batches.hurry()
            self._service.drain(_DRAIN_S)
            self._batches.close()
            self._run.close(timeout_s=_DRAIN_S)
            if self._service.log is not None:
                self._service.log.close()

    def __del__(self) -> None:
        self.close()
