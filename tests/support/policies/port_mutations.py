"""Faults that a port of the policy may have, as replacements in `examples/policy_port.py`, and who notices them.

`python tests/support/policies/port_mutations.py` searches the seeds for `dynamic/bundle/golden_vectors/kinds.py` with
which the cases notice most faults. A thousand cases cannot show some faults, which are left out: the tolerances
(`_TOLERANCE_MB`, `_TOLERANCE`, `_SMALLEST`), a delay that is halved after many calm requests, the bounds of delay and
cooldown, a cooldown that ends when the clock is set back, and the end of a battery's time.
"""

import json
import sys
from itertools import islice
from pathlib import Path
from random import Random
from types import CodeType
from typing import Any

PORT = Path(__file__).resolve().parents[3] / "examples" / "policy_port.py"
MUTATIONS = [
    ("_PRESSED = 0.9, ", "_PRESSED = 1.0, "),
    ("_PRESSED = 0.9, ", "_PRESSED = 0.93, "),
    ("max(most * share, need(now))", "most * share"),
    ("32.0, 0.1  #", "24.0, 0.1  #"),
    ("32.0, 0.1  #", "32.0, 0.04  #"),
    ("32.0, 0.1  #", "32.0, 0.5  #"),
    ('max(used_mb - sum(device["memory_mb"][b] for b in state["resident"]), 0.0)', "used_mb"),
    ("- networks, fades", ", fades"),
    ("fades * state", "0.0 * state"),
    ("0.9 if now_s > state", "1.0 if now_s > state"),
    ("0.9 if now_s > state", "0.9 if now_s != state"),
    ("not 0 <= now_s", "not 5 <= now_s"),
    ("< 1.0\n", "< 0.15\n"),
    ("< 1.0\n", "< 3.0\n"),
    ('(state["base_mb"] or 0.0) + state["excess_mb"]', '(state["base_mb"] or 0.0)'),
    (' - p["accuracy"]))', "))"),
    ('keep("cpu_ms", lambda p: p["cpu_ms"], budget["cpu_ms"])', "pass"),
    ('if budget["energy_mj"] is not None and points', "if False and points"),
    ("_SHARE, other)", "_SHARE)"),
    ("+ _TOLERANCE_MB, beside=other", "+ _TOLERANCE_MB"),
    ("here + 1e-3 if", "here + 50.0 if"),
    ("_RESERVE_MB + here, most), _SHARE", "_RESERVE_MB + here, most)"),
    ("_RESERVE_MB + here, most)", "_RESERVE_MB, most)"),
    ("_RESERVE_MB or is_short", "_RESERVE_MB"),
    ("free_mb < _RESERVE_MB or", "free_mb < 0 or"),
    ('return None if budget["memory_mb"] is None else needed', "return None"),
    ('return None if budget["memory_mb"] is None else needed', "return needed"),
    ('- state["excess_mb"], set(needed)', ", set(needed)"),
    ('in sorted(state["resident"] - needed, key', 'in sorted(state["resident"] - needed, reverse=True, key'),
    ('state["resident"] | set(point["backbones"]) if', 'set(point["backbones"]) if'),
    ('"loaded_s": state["time_s"]}', "}"),
    ("= 16, 4096", "= 15, 4096"),
    ("= 16, 4096", "= 17, 4096"),
    ("4096, 8, 32", "4096, 1, 32"),
    ('min(2 * state["needed"], _LATEST)', 'state["needed"]'),
    ('"current": None, "cooldown_s"', '"cooldown_s"'),
    (' and excluded_by not in ("battery", "temperature")\n', "\n"),
    ('current, state["better"] + 1\n', 'current, state["better"] + 2\n'),
    ('        state["better"] = 0\n', ""),
    ('state |= {"better": 0, "since": 0, ', 'state |= {"better": 0, '),
    ('{"needed": needed, "better": 0, "since": _PREMATURE * needed}', '{"needed": needed, "better": 0, "since": 0}'),
    ("_SOON = 30.0,", "_SOON = 15.0,"),
    ("_SOON = 30.0,", "_SOON = 45.0,"),
    ('min(2 * state["cooldown_s"], _LONGEST_S)', 'state["cooldown_s"]'),
    ("effort(p) < effort_limit", "effort(p) <= effort_limit"),
    ("effort(p) < effort_limit", "True"),
    ("effort(p) < effort_limit] or points)", "effort(p) < effort_limit and p in points] or points[:1])"),
    (', "upgrade_s": state["time_s"]}', "}"),
    ('"cooldown_effort": effort(current)}', '"cooldown_effort": effort(base)}'),
    ('if excluded_by in ("battery", "temperature"):', 'if excluded_by == "battery":'),
    ('if excluded_by in ("battery", "temperature"):', 'if excluded_by == "temperature":'),
    ('if readings["waited_ms"] or readings["queue_length"]:', "if False:"),
    ('if readings["waited_ms"] or readings["queue_length"]:', 'if readings["waited_ms"]:'),
    ('if readings["waited_ms"] or readings["queue_length"]:', 'if readings["queue_length"]:'),
    ('state |= {"current": base, "point": point}', 'state |= {"current": point, "point": point}'),
    ("base if base in points else best(", "best("),
    ("if wait else 0.0", "if True else 0.0"),
    ("if wait else 0\n", "if True else 0\n"),
    (' / (readings["servers"] or 1) + 1)', " + 1)"),
    (" / slow / (behind / (readings", " / slow / (2 * behind / (readings"),
    ("/ slow / (behind", "/ (behind"),
    ('served or [min(points, key=lambda p: p["mean_ms"][at])]', "served or points"),
    ('if p["mean_ms"][at] <= most]', 'if p["mean_ms"][0] <= most]'),
    ('budget["max_drop"] is not None or budget["min', 'budget["max_drop"] is None or budget["min'),
    (' or budget["min_accuracy"] is not None\n', "\n"),
    ('-p["accuracy"], p["mean_ms"][0])', '-p["accuracy"], 0.0)'),
    ('-p["accuracy"], p["mean_ms"][0])', '-p["accuracy"], p["mean_ms"][-1])'),
    ('keep("max_drop", lambda p: p["promised_drop"], budget["max_drop"], beside=None)', "pass"),
    ('keep("min_accuracy", lambda p: -p["accuracy"], -budget["min_accuracy"], beside=None)', "pass"),
    ('state["drift"] and budget["on_drift"] == "safest"', 'budget["on_drift"] == "safest"'),
    ('state["drift"] and budget["on_drift"] == "safest"', 'state["drift"]'),
    ('[min(points, key=lambda p: float(p["promised_drop"]))]', 'least(lambda p: p["promised_drop"])'),
    ('key=lambda p: float(p["promised_drop"]))', 'key=lambda p: (p["promised_drop"], -p["accuracy"]))'),
    ('state |= {"drift": given["drift"], ', 'state |= {"drift": state["drift"] or given["drift"], '),
    ("if readings[name] is not None}", "}"),
    ('"percentile": 0.95', '"percentile": None'),
    ('"on_drift": "safest", ', '"on_drift": "report", '),
    ('for name in budget["priority"]:', "for name in _PRIORITY:"),
    ('[*budget["priority"], *(', "[*("),
    ("violated_limits.extend([field] if field and not fits else [])", ""),
    ("if need(p) == min(map(need, points))", ""),
    ("need(p) <= most and", "need(p) < most and"),
    ('readings["rows"] or 1)', "1)"),
    ("load is None or not cores", "True"),
    ("1.0 if pressure is None else", "1.0 if True else"),
    ("min(pressure, 0.9)", "min(pressure, 0.5)"),
    ("max(cores, load * cores", "max(0.0, load * cores"),
    (') / max(cores, device["threads"])', ") / cores"),
    ('math.exp(state["mean"]) *', "1.0 *"),
    ("_RUN = 0.001,", "_RUN = 0.01,"),
    ("2.0, 4\n", "2.0, 3\n"),
    ("2.0, 4\n", "2.0, 5\n"),
    ('max(state["variance"], noise)) + _DRIFT', 'state["variance"]) + _DRIFT'),
    ("if off * off <= noise else", "if off * off <= _NOISE else"),
    ('if side * state["run"] > 0 else side', "if side else 0"),
    ("_RUN = 0.001, 0.09, 2.0,", "_RUN = 0.001, 0.12, 2.0,"),
    ("_RUN = 0.001, 0.09, 2.0,", "_RUN = 0.001, 0.09, 3.0,"),
    ("max(-most, min(most, off)), ", "min(most, off), "),
    ('"variance": (1 - gain) * variance', '"variance": variance'),
    ("[at] * contention(device, state)", "[at]"),
    ("1 / 32 *", "1 / 16 *"),
    ("max(-2.0, min(2.0, off)) ** 2", "max(-2.0, off) ** 2"),
    ("if s >= math.sqrt", "if s > 0.4 + math.sqrt"),
    ('math.sqrt(state["scatter"])), -1)', "0.0), -1)"),
    ('most = (budget["deadline_ms"] - waited_ms) / slow', 'most = budget["deadline_ms"] / slow'),
    ('most = (budget["deadline_ms"] - waited_ms) / slow', 'most = budget["deadline_ms"] - waited_ms'),
    ('p["first_ms"][at], most, _SHARE', "ms(p), most, _SHARE"),
    ('p["first_ms"][at], most, _SHARE', 'p["first_ms"][at], most'),
    ("[p for p in points if ms(p) <= most] or points", "points"),
    ("[p for p in points if ms(p) <= most] or points", "[p for p in points if ms(p) <= most] or least(ms)"),
    ('(budget["latency_ms"] - waited_ms) / slow, _SHARE', 'budget["latency_ms"] / slow, _SHARE'),
    ('(budget["latency_ms"] - waited_ms) / slow, _SHARE', '(budget["latency_ms"] - waited_ms) / slow'),
    ('keep("energy_mj", effort, budget["energy_mj"])', "pass"),
    ('keep("energy_mj", effort, budget["energy_mj"])', 'keep("energy_mj", effort, budget["energy_mj"], _SHARE)'),
    ('point["cpu_ms"] if point["energy_mj"] is None else point["energy_mj"]', 'point["cpu_ms"]'),
    (' and not state["plugged"]:', ":"),
    ('state["battery"] <= floor', 'state["battery"] < floor'),
    ("- (floor or 0.0)", ""),
    ("_STEP, _AIM, _FORGET, _GIVEN, _RATE_S = 0.01, 0.02", "_STEP, _AIM, _FORGET, _GIVEN, _RATE_S = 0.02, 0.02"),
    ("0.02, 0.9, 3.0, 1800.0", "0.1, 0.9, 3.0, 1800.0"),
    ("0.02, 0.9, 3.0, 1800.0", "0.02, 0.5, 3.0, 1800.0"),
    ("0.02, 0.9, 3.0, 1800.0", "0.02, 0.9, 1.0, 1800.0"),
    ("0.02, 0.9, 3.0, 1800.0", "0.02, 0.9, 3.0, 100.0"),
    ('    if state["plugged"]:\n', "    if False:\n"),
    ('"edge_s": now_s, "edge": battery, "effort": state["effort"], "whole": False}', '"whole": False}'),
    ('or pacer["battery_duration_s"] != battery_duration_s', ""),
    (
        'for name in ("start_s", "edge_s", "rate_s", "time_s", "read_s")',
        'for name in ("edge_s", "rate_s", "time_s", "read_s")',
    ),
    (
        'dict(pacer | {name: pacer[name] + back for name in ("start_s", "edge',
        'dict(pacer or {name: pacer[name] + back for name in ("start_s", "edge',
    ),
    ('< 0.5 and battery == pacer["edge"]', "< 0.5"),
    ("_STEP / 2,", "_STEP * 2,"),
    ("- _STEP + 1e-9\n", "- _STEP / 10\n"),
    (' if down and pacer["whole"] and exact:', " if down and exact:"),
    ('"whole": down and exact}', '"whole": True}'),
    ("max(30.0, 0.2 * passed_s)", "3000.0"),
    ('now_s if fresh else pacer["read_s"]', "now_s"),
    ("if up or down:", "if down:"),
    ("if passed_s >= 2.0:", "if passed_s >= 0.0001:"),
    ("now_hz if old_hz is None else old_hz + weight * (now_hz - old_hz)", "now_hz"),
    (' / (now_s - pacer["start_s"]))', " / _RATE_S)"),
    ("(1 - (1 - _FORGET) * weight)", "(2 - _FORGET)"),
    ("> 0.01 * mean_e * mean_e", "> 0.5 * mean_e * mean_e"),
    ("slope if 0 < slope < steepest else steepest", "slope"),
    ("slope if 0 < slope < steepest else steepest", "steepest"),
    ("max(mean_d - slope * mean_e, 0.0), slope", "mean_d - slope * mean_e, slope"),
    ("0.0 if spare <= 0 else", ""),
    ("lasts_s < 0.95 *", "lasts_s < 0.8 *"),
    ("lasts_s < 0.95 *", "lasts_s < 1.0 *"),
    ('state["count"] + rows', 'state["count"] + 1'),
    ('effort(state["point"]) * rows', 'effort(state["point"])'),
    ('effort(state["point"]) * rows', 'effort(state["current"]) * rows'),
    ("_SMOOTH_S = 4.0,", "_SMOOTH_S = 3.0,"),
    ("_SMOOTH_S = 4.0, 20.0,", "_SMOOTH_S = 4.0, 10.0,"),
    ("20.0, 10.0  # cool", "20.0, 5.0  # cool"),
    ('max(_NOISE, state["scatter"])', "_NOISE"),
    ("if now_s - at_s < 0.5:", "if now_s - at_s < 0.05:"),
    ("(now_s, old_c, slope_c) if now_s < at_s else before", "before"),
    ('if state["throttled"] or over else', "if over else"),
    ('if state["throttled"] or over else', 'if state["throttled"] else'),
    ("and now_c > before[1]:", "and False:"),
    ("low + share * (high - low) if share < 1.0", "low + share * high if share < 1.0"),
    (
        "low + share * (high - low) if share < 1.0 else math.inf, _SHARE",
        "low + share * (high - low) if share < 1.0 else math.inf",
    ),
    ("if share < 1.0 else math.inf", "if share < 0.8 else math.inf"),
    ('min(map(effort, device["points"])), max', "min(map(effort, points)), max"),
    ('["temperature_c"] if over or now_c', '["temperature_c"] if True or now_c'),
    ('["temperature_c"] if over or now_c', '["temperature_c"] if now_c'),
]


