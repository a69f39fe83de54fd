"""Requests that get no answer: why, and what each protocol calls it."""

import logging
from dataclasses import dataclass
from typing import Literal

from dynamic.policies.errors import BundleError, ClosedError, DynamicError, InputError, ShedError

logger = logging.getLogger("dynamic")

Outcome = Literal[
    "answered", "invalid", "unauthorized", "unknown", "too_large", "unsupported", "shed", "closing", "expired", "failed"
]


@dataclass(frozen=True)
class Status:
    """What a protocol calls an outcome: the number of HTTP, and the name of gRPC."""

    http: int
    grpc: str


STATUS: dict[Outcome, Status] = {
    "answered": Status(200, "OK"),
    "invalid": Status(400, "INVALID_ARGUMENT"),
    "unauthorized": Status(401, "UNAUTHENTICATED"),
    "unknown": Status(404, "NOT_FOUND"),
    "too_large": Status(413, "RESOURCE_EXHAUSTED"),
    "unsupported": Status(415, "INVALID_ARGUMENT"),
    "shed": Status(503, "UNAVAILABLE"),
    "closing": Status(503, "UNAVAILABLE"),
    "expired": Status(504, "DEADLINE_EXCEEDED"),
    "failed": Status(500, "INTERNAL"),
}
_LONGEST = 900  # characters of a message
RETRY_AFTER_S = 1  # after which a client that was shed may ask again


class RequestError(DynamicError):
    """A request that gets no answer. `outcome` is why. The message names the value, the limit and the remedy.

    A message that is too long for a header of gRPC, which has 8 kB, is cut.
    """

    def __init__(self, outcome: Outcome, message: str) -> None:
        super().__init__(message if len(message) <= _LONGEST else f"{message[:_LONGEST]}...")
        self.outcome: Outcome = outcome

    @property
    def headers(self) -> dict[str, str]:
        """Headers of HTTP that belong to the outcome."""
        if self.outcome in ("shed", "closing"):
            return {"Retry-After": str(RETRY_AFTER_S)}
        if self.outcome == "unauthorized":
            return {"WWW-Authenticate": "Bearer"}
        if self.outcome == "too_large":  # what is left of its body is not read
            return {"Connection": "close"}
        return {}


def invalid(message: str) -> RequestError:
    """The error of a request that its sender has to change."""
    return RequestError("invalid", message)


def request_error(error: BaseException, queue: int) -> RequestError:
    """The error of a request that failed with `error`.

    Args:
        error: What was raised. One that is no fault of the sender is logged.
        queue: How many requests may wait.

    Returns:
        The same error where it is one already.
    """
    if isinstance(error, RequestError):
        return error
    if isinstance(error, ShedError):
        return RequestError(
            "shed",
            f"dropped, having waited longest: {queue} requests waited already, the limit. Send again after "
            f"{RETRY_AFTER_S} s, send fewer at a time, or start the server with a longer --queue",
        )
    if isinstance(error, ClosedError):
        return RequestError("closing", "this server is ending and takes no more requests: send it to another one")
    if isinstance(error, InputError):
        return invalid(str(error))
    if isinstance(error, MemoryError):
        return RequestError("too_large", f"the request does not fit in memory ({error}): send fewer rows at a time")
    if isinstance(error, BundleError):  # two parts of a cascade have other bundles: the head asks again
        return RequestError("failed", str(error))
    logger.error("a request failed: %r", error, exc_info=error)
    what = str(error) if isinstance(error, DynamicError) else f"an error of the server ({type(error).__name__})"
    return RequestError("failed", f"{what}. The log of the server has more")
