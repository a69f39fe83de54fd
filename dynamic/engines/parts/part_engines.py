"""An engine that runs some stages of a cascade: those before a cut, or those from it on."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dynamic.engines.contract import Array, Expected, Output
from dynamic.engines.route_choice import CascadeEngine


class PartEngine:
    """The head, whose outputs have the rows that would continue in their `rests`, or the tail, whose inputs these are.

    It is an `Engine`. It runs stage by stage, since a graph has no carry.

    Args:
        engine: Runs the stages.
        cut: The first stage of the tail.
        is_head: Whether this is the head.
        version: Of the bundle, for the rests. Those of another are not for it.
    """

    def __init__(self, engine: CascadeEngine, cut: int, is_head: bool, version: str) -> None:
        self.name, self.precision, self.threads = engine.name, engine.precision, engine.threads
        self.agrees, self.version = engine.agrees, version
        self._engine, self._cut, self._is_head = engine, cut, is_head
        backbone = engine.spec.backbone
        self._backbones = frozenset(backbone[:cut] if is_head else backbone[cut:])

    def ready(self, rows: int) -> bool:
        """False: there is no single graph."""
        return False

    def prepare(
        self, backbones: frozenset[int], rows: int, resident: frozenset[int] | None = None, stagewise: bool = False
    ) -> bool:
        """Load those of the backbones that have a stage here. See `Engine.prepare`."""
        return self._engine.prepare(backbones & self._backbones, rows, resident, stagewise=True)

    def run(
        self,
        inputs: Mapping[str, Array],
        thresholds: NDArray[np.float32],
        deadline_s: float | None = None,
        stagewise: bool = False,
        expected_s: Expected | None = None,
    ) -> Output:
        """Run inputs as far as the cut, or continue with rows that stopped there.

        Args:
            inputs: In the head as for `Engine.run`, in the tail the arrays of a `Rest`, each `[B, ...]`.
            thresholds: As for `Engine.run`, of all stages `[S-1]`.
            deadline_s: As for `Engine.run`, from now.
            stagewise: No matter, since there is no single graph.
            expected_s: As for `Engine.run`.

        Returns:
            The output.
        """
        stages = self._engine.stages
        if not self._is_head:
            return stages.resume(self._cut, inputs, thresholds, deadline_s, expected_s)
        output = stages.run(inputs, thresholds, deadline_s, expected_s, self._cut)
        return replace(output, rests=tuple(replace(rest, version=self.version) for rest in output.rests))

    def close(self) -> None:
        """Free everything. A later run loads again."""
        self._engine.close()
