"""Golden vectors: budgets and snapshots with the decision they must give, so that the policy can be written again in
another language and checked there; and the figures of a frontier that such a port decides by.

They lie in `golden.json` and not in `ladder.json`: people and every start of a runtime read a ladder, and neither has a
use for a thousand cases. The file holds

- `devices`: by name, the figures (see `figures`) of made-up devices. Two run the bundle's own ladder; one runs a ladder
  that is made up too, in which every limit can bind, since a bundle's own may be of one or two points;
- `sequences`: of requests on one `device`, from `BudgetPolicy.initial` on. Each of their `cases`, one a line, has
  `budget` and `snapshot` (what is absent is None, a percentile 0.95, on_drift "safest"), the `decision`, and often
  `feedback`: the `stage` that request got to, its `latency_ms`, and whether the test for `drift` has alarmed, to be
  taken in before the next case; where there is none, nothing has changed.

A request has as many rows as one of the batch sizes that figures were made for, and the percentile is 0.95 or None: the
figures then say everything, and a port needs no statistics, only 64-bit floats. Of equals the first wins, as in
Python's min and max. On a device it reads figures beside the costs in `costs/`, and the chosen point's thresholds in
`ladder.json`. `examples/policy_port.py` is such a port.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import islice, pairwise
from random import Random
from typing import Any

from dynamic.policies.budget import Budget
from dynamic.policies.budget_policy import BudgetPolicy, BudgetState
from dynamic.policies.costs import Costs
from dynamic.policies.decision import Decision, Feedback
from dynamic.policies.frontier import Frontier
from dynamic.policies.ladder import Ladder, Point
from dynamic.policies.snapshot import Snapshot

SCHEMA = 1
_CASES, _IN_A_ROW = 1000, 10
_CLOSE = 1e-6  # of a limit: what a decision must not hang on
_POLICY = BudgetPolicy()
_INF = float("inf")


def figures(frontier: Frontier) -> dict[str, Any]:
    """What a policy needs of a frontier of S stages at K batch sizes, in plain JSON types.

    `threads`; `batch [K]`; `memory_mb [B]` of each backbone; `points` in the frontier's order, each with `name`,
    `backbones`, `accuracy`, `promised_drop`, `memory_mb`, `mean_ms [K]`, `p95_ms [K]`, `cpu_ms [K]` and
    `path_ms [S][K]`: what a request should take whose deepest row left at a stage.
    """
    costs = frontier.costs
    return {
        "threads": costs.threads,
        "batch": list(costs.batch),
        "memory_mb": list(costs.memory_mb),
        "points": [
            {
                "name": p.point.name,
                "backbones": list(p.point.backbones),
                "accuracy": p.point.accuracy[1],
                "promised_drop": p.point.promised_drop,
                "memory_mb": p.memory_mb,
                "mean_ms": list(p.mean_ms),
                "p95_ms": list(p.p95_ms),
                "cpu_ms": list(p.cpu_ms),
                "path_ms": [
                    [frontier.path_ms(p, stage, rows) for rows in costs.batch] for stage in range(len(costs.latency_ms))
                ],
            }
            for p in frontier.points
        ],
    }


def golden(ladder: Ladder, seed: int = 0) -> dict[str, Any]:
    """A thousand cases for this ladder and a made-up one; the same ladder and seed give the same cases."""
    random = Random(seed)
    frontiers = {
        "made up": Frontier.of(_LADDER, _costs(_LADDER, ms=8.0, threads=2, cpu=(3.0, 0.5, 1.0))),
        "slow": Frontier.of(ladder, _costs(ladder, ms=40.0, threads=4, cpu=(3.5,))),
        "fast": Frontier.of(ladder, _costs(ladder, ms=0.5, threads=1, cpu=(1.0,))),
    }
    names = list(frontiers)
    sequences = [
        {"device": name, "cases": list(islice(_sequence(frontiers[name], random), _IN_A_ROW))}
        for name in (names[i % len(names)] for i in range(_CASES // _IN_A_ROW))
    ]
    return {"schema": SCHEMA, "devices": {name: figures(f) for name, f in frontiers.items()}, "sequences": sequences}


def to_text(data: dict[str, Any]) -> str:
    """JSON, a device and a case a line; numbers read back as they were."""

    def dump(value: Any) -> str:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)

    devices = ",\n".join(f"{dump(name)}:{dump(device)}" for name, device in data["devices"].items())
    sequences = ",\n".join(
        f'{{"device":{dump(s["device"])},"cases":[\n' + ",\n".join(map(dump, s["cases"])) + "\n]}"
        for s in data["sequences"]
    )
    return f'{{"schema":{data["schema"]},"devices":{{\n{devices}\n}},"sequences":[\n{sequences}\n]}}\n'


def _sequence(frontier: Frontier, random: Random) -> Iterator[dict[str, Any]]:
    """Requests on one device, one after another, under budgets that change now and then."""
    state = _POLICY.initial()
    budget, slower = Budget(), random.lognormvariate(0.2, 0.5)
    while True:
        snapshot = _snapshot(frontier, budget, random)
        if random.random() < 0.5:
            budget = _budget(frontier, state, snapshot, random)
        if _is_close(frontier, budget, snapshot, state):
            continue
        decision, state = _POLICY.decide(frontier, budget, snapshot, state)
        case: dict[str, Any] = {
            "budget": _given(budget, Budget()),
            "snapshot": _given(snapshot, Snapshot(0.0)),
            "decision": _answer(decision),
        }
        if random.random() < 0.7:
            stage = random.choice([s for s, share in enumerate(decision.point.point.shares) if share > 0])
            rows, threads = snapshot.rows or 1, frontier.costs.threads
            expected_ms = frontier.path_ms(decision.point, stage, rows)
            # mostly near what is expected, now and then stalled, or too short for the clock
            jump = random.choices([1.0, 30.0, 0.0], [90, 7, 3])[0]
            took_ms = _short(expected_ms * slower * jump * random.lognormvariate(0.0, 0.2))
            # a test that has alarmed stays so until it is started anew
            drift = random.random() < (0.7 if state.drift else 0.2)
            case["feedback"] = {"stage": stage, "latency_ms": took_ms, "drift": drift}
            state = _POLICY.observe(
                state, Feedback(decision.point, stage, rows, took_ms, expected_ms, threads, snapshot, drift)
            )
        yield case


def _budget(frontier: Frontier, state: BudgetState, snapshot: Snapshot, random: Random) -> Budget:
    """Limits near what some point needs: far from it they would tell no two policies apart."""
    percentile = random.choice([0.95, 0.95, None])
    latency_ms = random.choice(frontier.latency_ms(percentile, snapshot.rows or 1)) * state.slowdown.ratio
    drop = random.choice(frontier.points).point.promised_drop
    base_mb = snapshot.memory_process_mb if state.base_mb is None else state.base_mb
    memory_mb = (base_mb or 100.0) + random.choice(frontier.points).memory_mb * random.uniform(0.7, 1.5)
    tight = random.choice([random.uniform(1.0, 1.12), random.uniform(0.5, 2.5)])
    return Budget(
        latency_ms=random.choice([None, _short(latency_ms * tight), _short(latency_ms * tight)]),
        percentile=percentile,
        memory_mb=random.choice([None, None, None, _short(memory_mb)]),
        battery_floor=random.choice([None, None, None, 0.2]),
        max_drop=random.choice([None, None, min(drop, 0.99), min(_short(drop * random.uniform(0.3, 1.5)), 0.99)]),
        on_drift=random.choice(["safest", "safest", "report"]),
    )


def _snapshot(frontier: Frontier, budget: Budget, random: Random) -> Snapshot:
    """Readings, each missing now and then."""

    def reading(value: Any, missing: float = 0.3) -> Any:
        return None if random.random() < missing else value

    room_mb = random.choice(frontier.points).memory_mb * random.choice([random.uniform(0.1, 2.5), 0.2, 20.0])
    floor = random.choice([budget.battery_floor, None]) or random.uniform(0.0, 0.6)
    return Snapshot(
        time_s=0.0,
        cpu_load=reading(round(random.uniform(0.0, 1.0), 2)),
        cpu_cores=reading(random.choice([1, 2, 8, 8])),
        memory_available_mb=reading(_short(room_mb), 0.5),
        memory_process_mb=reading(random.randint(60, 200)),
        battery=reading(round(floor, 2)),
        plugged=reading(random.random() < 0.3),
        rows=reading(random.choice([0, 1, 1, *frontier.costs.batch])),
    )


def _is_close(frontier: Frontier, budget: Budget, snapshot: Snapshot, state: BudgetState) -> bool:
    """Whether another language's exp, or another order of additions, might change the decision and be no worse.

    So it is where a limit moved by a millionth changes it: that stands for moving all that the limit is compared with,
    slowdown, load and sums of memory. And where latency gives way while two latencies are equal but for rounding.
    Battery and drop are compared as they are read, with no arithmetic before: those may be equal to their limit.
    """
    decided = _answer(_POLICY.decide(frontier, budget, snapshot, state)[0])
    moved: list[tuple[Budget, Snapshot]] = []
    for by in (-_CLOSE, _CLOSE):
        if budget.latency_ms is not None:
            moved.append((replace(budget, latency_ms=budget.latency_ms * (1 + by)), snapshot))
        if budget.memory_mb is not None:
            moved.append((replace(budget, memory_mb=budget.memory_mb * (1 + by)), snapshot))
        room_mb = state.memory_available_mb if snapshot.memory_available_mb is None else snapshot.memory_available_mb
        if room_mb is not None:
            resident_mb = sum(frontier.costs.memory_mb[b] for b in state.resident)
            moved.append((budget, replace(snapshot, memory_available_mb=room_mb + by * (room_mb + resident_mb))))
    if any(_answer(_POLICY.decide(frontier, b, s, state)[0]) != decided for b, s in moved):
        return True
    distinct_ms = sorted(set(frontier.latency_ms(budget.percentile, snapshot.rows or 1)))
    return "latency_ms" in decided["gave_way"] and any(b - a <= _CLOSE * b for a, b in pairwise(distinct_ms))


def _answer(decision: Decision) -> dict[str, Any]:
    return {
        "point": decision.point.point.name,
        "feasible": decision.feasible,
        "gave_way": list(decision.gave_way),
    }


def _given(value: Budget | Snapshot, default: Budget | Snapshot) -> dict[str, Any]:
    """The fields that differ from the default."""
    return {name: field for name, field in asdict(value).items() if field != getattr(default, name)}


def _short(value: float) -> float:
    """Four digits, so that the file is small and a case can be read."""
    return float(f"{value:.4g}")


def _costs(ladder: Ladder, ms: float, threads: int, cpu: tuple[float, ...]) -> Costs:
    """A device on which each stage takes `ms` longer than the one before; CPU time over latency by backbone."""
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
) -> Point:
    right = 0.95 - risk
    return Point(
        name=name,
        thresholds=thresholds,
        backbones=backbones,
        target=target,
        risk=risk,
        bound=bound,
        delta=None if bound is None else 0.1,
        n=1000,
        accuracy=(right - 0.01, right, right + 0.01),
        shares=shares,
    )


# a small network with one exit, a middle and a large one; the best promises a gain
_LADDER = Ladder(
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
        _point("small", (0.7, -_INF, _INF), (0,), 0.05, 0.045, (0.5, 0.5, 0.0, 0.0)),
        _point("cheapest", (-_INF, _INF, _INF), (0,), None, 0.1, (1.0, 0.0, 0.0, 0.0)),
    ),
    fingerprint="made up",
    certified=True,
)
