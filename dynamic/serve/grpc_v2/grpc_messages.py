"""Requests and answers as messages of gRPC.

Source: the Open Inference Protocol, "GRPC": values are in `contents`, or as bytes in `raw_input_contents`, one for each
tensor.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from dynamic.serve.grpc_v2.messages import message_classes
from dynamic.serve.grpc_v2.wire_format import has_few_fields
from dynamic.serve.protocol.datatypes import (
    DATATYPES,
    as_objects,
    binary_array,
    check_count,
    checked_datatype,
    checked_shape,
    packed,
)
from dynamic.serve.protocol.messages import InferRequest, Tensor
from dynamic.serve.protocol.parameters import MOST_TENSORS, checked_id, refuse_extensions, timeout_of
from dynamic.serve.request_errors import invalid

_REQUEST, _RESPONSE = message_classes("ModelInfer")
_PARSED_AT_ONCE = 16_384  # bytes that are parsed on the event loop: at worst 8,000 fields, some 5 ms
# the field of `InferTensorContents` of each data type. FP16 has none: it comes as bytes
_FIELDS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


class GrpcRequest:
    """A request of gRPC.

    Args:
        content: The bytes of the message.
        check_model: Called with the name and the version that it asks for. Raises RequestError where there is none.
        model: The name and the version of the model, for the answer.
        remaining_ms: Milliseconds until the client's deadline. None: there is none.
        deadline_s: When its answer is late, in seconds since 1970. None: never.
    """

    def __init__(
        self,
        content: bytes,
        check_model: Callable[[str, str], None],
        model: tuple[str, str],
        remaining_ms: float | None,
        deadline_s: float | None = None,
    ) -> None:
        self.deadline_s = deadline_s
        self._content, self._check_model, self._model = content, check_model, model
        self._remaining_ms = remaining_ms

    @property
    def is_large(self) -> bool:
        """Whether to parse it may take long. It is parsed when a field is first read."""
        return len(self._content) > _PARSED_AT_ONCE

    @property
    def outer_timeout_ms(self) -> float | None:
        """That of the client."""
        return self._remaining_ms

    @cached_property
    def _message(self) -> Any:
        if not has_few_fields(self._content, _REQUEST.DESCRIPTOR):
            raise invalid("the message has too many fields: send values as raw_input_contents, or fewer at a time")
        try:
            message = _REQUEST.FromString(self._content)
        except DecodeError as error:
            raise invalid(f"the message does not read ({error!s:.120}): send a ModelInferRequest") from error
        self._check_model(message.model_name, message.model_version)
        return message

    @property
    def id(self) -> str:
        """The sender's own identifier."""
        return checked_id(self._message.id)

    @property
    def timeout_ms(self) -> float | None:
        """That of the client, or of the parameter `timeout`, which is in microseconds."""
        parameters = _plain(self._message.parameters)
        if "timeout" not in parameters:
            return self._remaining_ms
        own = timeout_of(parameters["timeout"], "parameter 'timeout'", "microseconds", 1e3)
        return own if self._remaining_ms is None else min(own, self._remaining_ms)

    def content(self) -> InferRequest:
        """What it holds. Raises RequestError where it does not read."""
        inputs, raw = self._message.inputs, self._message.raw_input_contents
        if not 1 <= len(inputs) <= MOST_TENSORS:
            raise invalid(f"there are {len(inputs)} inputs: give 1 to {MOST_TENSORS}")
        if raw and len(raw) != len(inputs):
            raise invalid(
                f"there are {len(raw)} raw_input_contents for {len(inputs)} inputs: give one for each, or none"
            )
        tensors = tuple(_tensor(entry, raw[number] if raw else None) for number, entry in enumerate(inputs))
        for output in self._message.outputs:
            refuse_extensions(_plain(output.parameters))
        return InferRequest(tensors, tuple(output.name for output in self._message.outputs))

    def response(self, tensors: tuple[Tensor, ...]) -> Any:
        """The answer as it is sent, all tensors as bytes."""
        answer = _RESPONSE(model_name=self._model[0], model_version=self._model[1], id=self.id)
        for tensor in tensors:
            answer.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.array.shape)
            answer.raw_output_contents.append(packed(tensor.array))
        return answer


def _tensor(entry: Any, raw: bytes | None) -> Tensor:
    what = f"input {entry.name!r:.60}"
    datatype = checked_datatype(entry.datatype, what)
    shape = checked_shape(list(entry.shape), what)
    refuse_extensions(_plain(entry.parameters))
    if raw is not None:
        if entry.HasField("contents"):
            raise invalid(f"{what} has contents beside raw_input_contents: give one of both")
        return Tensor(entry.name, datatype, binary_array(memoryview(raw), datatype, shape, what))
    field = _FIELDS.get(datatype)
    if field is None:
        raise invalid(f"{what} of {datatype} has no contents in this protocol: give raw_input_contents")
    values = getattr(entry.contents, field)
    others = [one.name for one, _ in entry.contents.ListFields() if one.name != field]
    if others:
        raise invalid(f"{what} has {others[0]}, and {datatype} is in {field}")
    check_count(len(values), shape, what)
    if datatype == "BYTES":
        return Tensor(entry.name, datatype, as_objects(list(values), shape))
    array = np.array(values)
    dtype = DATATYPES[datatype]
    if dtype.kind in "iu" and array.size:
        limits = np.iinfo(dtype)
        for value in (int(array.min()), int(array.max())):
            if not limits.min <= value <= limits.max:
                raise invalid(f"{what} holds {value}, and {datatype} goes from {limits.min} to {limits.max}")
    return Tensor(entry.name, datatype, array.astype(dtype).reshape(shape))


def _plain(parameters: Any) -> dict[str, Any]:
    """Parameters as plain values. Those without a value are left out."""
    chosen = {name: value.WhichOneof("parameter_choice") for name, value in parameters.items()}
    return {name: getattr(parameters[name], field) for name, field in chosen.items() if field is not None}
