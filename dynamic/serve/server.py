"""A server of one runtime: sockets, the event loop on its own thread, and its end."""

import asyncio
import logging
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Self

import uvicorn

from dynamic.runtime.runtime import Runtime
from dynamic.serve.http.application import application
from dynamic.serve.http.listening import BACKLOG, HttpServer, listening_socket
from dynamic.serve.options import LOCAL_HOSTS, ServeOptions
from dynamic.serve.service import Service

if TYPE_CHECKING:
    from dynamic.serve.grpc_v2.servicer import GrpcServer

logger = logging.getLogger("dynamic")

SENT_S = 5  # that answers which are ready may take to be sent, once the server ends
_KEEP_ALIVE_S = 30  # that a connection without requests remains open


class Server:
    """Serves a runtime over HTTP, and over gRPC where `options.grpc_port` is set, until it is closed.

    Its event loop has a thread of its own. It ends with `close`, or at the end of a `with` block. It does not close the
    runtime.

    Args:
        run: The runtime.
        options: How to listen, and what to accept. None: the usual ones.

    Raises:
        DynamicError: A port is in use, or the host is no address of this machine.

    Example:
        >>> import json, urllib.request
        >>> options = dynamic.serve.ServeOptions(port=0)
        >>> with bundle.runtime() as run, dynamic.serve.Server(run, options) as server:
        ...     with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/v2/health/ready") as answer:
        ...         json.load(answer)
        {'ready': True}
    """

    def __init__(self, run: Runtime, options: ServeOptions | None = None) -> None:
        self.options = options or ServeOptions()
        self._started = threading.Event()
        if self.options.grpc_port:  # gRPC binds it itself, and writes lines of its own where that fails
            listening_socket(self.options.host, self.options.grpc_port, "--grpc-port").close()
        self._socket = listening_socket(self.options.host, self.options.port, "--port")
        try:
            self._service = Service(run, self.options)
            config = uvicorn.Config(
                application(self._service),
                lifespan="off",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                date_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=SENT_S,
            )
            self._http = HttpServer(config, self._started.set)
            self._grpc = None if self.options.grpc_port is None else _grpc_server(self._service)
        except BaseException:
            self._socket.close()
            raise
        self._loop = asyncio.new_event_loop()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, name="dynamic-server", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure
        if self.options.host not in LOCAL_HOSTS and self.options.token is None:
            logger.warning(
                "%s:%d answers anybody who reaches this machine: set a token, or leave --host out", *self._address
            )

    @property
    def _address(self) -> tuple[str, int]:
        return self.options.host, self.port

    @property
    def port(self) -> int:
        """The port of HTTP."""
        return self._port

    @property
    def grpc_port(self) -> int | None:
        """The port of gRPC. None: there is none."""
        return None if self._grpc is None else self._grpc.port

    @property
    def name(self) -> str:
        """The name of the model."""
        return self._service.name

    @property
    def is_running(self) -> bool:
        """Whether it still listens."""
        return self._thread.is_alive()

    def close(self, drain_s: float | None = None) -> bool:
        """Take no more requests, wait until those accepted are answered, and end.

        Meanwhile connections are still accepted: `/readyz` says 503, and so does each new request.

        Args:
            drain_s: Seconds to wait at most. None: those of the options.

        Returns:
            Whether every request that was accepted is answered.

        Raises:
            Nothing: a server that is closed stays so.

        Example:
            >>> with bundle.runtime() as run:
            ...     dynamic.serve.Server(run, dynamic.serve.ServeOptions(port=0)).close()
            True
        """
        drained = self._service.drain(self.options.drain_s if drain_s is None else drain_s)
        if self._thread.is_alive():
            self._http.should_exit = True
            self._thread.join()
        return drained

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _serve(self) -> None:
        try:
            asyncio.set_event_loop(self._loop)
            self._loop.run_until_complete(self._run())
        except BaseException as error:
            self._failure = error
            if self._started.is_set():
                logger.error("the server failed: %r", error, exc_info=error)
        finally:
            self._socket.close()
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            asyncio.set_event_loop(None)
            self._loop.close()
            if self._service.log is not None:
                self._service.log.close()
            self._started.set()

    async def _run(self) -> None:
        self._port: int = self._socket.getsockname()[1]
        if self._grpc is not None:
            await self._grpc.start()
        try:
            await self._http.serve(sockets=[self._socket])
        finally:
            if self._grpc is not None:
                await self._grpc.stop(SENT_S)


def _grpc_server(service: Service) -> "GrpcServer":
    """Imported here: a server of HTTP alone needs no gRPC."""
    from dynamic.serve.grpc_v2.servicer import GrpcServer

    return GrpcServer(service)
