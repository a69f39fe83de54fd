"""Costs of each stage on this machine: time, CPU time and memory, measured through the engine that runs.

Where the engine has the whole cascade as one graph, both routes are measured, and the faster counts by batch size.
"""

import itertools
import logging
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from dynamic.engines.contract import Array, CascadeSpec
from dynamic.engines.route_choice import CascadeEngine
from dynamic.engines.stage_loop import StageEngine
from dynamic.monitoring.sources.cpu import OtherLoad
from dynamic.policies.costs import BUSY, Costs
from dynamic.policies.errors import SettingError
from dynamic.policies.validation.numbers import plain
from dynamic.profiling.graph_profile import MAX_REPEATS, MIN_REPEATS, NOBODY, WARM_UP, measure_graph, uncertainty
from dynamic.profiling.machine import machine_name
from dynamic.progress import track
from dynamic.safe_path import child_command

logger = logging.getLogger("dynamic.profiling.stage_profile")

ATTEMPTS = 3  # to measure while no other process uses the processor


def profile(
    engine: CascadeEngine,
    folder: Path | None,
    batch: Sequence[int] = (1, 8, 64),
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

    Args:
        engine: The engine.
        folder: The bundle, to measure resident memory of each backbone in separate processes. None: not measured.
        batch: Batch sizes, rising.
        seconds: Time for each batch size and route.
        clock: Time in seconds.
        progress: Whether to show a progress bar. None: on a terminal.

    Returns:
        The costs: medians and 95th percentiles.

    Raises:
        SettingError: Batch sizes do not rise.
    """
    sizes = tuple(plain(size) for size in batch)
    if not sizes or sizes[0] < 1 or any(a >= b for a, b in itertools.pairwise(sizes)):
        raise SettingError(f"batch={sizes} must be rising sizes of at least 1, e.g. (1, 8, 64)")
    columns, load = _measured_alone(
        lambda: [_faster(engine, rows, seconds, clock) for rows in track(sizes, "profiling", shown=progress)]
    )
    memory, row_mb, unmeasured = _memory(engine, folder)
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
        memory_mb=memory,
        idle_mw=None,
        not_measured=("energy", "idle power", *unmeasured),
        route=tuple(c.route for c in columns),
        call_cpu_ms=tuple(c.call_cpu for c in columns),
        row_mb=row_mb,
        noise=columns[0].noise,  # points are ranked at the smallest batch
        load=load,
    )
    for doubt in costs.doubts:
        logger.warning("%s", doubt)
    return costs


def _measured_alone(measure: "Callable[[], list[_Measured]]") -> "tuple[list[_Measured], float | None]":
    """The result of `measure` and the load of others meanwhile: that of least load of up to `ATTEMPTS`."""
    calmest: tuple[list[_Measured], float | None] | None = None
    for attempt in range(ATTEMPTS):
        others = _OthersDuring()
        columns = measure()
        load = others.load()
        if calmest is None or (load is not None and calmest[1] is not None and load < calmest[1]):
            calmest = columns, load
        if load is None or load <= BUSY:
            break
        if attempt < ATTEMPTS - 1:
            logger.info("other processes used %.0f%% of the processor: the profile is repeated", 100 * load)
    assert calmest is not None
    return calmest


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


def _faster(engine: CascadeEngine, rows: int, seconds: float, clock: Callable[[], float]) -> _Measured:
    columns: list[_Measured] = []
    if engine.can("stages"):
        columns.append(_measure(engine.stages, rows, seconds, clock))
    if engine.can("graph"):
        assert engine.graph is not None
        columns.append(measure_graph(engine.graph, engine.spec, example_arrays(engine.spec, rows), seconds, clock))
    # the mean over the exit stages
    return min(columns, key=lambda column: statistics.fmean(itertools.accumulate(column.latency)) + column.call)


class _Column:
    """Stage by stage, for one batch size: times of each stage `[S][repeats]` in ms, and of whole requests."""

    route = "stages"

    def __init__(self, stages: int) -> None:
        self.full: list[list[float]] = [[] for _ in range(stages)]
        self.body: list[list[float]] = [[] for _ in range(stages)]
        self.processor: list[list[float]] = [[] for _ in range(stages)]
        self.leaving: list[float] = []  # requests that exit at the first stage
        self.staying: list[float] = []  # requests that run all stages
        self.leaving_cpu: list[float] = []

    @property
    def call(self) -> float:
        """Time of a request beyond its first stage when all of it exits there."""
        return max(0.0, statistics.median(self.leaving) - statistics.median(self.full[0]))

    @property
    def call_cpu(self) -> float:
        return max(0.0, statistics.fmean(self.leaving_cpu) - statistics.fmean(self.processor[0]))

    @property
    def noise(self) -> float:
        return uncertainty(self.staying)

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


def _measure(engine: StageEngine, rows: int, seconds: float, clock: Callable[[], float]) -> _Column:
    inputs = example_arrays(engine.spec, rows)
    column = _Column(len(engine.spec.stages))
    for repeat in range(WARM_UP):
        _repeat(engine, inputs, _Column(len(engine.spec.stages)), clock, repeat)
    end = clock() + seconds
    for repeat in range(MAX_REPEATS):
        if repeat >= MIN_REPEATS and clock() > end:
            break
        _repeat(engine, inputs, column, clock, repeat)
    return column


def _repeat(
    engine: StageEngine, inputs: dict[str, Array], column: _Column, clock: Callable[[], float], repeat: int
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
            cpu_began, began = time.process_time(), clock()
            _, next_carry = executor.step(stage, carry, head)
            took = (clock() - began) * 1e3
            (column.full if head else column.body)[stage].append(took)
            if head:
                column.processor[stage].append((time.process_time() - cpu_began) * 1e3)
                after = next_carry
        carry = after
    for limit, times in ((-np.inf, column.leaving), (NOBODY, column.staying)):
        thresholds = np.full(len(spec.stages) - 1, limit, np.float32)
        cpu_began, began = time.process_time(), clock()
        engine.run(inputs, thresholds)
        times.append((clock() - began) * 1e3)
        if times is column.leaving:
            column.leaving_cpu.append((time.process_time() - cpu_began) * 1e3)


def example_arrays(spec: CascadeSpec, rows: int) -> dict[str, Array]:
    """Inputs of the right shape and dtype: normal noise for floating point, zeros for everything else."""
    random = np.random.default_rng(0)
    return {
        i.name: random.standard_normal((rows, *i.shape)).astype(i.dtype)
        if np.issubdtype(np.dtype(i.dtype), np.floating)
        else np.zeros((rows, *i.shape), i.dtype)
        for i in spec.inputs
    }


def _rows(columns: list[_Measured], take: Callable[[_Measured], list[float]]) -> tuple[tuple[float, ...], ...]:
    """One row a stage, one column a batch size: `[S][K]`."""
    return tuple(zip(*(take(column) for column in columns), strict=True))


def _memory(engine: CascadeEngine, folder: Path | None) -> tuple[tuple[float, ...], tuple[float, ...], tuple[str, ...]]:
    """MB of each backbone, MB of a row while a backbone runs, and what could not be measured."""
    backbones = engine.spec.backbones
    if folder is None or engine.name == "torch":
        return tuple(0.0 for _ in backbones), (), (f"resident memory on engine {engine.name!r}",)
    try:
        sizes_mb = [_resident_mb(folder, backbone, engine) for backbone in backbones]
        return tuple(stays for _, stays in sizes_mb), tuple(row for row, _ in sizes_mb), ()
    except (OSError, subprocess.SubprocessError, ValueError):
        size = [(folder / "backbones" / f"{b}.weights").stat().st_size / 1e6 for b in backbones]
        return tuple(size), (), ("resident memory (the size of the weights is used instead)",)


def _resident_mb(folder: Path, backbone: int, engine: CascadeEngine) -> tuple[float, float]:
    """Growth of a fresh process for each row while it runs one backbone, and after it has."""
    asked = [os.path.abspath(folder), str(backbone), str(engine.threads), engine.name, engine.precision]
    done = subprocess.run(
        child_command("dynamic.profiling.footprint", *asked, untrusted=(str(folder),)),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    row, stays = (max(0.0, float(word)) for word in done.stdout.split()[-2:])
    return row, stays
