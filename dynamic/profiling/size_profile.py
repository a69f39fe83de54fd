"""Costs at other sizes of input than the example's, where dimensions are dynamic."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dynamic.engines.contract import Array
from dynamic.engines.route_choice import CascadeEngine
from dynamic.policies.costing.size_costs import SizeCosts
from dynamic.profiling.example_inputs import example_arrays, other_sizes
from dynamic.profiling.graph_profile import MIN_REPEATS, WARM_UP, GraphColumn, measure_graph
from dynamic.profiling.stage_column import StageColumn, measure_stages
from dynamic.progress import track

_SHARE = 0.45  # of the available memory, as for batches of the runtime


@dataclass(frozen=True)
class SizeProfile:
    """Costs at other sizes than the example's.

    Args:
        sizes: By rising size.
        not_measured: In words.
    """

    sizes: tuple[SizeCosts, ...] = ()
    not_measured: tuple[str, ...] = ()


def measure_sizes(
    engine: CascadeEngine,
    batch: Sequence[int],
    routes: Sequence[str],
    seconds: float,
    limit_s: float,
    clock: Callable[[], float],
    progress: bool | None = None,
    row_mb: float = 0.0,
    available_mb: float = math.inf,
) -> SizeProfile:
    """Measure every stage at the least, the largest and four times the example's size.

    Args:
        engine: The engine.
        batch: Batch sizes `[K]`.
        routes: The route of each `[K]`: requests of another size take it too.
        seconds: Time for each batch size.
        limit_s: Time for each size. Batches that would take longer count as so many of the largest that was measured.
        clock: Time in seconds.
        progress: Whether to show a progress bar. None: on a terminal.
        row_mb: Memory of a row of the example's size while it runs, in 10^6 bytes. That of other sizes is as their
            size. 0: not measured.
        available_mb: Memory of which a batch may take `_SHARE`. Larger ones count as so many of the largest that fits.

    Returns:
        The costs by rising size, and what was not measured.
    """
    sizes, largest = other_sizes(engine.spec)
    costs: list[SizeCosts] = []
    left_out = [] if largest is None else [f"sizes above {largest}"]
    example = engine.spec.example_size or 1
    for size, numbers in track(sizes.items(), "profiling sizes", len(sizes), progress):
        columns: list[StageColumn | GraphColumn] = []
        began, turn_s = clock(), 0.0  # of one row
        for rows, route in zip(batch, routes, strict=True):
            started = clock()
            if columns and rows * row_mb * size / example > _SHARE * available_mb:
                left_out.append(f"batches of {rows} or more at size {size}, which need more memory than there is")
                break
            # a time grows as the rows do at most
            if columns and started - began + max(seconds, (WARM_UP + MIN_REPEATS) * turn_s * rows) > limit_s:
                left_out.append(f"batches of {rows} or more at size {size}")
                break
            columns.append(_column(engine, route, rows, example_arrays(engine.spec, rows, numbers), seconds, clock))
            turn_s = (clock() - started) / (WARM_UP + columns[-1].turns) / rows
        costs.append(_sized(size, columns, batch))
    return SizeProfile(tuple(costs), tuple(left_out))


def _column(
    engine: CascadeEngine,
    route: str,
    rows: int,
    inputs: Mapping[str, Array],
    seconds: float,
    clock: Callable[[], float],
) -> StageColumn | GraphColumn:
    if route == "graph":
        assert engine.graph is not None
        return measure_graph(engine.graph, engine.spec, inputs, seconds, clock)
    return measure_stages(engine.stages, rows, seconds, clock, inputs)


def _sized(size: int, columns: Sequence[StageColumn | GraphColumn], batch: Sequence[int]) -> SizeCosts:
    """The figures of a size at every batch size. Beyond the last that was measured, they grow as the rows do."""
    last = len(columns) - 1
    factors = [(columns[min(k, last)], rows / batch[min(k, last)]) for k, rows in enumerate(batch)]

    def table(take: Callable[[StageColumn | GraphColumn], list[float]]) -> tuple[tuple[float, ...], ...]:
        return tuple(zip(*([ms * factor for ms in take(column)] for column, factor in factors), strict=True))

    return SizeCosts(
        size=size,
        latency_ms=table(lambda c: c.latency),
        latency_p95_ms=table(lambda c: c.latency_p95),
        head_ms=table(lambda c: c.head),
        cpu_ms=table(lambda c: c.cpu),
        call_ms=tuple(column.call for column, _ in factors),
        call_cpu_ms=tuple(column.call_cpu for column, _ in factors),
    )
