"""A file's own answers in ONNX Runtime: what its stage in a cascade is compared with."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.engines.contract import Array
from dynamic.engines.onnxruntime import Sessions
from dynamic.offline.onnx_files.contract import FileAnswer, FileInput
from dynamic.policies.errors import EngineError, InputError
from dynamic.policies.scores import TINY


class OwnRun:
    """Runs an ONNX file as it is. Its session is loaded when it first runs.

    Args:
        path: The file.
        inputs: Its inputs.
        answer: Its answer.
    """

    def __init__(self, path: Path, inputs: Sequence[FileInput], answer: FileAnswer) -> None:
        self._path, self._inputs, self._answer = path, tuple(inputs), answer
        self._sessions = Sessions(path.parent, threads=None, idle="sleep", rivals=False)

    def numbers(self, arrays: Mapping[str, Array], rows: int | None = None) -> NDArray[np.float32]:
        """What the answer's output holds `[B, C]`.

        Args:
            arrays: Inputs by their names in the file, each `[B, ...]`.
            rows: How many rows it gets at a time. None: all.

        Returns:
            Logits or probabilities, as the file has them.

        Raises:
            EngineError: ONNX Runtime does not load it, or fails.
            InputError: It gives something else than `[B, C]`.
        """
        session = self._sessions(self._path.name, "the file")
        import onnxruntime  # once the session has imported it

        options = onnxruntime.RunOptions()
        options.log_severity_level = 4  # what fails is raised, and need not be printed too
        feed = {one.name: arrays[one.name].astype(one.dtype, copy=False) for one in self._inputs}
        count = max(len(next(iter(feed.values()))), 1)
        step = rows or count
        parts = []
        for start in range(0, count, step):
            part = {name: array[start : start + step] for name, array in feed.items()}
            size = len(next(iter(part.values())))
            if rows is not None and size < rows:  # a fixed number of rows: filled up with the last one
                part = {name: np.concatenate([array, *[array[-1:]] * (rows - size)]) for name, array in part.items()}
            try:
                (output,) = session.run([self._answer.output], part, options)
            except Exception as error:  # of ONNX Runtime, whose classes share no root
                raise EngineError(f"ONNX Runtime failed in {self._path}: {error}") from error
            parts.append(self._columns(output, len(next(iter(part.values()))))[:size])
        return np.concatenate(parts)

    def logits(self, arrays: Mapping[str, Array], probabilities: bool, rows: int | None = None) -> NDArray[np.float32]:
        """The same as logits `[B, C]`: logarithms, where they are probabilities.

        Args:
            arrays: As for `numbers`.
            probabilities: Whether they are.
            rows: As for `numbers`.

        Returns:
            The logits.

        Raises:
            EngineError: As for `numbers`.
            InputError: As for `numbers`.
        """
        numbers = self.numbers(arrays, rows)
        return np.log(np.maximum(numbers, TINY)) if probabilities else numbers  # as in the graph

    @property
    def loaded(self) -> bool:
        """Whether its session is in memory."""
        return self._path.name in self._sessions

    def close(self) -> None:
        """Free the session. A later run loads it again."""
        self._sessions.drop(lambda _: True)

    def _columns(self, output: Any, rows: int) -> NDArray[np.float32]:
        if isinstance(output, list):  # of dicts, which ONNX Runtime sorts
            named = [{str(label): number for label, number in row.items()} for row in output]
            labels = self._answer.labels or [str(number) for number in range(len(named[0]) if named else 0)]
            output = np.array([[row[label] for label in labels] for row in named])
        array = np.asarray(output)
        if array.ndim != 2 or len(array) != rows:
            raise InputError(
                f"{self._path}: output {self._answer.output!r} has shape {list(array.shape)} for {rows} inputs, "
                "expected [B, C]. Export the model with its logits [B, C] as an output"
            )
        if array.shape[1] < 2:
            raise InputError(
                f"{self._path}: output {self._answer.output!r} has 1 number for each input, and a cascade needs "
                "one for each of at least 2 classes. Export the model with a logit for each class, [0, x] of one logit"
            )
        return array.astype(np.float32)