def mutated(old: str, new: str) -> str:
    """The port with one thing wrong."""
    text = PORT.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"the port has changed, and its mutations with it: {old}"
    return text.replace(old, new)


def noticed(port: str | CodeType, devices: dict[str, Any], sequence: dict[str, Any]) -> bool:
    """Whether a sequence has a case that a port answers otherwise than is written."""
    names: dict[str, Any] = {"__name__": "port"}
    exec(port, names)
    device, state, budget = devices[sequence["device"]], names["_START"] | {"resident": set()}, dict[str, Any]()
    for case in sequence["cases"]:
        budget = case.get("budget", budget)
        try:
            if names["decide"](device, budget, case["snapshot"], state) != case["decision"]:
                return True
            if "feedback" in case:
                names["observe"](device, state, case["feedback"], case["snapshot"])
        except (ArithmeticError, LookupError, TypeError, ValueError):
            return True
    return False


def _search(seeds: int) -> None:
    from dynamic.bundle.golden_vectors import cases, kinds
    from dynamic.bundle.golden_vectors.devices import LADDER, frontiers
    from dynamic.bundle.golden_vectors.figures import figures
    from dynamic.policies.frontier import Frontier

    made_up = ("made up", "unmetered")
    ready = frontiers(LADDER)
    pool = [(name, kind, seed) for name in made_up for kind, _ in kinds.SEEDS[name] for seed in range(seeds)]
    devices = {name: figures(ready[name]) for name in made_up}

    def drawn(frontier: Frontier, kind: Any, seed: int) -> Any:
        requests = islice(cases.sequence(frontier, Random(f"0 {seed}"), kind), kind.cases)
        return json.loads(json.dumps(list(requests)))

    sequences = [{"device": name, "cases": drawn(ready[name], kind, seed)} for name, kind, seed in pool]
    assert not any(noticed(PORT.read_text(encoding="utf-8"), devices, s) for s in sequences)
    ports = [compile(mutated(*mutation), "port", "exec") for mutation in MUTATIONS]
    found: list[set[Any]] = [{m for m, port in enumerate(ports) if noticed(port, devices, s)} for s in sequences]
    for f, s in zip(found, sequences, strict=True):  # and each limit must be violated
        f |= {limit for case in s["cases"] for limit in case["decision"]["violated_limits"]}
    wanted = set().union(*found)
    for m, mutation in enumerate(MUTATIONS):
        if sum(m in f for f in found) < 3:
            print("seldom noticed:", mutation, sum(m in f for f in found))
    long = sorted({kind.cases for _, kind, _ in pool})
    sizes = [[q for q, (_, kind, _) in enumerate(pool) if kind.cases == count] for count in long]
    counts = [
        sum(len(own) for name in made_up for kind, own in kinds.SEEDS[name] if kind.cases == count) for count in long
    ]

    def missing(chosen: list[int]) -> int:
        times = [sum(m in found[q] for q in chosen) for m in wanted]
        return sum(20 if n == 0 else n == 1 for n in times)

    best: tuple[int, list[int]] = (sys.maxsize, [])
    for start in range(40):
        random = Random(start)
        chosen = [q for size, count in zip(sizes, counts, strict=True) for q in random.sample(size, count)]
        now, idle = missing(chosen), 0
        while idle < 1000:
            place = random.randrange(len(chosen))
            other = random.choice(next(size for size in sizes if chosen[place] in size))
            tried = [*chosen[:place], other, *chosen[place + 1 :]]
            idle += 1
            if other not in chosen and (score := missing(tried)) <= now:
                chosen, now, idle = tried, score, idle if score == now else 0
        best = min(best, (now, chosen))
    unnoticed = wanted - set().union(*(found[q] for q in best[1]))
    print("not noticed:", [MUTATIONS[m] if isinstance(m, int) else m for m in unnoticed])
    names = {id(kind): name for name, kind in vars(kinds).items() if isinstance(kind, kinds.Kind)}
    for device, kind, seed in sorted((name, names[id(kind)], seed) for name, kind, seed in (pool[q] for q in best[1])):
        print(device, kind, seed)


if __name__ == "__main__":
    _search(int(sys.argv[1]) if len(sys.argv) > 1 else 24)
