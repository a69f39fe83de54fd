"""The text of `config.pbtxt`: a `ModelConfig` of Triton, for its backend onnxruntime.

Source: Triton's protobuf/model_config.proto. A bundle is exported without protobuf's text format or Triton's client.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx

from dynamic.engines.contract import THRESHOLDS
from dynamic.policies.errors import EngineError

_TYPES: Mapping[int, str] = {
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.FLOAT16: "TYPE_FP16",
    onnx.TensorProto.DOUBLE: "TYPE_FP64",
    onnx.TensorProto.UINT8: "TYPE_UINT8",
    onnx.TensorProto.UINT16: "TYPE_UINT16",
    onnx.TensorProto.UINT32: "TYPE_UINT32",
    onnx.TensorProto.UINT64: "TYPE_UINT64",
    onnx.TensorProto.INT8: "TYPE_INT8",
    onnx.TensorProto.INT16: "TYPE_INT16",
    onnx.TensorProto.INT32: "TYPE_INT32",
    onnx.TensorProto.INT64: "TYPE_INT64",
    onnx.TensorProto.BOOL: "TYPE_BOOL",
}
_ANY = -1  # a dimension of any size


def config_text(name: str, graph: onnx.GraphProto, *, max_batch: int, labels: str | None) -> str:
    """The configuration of a model.

    Args:
        name: Of the model, which is that of its folder.
        graph: The graph in its file.
        max_batch: Rows that Triton may put together from several requests. 0: it hands requests over as they come.
        labels: The file with the names of the classes. None: there is none.

    Returns:
        The text.

    Raises:
        EngineError: A tensor has a type that Triton does not have.
    """
    lines = [f"name: {_quoted(name)}", 'backend: "onnxruntime"', f"max_batch_size: {max_batch}"]
    for tensor in graph.input:
        more = ["optional: true"] if tensor.name == THRESHOLDS else []
        lines += _tensor("input", tensor, 0 if tensor.name == THRESHOLDS else max_batch, more)
    for tensor in graph.output:
        more = [f"label_filename: {_quoted(labels)}"] if tensor.name == "logits" and labels is not None else []
        lines += _tensor("output", tensor, max_batch, more)
    lines.append("instance_group { kind: KIND_CPU count: 1 }")
    if max_batch:
        lines.append("dynamic_batching { }")
    return "\n".join(lines) + "\n"


def _tensor(field: str, tensor: onnx.ValueInfoProto, max_batch: int, more: Sequence[str]) -> Iterator[str]:
    kind = tensor.type.tensor_type
    if kind.elem_type not in _TYPES:
        raise EngineError(
            f"{field} {tensor.name!r} has the type {onnx.TensorProto.DataType.Name(kind.elem_type)} of ONNX, which "
            f"Triton does not have: convert it to one of {', '.join(_TYPES.values())} inside the network"
        )
    sides = [_side(dimension) for dimension in kind.shape.dim]
    sides = sides[1:] if max_batch else sides  # with batches, Triton adds the rows itself
    yield f"{field} {{"
    yield from (f"  {line}" for line in (f"name: {_quoted(tensor.name)}", f"data_type: {_TYPES[kind.elem_type]}"))
    yield f"  dims: [ {', '.join(map(str, sides or [1]))} ]"
    if not sides:  # Triton needs a dimension beside the rows
        yield "  reshape { shape: [ ] }"
    yield from (f"  {line}" for line in more)
    yield "}"


def _side(dimension: Any) -> int:
    return int(dimension.dim_value) if dimension.HasField("dim_value") else _ANY


def _quoted(text: str) -> str:
    """A string of the text format. Escapes of JSON are some of its own, and its other characters stay as they are."""
    return json.dumps(text, ensure_ascii=False)
