"""A limit on the bytes of all bodies that a server holds at once."""

from types import TracebackType
from typing import Self

from dynamic.serve.request_errors import RETRY_AFTER_S, RequestError


class OpenBodies:
    """Counts bytes of bodies, from their arrival until their request has ended. Used on the event loop alone.

    Args:
        most: Bytes that all of them may have together.
    """

    def __init__(self, most: int) -> None:
        self.most, self.bytes = most, 0

    def share(self) -> "HeldBytes":
        """The part of one request, which is 0 again at the end of a `with` block."""
        return HeldBytes(self)


class HeldBytes:
    """The bytes that one request holds.

    Args:
        bodies: All of them.
    """

    def __init__(self, bodies: OpenBodies) -> None:
        self._bodies, self._bytes = bodies, 0

    def add(self, count: int) -> None:
        """Count more. Raises RequestError where all bodies together then have too many."""
        bodies = self._bodies
        if bodies.bytes + count > bodies.most:
            raise RequestError(
                "shed",
                f"the bodies of the requests that are open have {bodies.bytes} bytes, and the limit is {bodies.most}: "
                f"send again after {RETRY_AFTER_S} s, send fewer at a time, or start the server with a larger "
                "--max-request-mb",
            )
        bodies.bytes += count
        self._bytes += count

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bodies.bytes -= self._bytes
        self._bytes = 0
