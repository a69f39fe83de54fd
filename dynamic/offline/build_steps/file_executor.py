"""ONNX files as they are, as an executor: what the graphs of a bundle are compared with."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.engines.contract import Array
from dynamic.offline.onnx_files.stages.file_stage import FileStage


class FileExecutor:
    """Runs each file itself in ONNX Runtime. See `dynamic.engines.contract.Executor`."""

    name = "onnxruntime"
    precision = "f32"
    threads = 1

    def __init__(self, stages: Sequence[FileStage]) -> None:
        self._stages = tuple(stages)

    def load(self, backbones: Sequence[int]) -> None:
        """Do nothing: a file loads when it first runs."""

    def unload(self, backbones: Sequence[int]) -> bool:
        """Do nothing: all remain until the end."""
        return False

    def loaded(self) -> frozenset[int]:
        """All backbones, always."""
        return frozenset(range(len(self._stages)))

    def start(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """The inputs as they are."""
        return inputs

    def step(self, stage: int, carry: Mapping[str, Array], head: bool) -> tuple[NDArray[np.float32] | None, Any]:
        """Run one file."""
        return self._stages[stage].logits(carry), carry

    def keep(self, carry: Mapping[str, Array], rows: NDArray[np.intp]) -> Mapping[str, Array]:
        """The carry of these rows alone."""
        return {name: array[rows] for name, array in carry.items()}

    def to_arrays(self, carry: Mapping[str, Array]) -> list[Array]:
        """None: each file starts from the inputs."""
        return []

    def from_arrays(self, arrays: Sequence[Array]) -> Mapping[str, Array]:
        """Nothing."""
        return {}

    def close(self) -> None:
        """Free every file."""
        for stage in self._stages:
            stage.run.close()
