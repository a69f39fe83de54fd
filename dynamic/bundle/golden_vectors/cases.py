"""Golden cases: random requests on a synthetic device, with the decisions of the budget policy."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from random import Random
from typing import Any

from dynamic.bundle.golden_vectors.close_calls import CLOSE, CheckedPolicy, CloseCalls
from dynamic.bundle.golden_vectors.kinds import Kind
from dynamic.policies.budget import PRIORITY, Budget
from dynamic.policies.control.budget_policy import BudgetState
from dynamic.policies.decision import Decision, Feedback
from dynamic.policies.frontier import SPREADS, Frontier
from dynamic.policies.snapshot import Snapshot

_SENSORS = ("cpu_load", "cpu_cores", "memory_process_mb", "battery", "temperature_c")
_POLICY = CheckedPolicy()

_MOST_REJECTED = 1000  # in a row: what lies on a limit is then the state itself, and no later case would differ


def sequence(frontier: Frontier, random: Random, kind: Kind) -> Iterator[dict[str, Any]]:
    """Cases on one device, one after another, under budgets that change sometimes. The device lacks some sensors."""
    state, slower = _POLICY.initial(), random.lognormvariate(0.2, 0.5)
    missing: dict[str, Any] = dict.fromkeys(name for name in _SENSORS if not kind.limits and random.random() < 0.25)
    last, now, easy, cases = None, Snapshot(0.0), True, 0
    rejected = 0  # in a row
    while rejected < _MOST_REJECTED:
        # sometimes the clock is set back
        time_s = round(state.device.time_s + random.choice(kind.steps_s), 1)
        turns = cases <= 0
        new = replace(_readings(frontier, state, random, kind, not easy) if turns else now, time_s=time_s, **missing)
        asked = last if last and random.random() > kind.budget else _budget(frontier, state, new, random, kind)
        snapshot = new
        if random.random() < 0.2:
            waited_ms = _short(random.uniform(0.0, 1.0) * (asked.latency_ms or asked.deadline_ms or 1.0))
            queue: dict[str, Any] = {
                "waited_ms": random.choice([None, waited_ms]),
                "queue_length": random.choice([None, 0, 1, 2]),
            }
            snapshot = replace(new, **queue, servers=random.choice([None, None, 2]))
        CloseCalls.close = False
        decision, after = _POLICY.decide(frontier, asked, snapshot, state)
        if CloseCalls.close or any(0 < abs(after.device.spread - spread) <= CLOSE for spread in SPREADS):
            rejected += 1
            continue
        rejected = 0
        case: dict[str, Any] = {} if asked == last else {"budget": _differences(asked, Budget())}
        case |= {"snapshot": _differences(snapshot, Snapshot(0.0)), "decision": _answer(decision)}
        easy, cases = easy != turns, cases - 1
        if turns:
            cases = (
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
            expected_ms = frontier.path_ms(decision.point, stage, rows=rows)
            # mostly near the expected time, sometimes stalled, or too short for the clock
            jump = random.choices([1.0, 30.0, 0.02, 0.0], [88, 6, 4, 2])[0]
            took_ms = _short(expected_ms * slower * jump * random.lognormvariate(0.0, 0.2))
            # an alarm lasts until the test is restarted
            drift = random.random() < (0.7 if state.device.drift else 0.02 if kind.limits else 0.2)
            case["feedback"] = {"stage": stage, "latency_ms": took_ms, "drift": drift}
            state = _POLICY.observe(
                state, Feedback(decision.point, [stage], [rows], [took_ms], [expected_ms], threads, snapshot, drift)
            )
        yield case


def _budget(frontier: Frontier, state: BudgetState, snapshot: Snapshot, random: Random, kind: Kind) -> Budget:
    """A budget with limits near the figures of some point, where policies differ."""
    device, rows, percentile = state.device, snapshot.rows or 1, random.choice([0.95, 0.95, None])

    points = [p.operating_point for p in frontier.points]

    def near(figures: Iterable[float]) -> float:
        far = random.uniform(1.0, 1.25) if kind.steady or random.random() < 0.6 else random.uniform(0.6, 2.5)
        return random.choice(sorted(figures)[len(points) // 3 if kind.steady else 0 :]) * far

    drops = [p.promised_drop for p in points]
    limits = {
        "latency_ms": near(frontier.latency_ms(percentile, rows, spread=device.spread)) * device.slowdown,
        "deadline_ms": near(frontier.first_answer(rows).figures) * device.slowdown,
        "memory_mb": (device.base_mb or 80.0) + device.excess_mb + near(p.memory_mb for p in frontier.points),
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


def _readings(frontier: Frontier, state: BudgetState, random: Random, kind: Kind, easy: bool) -> Snapshot:
    """Readings that follow those of the state. Each is sometimes missing. `easy` matters where the kind is steady."""
    device, costs = state.device, frontier.costs

    def reading(value: Any, missing: float = 0.1 if kind.limits else 0.3) -> Any:
        return None if random.random() < missing else value

    used_mb = (
        80.0 + sum(costs.memory_mb[b] for b in device.resident) + random.choice([0.0, random.uniform(-20.0, 50.0)])
    )
    room_mb = random.choice(frontier.points).memory_mb * random.choice([random.uniform(0.1, 2.5), 0.2, 20.0])
    battery = max(0.05, (device.battery or random.uniform(0.3, 0.9)) - random.choice([0.0, 0.004, 0.01, 0.01, 0.02]))
    battery += random.choice([0.01, 0.1]) if battery < 0.8 and random.random() < 0.06 else 0.0
    temperature_c = (device.temperature_c or 60.0) + random.uniform(-4.0, 4.0)
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


def _differences(value: Budget | Snapshot, default: Budget | Snapshot) -> dict[str, Any]:
    """The fields that differ from the default."""
    fields = {name: field for name, field in vars(value).items() if field != getattr(default, name)}
    return {name: list(field) if isinstance(field, tuple) else field for name, field in fields.items()}


def _short(value: float) -> float:
    """The value with four digits, so that the file is small and a case is readable."""
    return float(f"{value:.4g}")
