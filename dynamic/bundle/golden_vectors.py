"""Golden vectors: budgets and snapshots with the decision they must give, so that the policy can be written again in
another language and checked there; and the figures of a frontier that such a port decides by.

They lie in `golden.json` and not in `ladder.json`: people and every start of a runtime read a ladder, and neither has a
use for a thousand cases. The file holds

- `devices`: by name, the figures (see `figures`) of made-up devices. Two run the bundle's own ladder; two, with and
  without energies, one that is made up too, in which every limit can bind, since a bundle's own may be of one or two
  points;
- `sequences`: of requests on one `device`, from `BudgetPolicy.initial` on. Each of their `cases`, one a line, has
  `snapshot` and, where it is another than before, `budget` (of both, what is absent has its default), the `decision`,
  and often `feedback`: the `stage` that request got to, its `latency_ms`, and whether the test for `drift` has alarmed,
  to be taken in before the next case; where there is none, nothing has changed.

A request has as many rows as one of the batch sizes that figures were made for, and the percentile is 0.95 or None: the
figures then say everything, and a port needs no statistics, only 64-bit floats. Of equals the first wins, as in
Python's min and max. On a device it reads figures beside the costs in `costs/`, and the chosen point's thresholds in
`ladder.json`. `examples/policy_port.py` is such a port.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from random import Random
from typing import Any

from dynamic.policies.budget import PRIORITY, Budget
from dynamic.policies.control.budget_policy import BudgetPolicy, BudgetState
from dynamic.policies.control.limits import LEAST, TELLS, CandidateFilter
from dynamic.policies.control.reasons import Note
from dynamic.policies.costs import Costs
from dynamic.policies.decision import Decision, Feedback
from dynamic.policies.fast_paths import Rank, members
from dynamic.policies.frontier import SPREADS, Frontier, told_apart
from dynamic.policies.ladder import Interval, Ladder, OperatingPoint
from dynamic.policies.snapshot import Snapshot

SCHEMA = 2
_SENSORS = ("cpu_load", "cpu_cores", "memory_process_mb", "battery", "temperature_c")
_CLOSE = 1e-6  # of a limit: what a decision must not hang on
_INF = float("inf")


@dataclass(frozen=True)
class _Kind:
    """Of a sequence: how many `cases`; the `limits` of its budgets, and the chance of any `other`; the chances that a
    `budget` is new and that there is `feedback`; seconds from one case to the next; where readings are `steady`, for
    how many cases they are easy, so that a better point gets its turn, before they are hard for a few.
    """

    cases: int
    limits: tuple[str, ...]
    other: float
    budget: float
    feedback: float
    steps_s: tuple[float, ...]
    steady: tuple[int, ...] = ()


_WILD = _Kind(40, (), 0.25, 0.3, 0.7, (0.0, 0.1, 0.2, 1.0, 5.0, 20.0, -1.0))
_WARM = _Kind(40, ("temperature_c",), 0.25, 0.05, 0.7, (0.0, 0.2, 0.7, 1.0, 3.0, 5.0, -1.0))
_PACED = _Kind(40, ("battery_duration_s",), 0.06, 0.05, 0.7, (0.2, 0.2, 0.5, 0.7, 1.0, -0.3))
_LONG = replace(_PACED, limits=("battery_duration_s", "latency_ms"), steps_s=(0.4, 20.0, 50.0, 80.0, -5.0))
_FULL = _Kind(120, ("memory_mb", "deadline_ms"), 0.02, 0.01, 0.1, (0.0, 0.1, 0.3, 1.0, 2.0, -0.5), steady=(24, 30, 44))
_HEATED = replace(
    _FULL, limits=("temperature_c", "energy_mj"), steps_s=(0.0, 4.0, 8.0, 15.0, -3.0), steady=(25, 27, 36)
)
_CPU = replace(_WILD, limits=("cpu_ms",))
_FLOOR = replace(_HEATED, limits=("battery_floor",))
# by device and kind the seeds: of those on made-up ladders such that a port with one thing wrong is found out
_SEEDS: dict[str, list[tuple[_Kind, tuple[int, ...]]]] = {
    "made up": [(_WILD, (3, 58)), (_WARM, (30,)), (_PACED, (6, 8)), (_FULL, (1,))],
    "unmetered": [(_WILD, (7, 28)), (_WARM, (10, 17, 25)), (_PACED, (2,)), (_LONG, (21, 61)), (_FLOOR, (5, 38))],
    "slow": [(_WILD, (0,)), (_LONG, (0,))],
    "fast": [(_CPU, (0,))],
}


def figures(frontier: Frontier) -> dict[str, Any]:
    """What a policy needs of a frontier of S stages at K batch sizes, in plain JSON types.

    `threads`; `batch [K]`; `memory_mb [B]` of each backbone; `idle_mw`; `spreads [G]`, which latencies are worked out
    for; `points` in the frontier's order, each with `name`, `backbones`, `accuracy`, `promised_drop`, `memory_mb`,
    `energy_mj` and `cpu_ms` of one inference, `mean_ms [K]`, `p95_ms [G][K]`, `first_ms [K]` to a first answer, and
    `path_ms [S][K]`: what a request should take whose deepest row left at a stage. Figures that the profile does not
    tell apart are changed within its noise, so that they are in the order of compute.
    """
    costs = frontier.costs

    def ordered(rank: Rank) -> list[float]:
        return told_apart(rank.figures, costs.noise)

    effort, processor, mean = ordered(frontier.effort), ordered(frontier.processor), ordered(frontier.mean)
    return {
        "threads": costs.threads,
        "batch": list(costs.batch),
        "memory_mb": list(costs.memory_mb),
        "idle_mw": costs.idle_mw,
        "spreads": list(SPREADS),
        "points": [
            {
                "name": p.name,
                "backbones": list(p.operating_point.backbones),
                "accuracy": p.accuracy.mid,
                "promised_drop": p.promised_drop,
                "memory_mb": frontier.memory.figures[i],
                "energy_mj": None if p.energy_mj is None else effort[i],
                "cpu_ms": processor[i],
                "mean_ms": [mean[i], *p.mean_ms[1:]],
                "p95_ms": [[frontier.latency_ms(0.95, rows, spread)[i] for rows in costs.batch] for spread in SPREADS],
                "first_ms": [frontier.first_answer(rows).figures[i] for rows in costs.batch],
                "path_ms": [
                    [frontier.path_ms(p, stage, rows) for rows in costs.batch] for stage in range(len(costs.latency_ms))
                ],
            }
            for i, p in enumerate(frontier.points)
        ],
    }


def frontiers(ladder: Ladder) -> dict[str, Frontier]:
    """The made-up devices that cases are made for, by name."""
    unmetered = _costs(_LADDER, ms=8.0, threads=2, cpu=(3.0, 0.5, 1.0))
    energy_mj = tuple(tuple(2.5 * ms for ms in row) for row in unmetered.cpu_ms)
    return {
        "made up": Frontier.of(_LADDER, replace(unmetered, energy_mj=energy_mj, energy_source="model", idle_mw=100.0)),
        "unmetered": Frontier.of(_LADDER, unmetered),
        "slow": Frontier.of(ladder, _costs(ladder, ms=40.0, threads=4, cpu=(3.5,))),
        "fast": Frontier.of(ladder, _costs(ladder, ms=0.5, threads=1, cpu=(1.0,))),
    }


def golden(ladder: Ladder, seed: int = 0) -> dict[str, Any]:
    """A thousand cases for this ladder and a made-up one; the same ladder and seed give the same cases."""
    made = frontiers(ladder)
    sequences = [
        {"device": name, "cases": list(islice(_sequence(made[name], Random(f"{seed} {own}"), kind), kind.cases))}
        for name, kinds in _SEEDS.items()
        for kind, owns in kinds
        for own in owns
    ]
    return {"schema": SCHEMA, "devices": {name: figures(f) for name, f in made.items()}, "sequences": sequences}


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


class _Close(CandidateFilter):
    """A sieve that tells whether another order of additions, or another language's exp, might keep other points.

    Figures that are compared as they were read, with no arithmetic before, may be equal to their limit.
    """

    close = False

    def keep(
        self,
        field: str | None,
        rank: Rank,
        most: float,
        note: Note,
        missed: Note | None = None,
        spare: float = 1.0,
        beside: float | None = 0.0,
    ) -> bool:
        self._look(rank, most)
        self._look(rank, most * spare)
        return super().keep(field, rank, most, note, missed, spare, beside)

    def nearest(self, rank: Rank, beside: float | None) -> float | None:
        if beside is not None:
            least, inaccuracy = rank.figures[rank.first(self.left)], self.frontier.accuracy.figures
            whole = max(beside + least, LEAST)
            self._look(rank, least + TELLS * whole)
            scores = sorted((beside + rank.figures[i]) / whole + inaccuracy[i] for i in members(self.left))
            if any(0 < b - a <= _CLOSE for a, b in pairwise(scores)):
                _Close.close = True
        return super().nearest(rank, beside)

    def prefer(self, rank: Rank, most: float, note: Note) -> bool:
        self._look(rank, most)
        return super().prefer(rank, most, note)

    def _look(self, rank: Rank, most: float) -> None:
        read = rank in (self.frontier.drop, self.frontier.accuracy)
        for figure in rank.figures:
            if abs(figure - most) <= _CLOSE * abs(figure) and not (read and figure == most):
                _Close.close = True


class _Policy(BudgetPolicy):
    sieve = _Close


_POLICY = _Policy()


def _sequence(frontier: Frontier, random: Random, kind: _Kind) -> Iterator[dict[str, Any]]:
    """Requests on one device, one after another, under budgets that change now and then. It lacks some sensors."""
    state, slower = _POLICY.initial(), random.lognormvariate(0.2, 0.5)
    lacks: dict[str, Any] = dict.fromkeys(name for name in _SENSORS if not kind.limits and random.random() < 0.25)
    last, now, easy, stays = None, Snapshot(0.0), True, 0
    while True:
        # a clock that was set back, once in a while
        time_s = round(state.seen.time_s + random.choice(kind.steps_s), 1)
        turns = stays <= 0
        new = replace(_readings(frontier, state, random, kind, not easy) if turns else now, time_s=time_s, **lacks)
        asked = last if last and random.random() > kind.budget else _budget(frontier, state, new, random, kind)
        snapshot = new
        if random.random() < 0.2:
            waited_ms = _short(random.uniform(0.0, 1.0) * (asked.latency_ms or asked.deadline_ms or 1.0))
            waits: dict[str, Any] = {
                "waited_ms": random.choice([None, waited_ms]),
                "queue_length": random.choice([None, 0, 1, 2]),
            }
            snapshot = replace(new, **waits, servers=random.choice([None, None, 2]))
        _Close.close = False
        decision, after = _POLICY.decide(frontier, asked, snapshot, state)
        if _Close.close or any(0 < abs(after.seen.spread - spread) <= _CLOSE for spread in SPREADS):
            continue
        case: dict[str, Any] = {} if asked == last else {"budget": _given(asked, Budget())}
        case |= {"snapshot": _given(snapshot, Snapshot(0.0)), "decision": _answer(decision)}
        easy, stays = easy != turns, stays - 1
        if turns:
            stays = (
                random.randint(0, 1)
                if not kind.steady
                else random.choice(kind.steady)
                if easy
                else random.randint(2, 8)
            )
        last, state, now = asked, after, new
        if random.random() < kind.feedback:
            stage = random.choice([s for s, share in enumerate(decision.point.shares) if share > 0])
            rows, threads = snapshot.rows or 1, frontier.costs.threads
            expected_ms = frontier.path_ms(decision.point, stage, rows)
            # mostly near what is expected, now and then stalled, or too short for the clock
            jump = random.choices([1.0, 30.0, 0.02, 0.0], [88, 6, 4, 2])[0]
            took_ms = _short(expected_ms * slower * jump * random.lognormvariate(0.0, 0.2))
            # a test that has alarmed stays so until it is started anew
            drift = random.random() < (0.7 if state.seen.drift else 0.02 if kind.limits else 0.2)
            case["feedback"] = {"stage": stage, "latency_ms": took_ms, "drift": drift}
            state = _POLICY.observe(
                state, Feedback(decision.point, stage, rows, took_ms, expected_ms, threads, snapshot, drift)
            )
        yield case


def _budget(frontier: Frontier, state: BudgetState, snapshot: Snapshot, random: Random, kind: _Kind) -> Budget:
    """Limits near what some point needs: far from it they would tell no two policies apart."""
    seen, rows, percentile = state.seen, snapshot.rows or 1, random.choice([0.95, 0.95, None])

    points = [p.operating_point for p in frontier.points]

    def near(figures: Iterable[float]) -> float:
        far = random.uniform(1.0, 1.25) if kind.steady or random.random() < 0.6 else random.uniform(0.6, 2.5)
        return random.choice(sorted(figures)[len(points) // 3 if kind.steady else 0 :]) * far

    drops = [p.promised_drop for p in points]
    limits = {
        "latency_ms": near(frontier.latency_ms(percentile, rows, seen.spread)) * seen.slowdown,
        "deadline_ms": near(frontier.first_answer(rows).figures) * seen.slowdown,
        "memory_mb": (seen.base_mb or 80.0) + seen.excess_mb + near(p.memory_mb for p in frontier.points),
        "battery_duration_s": sum(kind.steps_s) / len(kind.steps_s) * random.uniform(10.0, 150.0),
        "temperature_c": (60.0 if kind.steady else snapshot.temperature_c or 60.0) + random.uniform(-4.0, 8.0),
        "max_drop": random.choice([min(near(drops), 0.99), random.choice(drops)]),
        "battery_floor": max((snapshot.battery or 0.3) - random.choice([0.0, 0.0, 0.02, 0.2]), 0.0),
    }
    if frontier.costs.energy_mj is not None:
        limits["energy_mj"] = near(frontier.effort.figures) * random.choice([1.0, 1.0, 0.4])
    if "cpu_ms" in kind.limits:
        limits["cpu_ms"] = random.choice(frontier.effort.figures) * random.uniform(1.0, 1.25)
    chosen = {n: _short(v) for n, v in limits.items() if random.random() < (0.9 if n in kind.limits else kind.other)}
    if (
        state.budget and state.budget.battery_duration_s and random.random() < 0.6
    ):  # a battery is paced over many requests
        chosen["battery_duration_s"] = state.budget.battery_duration_s
    return Budget(
        **chosen,
        percentile=percentile,
        min_accuracy=random.choice(points).accuracy[1] if random.random() < kind.other / 3 else None,
        on_drift=random.choice(["safest", "safest", "report"]),
        priority=random.choice([PRIORITY, PRIORITY, tuple(random.sample(PRIORITY, 3))]),
    )


def _readings(frontier: Frontier, state: BudgetState, random: Random, kind: _Kind, easy: bool) -> Snapshot:
    """Readings after those that the state has seen, each missing now and then; `easy` or not where they are steady."""
    seen, costs = state.seen, frontier.costs

    def reading(value: Any, missing: float = 0.1 if kind.limits else 0.3) -> Any:
        return None if random.random() < missing else value

    used_mb = 80.0 + sum(costs.memory_mb[b] for b in seen.resident) + random.choice([0.0, random.uniform(-20.0, 50.0)])
    room_mb = random.choice(frontier.points).memory_mb * random.choice([random.uniform(0.1, 2.5), 0.2, 20.0])
    battery = max(0.05, (seen.battery or random.uniform(0.3, 0.9)) - random.choice([0.0, 0.004, 0.01, 0.01, 0.02]))
    battery += random.choice([0.01, 0.1]) if battery < 0.8 and random.random() < 0.06 else 0.0
    temperature_c = (seen.temperature_c or 60.0) + random.uniform(-4.0, 4.0)
    load, plugged = random.choice([0.0, random.uniform(0.0, 1.0)]), random.random() < 0.05
    if kind.steady:
        load, plugged, temperature_c = (0.0, True, 50.0) if easy else (random.uniform(0.5, 1.0), False, 68.0)
        room_mb, used_mb = (1e4, used_mb) if easy or "memory_mb" not in kind.limits else (room_mb, used_mb + 40.0)
    return Snapshot(
        time_s=0.0,
        cpu_load=reading(round(load, 2)),
        cpu_cores=reading(random.choice([1, 2, 2 if kind.steady else 8])),
        cpu_pressure=reading(round(random.uniform(0.0, 1.0), 2), 0.7),
        memory_pressure=reading(random.choice([0.0, 0.0, 0.05, 0.3]), 0.5),
        memory_available_mb=reading(_short(room_mb), 0.4),
        memory_process_mb=reading(round(used_mb)),
        battery=reading(round(battery, 3)),
        battery_mwh=reading(_short(battery * 6.0), 0.5),
        plugged=reading(plugged),
        temperature_c=reading(round(temperature_c, 1)),
        throttled=reading(random.random() < 0.05),
        rows=reading(random.choice([0, 1, 1, *costs.batch])),
    )


def _answer(decision: Decision) -> dict[str, Any]:
    return {
        "point": decision.point.name,
        "feasible": decision.feasible,
        "violated_limits": list(decision.violated_limits),
        "keep_loaded": None if decision.keep_loaded is None else sorted(decision.keep_loaded),
    }


def _given(value: Budget | Snapshot, default: Budget | Snapshot) -> dict[str, Any]:
    """The fields that differ from the default."""
    given = {name: field for name, field in vars(value).items() if field != getattr(default, name)}
    return {name: list(field) if isinstance(field, tuple) else field for name, field in given.items()}


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
        _point("small", (0.7, -_INF, _INF), (0,), 0.45, 0.445, (0.5, 0.5, 0.0, 0.0)),
        _point("cheapest", (-_INF, _INF, _INF), (0,), None, 0.5, (1.0, 0.0, 0.0, 0.0)),
    ),
    fingerprint="made up",
    certified=True,
)
