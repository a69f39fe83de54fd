"""`dynamic.onnx_model`: an ONNX file as a sub-model, with what a user says of it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from dynamic.offline.onnx_files.answer_choice import answering_part, choose_answer
from dynamic.offline.onnx_files.class_labels import column_names
from dynamic.offline.onnx_files.contract import FileAnswer, FileInput, Kind, ScikitClassifier
from dynamic.offline.onnx_files.model_reading import every_node, file_inputs, read_model
from dynamic.offline.onnx_files.sklearn_models import remove_with, written
from dynamic.offline.onnx_files.stages.operator_versions import declared
from dynamic.offline.option_words import check_word
from dynamic.policies.errors import InputError

# their scales are those of a whole batch
_SCALED_BY_BATCH = ("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM")
_INT8 = ("QuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", *_SCALED_BY_BATCH)


@dataclass(frozen=True)
class OnnxModel:
    """An ONNX file as it was read. Made by `dynamic.onnx_model`.

    Args:
        path: The file.
        name: Of the stage.
        inputs: The inputs of the file.
        setting: The file's input for inputs of the cascade, as the user says. None: they are matched.
        answer: Where its answers are.
        content: SHA-256 of the file's graph and all its weights.
        proto: The part of its graph that gives the answers, with all weights.
    """

    path: Path
    name: str
    inputs: tuple[FileInput, ...]
    setting: Mapping[str, str] | None
    answer: FileAnswer
    content: str
    proto: onnx.ModelProto = field(repr=False, compare=False)

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names that its inputs have in a cascade where nothing else names them, in the file's order."""
        own = {theirs: name for name, theirs in (self.setting or {}).items()}
        return tuple(own.get(one.name, one.name) for one in self.inputs)

    @property
    def rounds(self) -> bool:
        """Whether it computes in 8 bits."""
        return any(node.op_type in _INT8 for node in every_node(self.proto.graph))

    @property
    def scales_by_batch(self) -> bool:
        """Whether its int8 scales are those of a whole batch, so that rows depend on each other."""
        return any(node.op_type in _SCALED_BY_BATCH for node in every_node(self.proto.graph))

    def __str__(self) -> str:
        versions = ", ".join(f"{domain or 'ONNX'} {version}" for domain, version in declared(self.proto).items())
        kind = "logits or probabilities" if self.answer.kind is None else self.answer.kind
        lines = [
            f"{self.path}: operators of {versions}",
            *(f"input {one}" for one in self.inputs),
            f"answers in output {self.answer.output!r}: {kind}, {self.answer.reason}",
        ]
        if self.answer.labels is not None:
            lines.append(f"classes {list(self.answer.labels)}")
        return "\n".join(lines)


def onnx_model(
    path: str | Path,
    *,
    inputs: Mapping[str, str] | None = None,
    output: str | None = None,
    kind: Kind | None = None,
    name: str | None = None,
) -> OnnxModel:
    """Read an ONNX file, to be a sub-model of a cascade.

    `Cascade` and `build` take paths of files too. What is recognized there can be said here. `print` of the result
    shows what was recognized.

    Args:
        path: The file. Files with its weights lie beside it.
        inputs: The file's input for inputs of the cascade, `{"input": "pixel_values"}`. None: they are matched by name,
            then by shape and dtype.
        output: The output with the answers `[B, C]`. None: the only one with two dimensions, or the one called
            "logits".
        kind: Whether it holds "logits" or "probabilities". None: the operator that makes it says so, or else
            calibration inputs decide.
        name: Of the stage. None: the file's, without its suffix.

    Returns:
        The model, for a list of networks.

    Raises:
        CorruptError: It is no ONNX file, or a file of weights is missing.
        InputError: It has no such input or output, several outputs may be the answers, or ONNX Runtime lacks an
            operator.
        SettingError: `kind` is not known.

    Example:
        >>> model = dynamic.onnx_model("small.onnx", kind="logits")
        >>> model.name, model.answer.output
        ('small', 'scores')
    """
    if kind is not None:
        check_word("kind", kind, Kind)
    file = Path(path)
    proto = read_model(file)
    own = file_inputs(proto, file)
    names = [one.name for one in own]
    for theirs in (inputs or {}).values():
        if theirs not in names:
            raise InputError(f"{file} has no input {theirs!r}: give inputs= of {names}")
    setting = None if inputs is None else dict(inputs)
    answer = choose_answer(proto, file, output, kind)
    part = answering_part(proto, answer)
    return OnnxModel(file, name or file.stem, own, setting, answer, _digest(part, answer, setting), part)


def _digest(model: onnx.ModelProto, answer: FileAnswer, setting: Mapping[str, str] | None) -> str:
    """Hash of everything that answers depend on. Piece by piece, since protobuf ends at 2 GiB."""
    digest = hashlib.sha256(json.dumps([declared(model), answer.tensor, answer.kind, setting], sort_keys=True).encode())
    for part in (*model.graph.input, *model.graph.node, *model.graph.initializer):
        digest.update(part.SerializeToString(deterministic=True))
    return digest.hexdigest()


def as_onnx_model(network: Any) -> OnnxModel | None:
    """The model of a path, of what `onnx_model` gives, or of a classifier of scikit-learn. None: of nothing else."""
    if isinstance(network, OnnxModel):
        return network
    if isinstance(network, (str, Path)):
        return onnx_model(network)
    if hasattr(network, "forward") or not isinstance(network, ScikitClassifier):  # a module may fit too
        return None
    path, folder = written(network)
    model = onnx_model(path, output="probabilities", kind="probabilities")
    classes = getattr(network, "classes_", None)
    if classes is not None and np.ndim(classes) == 1:  # a file of several estimators has the labels of each
        model = replace(model, answer=replace(model.answer, labels=column_names(list(classes))))
    remove_with(model, folder)
    return model
