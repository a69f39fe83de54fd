"""The folder of a model in a repository of Triton's server: graph, configuration, names of classes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from dynamic.engines.contract import THRESHOLDS
from dynamic.offline.onnx_export.triton.model_config import config_text
from dynamic.offline.option_words import RowCount
from dynamic.policies.errors import InputError
from dynamic.policies.ladder import Ladder
from dynamic.policies.validation.numbers import plain
from dynamic.storage.atomic_write import disk_errors, replace_text

MODEL_FILE = Path("1") / "model.onnx"  # version 1, under the name that the backend looks for
_LABELS = "labels.txt"


def check_triton_options(
    target: Path, ladder: Ladder, batch: RowCount, point: str | None, max_batch: int | None
) -> None:
    """Raises InputError where options of the export do not go together."""
    if target.suffix.lower() == ".onnx":
        raise InputError(f"{target.name} is a folder in a repository of Triton: name it {target.stem}")
    if point is None:
        raise InputError(
            f'format="triton" needs point=, whose thresholds hold: one of {[p.name for p in ladder.points]}'
        )
    if max_batch is None:
        return
    most = plain(max_batch)
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise InputError(f"max_batch={max_batch!r} must be a whole number of at least 1, or None for no batches")
    if batch == "single":
        raise InputError(f'max_batch={most} needs batch="dynamic": the graph of batch="single" takes one row')


def with_thresholds(model: onnx.ModelProto, *, thresholds: Sequence[float], is_input: bool) -> None:
    """Put default thresholds into a model.

    Args:
        model: The model. It is changed.
        thresholds: `[S-1]`.
        is_input: Whether a request may bring others: an initializer with the name of an input is its default
            (ONNX, "IR", since version 4). Otherwise they are fixed.
    """
    graph = model.graph
    inputs = [tensor for tensor in graph.input if tensor.name == THRESHOLDS]
    if not inputs:  # a cascade of one stage has none
        return
    graph.initializer.append(numpy_helper.from_array(np.array(thresholds, np.float32), THRESHOLDS))
    if not is_input:
        graph.input.remove(inputs[0])


def write_config(target: Path, max_batch: int | None, classes: Sequence[str] | None) -> None:
    """Write the configuration of the model whose graph lies in its folder already, and the names of its classes."""
    graph = onnx.load(target / MODEL_FILE, load_external_data=False).graph
    has_labels = classes is not None and not any("\n" in name for name in classes)
    text = config_text(target.resolve().name, graph, max_batch=max_batch or 0, labels=_LABELS if has_labels else None)
    with disk_errors("the model", target):
        if has_labels and classes is not None:
            replace_text(target / _LABELS, "".join(f"{name}\n" for name in classes))
        replace_text(target / "config.pbtxt", text)  # last: Triton loads what has one
