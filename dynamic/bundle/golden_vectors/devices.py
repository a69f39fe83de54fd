"""The synthetic devices and the synthetic ladder of the golden vectors."""

from dataclasses import replace

from dynamic.policies.costs import Costs
from dynamic.policies.frontier import Frontier
from dynamic.policies.ladder import Interval, Ladder, OperatingPoint

_INF = float("inf")


def frontiers(ladder: Ladder) -> dict[str, Frontier]:
    """The synthetic devices by name. Two of them run the given ladder."""
    unmetered = _costs(LADDER, ms=8.0, threads=2, cpu=(3.0, 0.5, 1.0))
    energy_mj = tuple(tuple(2.5 * ms for ms in row) for row in unmetered.cpu_ms)
    return {
        "made up": Frontier.of(LADDER, replace(unmetered, energy_mj=energy_mj, energy_source="model", idle_mw=100.0)),
        "unmetered": Frontier.of(LADDER, unmetered),
        "slow": Frontier.of(ladder, _costs(ladder, ms=40.0, threads=4, cpu=(3.5,))),
        "fast": Frontier.of(ladder, _costs(ladder, ms=0.5, threads=1, cpu=(1.0,))),
    }


def _costs(ladder: Ladder, ms: float, threads: int, cpu: tuple[float, ...]) -> Costs:
    """A device whose stages take `ms` longer each. `cpu` is CPU time over latency by backbone."""
    batch, growth = (1, 8), (1.0, 5.0)
    stages = range(len(ladder.backbone))
    latency_ms = tuple(tuple(ms * (s + 1) * g for g in growth) for s in stages)
    return Costs(
        machine="made up",
        engine="none",
        precision="f32",
        threads=threads,
        batch=batch,
        latency_ms=latency_ms,
        latency_p95_ms=tuple(tuple(v * (1.5 - 0.1 * (s % 4)) for v in latency_ms[s]) for s in stages),
        head_ms=tuple(tuple(0.05 * v for v in latency_ms[s]) for s in stages),
        call_ms=tuple(0.1 * ms * g for g in growth),
        cpu_ms=tuple(tuple(cpu[ladder.backbone[s] % len(cpu)] * v for v in latency_ms[s]) for s in stages),
        energy_mj=None,
        energy_source=None,
        memory_mb=tuple(30.0 * 2.5**b for b in range(max(ladder.backbone) + 1)),
        idle_mw=None,
        not_measured=("everything",),
    )


def _point(
    name: str,
    thresholds: tuple[float, ...],
    backbones: tuple[int, ...],
    target: float | None,
    risk: float,
    shares: tuple[float, ...],
    bound: float | None = None,
) -> OperatingPoint:
    right = 0.95 - risk
    return OperatingPoint(
        name=name,
        thresholds=thresholds,
        backbones=backbones,
        target=target,
        risk=risk,
        bound=bound,
        delta=None if bound is None else 0.1,
        n=1000,
        accuracy=Interval(right - 0.01, right, right + 0.01),
        shares=shares,
    )


# a small network with one exit, a middle one and a large one. The best point promises a gain
LADDER = Ladder(
    temperature=(1.0,) * 4,
    score="max_probability",
    combine="mean",
    backbone=(0, 0, 1, 2),
    stage_names=("small, exit", "small", "middle", "large"),
    points=(
        _point("reference", (_INF, _INF, _INF), (2,), 0.0, 0.0, (0.0, 0.0, 0.0, 1.0)),
        _point("best", (0.99, 0.95, 0.9), (0, 1, 2), 0.0, -0.01, (0.2, 0.2, 0.2, 0.4)),
        _point("drop 0", (0.9, 0.9, 0.8), (0, 1, 2), 0.0, -0.002, (0.6, 0.2, 0.1, 0.1)),
        _point("drop 0.01", (_INF, 0.8, -_INF), (0, 1), 0.01, 0.008, (0.0, 0.7, 0.3, 0.0)),
        _point("middle", (_INF, _INF, -_INF), (1,), None, 0.02, (0.0, 0.0, 1.0, 0.0)),
        _point("small", (0.7, -_INF, _INF), (0,), 0.45, 0.445, (0.5, 0.5, 0.0, 0.0)),
        _point("cheapest", (-_INF, _INF, _INF), (0,), None, 0.5, (1.0, 0.0, 0.0, 0.0)),
    ),
    fingerprint="made up",
    certified=True,
)
