"""Costs of each stage inside the single graph, where only whole requests can be measured."""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dynamic.engines.contract import Array, CascadeSpec, Graph
from dynamic.policies.costing.latency import ONE_SIDED_95

NOBODY = np.float32(3e38)  # a threshold above every score that still evaluates the exit

WARM_UP = 3
MIN_REPEATS, MAX_REPEATS = 7, 200
# requests of one kind in a row, as in a stream of them. The first finds the caches as another kind left them: behind
# one that went all the way, a network of 0.11 ms took 0.05, 0.29 and 0.23 ms in turn
_BLOCK, _SHORT_MS = 5, 5.0
_MEDIAN_ERROR = 1.2533  # standard error of a median over that of a mean, of a normal distribution: sqrt(pi / 2)
_MIDDLE_HALF = 1.349  # width of the middle half of a normal distribution, in standard deviations


def uncertainty(times: Sequence[float]) -> float:
    """Two standard errors of the median of repeats over that median.

    The spread is that of the middle half, as of a normal distribution: a stall among the repeats adds nothing.
    """
    middle = statistics.median(times) if times else 0.0
    if middle <= 0:
        return 0.0
    low, high = np.percentile(times, [25, 75])
    spread = float(high - low) / _MIDDLE_HALF
    return 2 * _MEDIAN_ERROR * spread / math.sqrt(len(times)) / middle


@dataclass(frozen=True)
class Timings:
    """Of requests of one kind, one after the other: their times and CPU times in ms."""

    ms: list[float]
    cpu_ms: list[float]


def time_in_a_row(request: Callable[[], object], clock: Callable[[], float]) -> Timings:
    """Time a kind of request when others of its kind come before.

    Args:
        request: Runs one.
        clock: Time in seconds.

    Returns:
        Of a short request, those of up to five in a row behind one that is left out. Of another, that of one.
    """
    first = _timings(request, clock, 1)
    (first_ms,) = first.ms
    if first_ms >= _SHORT_MS:
        return first
    return _timings(request, clock, _BLOCK if first_ms <= 0 else min(_BLOCK, math.ceil(_SHORT_MS / first_ms)))


def _timings(request: Callable[[], object], clock: Callable[[], float], count: int) -> Timings:
    ms, cpu_ms = [], []
    for _ in range(count):
        cpu_began, began = time.process_time(), clock()
        request()
        ms.append((clock() - began) * 1e3)
        cpu_ms.append((time.process_time() - cpu_began) * 1e3)
    return Timings(ms, cpu_ms)


class GraphColumn:
    """Times for one batch size in ms: of requests that exit at each stage `[S][repeats]`, and of all stages with exits
    off.

    Args:
        backbone: Backbone of each stage `[S]`.
    """

    route = "graph"

    def __init__(self, backbone: Sequence[int]) -> None:
        self._backbone = backbone
        self.leaving: list[list[float]] = [[] for _ in backbone]
        self.processor: list[list[float]] = [[] for _ in backbone]
        self.without: list[list[float]] = [[] for _ in backbone]  # the exit's head
        self.reference: list[float] = []  # with every exit off: the last backbone alone
        self.whole: list[float] = []  # of each repeat, the median of requests that run every stage

    @property
    def call(self) -> float:
        """Time of the last backbone alone beyond its stages, at most that of a request that exits at the first stage.

        Where all stages are of one backbone, it is part of the first stage, which then always runs.
        """
        added = self._added
        own = [s for s, b in enumerate(self._backbone) if b == self._backbone[-1]]
        stages = sum(added[s] for s in own) - sum(self._heads(added)[s] for s in own)
        return min(max(statistics.median(self.reference) - stages, 0.0), added[0])

    @property
    def latency(self) -> list[float]:
        """Median time beyond that of requests that exit one stage earlier. For the first stage, beyond the call."""
        first, *others = self._added
        return [first - self.call, *others]

    @property
    def latency_p95(self) -> list[float]:
        """A stage's median, and the spread that it adds: variances of stages are added."""
        spread = [(float(np.percentile(times, 95)) - statistics.median(times)) / ONE_SIDED_95 for times in self.leaving]
        variance = _steps([s * s for s in spread])
        return [middle + ONE_SIDED_95 * float(np.sqrt(v)) for middle, v in zip(self.latency, variance, strict=True)]

    @property
    def head(self) -> list[float]:
        """Time of all stages beyond that with this exit off, at most the time of its stage."""
        return self._heads(self.latency)

    @property
    def call_cpu(self) -> float:
        """CPU time of the call: it is part of the first stage."""
        return 0.0

    @property
    def turns(self) -> int:
        """How often everything was measured."""
        return len(self.whole)

    @property
    def noise(self) -> float:
        """Uncertainty of the time of a request that runs every stage, a fraction."""
        return uncertainty(self.whole)

    @property
    def cpu(self) -> list[float]:
        """Mean CPU time beyond that of requests that exit one stage earlier. The call is part of the first stage."""
        return _steps([statistics.fmean(times) for times in self.processor])

    @property
    def _added(self) -> list[float]:
        return _steps([statistics.median(times) for times in self.leaving])

    def _heads(self, stages: Sequence[float]) -> list[float]:
        whole = statistics.median(self.leaving[-1])
        return [
            min(max(whole - statistics.median(off), 0.0), stage) if off else 0.0
            for off, stage in zip(self.without, stages, strict=True)
        ]


def measure_graph(
    graph: Graph, spec: CascadeSpec, inputs: Mapping[str, Array], seconds: float, clock: Callable[[], float]
) -> GraphColumn:
    """Measure requests for about `seconds`. Those that exit at different stages take turns, a few in a row."""
    column = GraphColumn(spec.backbone)
    for _ in range(WARM_UP):
        _repeat(graph, spec, inputs, GraphColumn(spec.backbone), clock)
    end = clock() + seconds
    for repeat in range(MAX_REPEATS):
        if repeat >= MIN_REPEATS and clock() > end:
            break
        _repeat(graph, spec, inputs, column, clock)
    return column


def _repeat(
    graph: Graph, spec: CascadeSpec, inputs: Mapping[str, Array], column: GraphColumn, clock: Callable[[], float]
) -> None:
    rows, last = len(next(iter(inputs.values()))), len(spec.stages) - 1

    def measured(limits: NDArray[np.float32]) -> Timings:
        return time_in_a_row(lambda: graph.run(inputs, limits, rows), clock)

    for stage in range(last + 1):
        limits = np.full(last, NOBODY, np.float32)
        limits[stage:] = -np.inf
        timings = measured(limits)
        column.leaving[stage] += timings.ms
        column.processor[stage] += timings.cpu_ms
    column.whole.append(statistics.median(timings.ms))  # of the last, which runs every stage
    for stage in range(last):
        if spec.stages[stage].body_graph is not None:
            limits = np.full(last, NOBODY, np.float32)
            limits[stage] = np.inf
            column.without[stage] += measured(limits).ms
    column.reference += measured(np.full(last, np.inf, np.float32)).ms


def _steps(totals: list[float]) -> list[float]:
    """The part that each stage adds, from totals by depth. Noise must not make it negative."""
    rising = list(itertools.accumulate(totals, max))
    return [rising[0], *(b - a for a, b in itertools.pairwise(rising))]
