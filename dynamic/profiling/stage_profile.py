"""Costs of each stage on this machine: time, CPU time and memory, measured through the engine that runs.

Where the engine has the whole cascade as one graph, both routes are measured, and the faster counts by batch size.
"""

import itertools
import logging
import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from dynamic.engines.route_choice import CascadeEngine
from dynamic.monitoring.sources.cpu import OtherLoad
from dynamic.policies.costs import BUSY, Costs
from dynamic.policies.errors import SettingError
from dynamic.policies.validation.numbers import plain
from dynamic.profiling.example_inputs import example_arrays
from dynamic.profiling.graph_profile import MIN_REPEATS, WARM_UP, measure_graph
from dynamic.profiling.machine import machine_name
from dynamic.profiling.resident_memory import backbone_memory
from dynamic.profiling.stage_column import measure_stages
from dynamic.progress import track

if TYPE_CHECKING:
    from dynamic.profiling.size_profile import SizeProfile

logger = logging.getLogger("dynamic.profiling.stage_profile")
steps = logging.getLogger("dynamic.progress")

ATTEMPTS = 3  # to measure while no other process uses the processor
USUAL_BATCH = (1, 8, 64)
USUAL_LIMIT_S = 60.0  # for the usual batch sizes: larger ones that would take longer are left out


def profile(
    engine: CascadeEngine,
    folder: Path | None,
    batch: Sequence[int] | None = None,
    seconds: float = 1.0,
    clock: Callable[[], float] = time.perf_counter,
    progress: bool | None = None,
) -> Costs:
    """Measure the costs of every stage.

    Stage by stage, each is measured alone. In the single graph, requests that exit at each stage are measured. A stage
    costs the difference to requests that exit one stage earlier. Everything alternates within a repeat, so that drift
    of the machine's speed affects all alike. The route counts whose requests are faster on average over their exit
    stages. Where others use more than 15% of the processor meanwhile, everything is repeated, up to twice. The
    repetition with the least load counts.

    Where dimensions are dynamic, these are costs at the size of the example. The least, the largest and four times its
    size are measured by the same routes after it, each for as long, and repeated with it. The larger load of both
    counts. Batches that would need more memory than there is are left out at these sizes.

    Args:
        engine: The engine.
        folder: The bundle, to measure resident memory of each backbone in separate processes. None: not measured.
        batch: Batch sizes, rising. None: 1, 8 and 64, as far as a minute lasts.
        seconds: Time for each batch size and route.
        clock: Time in seconds.
        progress: Whether to show a progress bar. None: on a terminal.

    Returns:
        The costs: medians and 95th percentiles.

    Raises:
        SettingError: Batch sizes do not rise.
    """
    sizes = USUAL_BATCH if batch is None else tuple(plain(size) for size in batch)
    if not sizes or sizes[0] < 1 or any(a >= b for a, b in itertools.pairwise(sizes)):
        raise SettingError(f"batch={sizes} must be rising sizes of at least 1, e.g. (1, 8, 64)")
    limit_s = USUAL_LIMIT_S if batch is None else math.inf
    steps.info("%s", _expected(sizes, seconds, limit_s))
    memory = backbone_memory(engine, folder)
    measure_sizes = _size_measurement(engine, seconds, limit_s, clock, progress, max(memory.row_mb, default=0.0))
    measure = partial(_columns, engine, seconds, clock, progress)
    columns, load, by_size = _measured_alone(measure, sizes, limit_s, clock, measure_sizes)
    left_out: tuple[str, ...] = () if len(columns) == len(sizes) else (f"batches above {sizes[len(columns) - 1]}",)
    sizes = sizes[: len(columns)]
    routes = [column.route for column in columns]
    if by_size is not None:
        left_out += by_size.not_measured
    costs = Costs(
        machine=machine_name(),
        engine=engine.name,
        precision=engine.precision,
        threads=engine.threads,
        batch=sizes,
        latency_ms=_rows(columns, lambda c: c.latency),
        latency_p95_ms=_rows(columns, lambda c: c.latency_p95),
        head_ms=_rows(columns, lambda c: c.head),
        call_ms=tuple(c.call for c in columns),
        cpu_ms=_rows(columns, lambda c: c.cpu),
        energy_mj=None,
        energy_source=None,
        memory_mb=memory.memory_mb,
        idle_mw=None,
        not_measured=("energy", "idle power", *memory.not_measured, *left_out),
        route=tuple(routes),
        call_cpu_ms=tuple(c.call_cpu for c in columns),
        row_mb=memory.row_mb,
        noise=columns[0].noise,  # points are ranked at the smallest batch
        load=load,
        size=engine.spec.example_size,
        sizes=() if by_size is None else by_size.sizes,
    )
    for doubt in costs.doubts:
        logger.warning("%s", doubt)
    return costs


def _expected(sizes: Sequence[int], seconds: float, limit_s: float) -> str:
    """How long a profile will take, before it starts."""
    names = ", ".join(map(str, sizes))
    limit = "longer where a request takes more than 10 ms" if math.isinf(limit_s) else f"{limit_s:g} s at most"
    least_s = 2 * seconds * len(sizes)  # by two routes
    return f"profiling batches of {names}: about {least_s:.0f} s, {limit}, and some seconds for memory"


