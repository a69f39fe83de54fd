"""The description of the HTTP interface, in OpenAPI 3.1."""

from typing import Any

import dynamic
from dynamic.serve.http.answers import DEADLINE, JSON_LENGTH, TIMEOUT
from dynamic.serve.protocol.datatypes import DATATYPES
from dynamic.serve.request_errors import STATUS, Outcome
from dynamic.serve.service import VERSION, Service

_WORDS: dict[Outcome, str] = {
    "invalid": "The request does not fit. The error names the value, the limit and the remedy.",
    "unauthorized": "The token is missing or another.",
    "unknown": "There is no such model, version or address.",
    "too_large": "The body or its images are larger than a limit.",
    "unsupported": "The type or the encoding of the body is not read.",
    "failed": "The server failed.",
    "shed": "Too many requests wait, or the server is ending. Retry-After says when to send again.",
    "expired": "The timeout of the request is over.",
}


def openapi(service: Service) -> dict[str, Any]:
    """The description of a service's HTTP interface.

    Args:
        service: The service. Its model, inputs and outputs are named.

    Returns:
        The document.
    """
    model = f"/v2/models/{service.name}"
    ready = {"200": _said("It is ready.", "Ready"), "503": _said("It is ending.", "Ready")}
    paths = {
        "/v2": _get("What the server is.", {"200": _said("Metadata.", "Server")}),
        "/v2/health/live": _get("Whether the server runs.", {"200": _said("It does.", "Live")}, open_=True),
        "/v2/health/ready": _get("Whether requests are answered.", ready, open_=True),
        "/healthz": _get("As /v2/health/live.", {"200": _said("It does.", "Live")}, open_=True),
        "/readyz": _get("As /v2/health/ready.", ready, open_=True),
        "/metrics": _get(
            "Metrics for Prometheus.",
            {"200": {"description": "Text.", "content": {"text/plain": {"schema": {"type": "string"}}}}},
            open_=service.options.open_metrics,
        ),
        "/openapi.json": _get("This document.", {"200": {"description": "It.", "content": _json({"type": "object"})}}),
    }
    for place in (model, f"{model}/versions/{VERSION}"):
        paths[place] = _get("Inputs and outputs of the model.", {"200": _said("Metadata.", "Model")})
        paths[f"{place}/ready"] = _get("Whether the model answers.", ready)
        paths[f"{place}/infer"] = {"post": _infer(service)}
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": f"{service.name}, the Open Inference Protocol",
            "version": dynamic.__version__,
            "description": "Version 2 of the protocol, with binary tensor data.",
        },
        "paths": paths,
        "components": {"schemas": _schemas(service)},
    }
    if service.options.token is not None:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document


def _infer(service: Service) -> dict[str, Any]:
    content = _json({"$ref": "#/components/schemas/Request"})
    content["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
    if service.inputs.body_type is not None:
        content[service.inputs.body_type] = {"schema": {"type": "string", "format": "binary"}}
    header = {"in": "header", "required": False}
    return {
        "summary": "Answer one request.",
        "parameters": [
            header | {"name": TIMEOUT, "schema": {"type": "number", "exclusiveMinimum": 0}},
            header | {"name": DEADLINE, "schema": {"type": "number", "exclusiveMinimum": 0}},
            header | {"name": JSON_LENGTH, "schema": {"type": "integer", "minimum": 0}},
        ],
        "requestBody": {"required": True, "content": content},
        "responses": {"200": _said("The answer.", "Answer")} | _errors(),
    }


def _errors() -> dict[str, Any]:
    return {str(STATUS[outcome].http): _said(words, "Error") for outcome, words in _WORDS.items()}


def _get(summary: str, responses: dict[str, Any], open_: bool = False) -> dict[str, Any]:
    operation = {"summary": summary, "responses": responses}
    return {"get": operation | ({"security": []} if open_ else {})}


def _said(words: str, schema: str) -> dict[str, Any]:
    return {"description": words, "content": _json({"$ref": f"#/components/schemas/{schema}"})}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _object(required: tuple[str, ...], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": properties}


def _schemas(service: Service) -> dict[str, Any]:
    text, flag, free = {"type": "string"}, {"type": "boolean"}, {"type": "object"}
    datatype = {"type": "string", "enum": list(DATATYPES)}
    sizes = {"type": "array", "items": {"type": "integer"}}
    values = {"type": "array"}
    inputs, outputs = service.model_metadata()
    tensor = _object(("name", "datatype", "shape"), name=text, datatype=datatype, shape=sizes)
    sent = _object(
        ("name", "datatype", "shape"), name=text, datatype=datatype, shape=sizes, data=values, parameters=free
    )
    names = {"type": "string", "enum": [info.name for info in outputs]}
    chosen = _object(("name",), name=names, parameters=free)
    described = ", ".join(f"{info.name} {info.datatype} {list(info.shape)}" for info in inputs)
    return {
        "Error": _object(("error",), error=text),
        "Live": _object(("live",), live=flag),
        "Ready": _object(("ready",), name=text, ready=flag),
        "Server": _object(("name", "version", "extensions"), name=text, version=text, extensions=_list(text)),
        "Model": _object(
            ("name", "versions", "platform", "inputs", "outputs"),
            **{"name": text, "versions": _list(text), "platform": text},
            **{"inputs": _list(tensor), "outputs": _list(tensor)},
        ),
        "Request": _object(
            ("inputs",),
            id=text,
            parameters=free,
            inputs=_list(sent) | {"minItems": 1, "description": f"The model takes {described}."},
            outputs=_list(chosen),
        ),
        "Answer": _object(
            ("model_name", "model_version", "outputs"),
            **{"model_name": text, "model_version": text, "id": text, "outputs": _list(sent)},
        ),
    }


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}
