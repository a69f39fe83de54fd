"""The service of gRPC, on the event loop of the server."""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from dynamic.policies.errors import DynamicError
from dynamic.serve.grpc_v2.grpc_messages import GrpcRequest
from dynamic.serve.grpc_v2.messages import METHODS, SERVICE, message_classes
from dynamic.serve.protocol.messages import Incoming
from dynamic.serve.protocol.parameters import as_number, deadline_of
from dynamic.serve.request_errors import STATUS, RequestError
from dynamic.serve.service import PLATFORM, VERSION, Service

_OPEN = ("ServerLive", "ServerReady")  # need no token
_DEADLINE = "deadline-unix-ms"  # as the header of HTTP
_MORE_CALLS = 32  # than may wait and run: those that are being shed, and questions about health
_LONGEST_DETAIL = 2000  # bytes of a message


class GrpcServer:
    """Serves a service over gRPC.

    Args:
        service: What answers.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._server: Any = None
        self.port = service.options.grpc_port

    async def start(self) -> None:
        """Listen. Raises DynamicError where the port is in use."""
        options = self._service.options
        self._server = grpc.aio.server(
            maximum_concurrent_rpcs=options.queue + options.workers + _MORE_CALLS,
            options=[
                ("grpc.max_receive_message_length", options.most_bytes),
                ("grpc.so_reuseport", 0),  # or a second server on the port would be no error
            ],
        )
        handlers = {name: self._handler(name) for name in METHODS}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        host = options.url_host
        try:
            self.port = self._server.add_insecure_port(f"{host}:{options.grpc_port}")
        except RuntimeError as error:
            raise DynamicError(
                f"{host}:{options.grpc_port} cannot be listened on: end what uses it, or give another --grpc-port"
            ) from error
        await self._server.start()

    async def stop(self, seconds: float) -> None:
        """End. Requests that run get so many seconds."""
        if self._server is not None:
            await self._server.stop(seconds)

    def _handler(self, name: str) -> Any:
        request, response = message_classes(name)
        answer: Callable[[Any, Any, Any], Awaitable[Any]] = getattr(self, f"_{_snake(name)}")

        async def call(message: Any, context: Any) -> Any:
            try:
                if name not in _OPEN and name != "ModelInfer":  # that one is counted, so it checks in there
                    self._check_token(context)
                return await answer(message, context, response)
            except RequestError as error:
                await context.abort(getattr(grpc.StatusCode, STATUS[error.outcome].grpc), _detail(str(error)))

        # bytes of that one: parsed here, a message would not count, and would hold up all others
        parse = None if name == "ModelInfer" else request.FromString
        return grpc.unary_unary_rpc_method_handler(call, parse, response.SerializeToString)

    def _check_token(self, context: Any) -> None:
        metadata = dict(context.invocation_metadata() or ())
        self._service.check_token(metadata.get("authorization"))

    async def _server_live(self, message: Any, context: Any, response: Any) -> Any:
        return response(live=True)

    async def _server_ready(self, message: Any, context: Any, response: Any) -> Any:
        return response(ready=self._service.ready)

    async def _model_ready(self, message: Any, context: Any, response: Any) -> Any:
        self._service.check_model(message.name, message.version)
        return response(ready=self._service.ready)

    async def _server_metadata(self, message: Any, context: Any, response: Any) -> Any:
        return response(**self._service.server_metadata())

    async def _model_metadata(self, message: Any, context: Any, response: Any) -> Any:
        self._service.check_model(message.name, message.version)
        inputs, outputs = self._service.model_metadata()
        answer = response(name=self._service.name, versions=[VERSION], platform=PLATFORM)
        for place, infos in ((answer.inputs, inputs), (answer.outputs, outputs)):
            for info in infos:
                place.add(name=info.name, datatype=info.datatype, shape=info.shape)
        return answer

    async def _model_infer(self, message: bytes, context: Any, response: Any) -> Any:
        metadata = dict(context.invocation_metadata() or ())

        async def receive() -> Incoming[Any]:
            self._check_token(context)
            held.add(len(message))
            remaining_s = context.time_remaining()
            remaining_ms = None if remaining_s is None else max(remaining_s, 1e-3) * 1e3
            text = metadata.get(_DEADLINE)
            deadline_s = None if text is None else deadline_of(as_number(text), f"the metadata {_DEADLINE}")
            model = self._service.name, VERSION
            return GrpcRequest(message, self._service.check_model, model, remaining_ms, deadline_s)

        with self._service.bodies.share() as held:
            return await self._service.infer("grpc", receive, metadata)


def _detail(message: str) -> str:
    """A message that fits in the headers of an answer, whose limit is 8 kB: other bytes than ASCII become 3 each."""
    return message.encode("utf-8", "replace")[:_LONGEST_DETAIL].decode(errors="ignore")


def _snake(name: str) -> str:
    """ModelInfer -> model_infer."""
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
