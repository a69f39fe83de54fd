"""Records, points, costs and ladders that the tests of policies share."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import settings
from numpy.typing import NDArray

from dynamic.policies.costs import Costs
from dynamic.policies.ladder import Ladder, OperatingPoint
from dynamic.policies.records import Records

INF = float("inf")

# the same examples each time, however slow the machine is
repeatable = settings(deadline=None, derandomize=True, database=None, max_examples=60)


def make_records(
    logits: NDArray[Any],
    label: Sequence[int] | NDArray[Any] | None,
    backbone: tuple[int, ...] | None = None,
    part: Sequence[int] | NDArray[Any] | None = None,
    body: Sequence[float] | None = None,
    head: Sequence[float] | None = None,
) -> Records:
    """Records around `logits [N, S, C]`: one backbone, part 0, bodies of 1 and heads of 0 unless given."""
    count, stages, _ = logits.shape
    return Records(
        logits=logits.astype(np.float32),
        label=None if label is None else np.asarray(label, np.int64),
        group=None,
        part=np.zeros(count, np.int8) if part is None else np.asarray(part, np.int8),
        backbone=backbone or (0,) * stages,
        macs=tuple(body or (1.0,) * stages),
        head_macs=tuple(head or (0.0,) * stages),
        stage_names=tuple(f"stage{s}" for s in range(stages)),
        fingerprint="f",
    )


def learned(
    count: int, stages: int, classes: int = 4, seed: int = 0, reach: tuple[float, float] = (1.0, 3.0)
) -> tuple[NDArray[Any], NDArray[Any]]:
    """(logits, labels) as of a network: later stages are surer and more often right, and some inputs are harder.

    `reach`: how far the right class stands out at the first and at the last stage.
    """
    random = np.random.default_rng(seed)
    label = random.integers(classes, size=count)
    logits = random.normal(size=(count, stages, classes))
    margin = np.linspace(*reach, stages) - 1.5 * random.normal(size=(count, 1))
    logits[np.arange(count), :, label] += margin
    return logits.astype(np.float32), label


def make_point(name: str, thresholds: tuple[float, ...], shares: tuple[float, ...], **fields: Any) -> OperatingPoint:
    """A point of one backbone that loses nothing and is right in 0.9 unless told otherwise."""
    accuracy = fields.pop("accuracy", 0.9)
    known: dict[str, Any] = {
        "backbones": (0,),
        "target": 0.0,
        "risk": 0.0,
        "bound": None,
        "delta": None,
        "n": 100,
        "accuracy": (accuracy - 0.05, accuracy, accuracy + 0.05),
    }
    return OperatingPoint(name=name, thresholds=thresholds, shares=shares, **(known | fields))


def make_ladder(points: Sequence[OperatingPoint], backbone: tuple[int, ...]) -> Ladder:
    """An uncertified ladder of these points."""
    stages = len(backbone)
    return Ladder(
        temperature=(1.0,) * stages,
        score="max_probability",
        combine="mean",
        backbone=backbone,
        stage_names=tuple(f"stage{s}" for s in range(stages)),
        points=tuple(points),
        fingerprint="f",
        certified=False,
    )


def make_costs(latency_ms: Sequence[Sequence[float]], batch: tuple[int, ...] = (1,), **fields: Any) -> Costs:
    """Costs of stages `[S][K]`: p95 and CPU time as the median, heads and calls free unless given."""
    table = tuple(tuple(map(float, row)) for row in latency_ms)
    known: dict[str, Any] = {
        "latency_p95_ms": table,
        "head_ms": tuple((0.0,) * len(batch) for _ in table),
        "call_ms": (0.0,) * len(batch),
        "cpu_ms": table,
        "energy_mj": None,
        "energy_source": None,
        "memory_mb": (50.0,),
        "idle_mw": None,
        "not_measured": (),
    }
    return Costs(
        machine="m",
        engine="e",
        precision="f32",
        batch=batch,
        latency_ms=table,
        threads=fields.pop("threads", 1),
        **(known | fields),
    )
