"""The names of a file's classes in the order of its columns, as its graph or its estimator has them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from dynamic.offline.onnx_files.model_reading import constants_of

_ATTRIBUTES = ("classlabels_int64s", "classlabels_ints", "classlabels_strings")
_UNCHANGED = ("Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze")
_SCALED = (*_UNCHANGED, "Normalizer")  # of a classifier's numbers: their order remains
_LABELS = (TensorProto.STRING, TensorProto.INT64, TensorProto.INT32)  # types of a label


def graph_labels(graph: onnx.GraphProto, answer: str) -> tuple[str, ...] | None:
    """The labels of the columns of an output. None: the graph has none, or the numbers from 0.

    They are those of a ZipMap that makes the answer, else of what the output with the labels reads, else of the
    classifier that makes the answer. Those of other nodes, such as the classifiers inside a stack, may be others.
    """
    makers = {name: node for node in graph.node for name in node.output}
    constants = constants_of(graph)
    starts: list[tuple[str, tuple[str, ...]]] = (
        [(answer, _UNCHANGED)] if answer in makers and makers[answer].op_type == "ZipMap" else []
    )
    starts += [(v.name, _UNCHANGED) for v in graph.output if v.type.tensor_type.elem_type in _LABELS]
    starts += [(answer, _SCALED)]  # last: a stack's numbers come from a classifier whose labels are those from 0
    for name, passed in starts:
        labels = _labels_behind(name, passed, makers, constants)
        if labels is not None:
            return column_names(labels)
    return None


def column_names(labels: Sequence[Any]) -> tuple[str, ...] | None:
    """The names of labels. None: they are the numbers from 0, or fewer than two."""
    names = tuple(_name(label) for label in labels)
    return None if len(names) < 2 or names == tuple(map(str, range(len(names)))) else names


def _labels_behind(
    name: str, passed: Sequence[str], makers: Mapping[str, onnx.NodeProto], constants: Mapping[str, onnx.TensorProto]
) -> list[Any] | None:
    node = makers.get(name)
    while node is not None:
        for attribute in node.attribute:
            if attribute.name in _ATTRIBUTES and (attribute.ints or attribute.strings):
                return [*attribute.ints, *attribute.strings]
        source = node.input[0] if node.input else ""
        if node.op_type == "ArrayFeatureExtractor" and source in constants:
            return list(numpy_helper.to_array(constants[source]).ravel().tolist())
        if node.op_type not in (*passed, "ZipMap"):
            return None
        node = makers.get(source)
    return None


def _name(label: Any) -> str:
    if isinstance(label, bytes):
        return label.decode()
    if isinstance(label, (bool, np.bool_)) or (isinstance(label, (float, np.floating)) and float(label).is_integer()):
        return str(int(label))  # files have whole numbers for both
    return str(label)
