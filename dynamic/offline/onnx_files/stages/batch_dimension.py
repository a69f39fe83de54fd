"""A file that was exported for a fixed number of rows, for any number of rows."""

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import numpy_helper

from dynamic.offline.onnx_files.model_reading import constants_of


def fixed_rows(model: onnx.ModelProto) -> int | None:
    """The number of rows that inputs of a model are fixed to. None: any number."""
    constants = {tensor.name for tensor in model.graph.initializer}
    sizes = [
        value.type.tensor_type.shape.dim[0].dim_value
        for value in model.graph.input
        if value.name not in constants and value.type.tensor_type.shape.dim
    ]
    return next((size for size in sizes if size), None)


def freed(model: onnx.ModelProto) -> Iterator[onnx.ModelProto]:
    """Models for any number of rows that may give what this one gives row by row. They have to be tried.

    The first has other inputs alone. In the second, reshapes to a fixed number of rows take the number that comes.
    """
    rows = fixed_rows(model)
    for reshapes in (False, True):
        other = onnx.ModelProto()
        other.CopyFrom(model)
        graph = other.graph
        for value in graph.input:
            if value.type.tensor_type.shape.dim:
                value.type.tensor_type.shape.dim[0].dim_param = "batch"
        for value in graph.output:
            value.type.tensor_type.ClearField("shape")
        del graph.value_info[:]
        if not reshapes or _free_reshapes(graph, rows):
            yield other


def _free_reshapes(graph: onnx.GraphProto, rows: int | None) -> bool:
    """Whether there were reshapes to so many rows. Each gets a target of its own, in place."""
    constants = constants_of(graph)
    count = 0
    for node in graph.node:
        tensor = constants.get(node.input[1]) if node.op_type == "Reshape" else None
        target = numpy_helper.to_array(tensor).copy() if tensor is not None else np.empty(0)
        if not len(target) or target[0] != rows:
            continue
        target[0] = 0 if -1 in target[1:] else -1  # 0 takes the size that the dimension has
        own = numpy_helper.from_array(target, f"{node.output[0]}/target")
        graph.initializer.append(own)
        node.input[1] = own.name
        count += 1
    return count > 0
