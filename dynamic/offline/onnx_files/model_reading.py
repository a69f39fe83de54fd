"""Reading an ONNX file with its weights, with an error in words where it is none or needs what engines lack."""

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import external_data_helper, helper, inliner

from dynamic.offline.build_steps.weight_file import EMBEDDED_BYTES
from dynamic.offline.onnx_export.node_names import branches
from dynamic.offline.onnx_files.contract import FileInput
from dynamic.policies.errors import CorruptError, InputError

# of ONNX Runtime. A function of the file itself may have any other
DOMAINS = ("ai.onnx", "ai.onnx.ml", "com.microsoft")


def read_model(path: Path) -> onnx.ModelProto:
    """The model of a file with all weights in it, those of other files too. Its own functions are written out.

    Raises CorruptError where it is no ONNX file or a file of weights is missing, InputError on operators that ONNX
    Runtime does not have.
    """
    if not path.is_file():
        raise CorruptError(f"{path} does not exist or is no file. Give the path of an ONNX file")
    try:
        model = onnx.load(path, load_external_data=False)
        whole = bool(model.opset_import) and bool(model.graph.output)
    except Exception as error:  # protobuf has classes of its own
        raise CorruptError(
            f"{path} is no ONNX file ({error}). Export the model to ONNX again, or copy it again"
        ) from error
    if not whole:
        raise CorruptError(f"{path} is no ONNX file: it holds no graph with outputs. Export the model to ONNX again")
    try:
        external_data_helper.load_external_data_for_model(model, str(path.parent))
    except Exception as error:  # a missing file, one outside the folder, one that is too short
        raise CorruptError(
            f"{path} keeps weights in other files, and one does not read ({error}). Copy the files that were written "
            f"beside it into {path.parent or '.'}, under their own names"
        ) from error
    if model.functions:
        model = inliner.inline_local_functions(model)
    _check_operators(model, path)
    if model.graph.sparse_initializer:
        name = model.graph.sparse_initializer[0].values.name
        raise InputError(f"{path} has the sparse constant {name!r}, which is not supported: export it with dense ones")
    _list_weights(model)
    return model


def file_inputs(model: onnx.ModelProto, path: Path) -> tuple[FileInput, ...]:
    """The inputs of a model, without constants that old files list among them.

    Raises InputError on one that is no tensor of numbers.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = []
    for value in model.graph.input:
        if value.name in constants:
            continue
        kind = value.type.tensor_type
        numbers = value.type.WhichOneof("value") == "tensor_type"
        if not numbers or kind.elem_type in (onnx.TensorProto.STRING, onnx.TensorProto.UNDEFINED):
            raise InputError(
                f"{path}: input {value.name!r} is no tensor of numbers, and inputs of a cascade are. Export the model "
                "without the steps that read texts or columns"
            )
        dims = tuple(d.dim_value or None for d in kind.shape.dim) if kind.HasField("shape") else None
        inputs.append(FileInput(value.name, dims, helper.tensor_dtype_to_np_dtype(kind.elem_type).name))
    if not inputs:
        raise InputError(f"{path} has no input, so it is no classifier: export the model with its inputs")
    return tuple(inputs)


def constants_of(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """The tensors by name that a graph holds: initializers, and values of Constant nodes."""
    nodes = (node for node in graph.node if node.op_type == "Constant" and node.attribute[0].name == "value")
    return {tensor.name: tensor for tensor in graph.initializer} | {n.output[0]: n.attribute[0].t for n in nodes}


def every_node(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes of a graph, those of branches and loops too."""
    for node in graph.node:
        yield node
        for inner in branches(node):
            yield from every_node(inner)


def _list_weights(model: onnx.ModelProto) -> None:
    """Make initializers of large Constant nodes: a bundle has the weights of initializers once for all its graphs."""
    outputs = {value.name for value in model.graph.output}
    rest = []
    for node in model.graph.node:
        tensor = node.attribute[0].t if node.op_type == "Constant" and node.attribute[0].name == "value" else None
        if tensor is None or tensor.ByteSize() < EMBEDDED_BYTES or node.output[0] in outputs:
            rest.append(node)
            continue
        own = model.graph.initializer.add()
        own.CopyFrom(tensor)
        own.name = node.output[0]
    if len(rest) < len(model.graph.node):
        del model.graph.node[:]
        model.graph.node.extend(rest)
        model.ir_version = max(model.ir_version, 4)  # before, initializers had to be inputs too


def _check_operators(model: onnx.ModelProto, path: Path) -> None:
    for node in every_node(model.graph):
        if (node.domain or DOMAINS[0]) not in DOMAINS:
            raise InputError(
                f"{path}: node {node.name!r} is operator {node.op_type!r} of domain {node.domain!r}, and ONNX Runtime "
                f"has those of {', '.join(DOMAINS)} alone. Export the model without it, or write it as a function of "
                "standard operators"
            )
