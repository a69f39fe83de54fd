"""Answers as JSON, with tensors as JSON or as bytes behind it."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.serve.protocol.datatypes import packed
from dynamic.serve.protocol.messages import Tensor

JSON_LENGTH = "Inference-Header-Content-Length"
TIMEOUT = "Timeout-Ms"  # the header with the milliseconds in which an answer is wanted
DEADLINE = "Deadline-Unix-Ms"  # the header with the milliseconds since 1970 after which an answer is late


@dataclass(frozen=True)
class HttpAnswer:
    """The body of an answer, and its headers."""

    body: bytes
    headers: Mapping[str, str]


def answer(
    tensors: tuple[Tensor, ...], binary: Mapping[str, bool], usual: bool, model: tuple[str, str], id: str
) -> HttpAnswer:
    """The answer to a request.

    Args:
        tensors: The outputs.
        binary: By name of an output, whether it is bytes.
        usual: Whether outputs without a name there are.
        model: Name and version of the model.
        id: The sender's own identifier.

    Returns:
        The answer as it is sent.
    """
    outputs, blobs = [], []
    for tensor in tensors:
        output: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.array.shape)}
        if binary.get(tensor.name, usual):
            blobs.append(packed(tensor.array))
            output["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            output["data"] = _json_data(tensor.array)
        outputs.append(output)
    head: dict[str, Any] = {"model_name": model[0], "model_version": model[1]}
    if id:
        head["id"] = id
    text = json.dumps(head | {"outputs": outputs}, allow_nan=False).encode()
    if not blobs:
        return HttpAnswer(text, {"Content-Type": "application/json"})
    headers = {"Content-Type": "application/octet-stream", JSON_LENGTH: str(len(text))}
    return HttpAnswer(b"".join([text, *blobs]), headers)


def _json_data(array: NDArray[Any]) -> list[Any]:
    """Values in row-major order. JSON has no NaN and no infinity: they are null."""
    values: list[Any] = array.ravel().tolist()
    if array.dtype.kind == "O":
        return [value.decode() for value in values]
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return [value if math.isfinite(value) else None for value in values]
    return values
