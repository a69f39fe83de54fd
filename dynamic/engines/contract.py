"""The contract between engines and everything above them.

An engine is the stage loop (`stage_loop.StageEngine`) over an **executor**, the only part that uses the library below.
An executor runs one stage at a time on an opaque carry, and selects rows of a carry. It has no thresholds, scores or
policies.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dynamic.engines.inputs.dimensions import DimRange, Ranges, dynamic_places, request_size
from dynamic.engines.inputs.padding import Padding
from dynamic.engines.parts.rest import Rest

GRAPH, SINGLE_GRAPH = "graph.onnx", "graph_single.onnx"  # of a bundle: the whole cascade, for batches and for one row
OUTPUTS = ("logits", "stage", "score")  # of those graphs
THRESHOLDS = "thresholds"  # their input beside the cascade's own

Array = NDArray[Any]
# [S]: seconds from the start of a stage to the next answer, (for one row, for all rows of the request)
Expected = Sequence[tuple[float, float]]
Carry = Any  # the executor's own: a list of numpy arrays, of torch tensors, ...


@dataclass(frozen=True)
class InputSpec:
    """One input of the cascade.

    Args:
        name: Name of the input.
        shape: Shape without the batch dimension. Where a dimension is dynamic, the size of the example.
        dtype: Name of the dtype.
        ranges: For each dimension of `shape` the sizes that it may have, None where it is fixed. Empty: all are fixed.
        ids: Rows of the table that reads these numbers, which are from 0 to one less. None: no table does, or it is not
            known.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    ranges: Ranges = ()
    ids: int | None = None

    @property
    def sides(self) -> tuple[int | DimRange, ...]:
        """For each dimension of `shape` its size, or the sizes that it may have."""
        if not self.ranges:
            return self.shape
        return tuple(size if span is None else span for size, span in zip(self.shape, self.ranges, strict=True))


@dataclass(frozen=True)
class StageSpec:
    """One stage, as engines need it. Files are relative to the bundle.

    Args:
        name: Name of the stage.
        backbone: Index of its backbone.
        carry: Number of tensors that the next stage needs.
        graph: File of body and head.
        body_graph: File of the body alone, for an exit that is off. None for the last stage of a backbone, which always
            runs its head.
        macs: Multiply-adds of the body.
        head_macs: Multiply-adds of the head.
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
    """A cascade, as engines need it.

    Args:
        inputs: The inputs.
        stages: The stages in order.
        classes: Number of classes.
    """

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

    @cached_property
    def dynamic_places(self) -> tuple[tuple[str, int], ...]:
        """(input, dimension with the batch counted) of each name of a dynamic dimension. Empty: all are fixed."""
        return dynamic_places({i.name: i.ranges for i in self.inputs})

    @cached_property
    def padding(self) -> Padding | None:
        """The inputs that texts are padded in. None: there are none, or their length is fixed."""
        return Padding.of({i.name: i.ranges for i in self.inputs}, {i.name: i.dtype for i in self.inputs})

    @property
    def example_size(self) -> int | None:
        """The size of one row of the example. None: no dimension is dynamic."""
        places = self.dynamic_places
        return request_size(places, {i.name: (1, *i.shape) for i in self.inputs}) if places else None

    def size_of(self, inputs: Mapping[str, Array]) -> int | None:
        """The size of one row of inputs (see `request_size`). None: no dimension is dynamic."""
        places = self.dynamic_places
        return request_size(places, {name: array.shape for name, array in inputs.items()}) if places else None


@dataclass(frozen=True)
class Output:
    """The output of a request.

    Args:
        logits: Logarithms of the answers' probabilities `[B, C]`, after temperature and averaging. NaN for a row to
            which no stage gave finite logits.
        stage: Stage at which each row exits `[B]`.
        score: Score of each row there `[B]`.
        complete: False where a deadline cut the request short. Rows that were cut short have the last stage that
            answered.
        rests: Rows whose later stages run elsewhere. Until then they have the answer and the score of the last stage
            that answered, or the stage before the next one and NaN where none did.
    """

    logits: NDArray[np.float32]
    stage: NDArray[np.int64]
    score: NDArray[np.float32]
    complete: bool = True
    rests: tuple[Rest, ...] = ()


class Executor(Protocol):
    """Runs single stages. Safe to call from several threads.

    A carry is valid until the same thread runs that stage again: it may be in the executor's own buffers.
    """

    name: str
    precision: str
    threads: int

    def load(self, backbones: Sequence[int]) -> None:
        """Load these backbones. Do nothing for those that are loaded."""

    def unload(self, backbones: Sequence[int]) -> bool:
        """Free the memory of these backbones. Returns whether there was any.

        A request in flight still finishes, and loads again what it lacks.
        """

    def loaded(self) -> frozenset[int]:
        """The backbones that are loaded."""

    def start(self, inputs: Mapping[str, Array]) -> Carry:
        """The inputs as the carry of the first stage of a backbone."""

    def step(self, stage: int, carry: Carry, head: bool) -> tuple[NDArray[np.float32] | None, Carry]:
        """Run one stage. Returns logits `[B, C]`, None without its head, and the carry of the next stage."""

    def keep(self, carry: Carry, rows: NDArray[np.intp]) -> Carry:
        """The carry of these rows alone."""

    def to_arrays(self, carry: Carry) -> list[Array]:
        """A carry as arrays that stay as they are when the stage runs again."""

    def from_arrays(self, arrays: Sequence[Array]) -> Carry:
        """The carry that `to_arrays` gave, of any executor."""

    def close(self) -> None:
        """Free everything. A later run loads again."""


def graph_file(rows: int) -> str:
    """The file of the whole cascade's graph for a number of rows."""
    return SINGLE_GRAPH if rows == 1 else GRAPH


