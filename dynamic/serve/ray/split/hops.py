"""The way of rows from the head to the tail and back."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError

from dynamic.engines.contract import Output
from dynamic.engines.parts.rest import Rest
from dynamic.policies.errors import DynamicError, ShedError
from dynamic.runtime.result import Result
from dynamic.serve.request_errors import RETRY_AFTER_S, RequestError
from dynamic.serve.spans import span

logger = logging.getLogger("dynamic")
_TRIES = 2  # where a replica dies, another one is asked
_LOG_S = 30.0  # between two lines about hops that failed


@dataclass(frozen=True)
class HopKind:
    """What rows share that may continue in one batch, see `HopRequest` and `Rest`."""

    point: str
    stage: int
    size: int | None
    version: str


@dataclass(frozen=True, eq=False)
class HopRequest:
    """Rows on their way.

    Args:
        rest: The rows.
        point: The operating point that the head decided on.
    """

    rest: Rest
    point: str

    @property
    def kind(self) -> HopKind:
        """What such rows share that may run in one batch."""
        return HopKind(self.point, self.rest.stage, self.rest.size, self.rest.version)


@dataclass(frozen=True, eq=False)
class HopReply:
    """The reply of the tail to a `HopRequest`.

    Args:
        output: Their answers.
        certified: Whether a certificate holds for them, as far as the tail knows.
    """

    output: Output
    certified: bool


class Hops:
    """Lets rows continue in the tail. It is the `Finish` of the head's service.

    A row that gets no answer there keeps that of its last exit, and is not certified: the tail is over its queue, has
    another bundle for a moment, fails, or has not answered by the deadline or the timeout of the request. With neither,
    the tail is waited for. Only a row without such an answer raises an error. The tail gets a deadline that is half a
    hop earlier, since its answer has to come back.

    Args:
        tail: The handle of the tail.
        hop_ms: What it takes to hand a row over and to get its answer.
        clock: Seconds since 1970.
    """

    def __init__(self, tail: Any, hop_ms: float = 0.0, clock: Callable[[], float] = time.time) -> None:
        self._tail, self._back_s, self.clock = tail, hop_ms / 2e3, clock
        self.outstanding = self.passed = 0  # rows in the tail, and all that were sent there
        self.exit_answers = 0  # rows that kept the answer of an exit since the tail gave none
        self._quiet_until = 0.0

    async def __call__(self, result: Result, ends_s: float | None, traceparent: str | None) -> Result:
        """See `Finish`."""
        began = time.perf_counter()
        point = result.decision.point.name
        replies = await asyncio.gather(*(self._reply(HopRequest(r, point), ends_s, traceparent) for r in result.rests))
        whole = result._output
        logits, stage, score, complete = whole.logits.copy(), whole.stage.copy(), whole.score.copy(), whole.complete
        certified = result.certified
        for rest, reply in zip(result.rests, replies, strict=True):
            if reply is None:
                complete = certified = False
                continue
            output, rows = reply.output, rest.rows
            logits[rows], stage[rows], score[rows] = output.logits, output.stage, output.score
            complete, certified = complete and output.complete, certified and reply.certified
        passed_ms = (time.perf_counter() - began) * 1e3
        return type(result)(
            result.id,
            Output(logits, stage, score, complete),
            result.class_names,
            result.latency_ms + passed_ms,
            result.decision,
            certified,
            result.waited_ms,
        )

    async def _reply(self, passed: HopRequest, ends_s: float | None, traceparent: str | None) -> HopReply | None:
        """The answer of the tail. None: there is none, and the exit's answer holds."""
        rows = len(passed.rest.rows)
        self.outstanding += rows
        self.passed += rows
        try:
            headers = {} if traceparent is None else {"traceparent": traceparent}
            with span("hop", headers) as own:
                return await self._asked(passed, ends_s, own)
        except Exception as error:
            if not passed.rest.is_answered:
                raise _request_error(error) from error
            self.exit_answers += rows
            self._log(error)
            return None
        finally:
            self.outstanding -= rows

    async def _asked(self, passed: HopRequest, ends_s: float | None, traceparent: str | None) -> HopReply:
        """The answer of the tail. Once the deadline is over it is waited for only where the row has no other."""
        left_s = None if ends_s is None or not passed.rest.is_answered else max(ends_s - self.clock(), 0.0)
        tail_ends_s = None if ends_s is None else ends_s - self._back_s
        async with asyncio.timeout(left_s):
            for tries_left in reversed(range(_TRIES)):
                try:
                    call = self._tail.resume.remote(passed, deadline_s=tail_ends_s, traceparent=traceparent)
                    returned: HopReply = await call
                    return returned
                except RayActorError:
                    if not tries_left:
                        raise
        raise AssertionError("the last try returns or raises")

    def _log(self, error: Exception) -> None:
        now = time.monotonic()
        if now >= self._quiet_until and not isinstance(error, TimeoutError):
            self._quiet_until = now + _LOG_S
            logger.warning(
                "rows keep the answer of their exit, since the tail gave none: %r (logged every %g s at most, %d rows "
                "since the start)",
                error,
                _LOG_S,
                self.exit_answers,
            )


def _request_error(error: Exception) -> Exception:
    """The error of a request without any answer."""
    if isinstance(error, (ShedError, BackPressureError)):
        return RequestError(
            "shed",
            f"dropped by the tail, which is full, before any exit has answered. Send again after {RETRY_AFTER_S} s, "
            "or deploy with more tail_replicas",
        )
    return error if isinstance(error, DynamicError) else DynamicError(f"the tail gave no answer: {error!r:.300}")
