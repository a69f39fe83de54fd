"""One engine of two ways: the single graph, or stage by stage, whichever was faster for that many rows."""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from dynamic.engines.contract import Array, CascadeSpec, Executor, Expected, Graph, Output
from dynamic.engines.memory import trim_memory
from dynamic.engines.stage_loop import StageEngine, check_inputs
from dynamic.policies.errors import EngineError

ROUTES = ("graph", "stages")
_SPARE = 100  # requests by the graph, after which stages that none of them needed are given back


class CascadeEngine:
    """Runs a cascade as its single graph or stage by stage.

    `stages` is the stage loop; `graph` None where the engine has no single graph. `route`: "graph" or "stages" always,
    or None: as measured (see `follow`), and before that the graph for single inputs alone. A request that is
    stagewise, has a deadline, or for which only some backbones may stay in memory takes the stages.
    """

    def __init__(self, stages: StageEngine, graph: Graph | None, route: str | None = None) -> None:
        if route is not None and route not in ROUTES:
            raise EngineError(f"route={route!r} is not known; use one of {ROUTES}, or None for the faster")
        if route == "graph" and graph is None:
            raise EngineError(f"engine {stages.name!r} has no single graph here; use route='stages' or None")
        self.name, self.precision, self.threads = stages.name, stages.precision, stages.threads
        self.options = stages.options
        self.stages, self.graph = stages, graph
        self.agrees = True  # until canaries say otherwise
        self._always = route
        self._measured: tuple[Sequence[int], Sequence[str]] = ((1, 2), ("graph", "stages"))
        self._unneeded: int | None = None  # requests by the graph since one that had to leave it, if any had

    @property
    def spec(self) -> CascadeSpec:
        """The cascade."""
        return self.stages.spec

    @property
    def executor(self) -> Executor:
        """What runs single stages."""
        return self.stages.executor

    def route(self, rows: int) -> str:
        """The way that so many rows go."""
        if self.graph is None:
            return "stages"
        batch, routes = self._measured
        return self._always or routes[max(bisect_right(batch, rows) - 1, 0)]

    def follow(self, batch: Sequence[int], routes: Sequence[str]) -> None:
        """Go the way that was measured faster: a batch goes that of the largest of the sizes that is not above it."""
        self._measured = batch, routes

    def can(self, route: str) -> bool:
        """Whether requests without deadline or limit on memory may go this way."""
        return (self._always or route) == route and (route == "stages" or self.graph is not None)

    def ready(self, rows: int) -> bool:
        """Whether the single graph for so many rows is loaded."""
        return self.graph is not None and self.graph.ready(rows)

    def prepare(
        self, backbones: frozenset[int], rows: int, resident: frozenset[int] | None = None, stagewise: bool = False
    ) -> bool:
        """Make ready what a request of so many rows needs; whether anything had to be loaded or unloaded.

        `resident`: backbones that may stay beside those needed (None: all); the others are given back, and so is the
        graph, which holds every one. `stagewise`: the request goes stage by stage, as where `resident` is given. Where
        requests have come back to the graph for good, the stages are given back.
        """
        managed = resident is not None
        if not (managed or stagewise) and self.route(rows) == "graph":
            assert self.graph is not None
            loads = not self.graph.ready(rows)
            if loads:
                self.graph.load(rows)
            return self._give_back() or loads
        # stages that were measured faster are wanted; those that a deadline or memory asked for, perhaps not for long
        self._unneeded = 0 if managed or stagewise else None
        executor, moved = self.executor, False
        if resident is not None:  # first, so that there is room for what is loaded
            # of a backbone that a request in flight brought back there may be parts: all are asked for
            spare = frozenset(self.spec.backbones) - resident - backbones
            moved = bool(spare) and executor.unload(sorted(spare))
            moved |= self.graph is not None and self.graph.close()
        missing = backbones - executor.loaded()
        if missing:
            executor.load(sorted(missing))
            if managed:
                trim_memory()  # what loading took and left: a third of a ResNet-50's session
        return moved or bool(missing)

    def _give_back(self) -> bool:
        """Unload the stages where nobody has needed them for long; whether there were any.

        Not counted exactly where several threads ask: a request in flight loads again what it lacks.
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
        """Run `inputs` (each `[B, ...]`) under `thresholds [S-1]`; with a deadline, or `stagewise`, stage by stage.

        Raises InputError on a wrong name, shape or dtype; SettingError on thresholds of wrong length or NaN;
        EngineError when the library underneath fails.
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
        """Run `inputs` under `thresholds [S-1]` by the single graph, whichever way was measured faster."""
        assert self.graph is not None, "there is no single graph"
        return self.graph.run(inputs, thresholds, check_inputs(inputs, self.spec.inputs))

    def all_logits(self, inputs: Mapping[str, Array]) -> NDArray[np.float32]:
        """Every stage's own raw logits `[B, S, C]`, nobody leaving: for calibration."""
        return self.stages.all_logits(inputs)

    def load(self, backbones: Sequence[int]) -> None:
        """Make the stages of these backbones ready to run."""
        self.executor.load(backbones)

    def loaded(self) -> frozenset[int]:
        """The backbones whose stages are ready."""
        return self.executor.loaded()

    def close(self) -> None:
        """Give everything back. Running afterwards loads again."""
        self.executor.close()
        if self.graph is not None:
            self.graph.close()