class Graph(Protocol):
    """Runs the whole cascade in one call. Safe to call from several threads. Outputs own their arrays."""

    def ready(self, rows: int) -> bool:
        """Whether the graph for this number of rows is loaded."""

    def load(self, rows: int) -> None:
        """Load the graph for this number of rows."""

    def run(self, inputs: Mapping[str, Array], thresholds: NDArray[np.float32], rows: int) -> Output:
        """Run inputs of this number of rows. Inputs and `thresholds [S-1]` are checked already."""

    def close(self) -> bool:
        """Free everything. Returns whether there was anything."""


class Engine(Protocol):
    """Runs inputs through a cascade. Safe to call from several threads. Outputs own their arrays.

    `agrees` is whether it answers as in calibration, by the bundle's canaries. Where it is False, nothing is certified.
    """

    name: str
    precision: str
    threads: int
    agrees: bool

    def ready(self, rows: int) -> bool:
        """Whether the single graph for this number of rows is loaded."""

    def prepare(
        self, backbones: frozenset[int], rows: int, resident: frozenset[int] | None = None, stagewise: bool = False
    ) -> bool:
        """Load what a request needs.

        Args:
            backbones: Backbones that the request may run.
            rows: Its number of rows.
            resident: Backbones that may remain loaded beside these. All others are unloaded, and so is the single
                graph, which holds every backbone. None: all may remain.
            stagewise: Whether the request runs stage by stage whatever was measured. With `resident` it always does.

        Returns:
            Whether anything was loaded or unloaded.

        Raises:
            EngineError: Something does not load.
        """

    def run(
        self,
        inputs: Mapping[str, Array],
        thresholds: NDArray[np.float32],
        deadline_s: float | None = None,
        stagewise: bool = False,
        expected_s: Expected | None = None,
    ) -> Output:
        """Run stages until `threshold < score` or the last allowed stage. In a batch, rows that exit leave it.

        What is no longer loaded is loaded again.

        Args:
            inputs: Inputs by name, each `[B, ...]`.
            thresholds: Thresholds `[S-1]`.
            deadline_s: Seconds after which, once there is an answer, no stage begins. Nor does a stage begin whose next
                answer is expected later. The best answer so far is returned. None: no deadline.
            stagewise: Whether to run stage by stage, as for `prepare`. With a deadline the request always does.
            expected_s: Expected seconds from the start of each stage to the next answer.

        Returns:
            The output.
        """

    def close(self) -> None:
        """Free everything. A later run loads again."""
