"""The application that answers HTTP, for any server of ASGI."""

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dynamic.serve.held_bytes import HeldBytes
from dynamic.serve.http.answers import DEADLINE, JSON_LENGTH, TIMEOUT, HttpAnswer
from dynamic.serve.http.bodies import body_of
from dynamic.serve.http.json_messages import JsonRequest, PlainRequest
from dynamic.serve.http.openapi import openapi
from dynamic.serve.metrics import CONTENT_TYPE
from dynamic.serve.protocol.messages import Incoming
from dynamic.serve.protocol.parameters import as_number, deadline_of, timeout_of
from dynamic.serve.request_errors import STATUS, RequestError
from dynamic.serve.service import PLATFORM, VERSION, Service

_JSON_TYPES = ("application/json", "application/octet-stream", "application/vnd.sagemaker-triton.binary+json")
_FORM = "application/x-www-form-urlencoded"  # what curl sends with --data where nothing is said

Handler = Callable[[Request], Awaitable[Response]]


def application(service: Service) -> Starlette:
    """The application of a service.

    Args:
        service: What answers.

    Returns:
        The application. It has no lifespan: the service is closed by whoever opened it.
    """
    http = _Endpoints(service)
    model = "/v2/models/{name}"
    routes = [
        Route(f"{model}/infer", http.infer, methods=["POST"]),
        Route(f"{model}/versions/{{version}}/infer", http.infer, methods=["POST"]),
        Route(model, http.model),
        Route(f"{model}/versions/{{version}}", http.model),
        Route(f"{model}/ready", http.model_ready),
        Route(f"{model}/versions/{{version}}/ready", http.model_ready),
        Route("/v2", http.server),
        Route("/v2/", http.server),
        Route("/v2/health/live", http.live),
        Route("/v2/health/ready", http.ready),
        Route("/healthz", http.live),
        Route("/readyz", http.ready),
        Route("/metrics", http.metrics),
        Route("/openapi.json", http.document),
    ]
    app = Starlette(routes=routes, exception_handlers={RequestError: _refused, HTTPException: _not_there})
    app.router.redirect_slashes = False
    return app


class _Endpoints:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._model = service.name, VERSION

    async def infer(self, request: Request) -> Response:
        with self._service.bodies.share() as held:

            async def receive() -> Incoming[HttpAnswer]:
                return await self._received(request, held)

            answer = await self._service.infer("http", receive, request.headers)
        return Response(answer.body, headers=dict(answer.headers))

    async def _received(self, request: Request, held: HeldBytes) -> Incoming[HttpAnswer]:
        """The request, once it is known that its sender may ask and that the model exists."""
        service, headers = self._service, request.headers
        self._check(request)
        kind = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        plain = service.inputs.body_type
        is_plain = plain is not None and (kind == plain or (plain.endswith("/*") and kind.startswith(plain[:-1])))
        if not is_plain and kind not in (*_JSON_TYPES, _FORM):
            more = "" if plain is None else f", or one input as {plain}"
            raise RequestError("unsupported", f"Content-Type {kind!r:.60} is not read: send application/json{more}")
        text = headers.get(TIMEOUT)
        timeout_ms = None if text is None else timeout_of(as_number(text), f"the header {TIMEOUT}", "milliseconds", 1.0)
        text = headers.get(DEADLINE)
        deadline_s = None if text is None else deadline_of(as_number(text), f"the header {DEADLINE}")
        body = await body_of(request, service.options.most_bytes, held)
        if is_plain:
            return PlainRequest(service.inputs.one(body), self._model, timeout_ms, deadline_s)
        most = service.options.most_json_bytes
        return JsonRequest(body, headers.get(JSON_LENGTH), self._model, timeout_ms, most, deadline_s)

    async def server(self, request: Request) -> Response:
        self._service.check_token(request.headers.get("authorization"))
        return JSONResponse(self._service.server_metadata())

    async def model(self, request: Request) -> Response:
        self._check(request)
        inputs, outputs = self._service.model_metadata()
        described = {"inputs": [i.to_json() for i in inputs], "outputs": [o.to_json() for o in outputs]}
        named = {"name": self._service.name, "versions": [VERSION], "platform": PLATFORM}
        more = {"parameters": dict(self._service.about)} if self._service.about else {}
        return JSONResponse(named | described | more)

    async def model_ready(self, request: Request) -> Response:
        self._check(request)
        return self._readiness({"name": self._service.name, "ready": self._service.ready})

    async def live(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(self, request: Request) -> Response:
        return self._readiness({"ready": self._service.ready})

    async def metrics(self, request: Request) -> Response:
        if not self._service.options.open_metrics:
            self._service.check_token(request.headers.get("authorization"))
        return Response(self._service.metrics.text(), media_type=None, headers={"Content-Type": CONTENT_TYPE})

    async def document(self, request: Request) -> Response:
        self._service.check_token(request.headers.get("authorization"))
        return JSONResponse(openapi(self._service))

    def _readiness(self, content: dict[str, Any]) -> Response:
        return JSONResponse(content, status_code=200 if self._service.ready else STATUS["closing"].http)

    def _check(self, request: Request) -> None:
        self._service.check_token(request.headers.get("authorization"))
        self._service.check_model(request.path_params["name"], request.path_params.get("version", ""))


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return JSONResponse({"error": str(error)}, STATUS[error.outcome].http, headers=error.headers)


async def _not_there(request: Request, error: Exception) -> Response:
    """No such address, or another method. Bodies of both are JSON too."""
    assert isinstance(error, HTTPException)
    method, path = request.method, request.url.path
    remedy = "see /openapi.json for all addresses"
    return JSONResponse(
        {"error": f"{method:.20} {path!r:.100}: {error.detail}, {remedy}"}, error.status_code, headers=error.headers
    )
