"""Requests as JSON, with tensors as JSON or as bytes behind it.

Source: the Open Inference Protocol, "HTTP/REST", and Triton's extension for binary tensor data: the header
`Inference-Header-Content-Length` is the length of the JSON, which the bytes of the tensors follow in order.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from dynamic.policies.validation.fields import short
from dynamic.serve.http.answers import JSON_LENGTH, HttpAnswer, answer
from dynamic.serve.protocol.datatypes import binary_array, checked_datatype, checked_shape, json_array
from dynamic.serve.protocol.messages import InferRequest, Tensor
from dynamic.serve.protocol.parameters import MOST_TENSORS, checked_id, refuse_extensions, timeout_of
from dynamic.serve.request_errors import RequestError, invalid

_BINARY = "binary_data"
_PARSED_AT_ONCE = 16_384  # bytes of JSON that are parsed on the event loop: some 0.2 ms


class JsonRequest:
    """A request whose body is JSON, perhaps with binary tensors behind it.

    Args:
        body: The body.
        json_length: The value of `Inference-Header-Content-Length`. None: all of it is JSON.
        model: The name and the version of the model, for the answer.
        timeout_ms: What a header says. None: there is none.
        most: Bytes of JSON that it may have.
        deadline_s: When its answer is late, in seconds since 1970. None: never.

    Raises:
        RequestError: It has more JSON, or the length does not read.
    """

    def __init__(
        self,
        body: bytes,
        json_length: str | None,
        model: tuple[str, str],
        timeout_ms: float | None,
        most: int,
        deadline_s: float | None = None,
    ) -> None:
        self._body, self._model, self._timeout_ms, self.deadline_s = body, model, timeout_ms, deadline_s
        self._json_bytes = len(body) if json_length is None else _length(json_length, len(body))
        if self._json_bytes > most:
            raise RequestError(
                "too_large",
                f"the body has {self._json_bytes} bytes of JSON, and the limit is {most}: send values as binary tensor "
                "data, or one file as the body, or start the server with a larger --max-json-mb",
            )

    @property
    def is_large(self) -> bool:
        """Whether to parse the JSON may take long. It is parsed when a field is first read."""
        return self._json_bytes > _PARSED_AT_ONCE

    @property
    def outer_timeout_ms(self) -> float | None:
        """That of the header."""
        return self._timeout_ms

    @cached_property
    def _head(self) -> dict[str, Any]:
        try:
            head = json.loads(self._body[: self._json_bytes], parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise invalid(f"the body is no JSON ({error!s:.120}): send one object with 'inputs'") from error
        return _mapping(head, "the body")

    @cached_property
    def _parameters(self) -> dict[str, Any]:
        return _mapping(self._head.get("parameters", {}), "'parameters'")

    @property
    def id(self) -> str:
        """The sender's own identifier."""
        return checked_id(self._head.get("id", ""))

    @property
    def timeout_ms(self) -> float | None:
        """That of the header, or of the parameter `timeout`, which is in microseconds."""
        value = self._parameters.get("timeout")
        if value is None or self._timeout_ms is not None:
            return self._timeout_ms
        return timeout_of(value, "parameter 'timeout'", "microseconds", 1e3)

    def content(self) -> InferRequest:
        """What it holds. Raises RequestError where it does not read."""
        tensors, start = [], self._json_bytes
        view = memoryview(self._body)
        for entry in _entries(self._head.get("inputs"), "inputs"):
            tensor, start = _tensor(entry, view, start)
            tensors.append(tensor)
        if not tensors:
            raise invalid("'inputs' is missing or empty: give at least one tensor")
        if start != len(view):
            raise invalid(
                f"{len(view) - start} bytes are left behind the last tensor: binary_data_size of the inputs and "
                f"{JSON_LENGTH} have to make up the whole body"
            )
        return InferRequest(tuple(tensors), tuple(name for name, _ in self._outputs))

    @cached_property
    def _outputs(self) -> list[tuple[str, bool]]:
        """Name of each output that is asked for, and whether it is binary."""
        usual = _flag(self._parameters, "binary_data_output")
        outputs = []
        for entry in _entries(self._head.get("outputs", []), "outputs"):
            parameters = _mapping(entry.get("parameters", {}), f"'parameters' of output {short(entry.get('name'))}")
            refuse_extensions(parameters)
            outputs.append((_name(entry, "an output"), _flag(parameters, _BINARY, usual)))
        return outputs

    def response(self, tensors: tuple[Tensor, ...]) -> HttpAnswer:
        """The answer as it is sent."""
        usual = _flag(self._parameters, "binary_data_output")
        return answer(tensors, dict(self._outputs), usual, self._model, self.id)


@dataclass(frozen=True)
class PlainRequest:
    """A request whose body is one input, such as a JPEG."""

    tensor: Tensor
    model: tuple[str, str]
    timeout_ms: float | None
    deadline_s: float | None = None
    id: str = field(default="", init=False)
    is_large: bool = field(default=False, init=False)

    @property
    def outer_timeout_ms(self) -> float | None:
        """That of the header."""
        return self.timeout_ms

    def content(self) -> InferRequest:
        """What it holds."""
        return InferRequest((self.tensor,))

    def response(self, tensors: tuple[Tensor, ...]) -> HttpAnswer:
        """The answer as it is sent."""
        return answer(tensors, {}, False, self.model, "")


def _tensor(entry: dict[str, Any], view: memoryview, start: int) -> tuple[Tensor, int]:
    """A tensor, and where the bytes of the next begin."""
    name = _name(entry, "an input")
    what = f"input {name!r:.60}"
    datatype = checked_datatype(entry.get("datatype"), what)
    shape = checked_shape(entry.get("shape"), what)
    parameters = _mapping(entry.get("parameters", {}), f"'parameters' of {what}")
    refuse_extensions(parameters)
    size = parameters.get("binary_data_size")
    if size is None:
        if "data" not in entry:
            raise invalid(f"{what} has no data: give 'data', or the parameter binary_data_size and bytes")
        return Tensor(name, datatype, json_array(entry["data"], datatype, shape, what), base64=True), start
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(view) - start:
        raise invalid(
            f"{what} has binary_data_size {short(size)}, and {len(view) - start} bytes are left behind the JSON: set "
            f"{JSON_LENGTH} to the length of the JSON, and send every byte"
        )
    return Tensor(name, datatype, binary_array(view[start : start + size], datatype, shape, what)), start + size


def _entries(value: Any, what: str) -> Iterator[dict[str, Any]]:
    if not isinstance(value, list) or len(value) > MOST_TENSORS:
        raise invalid(f"{what!r} is missing, or no list of at most {MOST_TENSORS} objects: give one")
    return (_mapping(entry, f"an entry of {what!r}") for entry in value)


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise invalid(f"{what} is {short(value)}: give an object")
    return value


def _name(entry: dict[str, Any], what: str) -> str:
    name = entry.get("name")
    if not isinstance(name, str) or not name:
        raise invalid(f"{what} has the name {short(name)}: give a text")
    return name


def _flag(parameters: Mapping[str, Any], name: str, usual: bool = False) -> bool:
    value = parameters.get(name, usual)
    if not isinstance(value, bool):
        raise invalid(f"parameter {name!r} is {short(value)}: give true or false")
    return value


def _length(text: str, most: int) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 12 or int(text) > most:
        raise invalid(
            f"{JSON_LENGTH} is {text!r:.60}, and the body has {most} bytes: give the length of the JSON in it"
        )
    return int(text)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON, send it as binary tensor data")
