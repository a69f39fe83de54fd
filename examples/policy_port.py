"""The policy as the model for a port to Kotlin, Swift or C++: standard library only, nothing read but a bundle's JSON.

    python examples/policy_port.py shelf/ latency_ms=20 max_drop=0.01

counts the golden cases it answers as written, and says what the budget gets on each machine profiled, not why.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

Json = dict[str, Any]
_TO_SPARE = 0.9  # of the latency limit: what a point dearer than the current one must fit
_DRIFT, _NOISE, _FARTHEST = 0.01, 0.09, 2.0  # slowdown: variance gained between requests, of one; clip in deviations
_NO_LIMITS = dict.fromkeys(("latency_ms", "deadline_ms", "memory_mb", "battery_floor", "max_drop"))
_BUDGET: Json = _NO_LIMITS | {"percentile": 0.95, "on_drift": "safest"}
_KEPT = dict.fromkeys(("cpu_load", "cpu_cores", "battery", "plugged", "memory_available_mb"))
_CASE: Json = {"budget": {}, "snapshot": {}, "decision": {}, "feedback": {}}
_START = _KEPT | {"base_mb": None, "resident": set(), "current": None, "drift": False, "mean": 0.0, "variance": _NOISE}


def full(given: Json, defaults: Json) -> Json:
    if unknown := given.keys() - defaults.keys():
        raise ValueError(f"unknown to this port: {sorted(unknown)}")
    return defaults | given


def decide(device: Json, asked: Json, snapshot: Json, state: Json) -> Json:
    budget, seen = full(asked, _BUDGET), full(snapshot, _KEPT | {"memory_process_mb": None, "rows": None})
    state |= {name: seen[name] for name in _KEPT if seen[name] is not None}  # a silent sensor changes nothing
    state["base_mb"] = state["base_mb"] or seen["memory_process_mb"]  # the first reading: before any model was loaded
    left, gave_way, at = device["points"], list[str](), device["batch"].index(seen["rows"] or 1)
    ms = {p["name"]: p[{0.95: "p95_ms", None: "mean_ms"}[budget["percentile"]]][at] for p in left}
    load, cores = state["cpu_load"], state["cpu_cores"]
    crowd = 1.0 if load is None or not cores else max(1.0, (load * cores + device["threads"]) / cores)

    def keep(name: str, need: Any, share: Any = lambda p: 1) -> list[Json]:
        fitting = [p for p in left if budget[name] is None or need(p) <= budget[name] * share(p)]
        gave_way.extend([] if fitting else [name])
        return fitting or [p for p in left if need(p) == min(map(need, left))]

    left = keep("memory_mb", lambda p: (state["base_mb"] or -math.inf) + p["memory_mb"])  # not known: no limit
    if state["memory_available_mb"] is not None:
        room = state["memory_available_mb"] + sum(device["memory_mb"][b] for b in state["resident"])
        left = [p for p in left if p["memory_mb"] <= room] or [min(left, key=lambda p: p["memory_mb"])]
    if None not in (budget["battery_floor"], state["battery"]) and not state["plugged"]:
        left = left if state["battery"] > budget["battery_floor"] else [min(left, key=lambda p: p["cpu_ms"][0])]
    slow, now = math.exp(state["mean"]) * crowd, sum(ms[p["name"]] for p in left if p["name"] == state["current"])
    left = keep("latency_ms", lambda p: ms[p["name"]] * slow, lambda p: _TO_SPARE if ms[p["name"]] > now > 0 else 1)
    left = keep("max_drop", lambda p: p["promised_drop"])  # where it is given the cheapest runs, else the most accurate
    if state["drift"] and budget["on_drift"] == "safest":  # of equals the first: the reference
        left = [min(left, key=lambda p: p["promised_drop"])]
    best = min(left, key=lambda p: (-p["accuracy"] if budget["max_drop"] is None else 0, p["mean_ms"][0]))
    state["resident"] = {*best["backbones"], *(state["resident"] if budget["memory_mb"] is None else ())}
    state |= {"current": best["name"], "expected_ms": [stage[at] * crowd for stage in best["path_ms"]]}
    return {"point": best["name"], "feasible": not gave_way, "gave_way": gave_way}


def observe(state: Json, stage: int = 0, latency_ms: float = 0.0, drift: bool | None = None) -> None:
    state["drift"] = state["drift"] if drift is None else drift
    if latency_ms > 0 and state["expected_ms"][stage] > 0:
        variance = state["variance"] + _DRIFT
        gain, most = variance / (variance + _NOISE), _FARTHEST * math.sqrt(variance + _NOISE)
        surprise = math.log(latency_ms / state["expected_ms"][stage]) - state["mean"]
        state |= {"mean": state["mean"] + gain * max(-most, min(most, surprise)), "variance": (1 - gain) * variance}


if __name__ == "__main__":
    shelf, budget = Path(sys.argv[1]), {k: json.loads(v) for k, v in (word.split("=") for word in sys.argv[2:])}
    golden, same = json.loads((shelf / "golden.json").read_text()), list[bool]()
    for sequence in golden["sequences"]:
        device, state = golden["devices"][sequence["device"]], dict(_START)
        for case in (full(c, _CASE) for c in sequence["cases"]):
            same.append(decide(device, case["budget"], case["snapshot"], state) == case["decision"])
            observe(state, **case["feedback"])
    print(f"{sum(same)} of {len(same)} golden cases as written")
    for path in sorted(shelf.glob("costs/*.json")):
        print(path.stem, *decide(json.loads(path.read_text())["frontier"], budget, {}, dict(_START)).values())
