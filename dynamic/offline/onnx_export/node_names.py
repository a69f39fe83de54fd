"""What the nodes of an ONNX graph read and are called, in the branches of control flow too."""

from collections.abc import Callable, Iterator

import onnx


def branches(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs inside a node."""
    return [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]


def captured(node: onnx.NodeProto) -> set[str]:
    """Names that a node's branches read, those from the graph around it included."""
    return {name for graph in branches(node) for name in read(graph)}


def read(graph: onnx.GraphProto) -> Iterator[str]:
    """The name of every tensor that a node reads, as often as it is read."""
    for node in graph.node:
        yield from node.input
        for inner in branches(node):
            yield from read(inner)


def rename(node: onnx.NodeProto, name_of: Callable[[str], str]) -> None:
    """Give a node, and all that it names, other names, in place."""
    node.name = name_of(node.name)
    for names in (node.input, node.output):
        for i, name in enumerate(names):
            if name:
                names[i] = name_of(name)
    for graph in branches(node):
        for inner in graph.node:
            rename(inner, name_of)
        for entry in (*graph.input, *graph.output, *graph.initializer):
            entry.name = name_of(entry.name)
        del graph.value_info[:]
