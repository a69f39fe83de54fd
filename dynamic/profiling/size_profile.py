"""Costs at other sizes of input than the example's, where dimensions are dynamic."""

from collections.abc import Callable, Mapping, Sequence

from dynamic.engines.contract import Array
from dynamic.engines.route_choice import CascadeEngine
from dynamic.policies.costing.size_costs import SizeCosts
from dynamic.profiling.example_inputs import example_arrays, other_sizes
from dynamic.profiling.graph_profile import MIN_REPEATS, WARM_UP, GraphColumn, measure_graph
from dynamic.profiling.stage_column import StageColumn, measure_stages
from dynamic.progress import track


def measure_sizes(
    engine: CascadeEngine,
    batch: Sequence[int],
    routes: Sequence[str],
    seconds: float,
    limit_s: float,
    clock: Callable[[], float],
    progress: bool | None = None,
) -> tuple[tuple[SizeCosts, ...], tuple[str, ...]]:
    """Measure every stage at the least, the largest and four times the example's size.

    Args:
        engine: The engine.
        batch: Batch sizes `[K]`.
        routes: The route of each `[K]`: requests of another size take it too.
        seconds: Time for each batch size.
        limit_s: Time for each size. Batches that would take longer count as so many of the largest that was measured.
        clock: Time in seconds.
        progress: Whether to show a progress bar. None: on a terminal.

    Returns:
        The costs by rising size, and what was not measured in words.
    """
    sizes = other_sizes(engine.spec)
    costs: list[SizeCosts] = []
    left_out: list[str] = []
    for size, numbers in track(sizes.items(), "profiling sizes", len(sizes), progress):
        columns: list[StageColumn | GraphColumn] = []
        began, turn_s = clock(), 0.0  # of one row
        for rows, route in zip(batch, routes, strict=True):
            started = clock()
            # a time grows as the rows do at most
            if columns and started - began + max(seconds, (WARM_UP + MIN_REPEATS) * turn_s * rows) > limit_s:
                left_out.append(f"batches of {rows} or more at size {size}")
                break
            columns.append(_column(engine, route, rows, example_arrays(engine.spec, rows, numbers), seconds, clock))
            turn_s = (clock() - started) / (WARM_UP + columns[-1].turns) / rows
        costs.append(_sized(size, columns, batch))
    return tuple(costs), tuple(left_out)


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
