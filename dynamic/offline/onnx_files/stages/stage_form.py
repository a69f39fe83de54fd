"""An ONNX file in the form of a stage's graph: the cascade's inputs, `logits [B, C]` alone as output."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dynamic.engines.contract import InputSpec
from dynamic.offline.onnx_export.node_names import keep_needed, rename
from dynamic.policies.scores import TINY

_OWN = "file/"  # before every name of the file: inputs and outputs of the stage have names of their own
_IR_VERSION = 10  # of the single graph


@dataclass(frozen=True)
class StageForm:
    """How a file becomes a stage.

    Args:
        inputs: The cascade's inputs, in its order.
        pairs: Names of the cascade's inputs by names of the file's.
        dtypes: The dtype that the file takes, by names of its inputs.
        tensor: Its tensor of answers.
        classes: Their number.
        probabilities: Whether they are probabilities, of which the stage gives logarithms.
        each_row: Whether the file gets its rows one at a time, in a loop inside the graph.
    """

    inputs: Sequence[InputSpec]
    pairs: Mapping[str, str]
    dtypes: Mapping[str, str]
    tensor: str
    classes: int
    probabilities: bool
    each_row: bool

    def of(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Make the stage's graph.

        Args:
            model: A model for any number of rows, or for one where `each_row` is set.

        Returns:
            The graph, with all weights in it.
        """
        graph = onnx.GraphProto()
        graph.CopyFrom(model.graph)
        for node in graph.node:
            rename(node, lambda name: _OWN + name)
        for tensor in graph.initializer:
            tensor.name = _OWN + tensor.name
        body = _Nodes([], list(graph.initializer))
        dtypes = {spec.name: spec.dtype for spec in self.inputs}
        sources: dict[str, str] = {}
        for theirs, own in self.pairs.items():
            source = own
            if self.each_row:
                source = sources.setdefault(own, f"{_OWN}row/{own}")
                source = body.add("Unsqueeze", source, body.constant([0], np.int64))
            if dtypes[own] != self.dtypes[theirs]:
                body.add("Cast", source, output=_OWN + theirs, to=_kind(self.dtypes[theirs]))
            else:
                body.add("Identity", source, output=_OWN + theirs)
        body.nodes.extend(graph.node)
        numbers = body.add("Cast", _OWN + self.tensor, to=TensorProto.FLOAT)
        if self.probabilities:  # ONNX Runtime gives -1e-7 for trees of two classes, as 1 minus a sum
            least = body.constant(TINY)  # Max would give this for NaN on OpenVINO
            numbers = body.add("Log", body.add("Where", body.add("Less", numbers, least), least, numbers))
        if self.each_row:
            numbers = self._loop(body, sources, body.add("Squeeze", numbers, body.constant([0], np.int64)))
        body.add("Identity", numbers, output="logits")
        inputs = [helper.make_tensor_value_info(i.name, _kind(i.dtype), ["batch", *_sides(i)]) for i in self.inputs]
        output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", self.classes])
        whole = helper.make_graph(body.nodes, "stage", inputs, [output], body.initializers)
        keep_needed(whole)
        return helper.make_model(whole, opset_imports=list(model.opset_import), ir_version=_IR_VERSION)

    def _loop(self, body: "_Nodes", sources: Mapping[str, str], answer: str) -> str:
        """Put the nodes so far into a loop over rows. Returns the answers of all `[B, C]`."""
        specs = {spec.name: spec for spec in self.inputs}
        rows = [
            helper.make_tensor_value_info(s, _kind(specs[own].dtype), _sides(specs[own])) for own, s in sources.items()
        ]
        output = helper.make_tensor_value_info(answer, TensorProto.FLOAT, [self.classes])
        inner = helper.make_graph(list(body.nodes), "row", rows, [output])
        keep_needed(inner)
        body.nodes.clear()  # constants remain outside: a loop reads those around it
        return body.add("Scan", *sources, body=inner, num_scan_inputs=len(sources))


class _Nodes:
    """Nodes and constants under construction."""

    def __init__(self, nodes: list[onnx.NodeProto], initializers: list[onnx.TensorProto]) -> None:
        self.nodes, self.initializers = nodes, initializers
        self._count = 0

    def add(self, op: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        self._count += 1
        output = output or f"stage/{op}_{self._count}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], f"stage/node_{self._count}", **attributes))
        return output

    def constant(self, value: object, dtype: type = np.float32) -> str:
        self._count += 1
        name = f"stage/constant_{self._count}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name


def _sides(spec: InputSpec) -> list[int | str]:
    """The size of each dimension without the batch, the name of a dynamic one."""
    return [side if isinstance(side, int) else side.name for side in spec.sides]


def _kind(dtype: str) -> int:
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
