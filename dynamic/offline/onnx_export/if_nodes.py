"""ONNX graphs under construction, with `If` between them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper


class Body:
    """A graph under construction: the model's own, or a branch of an `If`."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._count = 0

    def name(self, hint: str) -> str:
        """A name that no other value has."""
        self._count += 1
        return f"{self.prefix}{hint}_{self._count}"

    def add(self, op: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node of one output and return the name of that."""
        output = output or self.name(op)
        self.nodes.append(helper.make_node(op, list(inputs), [output], self.name("node"), **attributes))
        return output

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """A constant of this graph."""
        name = self.name("constant")
        self.initializers.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def branch(self, condition: str, then: "Branch", otherwise: "Branch") -> list[str]:
        """Add an `If` and return the names of its outputs."""
        names = [self.name("If") for _ in then.outputs]
        branches = {"then_branch": then.graph(), "else_branch": otherwise.graph()}
        self.nodes.append(helper.make_node("If", [condition], names, self.name("node"), **branches))
        return names

    def inside(self, hint: str) -> "Body":
        """A branch of this graph, still empty."""
        return Body(f"{self.name(hint)}/")


@dataclass(frozen=True)
class Branch:
    """A complete branch: its outputs by name, and their data types."""

    body: Body
    outputs: Sequence[str]
    kinds: Sequence[int]

    def graph(self) -> onnx.GraphProto:
        # an output must come from a node of the branch: an outer value passes through an Identity
        own = {name for node in self.body.nodes for name in node.output}
        names = [name if name in own else self.body.add("Identity", name) for name in self.outputs]
        infos = [helper.make_tensor_value_info(n, kind, None) for n, kind in zip(names, self.kinds, strict=True)]
        return helper.make_graph(self.body.nodes, self.body.prefix or "main", [], infos, self.body.initializers)
