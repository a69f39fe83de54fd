"""An engine that runs some stages of a cascade: those before a cut, or those from it on. It is an `Engine`."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dynamic.engines.contract import Array, Expected, Output
from dynamic.engines.route_choice import CascadeEngine


class _PartEngine:
    """What both parts have in common. Both run stage by stage, since a graph has no carry."""

    def __init__(self, engine: CascadeEngine, cut: int, version: str, backbones: frozenset[int]) -> None:
        self.name, self.precision, self.threads = engine.name, engine.precision, engine.threads
        self.agrees, self.version = engine.agrees, version
        self._engine, self._cut, self._backbones = engine, cut, backbones

    def ready(self, rows: int) -> bool:
        """False: there is no single graph."""
        return False

    def prepare(
        self, backbones: frozenset[int], rows: int, resident: frozenset[int] | None = None, stagewise: bool = False
    ) -> bool:
        """Load those of the backbones that have a stage here. See `Engine.prepare`."""
        return self._engine.prepare(backbones & self._backbones, rows, resident, stagewise=True)

    def close(self) -> None:
        """Free everything. A later run loads again."""
        self._engine.close()


class HeadEngine(_PartEngine):
    """The stages before a cut. Rows that would continue are in the `rests` of its outputs.

    Args:
        engine: Runs them.
        cut: The first stage that does not run here.
        version: Of the bundle, for the rests.
    """

    def __init__(self, engine: CascadeEngine, cut: int, version: str) -> None:
        super().__init__(engine, cut, version, frozenset(engine.spec.backbone[:cut]))

    def run(
        self,
        inputs: Mapping[str, Array],
        thresholds: NDArray[np.float32],
        deadline_s: float | None = None,
        stagewise: bool = False,
        expected_s: Expected | None = None,
    ) -> Output:
        """Run inputs as far as the cut.

        Args:
            inputs: As for `Engine.run`.
            thresholds: As for `Engine.run`, of all stages.
            deadline_s: As for `Engine.run`.
            stagewise: No matter, since there is no single graph.
            expected_s: As for `Engine.run`.

        Returns:
            The output, with rows that continue in its `rests`.
        """
        output = self._engine.stages.run(inputs, thresholds, deadline_s, expected_s, self._cut)
        return replace(output, rests=tuple(replace(rest, version=self.version) for rest in output.rests))


class TailEngine(_PartEngine):
    """The stages from a cut on. Its inputs are the arrays of a `Rest`.

    Args:
        engine: Runs them.
        cut: The first stage that runs here.
        version: Of the bundle. Rests of others are not for it.
    """

    def __init__(self, engine: CascadeEngine, cut: int, version: str) -> None:
        super().__init__(engine, cut, version, frozenset(engine.spec.backbone[cut:]))

    def run(
        self,
        inputs: Mapping[str, Array],
        thresholds: NDArray[np.float32],
        deadline_s: float | None = None,
        stagewise: bool = False,
        expected_s: Expected | None = None,
    ) -> Output:
        """Continue with rows that stopped at the cut.

        Args:
            inputs: The arrays of a `Rest`, each `[B, ...]`.
            thresholds: As for `Engine.run`, of all stages.
            deadline_s: As for `Engine.run`, from now.
            stagewise: No matter, since there is no single graph.
            expected_s: As for `Engine.run`.

        Returns:
            The output of these rows.
        """
        return self._engine.stages.resume(self._cut, inputs, thresholds, deadline_s, expected_s)
