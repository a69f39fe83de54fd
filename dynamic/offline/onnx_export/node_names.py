"""What the nodes of an ONNX graph read and are called, in branches too, and names that inputs may not have."""

import re
from collections.abc import Callable, Iterable, Iterator

import onnx

from dynamic.engines.contract import OUTPUTS, THRESHOLDS
from dynamic.policies.errors import InputError

_TAKEN = (*OUTPUTS, THRESHOLDS)
_NUMBERED = re.compile(r"(next|threshold)_\d+")


def check_names(inputs: Iterable[str]) -> None:
    """Raises InputError on an input that has the name of something else in the graphs."""
    for name in inputs:
        if name in _TAKEN or _NUMBERED.fullmatch(name):
            raise InputError(
                f"the network's input {name!r} has a name that exported graphs use themselves "
                f"({', '.join(_TAKEN)}, next_0, threshold_0, ...): rename the argument of forward"
            )


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
    """Give a node, and all that it names, other names, in place. What has no name gets none."""
    if node.name:  # any number of nodes may have none, and two may not have the same
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


def keep_needed(graph: onnx.GraphProto) -> None:
    """Remove the nodes and constants that no output of a graph needs, in place. Inputs remain."""
    needed = {output.name for output in graph.output}
    nodes = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(name for name in node.input if name)
            needed.update(captured(node))
    nodes.reverse()
    initializers = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(initializers)