def _measured_alone(
    measure: "Callable[[Sequence[int], float], list[_Measured]]",
    sizes: Sequence[int],
    limit_s: float,
    clock: Callable[[], float],
    measure_sizes: "Callable[[Sequence[int], Sequence[_Measured]], SizeProfile] | None" = None,
) -> "tuple[list[_Measured], float | None, SizeProfile | None]":
    """The figures of each batch size, the load of others meanwhile, and the figures at other sizes of input.

    They are those of the least load of up to `ATTEMPTS`. The load is the larger one of both measurements.

    Sizes that would take longer than the limit, all together, are left out, and so is a repetition.
    """
    calmest: tuple[list[_Measured], float | None, SizeProfile | None] | None = None
    began = clock()
    for attempt in range(ATTEMPTS):
        others, started = _OthersDuring(), clock()
        columns = measure(sizes, limit_s if attempt == 0 else math.inf)
        sizes = sizes[: len(columns)]
        load, by_size = others.load(), None
        if measure_sizes is not None:
            others = _OthersDuring()
            by_size = measure_sizes(sizes, columns)
            load = max((one for one in (load, others.load()) if one is not None), default=None)
        if calmest is None or (load is not None and calmest[1] is not None and load < calmest[1]):
            calmest = columns, load, by_size
        ended = clock()
        if load is None or load <= BUSY or ended - began + (ended - started) > limit_s:
            break
        if attempt < ATTEMPTS - 1:
            logger.info("other processes used %.0f%% of the processor: the profile is repeated", 100 * load)
    assert calmest is not None
    return calmest


def _size_measurement(
    engine: CascadeEngine,
    seconds: float,
    limit_s: float,
    clock: Callable[[], float],
    progress: bool | None,
    row_mb: float,
) -> "Callable[[Sequence[int], Sequence[_Measured]], SizeProfile] | None":
    """What measures other sizes of input. None: no dimension is dynamic."""
    if engine.spec.example_size is None:
        return None
    from dynamic.profiling.size_profile import measure_sizes  # a runtime that profiles nothing needs no more memory

    def measure(batch: Sequence[int], columns: Sequence[_Measured]) -> "SizeProfile":
        routes = [column.route for column in columns]
        return measure_sizes(engine, batch, routes, seconds, limit_s, clock, progress, row_mb, _available_mb())

    return measure


def _available_mb() -> float:
    """Memory that is available, in 10^6 bytes. Infinite where the system does not report it."""
    from dynamic.monitoring.sources.limits import MemoryLimit  # as above
    from dynamic.monitoring.sources.memory import Available

    rooms = []
    for source in (Available, MemoryLimit):
        try:
            rooms.append(source()().fields.get("memory_available_mb"))
        except (OSError, ValueError):  # a system without these figures
            continue
    return min((room for room in rooms if room is not None), default=math.inf)


def _columns(
    engine: CascadeEngine,
    seconds: float,
    clock: Callable[[], float],
    progress: bool | None,
    sizes: Sequence[int],
    limit_s: float,
) -> "list[_Measured]":
    """The figures of each batch size, as far as the limit lasts."""
    columns: list[_Measured] = []
    began, turn_s, before = clock(), 0.0, 1
    for rows in track(sizes, "profiling", shown=progress):
        # two routes, and one turn by both for the size before: a time grows as the rows do at most
        takes_s = max(2 * seconds, (WARM_UP + MIN_REPEATS) * turn_s * rows / before)
        if columns and clock() - began + takes_s > limit_s:
            logger.info("batches of %d and more would take %.0f s more: they are not profiled", rows, takes_s)
            break
        column, turn_s = _faster(engine, rows, seconds, clock)
        columns.append(column)
        before = rows
    return columns


class _OthersDuring:
    """Use of the processor by other processes, from now on."""

    def __init__(self) -> None:
        self._source: OtherLoad | None = None
        try:
            self._source = OtherLoad()
            self._source()
        except (OSError, ValueError):  # a system without these figures
            self._source = None

    def load(self) -> float | None:
        """Share of the cores that this process may use, 0 to 1. None where the system does not report it."""
        if self._source is None:
            return None
        try:
            load: float | None = self._source().fields["host_load"]
            return load
        except (OSError, ValueError):
            return None


class _Measured(Protocol):
    """Figures of one route for one batch size in ms: by stage `[S]`, and of a request."""

    route: str

    @property
    def latency(self) -> list[float]:
        """Median."""

    @property
    def latency_p95(self) -> list[float]:
        """95th percentile."""

    @property
    def head(self) -> list[float]:
        """Part of the head."""

    @property
    def cpu(self) -> list[float]:
        """Mean CPU time."""

    @property
    def call(self) -> float:
        """Time of a request beyond its stages."""

    @property
    def call_cpu(self) -> float:
        """CPU time of that."""

    @property
    def noise(self) -> float:
        """Uncertainty of the time of a request that runs every stage, a fraction."""

    @property
    def turns(self) -> int:
        """How often everything was measured."""


def _faster(engine: CascadeEngine, rows: int, seconds: float, clock: Callable[[], float]) -> tuple[_Measured, float]:
    """The figures of the faster route, and the seconds that one turn by every route takes."""
    columns: list[_Measured] = []
    turn_s, began = 0.0, clock()
    if engine.can("stages"):
        columns.append(measure_stages(engine.stages, rows, seconds, clock))
        turn_s += (clock() - began) / (WARM_UP + columns[-1].turns)
    began = clock()
    if engine.can("graph"):
        assert engine.graph is not None
        columns.append(measure_graph(engine.graph, engine.spec, example_arrays(engine.spec, rows), seconds, clock))
        turn_s += (clock() - began) / (WARM_UP + columns[-1].turns)
    # the mean over the exit stages
    return min(columns, key=lambda column: statistics.fmean(itertools.accumulate(column.latency)) + column.call), turn_s


def _rows(columns: list[_Measured], take: Callable[[_Measured], list[float]]) -> tuple[tuple[float, ...], ...]:
    """One row a stage, one column a batch size: `[S][K]`."""
    return tuple(zip(*(take(column) for column in columns), strict=True))
