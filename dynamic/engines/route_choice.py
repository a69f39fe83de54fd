"""One engine with two routes: the single graph, or stage by stage, whichever was faster for this number of rows."""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dynamic.engines.contract import Array, CascadeSpec, Executor, Expected, Graph, Output
from dynamic.engines.memory import trim_memory
from dynamic.engines.options import Route
from dynamic.engines.stage_loop import StageEngine, check_inputs
from dynamic.policies.errors import EngineError

_SPARE = 100  # requests by the graph, after which unused stages are unloaded


class CascadeEngine:
    """Runs a cascade as its single graph or stage by stage.

    The stages are the route of a request that is stagewise, has a deadline, or limits the backbones in memory.

    Args:
        stages: The stage loop.
        graph: The single graph. None where the engine has none.
        route: "graph" or "stages" for every other request. None: as measured (see `follow`). Before that, the graph
            for single inputs alone.
    """

    def __init__(self, stages: StageEngine, graph: Graph | None, route: Route | None = None) -> None:
        if route == "graph" and graph is None:
            raise EngineError(f"engine {stages.name!r} has no single graph here: use route='stages' or None")
        self.name, self.precision, self.threads = stages.name, stages.precision, stages.threads
        self.options = stages.options
        self.stages, self.graph = stages, graph
        self.agrees = True  # until canaries differ
        self._always = route
        self._measured: tuple[Sequence[int], Sequence[str]] = ((1, 2), ("graph", "stages"))
        self._unneeded: int | None = None  # requests by the graph since the last one by the stages, if there was one

    @property
    def spec(self) -> CascadeSpec:
        """The cascade."""
        return self.stages.spec

    @property
    def executor(self) -> Executor:
        """The executor of single stages."""
        return self.stages.executor

    def route(self, rows: int) -> str:
        """The route of a request of this number of rows."""
        if self.graph is None:
            return "stages"
        batch, routes = self._measured
        return self._always or routes[max(bisect_right(batch, rows) - 1, 0)]

    def follow(self, batch: Sequence[int], routes: Sequence[str]) -> None:
        """Use the measured routes. A batch takes that of the largest size that is not above it."""
        self._measured = batch, routes

    def can(self, route: str) -> bool:
        """Whether requests without deadline or limit on memory may take this route."""
        return (self._always or route) == route and (route == "stages" or self.graph is not None)

    def ready(self, rows: int) -> bool:
        """Whether the single graph for this number of rows is loaded."""
        return self.graph is not None and self.graph.ready(rows)

    def prepare(
        self, backbones: frozenset[int], rows: int, resident: frozenset[int] | None = None, stagewise: bool = False
    ) -> bool:
        """Load what a request needs. Returns whether anything was loaded or unloaded. See `Engine.prepare`.

        Once requests have used the graph for long, the stages are unloaded.
        """
        managed = resident is not None
        if not (managed or stagewise) and self.route(rows) == "graph":
            assert self.graph is not None
            loads = not self.graph.ready(rows)
            if loads:
                self.graph.load(rows)
            return self._give_back() or loads
        # stages that were measured faster remain. Those for a deadline or memory may be unused soon
        self._unneeded = 0 if managed or stagewise else None
        executor, moved = self.executor, False
        if resident is not None:  # first, so that there is room for what is loaded
            # a request in flight may have loaded parts of a backbone: all are unloaded
            spare = frozenset(self.spec.backbones) - resident - backbones
            moved = bool(spare) and executor.unload(sorted(spare))
            moved |= self.graph is not None and self.graph.close()
        missing = backbones - executor.loaded()
        if missing:
            executor.load(sorted(missing))
            if managed:
                trim_memory()  # memory that loading used: a third of a ResNet-50's session
        return moved or bool(missing)

    def _give_back(self) -> bool:
        """Unload the stages where they were unused for long. Returns whether there were any.

        The count is not exact where several threads call it: a request in flight loads again what it lacks.
        """
        unneeded = self._unneeded
        if unneeded is None:
            return False
        if unneeded < _SPARE:
            self._unneeded = unneeded + 1
            return False
        self._unneeded = None
        return self.executor.unload(self.spec.backbones)

    def run(
        self,
        inputs: Mapping[str, Array],
        thresholds: NDArray[np.float32],
        deadline_s: float | None = None,
        stagewise: bool = False,
        expected_s: Expected | None = None,
    ) -> Output:
        """Run inputs under thresholds. With a deadline, or `stagewise`, they run stage by stage. See `Engine.run`.

        Raises:
            InputError: An input has a wrong name, shape or dtype.
            SettingError: The thresholds are of wrong length or NaN.
            EngineError: The library underneath fails.
        """
        if deadline_s is None and not stagewise and self.graph is not None:
            rows = check_inputs(inputs, self.spec.inputs)
            if self.route(rows) == "graph":
                self.stages.plan(thresholds)  # checks them
                return self.graph.run(inputs, np.ascontiguousarray(thresholds, np.float32), rows)
        return self.stages.run(inputs, thresholds, deadline_s, expected_s)

    def bind(
        self, backbones: frozenset[int], thresholds: NDArray[np.float32], rows: int
    ) -> Callable[[Mapping[str, Array]], Output] | None:
        """A function for requests that repeat the last one: it takes checked inputs and makes no choice again.

        Args:
            backbones: The backbones that the operating point needs.
            thresholds: `[S-1]`, of the operating point.
            rows: How many rows each request has.

        Returns:
            The function, or None where such a request has more to do: something is to be loaded or unloaded.
        """
        if self._unneeded is not None:
            return None
        self.stages.plan(thresholds)  # checks them
        limits = np.ascontiguousarray(thresholds, np.float32)
        if self.route(rows) == "graph":
            graph = self.graph
            return partial(graph.run, thresholds=limits, rows=rows) if graph is not None and graph.ready(rows) else None
        return partial(self.stages.run, thresholds=limits) if backbones <= self.loaded() else None

    def run_graph(self, inputs: Mapping[str, Array], thresholds: NDArray[np.float32]) -> Output:
        """Run `inputs` under `thresholds [S-1]` by the single graph, whichever route was measured faster."""
        assert self.graph is not None, "there is no single graph"
        return self.graph.run(inputs, thresholds, check_inputs(inputs, self.spec.inputs))

    def all_logits(self, inputs: Mapping[str, Array]) -> NDArray[np.float32]:
        """Raw logits of every stage `[B, S, C]`, without exits: for calibration."""
        return self.stages.all_logits(inputs)

    def load(self, backbones: Sequence[int]) -> None:
        """Load the stages of these backbones."""
        self.executor.load(backbones)

    def loaded(self) -> frozenset[int]:
        """The backbones whose stages are loaded."""
        return self.executor.loaded()

    def close(self) -> None:
        """Free everything. A later run loads again."""
        self.executor.close()
        if self.graph is not None:
            self.graph.close()
