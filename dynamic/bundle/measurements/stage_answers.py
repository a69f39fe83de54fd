"""What all stages answer to batches for a calibration, and loaders whose stages run in other processes."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from dynamic.bundle.fingerprint import EngineIdentity
from dynamic.engines.contract import CascadeSpec


@dataclass(frozen=True, eq=False)
class StageAnswers:
    """What all stages answer to a batch.

    Args:
        logits: `[B, S, C]`.
        labels: `[B]`, as the data have them. None: there are none.
        identity: The engine and machine that computed the logits.
    """

    logits: NDArray[np.float32]
    labels: NDArray[Any] | None
    identity: EngineIdentity


@runtime_checkable
class RemoteBatches(Protocol):
    """Batches of a loader whose stages run in other processes."""

    def stage_answers(self, folder: Path, spec: CascadeSpec, engine: str, precision: str) -> Iterator[StageAnswers]:
        """The answers to all batches in their order.

        Args:
            folder: Where the graphs of the stages lie.
            spec: The cascade.
            engine: Runs the stages.
            precision: Of the engine.

        Returns:
            The answers.
        """
