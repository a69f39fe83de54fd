"""Which output of an ONNX file holds its answers, and whether they are logits or probabilities."""

from pathlib import Path

import onnx
from onnx import TensorProto, helper, shape_inference

from dynamic.offline.onnx_export.node_names import branches, captured, keep_needed
from dynamic.offline.onnx_files.class_labels import graph_labels
from dynamic.offline.onnx_files.contract import FileAnswer, Kind
from dynamic.offline.onnx_files.model_reading import every_node
from dynamic.policies.errors import InputError

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
_UNCHANGED = ("Identity", "Cast", "Reshape", "Flatten", "Squeeze")  # of a tensor: what it holds is made before
# what follows them may be probabilities, whatever makes it
_PROBABLE = ("Softmax", "Normalizer", "LinearClassifier", "SVMClassifier", "TreeEnsembleClassifier", "TreeEnsemble")


def choose_answer(model: onnx.ModelProto, path: Path, output: str | None, kind: Kind | None) -> FileAnswer:
    """The answer of a file. `output`, `kind`: what the user says of it.

    Raises InputError where there is no such output, none with two dimensions, or several.
    """
    graph = _with_shapes(model).graph
    names = [value.name for value in graph.output]
    makers = {name: node for node in graph.node for name in node.output}
    if output is not None and output not in names:
        raise InputError(f"{path} has no output {output!r}: give output= as one of {names}")
    candidates = [v for v in graph.output if _holds_answers(v) and (output is None or v.name == output)]
    if len(candidates) > 1 and [v.name for v in candidates].count("logits") == 1:
        candidates = [v for v in candidates if v.name == "logits"]
    if not candidates:
        what = f"output {output!r} has" if output is not None else "there is no output of"
        listed = ", ".join(_described(value) for value in graph.output)
        raise InputError(
            f"{path}: {what} {'not ' if output else ''}numbers [B, C], one for each class, as answers "
            f"need. The outputs are {listed}. Export the model with its logits [B, C] as an output"
        )
    if len(candidates) > 1:
        raise InputError(
            f"{path}: outputs {[v.name for v in candidates]} may each be the answers [B, C], and 1 is needed. Name it, "
            f"dynamic.onnx_model({path.name!r}, output={candidates[0].name!r})"
        )
    value = candidates[0]
    maker = makers.get(value.name)
    labels = graph_labels(graph, value.name)
    if maker is not None and maker.op_type == "ZipMap":
        tensor, reason = maker.input[0], "a ZipMap makes a dict of them, as skl2onnx writes it"
        return FileAnswer(value.name, tensor, kind or "probabilities", reason, labels)
    if kind is not None:
        return FileAnswer(value.name, value.name, kind, "it was set", labels)
    return FileAnswer(value.name, value.name, *_kind(graph, makers, value.name, path), labels)


def answering_part(model: onnx.ModelProto, answer: FileAnswer) -> onnx.ModelProto:
    """The part of a model that gives its answers, under its own inputs."""
    part = onnx.ModelProto()
    part.CopyFrom(model)
    outputs = [value for value in model.graph.output if value.name == answer.tensor]  # what a ZipMap reads is float32
    del part.graph.output[:]
    part.graph.output.extend(outputs or [helper.make_tensor_value_info(answer.tensor, TensorProto.FLOAT, None)])
    keep_needed(part.graph)
    return part


def _with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    if all(
        v.type.WhichOneof("value") != "tensor_type" or v.type.tensor_type.HasField("shape") for v in model.graph.output
    ):
        return model
    try:
        return shape_inference.infer_shapes(model)
    except Exception:  # too large for protobuf, or operators without inference: shapes remain unknown
        return model


def _holds_answers(value: onnx.ValueInfoProto) -> bool:
    """Whether an output may be `[B, C]`: floating point, and two dimensions where they are known."""
    kind = value.type.WhichOneof("value")
    if kind == "sequence_type":
        return bool(value.type.sequence_type.elem_type.WhichOneof("value") == "map_type")
    tensor = value.type.tensor_type
    return (
        kind == "tensor_type"
        and tensor.elem_type in _FLOATS
        and (not tensor.HasField("shape") or len(tensor.shape.dim) == 2)
    )


def _described(value: onnx.ValueInfoProto) -> str:
    if value.type.WhichOneof("value") != "tensor_type":
        return f"{value.name!r}, no tensor"
    tensor = value.type.tensor_type
    sides = [d.dim_value or d.dim_param or "?" for d in tensor.shape.dim]
    dtype = "text" if tensor.elem_type == TensorProto.STRING else helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return f"{value.name!r} {dtype} [{', '.join(map(str, sides))}]"


def _kind(
    graph: onnx.GraphProto, makers: dict[str, onnx.NodeProto], output: str, path: Path
) -> tuple[Kind | None, str]:
    """(the kind of an output, why), by the operator that makes it."""
    node = makers.get(output)
    while node is not None and node.op_type in _UNCHANGED:
        node = makers.get(node.input[0])
    operator = "" if node is None or node.domain not in ("", "ai.onnx") else node.op_type
    if operator == "Softmax":
        return "probabilities", "a Softmax makes them"
    if operator == "LogSoftmax" or (operator in ("Gemm", "MatMul") and not _reads_probabilities(node, makers)):
        return "logits", f"a {operator} makes them"
    if operator == "Sigmoid":
        raise InputError(
            f"{path}: a Sigmoid makes output {output!r}, so its numbers are neither logits nor probabilities that "
            "sum to 1. Export the model with what the Sigmoid reads as an output, or say kind='logits' if a softmax "
            "over these numbers is meant"
        )
    return None, "calibration inputs decide"


def _reads_probabilities(node: onnx.NodeProto | None, makers: dict[str, onnx.NodeProto]) -> bool:
    """Whether an operator that gives probabilities lies before a node. A product of such may give some again."""
    waiting, names = [] if node is None else [node], set()
    while waiting:
        one = waiting.pop()
        inner = (other.op_type for graph in branches(one) for other in every_node(graph))
        if one.op_type in _PROBABLE or any(op in _PROBABLE for op in inner):
            return True
        for name in (*one.input, *captured(one)):
            if name in makers and name not in names:
                names.add(name)
                waiting.append(makers[name])
    return False
