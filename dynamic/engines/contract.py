"""The contract between whatever executes stages and everything above it.

An engine is the stage loop (`loop.StageEngine`) over an **executor**, the only part that knows the library
underneath. An executor runs one stage at a time on an opaque carry and takes rows out of a carry; it never
sees thresholds, scores or policies.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

GRAPH, SINGLE_GRAPH = "graph.onnx", "graph_single.onnx"  # of a bundle: the whole cascade, for batches and for one row
OUTPUTS = ("logits", "stage", "score")  # of those graphs
THRESHOLDS = "thresholds"  # their input beside the cascade's own

Array = NDArray[Any]
# [S]: seconds from the start of a stage to the next answer, (for one row, for all rows of the request)
Expected = Sequence[tuple[float, float]]
Carry = Any  # the executor's own: a list of numpy arrays, of torch tensors, ...


@dataclass(frozen=True)
class InputSpec:
    """One input of the cascade; `shape` is without the batch dimension."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class StageSpec:
    """One stage as the engines need to know it.

    `graph` holds body and head; `body_graph` the body alone, for an exit that is switched off (None for the
    last stage of a backbone, which is never run without its logits). Both are relative to the bundle.
    """

    name: str
    backbone: int
    carry: int
    graph: str
    body_graph: str | None
    macs: float
    head_macs: float


@dataclass(frozen=True)
class CascadeSpec:
    """What every engine knows of a cascade: inputs, stages in order, and the number of classes."""

    inputs: tuple[InputSpec, ...]
    stages: tuple[StageSpec, ...]
    classes: int

    @property
    def backbone(self) -> tuple[int, ...]:
        """Backbone of each stage `[S]`."""
        return tuple(stage.backbone for stage in self.stages)

    @property
    def backbones(self) -> tuple[int, ...]:
        """Every backbone once, in order."""
        return tuple(dict.fromkeys(self.backbone))


@dataclass(frozen=True)
class Output:
    """What a request yields: answers `logits [B, C]`, the `stage [B]` each left at, its `score [B]`.

    The logits are the logarithms of the answer's probabilities, after temperature and averaging. A row for
    which no stage gave finite ones has NaN logits. `complete`: no deadline cut it short; rows that were cut short have
    the stage that answered last.
    """

    logits: NDArray[np.float32]
    stage: NDArray[np.int64]
    score: NDArray[np.float32]
    complete: bool = True


class Executor(Protocol):
    """Runs single stages. Safe to call from several threads.

    A carry is good until the same thread runs that stage again: it may lie in the executor's own buffers.
    """

    name: str
    precision: str
    threads: int

    def load(self, backbones: Sequence[int]) -> None:
        """Make these backbones ready to run; does nothing for those that are."""

    def unload(self, backbones: Sequence[int]) -> bool:
        """Give the memory of these backbones back, where there is any; whether there was.

        A request in flight still finishes, and loads again what it lacks.
        """

    def loaded(self) -> frozenset[int]:
        """The backbones that are ready."""

    def start(self, inputs: Mapping[str, Array]) -> Carry:
        """The inputs as the carry of a backbone's first stage."""

    def step(self, stage: int, carry: Carry, head: bool) -> tuple[NDArray[np.float32] | None, Carry]:
        """Run one stage: (logits [B, C] or None without its head, the carry of the next stage)."""

    def keep(self, carry: Carry, rows: NDArray[np.intp]) -> Carry:
        """The carry of these rows alone."""

    def close(self) -> None:
        """Give everything back. Running afterwards loads again."""


def graph_file(rows: int) -> str:
    """The file of the whole cascade's graph for so many rows."""
    return SINGLE_GRAPH if rows == 1 else GRAPH


class Graph(Protocol):
    """Runs the whole cascade in one call. Safe to call from several threads; outputs own their arrays."""

    def ready(self, rows: int) -> bool:
        """Whether what it takes for so many rows is there."""

    def load(self, rows: int) -> None:
        """Make it ready for so many rows."""

    def run(self, inputs: Mapping[str, Array], thresholds: NDArray[np.float32], rows: int) -> Output:
        """Run inputs of so many rows, already checked, as are `thresholds [S-1]`."""

    def close(self) -> bool:
        """Give everything back, where there is anything; whether there was."""


class Engine(Protocol):
    """Runs inputs through a cascade. Safe to call from several threads; outputs own their arrays.

    `agrees`: whether it answers as in calibration, by the bundle's canaries. Nothing is certified where it is False.
    """

    name: str
    precision: str
    threads: int
    agrees: bool

    def ready(self, rows: int) -> bool:
        """Whether the single graph for so many rows is loaded."""

    def prepare(
        self, backbones: frozenset[int], rows: int, resident: frozenset[int] | None = None, stagewise: bool = False
    ) -> bool:
        """Make ready what a request of so many rows needs; whether anything had to be loaded or unloaded.

        `resident`: backbones that may stay beside those needed (None: all). The others are given back, and so is the
        single graph, which holds every one. `stagewise`: the request goes stage by stage whatever was measured; one of
        which `resident` is given always does. Raises EngineError where something does not load.
        """

    def run(
        self,
        inputs: Mapping[str, Array],
        thresholds: NDArray[np.float32],
        deadline_s: float | None = None,
        stagewise: bool = False,
        expected_s: Expected | None = None,
    ) -> Output:
        """Run until `threshold < score` or the last allowed stage; in a batch, rows that are done leave it.

        `deadline_s`: once an exit has answered, no stage is begun later than that, nor one from which the next answer
        is expected later (`expected_s`), and the best answer so far stands. `stagewise`: as for `prepare`; with a
        deadline a request always goes so. What is not loaded any more is loaded again.
        """

    def close(self) -> None:
        """Give everything back. Running afterwards loads again."""
