"""Bodies of requests, read no further than a limit."""

import asyncio

from starlette.requests import ClientDisconnect, Request

from dynamic.serve.held_bytes import HeldBytes
from dynamic.serve.request_errors import RequestError, invalid

_READ_S = 30.0  # in which a body has to arrive
_DISCARDED = 8  # times the limit that is read and thrown away, so that the client reads the error and not a reset


async def body_of(request: Request, most: int, held: HeldBytes) -> bytes:
    """The body of a request.

    Args:
        request: The request.
        most: Bytes that it may have. No more of it are ever held.
        held: Counts them.

    Returns:
        The body.

    Raises:
        RequestError: It is longer, compressed, or does not arrive in time, or the server holds too many.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise RequestError("unsupported", f"Content-Encoding {encoding!r:.60} is not read: send the body as it is")
    announced = request.headers.get("content-length", "0")
    if int(announced) > most and (int(announced) > _DISCARDED * most or "expect" in request.headers):
        raise _too_large(announced, most)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(_READ_S):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= most:
                    held.add(len(chunk))
                    chunks.append(chunk)
                elif size > _DISCARDED * most:
                    break
                else:
                    chunks.clear()
    except TimeoutError as error:
        raise invalid(
            f"{size} of {announced} bytes of the body came within {_READ_S:g} s, the limit: send it faster"
        ) from error
    except ClientDisconnect as error:
        raise invalid(f"the client has gone after {size} of {announced} bytes of the body") from error
    if size > most:
        raise _too_large(announced if announced != "0" else f"at least {size}", most)
    return b"".join(chunks)


def _too_large(size: str, most: int) -> RequestError:
    return RequestError(
        "too_large",
        f"the body has {size} bytes, and the limit is {most}: send fewer rows at a time, or start the server with a "
        "larger --max-request-mb",
    )
