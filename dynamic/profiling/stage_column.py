"""Costs of each stage when it runs alone, stage by stage."""

import statistics
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dynamic.engines.contract import Array
from dynamic.engines.stage_loop import StageEngine
from dynamic.profiling.example_inputs import example_arrays
from dynamic.profiling.graph_profile import (
    MAX_REPEATS,
    MIN_REPEATS,
    NOBODY,
    WARM_UP,
    Timings,
    time_in_a_row,
    uncertainty,
)


class StageColumn:
    """Stage by stage, for one batch size: times of each stage `[S][repeats]` in ms, and of whole requests."""

    route = "stages"

    def __init__(self, stages: int) -> None:
        self.full: list[list[float]] = [[] for _ in range(stages)]
        self.body: list[list[float]] = [[] for _ in range(stages)]
        self.processor: list[list[float]] = [[] for _ in range(stages)]
        self.leaving: list[float] = []  # requests that exit at the first stage
        self.staying: list[float] = []  # requests that run all stages
        self.leaving_cpu: list[float] = []
        self.whole: list[float] = []  # of each repeat, the median of `staying`

    @property
    def call(self) -> float:
        """Time of a request beyond its first stage when all of it exits there."""
        return max(0.0, statistics.median(self.leaving) - statistics.median(self.full[0]))

    @property
    def call_cpu(self) -> float:
        return max(0.0, statistics.fmean(self.leaving_cpu) - statistics.fmean(self.processor[0]))

    @property
    def turns(self) -> int:
        return len(self.whole)

    @property
    def noise(self) -> float:
        return uncertainty(self.whole)

    @property
    def scale(self) -> list[float]:
        """Time of each stage inside a request over its time alone. Caches are colder there, and scores are computed."""
        alone = [statistics.median(x) for x in self.full]
        behind = sum(alone[1:])
        inside = statistics.median(self.staying) - self.call - alone[0]
        return [1.0, *[min(2.0, max(0.5, inside / behind)) if behind > 0 else 1.0] * (len(alone) - 1)]

    @property
    def latency(self) -> list[float]:
        return [statistics.median(x) * k for x, k in zip(self.full, self.scale, strict=True)]

    @property
    def latency_p95(self) -> list[float]:
        return [float(np.percentile(x, 95)) * k for x, k in zip(self.full, self.scale, strict=True)]

    @property
    def cpu(self) -> list[float]:
        return [statistics.fmean(x) for x in self.processor]

    @property
    def head(self) -> list[float]:
        return [
            max(0.0, statistics.median(full) - statistics.median(body)) if body else 0.0
            for full, body in zip(self.full, self.body, strict=True)
        ]


def measure_stages(
    engine: StageEngine,
    rows: int,
    seconds: float,
    clock: Callable[[], float],
    inputs: Mapping[str, Array] | None = None,
) -> StageColumn:
    """Measure every stage for about `seconds`, in alternating order. `inputs`: None are of the example's size."""
    inputs = inputs or example_arrays(engine.spec, rows)
    column = StageColumn(len(engine.spec.stages))
    for repeat in range(WARM_UP):
        _repeat(engine, inputs, StageColumn(len(engine.spec.stages)), clock, repeat)
    end = clock() + seconds
    for repeat in range(MAX_REPEATS):
        if repeat >= MIN_REPEATS and clock() > end:
            break
        _repeat(engine, inputs, column, clock, repeat)
    return column


def _repeat(
    engine: StageEngine, inputs: Mapping[str, Array], column: StageColumn, clock: Callable[[], float], repeat: int
) -> None:
    """Every stage without and with its head, in alternating order, and two whole requests."""
    executor, spec = engine.executor, engine.spec
    carry = None
    for stage, belongs in enumerate(spec.backbone):
        if stage == 0 or belongs != spec.backbone[stage - 1]:
            carry = executor.start(inputs)
        after = None
        for head in (repeat % 2 == 0, repeat % 2 == 1):
            if not head and spec.stages[stage].body_graph is None:
                continue

            def step(stage: int = stage, carry: Any = carry, head: bool = head) -> None:
                nonlocal after
                _, after = executor.step(stage, carry, head)

            timings = time_in_a_row(step, clock)
            (column.full if head else column.body)[stage] += timings.ms
            if head:
                column.processor[stage] += timings.cpu_ms
                with_head = after
        carry = with_head

    def measured(limit: float) -> Timings:
        thresholds = np.full(len(spec.stages) - 1, limit, np.float32)
        return time_in_a_row(lambda: engine.run(inputs, thresholds), clock)

    leaving, staying = measured(-np.inf), measured(float(NOBODY))
    column.leaving += leaving.ms
    column.leaving_cpu += leaving.cpu_ms
    column.staying += staying.ms
    column.whole.append(statistics.median(staying.ms))
