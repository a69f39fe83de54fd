"""Sockets, and a server of uvicorn on them."""

import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager

import uvicorn

from dynamic.policies.errors import DynamicError

BACKLOG = 256  # connections that wait to be accepted


class HttpServer(uvicorn.Server):
    """A server of uvicorn that leaves signals to the process, and says when it listens.

    Args:
        config: As for uvicorn.
        listening: Called once it listens.
    """

    def __init__(self, config: uvicorn.Config, listening: Callable[[], object]) -> None:
        super().__init__(config)
        self._listening = listening

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave them to the process."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        self._listening()


def listening_socket(host: str, port: int, option: str) -> socket.socket:
    """A socket that is bound. Raises DynamicError where that fails."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen(BACKLOG)
        except BaseException:
            bound.close()
            raise
    except OSError as error:
        raise DynamicError(
            f"{host}:{port} cannot be listened on ({error.strerror or error}): end what uses it, or give another "
            f"address with --host or {option}"
        ) from error
    return bound
