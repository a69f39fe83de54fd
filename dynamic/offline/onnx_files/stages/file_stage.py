"""An ONNX file as a stage of a cascade with certain inputs: what was recognized is tried, and said."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray

from dynamic.engines.contract import Array, InputSpec
from dynamic.offline.onnx_files.class_names import SUM_LIMIT, check_probabilities
from dynamic.offline.onnx_files.contract import Kind
from dynamic.offline.onnx_files.input_matching import match_inputs
from dynamic.offline.onnx_files.onnx_file import OnnxModel
from dynamic.offline.onnx_files.stages.batch_dimension import fixed_rows, freed
from dynamic.offline.onnx_files.stages.graph_macs import graph_macs
from dynamic.offline.onnx_files.stages.operator_versions import at_versions
from dynamic.offline.onnx_files.stages.own_run import OwnRun
from dynamic.offline.onnx_files.stages.stage_form import StageForm
from dynamic.policies.errors import EngineError, InputError
from dynamic.storage.temporary_files import TemporaryFolder

logger = logging.getLogger("dynamic")

_ROWS = 5  # of the example that a file is tried with
_CLOSE, ROUNDED = 5e-3, 0.15  # of the largest number: a row alone and among others, as torch networks are checked
_SCALES = "its int8 scales are those of a whole batch"
_ONE_AT_A_TIME = "so it gets its rows one at a time. That is slower in batches"
_EQUAL = 1e-4  # the same between a file for a fixed number of rows and the one for any number


@dataclass(frozen=True)
class Batching:
    """How a file takes the rows of a batch.

    Args:
        model: What the stage's graph is made of.
        own_rows: How many rows the file itself gets at a time. None: all.
        each_row: Whether the stage gives it its rows one at a time, in a loop.
        note: What is said of it.
    """

    model: onnx.ModelProto
    own_rows: int | None = None
    each_row: bool = False
    note: str = ""


@dataclass(frozen=True)
class FileStage:
    """An ONNX file as a stage.

    Args:
        model: The file.
        run: Its own answers.
        pairs: Names of the cascade's inputs by names of the file's.
        kind: Whether its numbers are logits or probabilities.
        classes: Their number.
        batch: How it takes rows.
        macs: Multiply-adds of a row.
    """

    model: OnnxModel
    run: OwnRun
    pairs: Mapping[str, str]
    kind: Kind
    classes: int
    batch: Batching
    macs: float

    def logits(self, arrays: Mapping[str, Array]) -> NDArray[np.float32]:
        """The file's own answers as logits `[B, C]`.

        Args:
            arrays: Inputs by their names in the cascade, each `[B, ...]`.

        Returns:
            The logits.

        Raises:
            EngineError: ONNX Runtime fails.
        """
        return self.run.logits(_own(self.pairs, arrays), self.kind == "probabilities", self.batch.own_rows)

    def graph(self, inputs: Sequence[InputSpec], versions: Mapping[str, int]) -> onnx.ModelProto:
        """The stage's graph.

        Args:
            inputs: Of the cascade.
            versions: Of each operator set, as all graphs of the cascade have them.

        Returns:
            The graph, with all weights in it.

        Raises:
            EngineError: An operator cannot be converted to its version.
        """
        source = at_versions(self.batch.model, versions, self.model.path)
        dtypes = {one.name: one.dtype for one in self.model.inputs}
        log = self.kind == "probabilities"
        form = StageForm(inputs, self.pairs, dtypes, self.model.answer.tensor, self.classes, log, self.batch.each_row)
        return form.of(source)


def repeated(arrays: Mapping[str, Array], rows: int) -> dict[str, Array]:
    """A batch of so many rows, those of `arrays` again and again."""
    return {name: np.concatenate([a] * -(-rows // max(len(a), 1)))[:rows] for name, a in arrays.items()}


def file_stage(model: OnnxModel, example: Mapping[str, Array]) -> FileStage:
    """Make the stage of a file, and log what was recognized.

    Args:
        model: The file.
        example: A batch of the cascade's inputs by name, each `[B, ...]`.

    Returns:
        The stage.

    Raises:
        InputError: Inputs or answers do not fit.
        EngineError: ONNX Runtime does not run the file.
    """
    pairs = match_inputs(model.inputs, example, model.setting, model.path)
    few = repeated(example, _ROWS)
    arrays = _own(pairs, few)
    run = OwnRun(model.path, model.inputs, model.answer)
    batch = _batching(model, run, arrays)
    numbers = run.numbers(arrays, batch.own_rows)
    kind, reason = _kind(model, numbers)
    labels = model.answer.labels
    if labels is not None and len(labels) != numbers.shape[1]:
        raise InputError(
            f"{model.path} names {len(labels)} classes and has {numbers.shape[1]} numbers for each input: export the "
            "model with a number for each class"
        )
    dtypes = {one.name: one.dtype for one in model.inputs}
    notes = [
        *(f"input {theirs!r} takes {own!r}" for theirs, own in pairs.items() if theirs != own),
        *(
            f"input {theirs!r} is cast from {few[own].dtype} to {dtypes[theirs]}"
            for theirs, own in pairs.items()
            if few[own].dtype != dtypes[theirs]
        ),
        f"output {model.answer.output!r} holds {kind}, {reason}",
        *([batch.note] if batch.note else []),
    ]
    logger.log(logging.WARNING if batch.each_row else logging.INFO, "%s: %s", model.path, ". ".join(notes))
    macs = graph_macs(model.proto, {name: array[:1].astype(dtypes[name]) for name, array in arrays.items()})
    return FileStage(model, run, pairs, kind, numbers.shape[1], batch, macs)


def _kind(model: OnnxModel, numbers: NDArray[np.float32]) -> tuple[Kind, str]:
    kind, reason = model.answer.kind, model.answer.reason
    if kind is None:
        sums = np.abs(numbers.sum(axis=1) - 1)
        are = bool((numbers >= 0).all() and (sums <= SUM_LIMIT).all())
        if are:
            return "probabilities", "since those of calibration inputs sum to 1"
        return "logits", "since those of calibration inputs do not sum to 1"
    if kind == "probabilities":
        check_probabilities(numbers, model)
    return kind, f"since {reason}"


def _batching(model: OnnxModel, run: OwnRun, arrays: Mapping[str, Array]) -> Batching:
    """How a file takes rows, by trying it."""
    int8_limit = ROUNDED if model.rounds else None
    fixed = fixed_rows(model.proto)
    if fixed is None:
        alone, whole = run.numbers(arrays, 1), run.numbers(arrays)
        if not model.scales_by_batch and _agree(whole, alone, int8_limit or _CLOSE):
            return Batching(model.proto)
        why = _SCALES if model.scales_by_batch else "it mixes the rows of a batch"
        return Batching(model.proto, 1, True, f"{why}, {_ONE_AT_A_TIME}")
    if model.scales_by_batch:  # freed, the scales of a row would depend on the rows beside it
        if fixed != 1:
            raise InputError(
                f"{model.path} takes {fixed} rows at a time, and {_SCALES}, so the answer of a row depends on the rows "
                "beside it: export it with a batch of 1 or a dynamic batch dimension, or quantize it with fixed scales"
            )
        return Batching(model.proto, 1, True, f"{_SCALES}, {_ONE_AT_A_TIME}")
    expected = run.numbers(arrays, fixed)
    for other in freed(model.proto):
        numbers = _trial(other, model, arrays)
        if numbers is not None and _agree(numbers, expected, int8_limit or _EQUAL):
            return Batching(other, fixed, note=f"its fixed batch of {fixed} was made dynamic")
    if fixed != 1:
        raise InputError(
            f"{model.path} takes {fixed} rows at a time and does not run with another number: export it with a dynamic "
            "batch dimension, or with a batch of 1"
        )
    return Batching(model.proto, 1, True, f"its fixed batch of 1 cannot be made dynamic, {_ONE_AT_A_TIME}")


def _agree(numbers: NDArray[np.float32], others: NDArray[np.float32], share: float) -> bool:
    """Whether they agree within a share of the largest number."""
    limit = share * max(1.0, float(np.abs(np.nan_to_num(others)).max(initial=0.0)))
    return numbers.shape == others.shape and bool(np.allclose(numbers, others, rtol=0, atol=limit, equal_nan=True))


def _trial(other: onnx.ModelProto, model: OnnxModel, arrays: Mapping[str, Array]) -> NDArray[np.float32] | None:
    """What another model gives for all rows at once. None: it does not run, or not for one row."""
    answer = replace(model.answer, output=model.answer.tensor)
    with TemporaryFolder("batch") as folder:
        copy = onnx.ModelProto()  # weights that are saved in a file of their own leave the model
        copy.CopyFrom(other)
        onnx.save(copy, folder / "model.onnx", save_as_external_data=True, location="weights", size_threshold=1024)
        run = OwnRun(folder / "model.onnx", model.inputs, answer)
        try:
            numbers = run.numbers(arrays)
            run.numbers({name: array[:1] for name, array in arrays.items()})
        except (EngineError, InputError):
            return None
        finally:
            run.close()
    return numbers


def _own(pairs: Mapping[str, str], arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {theirs: arrays[own] for theirs, own in pairs.items()}
