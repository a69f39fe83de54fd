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

Array = NDArray[Any]
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
    which no stage gave finite ones has NaN logits.
    """

    logits: NDArray[np.float32]
    stage: NDArray[np.int64]
    score: NDArray[np.float32]


class Executor(Protocol):
    """Runs single stages. Safe to call from several threads."""

    name: str
    precision: str
    threads: int

    def load(self, backbones: Sequence[int]) -> None:
        """Make these backbones ready to run; does nothing for those that are."""

    def unload(self, backbones: Sequence[int]) -> None:
        """Give the memory of these backbones back; a request in flight still finishes."""

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


class Engine(Protocol):
    """Runs inputs through a cascade. Safe to call from several threads; outputs own their arrays."""

    name: str
    precision: str
    threads: int

    def load(self, backbones: Sequence[int]) -> None:
        """Make these backbones ready to run."""

    def unload(self, backbones: Sequence[int]) -> None:
        """Give the memory of these backbones back."""

    def loaded(self) -> frozenset[int]:
        """The backbones that are ready."""

    def run(self, inputs: Mapping[str, Array], thresholds: NDArray[np.float32]) -> Output:
        """Run until `threshold < score` or the last allowed stage; in a batch, rows that are done leave it."""

    def all_logits(self, inputs: Mapping[str, Array]) -> NDArray[np.float32]:
        """Every stage's own raw logits `[B, S, C]`, nobody leaving: for calibration."""

    def close(self) -> None:
        """Give everything back."""
