"""A batch whose activations would not fit in memory is answered in parts."""

import sys
from collections.abc import Callable, Collection, Mapping

import numpy as np

from dynamic.engines.contract import Array, Output
from dynamic.engines.memory import giving_back
from dynamic.engines.parts.rest import renumbered
from dynamic.policies.budget import Budget
from dynamic.policies.control.limits import RESERVE_MB
from dynamic.policies.costing.costed_point import row_mb
from dynamic.policies.costs import Costs
from dynamic.policies.snapshot import Snapshot
from dynamic.runtime.fallback import Answer

_SPARE = 0.45  # of the room: ONNX Runtime keeps what a first part took beside what it plans for the next of its size
_LEAST_MB = 1.0  # that a part may take where there is no room at all


def most_rows(
    costs: Costs, backbones: Collection[int], budget: Budget, snapshot: Snapshot, before_mb: float | None
) -> int:
    """How many rows may run at once.

    Args:
        costs: Of this machine, with what a row takes while a backbone runs.
        backbones: Those that the request needs.
        budget: Its `memory_mb` limits what rows may take on top of the process and its networks.
        snapshot: What the process holds, and what the system has left.
        before_mb: What the process held before any network was loaded.

    Returns:
        At least 1, and `sys.maxsize` where nothing is known, or nothing limits.
    """
    row = row_mb(costs, backbones)
    if row <= 0:
        return sys.maxsize
    networks = sum(costs.memory_mb[b] for b in backbones)
    rooms = []
    if budget.memory_mb is not None and snapshot.memory_process_mb is not None:
        rooms.append(budget.memory_mb - max(snapshot.memory_process_mb, (before_mb or 0.0) + networks))
    if snapshot.memory_available_mb is not None:
        rooms.append(snapshot.memory_available_mb - RESERVE_MB)
    if not rooms:
        return sys.maxsize
    return max(int(max(_SPARE * min(rooms), _LEAST_MB) / row), 1)


def run_split(
    run: Callable[[Mapping[str, Array], int], Answer], inputs: Mapping[str, Array], rows: int, most: int
) -> Answer:
    """Answer `rows` rows in parts of at most `most`, each of which gives its memory back.

    Args:
        run: Answers a part of so many rows.
        inputs: By name, each `[B, ...]`.
        rows: B.
        most: Rows of a part.

    Returns:
        The answer to all rows in order. Its time says nothing of the device, since parts were not profiled.
    """
    parts = []
    for start in range(0, rows, most):
        some = {name: array[start : start + most] for name, array in inputs.items()}
        with giving_back():
            parts.append(run(some, min(most, rows - start)))
    outputs = [part.output for part in parts]
    starts = range(0, rows, most)
    joined = Output(
        np.concatenate([output.logits for output in outputs]),
        np.concatenate([output.stage for output in outputs]),
        np.concatenate([output.score for output in outputs]),
        all(output.complete for output in outputs),
        tuple(
            rest
            for start, output in zip(starts, outputs, strict=True)
            for rest in renumbered(output.rests, np.arange(start, min(start + most, rows)))
        ),
    )
    return Answer(
        joined,
        tuple(dict.fromkeys(engine for part in parts for engine in part.engines)),
        any(part.moved for part in parts),
        usual=False,
        stages=[stage for part in parts for stage in part.stages],
        is_answered=all(part.is_answered for part in parts),
        ignores_deadline=any(part.ignores_deadline for part in parts),
    )
