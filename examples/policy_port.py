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
_SPARE, _RESERVE_MB, _PRESSED = 0.9, 32.0, 0.1  # what a point dearer than the current one must fit; see `memory`
_TELLS_MB, _TELLS, _LEAST = 0.5, 0.01, 1e-9  # what is too little for another point; of what is divided by
# slowdown: variance gained between requests, of one; clip in deviations; off in a row to one side
_DRIFT, _NOISE, _FARTHEST, _RUN = 0.001, 0.09, 2.0, 4
_SOONEST, _LATEST, _PREMATURE, _CALM = 16, 4096, 8, 32  # requests that a better point must last, and multiples of them
_STEP, _AIM, _FORGET, _GIVEN, _RATE_S = 0.01, 0.02, 0.9, 3.0, 1800.0  # pacing a battery
_BAND_C, _AHEAD_S, _SMOOTH_S = 4.0, 20.0, 10.0  # cooling
_PAUSE_S, _SHORTEST_S, _LONGEST_S, _SOON = 30.0, 300.0, 1200.0, 4  # how long it is not undone
_PRIORITY = ["memory", "deadline", "battery", "temperature", "latency", "energy", "drop"]
_BUDGET: Json = {"percentile": 0.95, "on_drift": "safest", "priority": _PRIORITY} | dict.fromkeys(
    [
        "latency_ms",
        "deadline_ms",
        "energy_mj",
        "memory_mb",
        "battery_floor",
        "battery_duration_s",
        "temperature_c",
        "max_drop",
        "min_accuracy",
        "cpu_ms",
    ]
)
_KEPT = ["cpu_load", "cpu_cores", "cpu_pressure", "memory_pressure", "memory_available_mb"]
_KEPT += ["battery", "battery_mwh", "plugged", "throttled"]
_SEEN: Json = dict.fromkeys([*_KEPT, "temperature_c", "memory_process_mb", "rows", "waited_ms", "queue_length"])
_SEEN |= {"time_s": 0.0, "servers": None}
_START: Json = dict.fromkeys(
    [*_KEPT, "base_mb", "current", "budget", "pace", "cooling", "since", "temperature_c", "last"]
)
_START |= {
    "run": 0,
    "mean": 0.0,
    "variance": _NOISE,
    "scatter": 0.0,
    "drift": False,
    "resident": set(),
    "excess_mb": 0.0,
}
_START |= {"loaded_s": 0.0, "effort": 0.0, "count": 0, "time_s": 0.0}

_START["everything"] = True


def full(given: Json, defaults: Json) -> Json:
    if unknown := given.keys() - defaults.keys():
        raise ValueError(f"unknown to this port: {sorted(unknown)}")
    return defaults | given


def effort(point: Json) -> float:
    return float(point["cpu_ms"] if point["energy_mj"] is None else point["energy_mj"])


def decide(device: Json, asked: Json, snapshot: Json, state: Json) -> Json:
    budget, seen = full(asked, _BUDGET), full(snapshot, _SEEN)
    budget["priority"] = [*budget["priority"], *(name for name in _PRIORITY if name not in budget["priority"])]
    look(device, budget, seen, state)
    if budget != state["budget"]:  # a new budget is followed at once
        state |= {"budget": budget, "current": None, "rest_s": _SHORTEST_S}
        state |= {"backed_s": -math.inf, "up_s": -math.inf, "too_much": math.inf}
        state |= {"needed": _SOONEST, "better": 0, "since": _SOONEST * _PREMATURE}
    left, violated_limits, lost_to = sift(device, budget, seen, state, wait=False)
    fastest = budget["max_drop"] is not None or budget["min_accuracy"] is not None

    def best(of: list[Json]) -> Json:
        return min(of, key=lambda p: (0 if fastest else -p["accuracy"], p["mean_ms"][0]))

    current, rested_s, state["since"] = state["current"], state["time_s"] - state["backed_s"], state["since"] + 1
    barred = state["too_much"] if current is not None and 0 < rested_s < state["rest_s"] else math.inf
    base = best([p for p in left if effort(p) < barred] or left)
    if current is base:
        state["better"] = 0
        if state["needed"] > _SOONEST and state["since"] >= _CALM * state["needed"]:
            state |= {"needed": state["needed"] // 2, "since": _PREMATURE * state["needed"] // 2}
    elif current is not None and current not in left:  # it will not do any more, soon after it came: wait longer
        soon = state["since"] - 1 < _PREMATURE * state["needed"] and lost_to not in ("battery", "temperature")
        needed = min(2 * state["needed"], _LATEST) if soon else state["needed"]
        state |= {"needed": needed, "better": 0, "since": _PREMATURE * needed}
        if lost_to in ("battery", "temperature"):
            soon = 0 <= state["time_s"] - state["up_s"] < _SOON * state["rest_s"]
            rest_s = min(2 * state["rest_s"], _LONGEST_S) if soon else max(state["rest_s"] / 2, _SHORTEST_S)
            state |= {"rest_s": rest_s, "backed_s": state["time_s"], "too_much": effort(current)}
    elif current is not None and 0 < rested_s < _PAUSE_S:
        base, state["since"] = current, state["since"] - 1
    elif current is not None and state["better"] + 1 < state["needed"]:
        base, state["better"] = current, state["better"] + 1
    elif current is not None:
        state |= {"better": 0, "since": 0, "up_s": state["time_s"]}
    else:
        state["since"] -= 1
    point = base
    if seen["waited_ms"] or seen["queue_length"]:  # for this request alone
        left, violated_limits, _ = sift(device, budget, seen, state, wait=True)
        point = base if base in left else best([p for p in left if {*p["backbones"]} <= state["resident"]] or left)
    resident = stay(device, budget, set(point["backbones"]), state)
    there = state["resident"] | set(point["backbones"]) if resident is None else resident
    if there != state["resident"] or (resident is None) != state["everything"]:
        state |= {"resident": there, "everything": resident is None, "loaded_s": state["time_s"]}
    state |= {"current": base, "point": point}
    answer = {"point": point["name"], "feasible": not violated_limits, "violated_limits": violated_limits}
    return answer | {"keep_loaded": None if resident is None else sorted(resident)}


def look(device: Json, budget: Json, seen: Json, state: Json) -> None:
    # a silent sensor: no change
    state |= {name: seen[name] for name in [*_KEPT, "temperature_c"] if seen[name] is not None}
    last, state["last"] = state["last"], seen
    still = last is not None and last["time_s"] == seen["time_s"]  # a clock that stands
    battery, now_s, used_mb = state["battery"], seen["time_s"], seen["memory_process_mb"]
    fades, state["time_s"] = 0.9 if now_s > state["time_s"] else 1.0, now_s
    if state["base_mb"] is None and used_mb is not None:  # mostly before any network was loaded
        state["base_mb"] = max(used_mb - sum(device["memory_mb"][b] for b in state["resident"]), 0.0)
    settled = (still and used_mb != last["memory_process_mb"]) or not 0 <= now_s - state["loaded_s"] < 1.0
    if budget["memory_mb"] is not None and used_mb is not None and settled:
        networks = sum(device["memory_mb"][b] for b in state["resident"])
        state["excess_mb"] = max(used_mb - state["base_mb"] - networks, fades * state["excess_mb"], 0.0)
    if budget["battery_duration_s"] is None:
        state["pace"] = None
    elif battery is not None:
        state["pace"] = pace(device, budget["battery_duration_s"], battery, seen["battery"] is not None, state)
    if budget["temperature_c"] is None:
        state["cooling"] = None
    elif (now_c := seen["temperature_c"]) is not None:
        before = state["cooling"] or (now_s, now_c, 0.0)
        if still and now_c != last["temperature_c"] and now_c > before[1]:  # hotter, and nothing to average over
            before = now_s, now_c, before[2]
        state["cooling"] = cool(before, now_s, now_c)


def pace(device: Json, battery_duration_s: float, battery: float, fresh: bool, state: Json) -> Json:
    now_s, kept, known = state["time_s"], state["pace"], dict[str, float | None](idle=None, per_effort=None)
    if state["battery_mwh"] and battery > 0:
        whole_mj = state["battery_mwh"] / battery * 3600
        known["idle"] = None if device["idle_mw"] is None else device["idle_mw"] / whole_mj
        known["per_effort"] = None if device["points"][0]["energy_mj"] is None else 1 / whole_mj
    if kept is None or kept["battery_duration_s"] != battery_duration_s:
        kept = {
            "battery_duration_s": battery_duration_s,
            "start_s": now_s,
            "edge": battery,
            "whole": False,
            "rate_hz": None,
            "sums": [0.0] * 5,
        }
        kept |= {"edge_s": now_s, "rate_s": now_s, "time_s": now_s, "effort": state["effort"], "count": state["count"]}
        kept |= known | {"read_s": now_s}
    if state["plugged"]:
        back = min(now_s - kept["time_s"], 0.0)
        kept = kept | {"time_s": now_s, "edge_s": now_s, "edge": battery, "effort": state["effort"], "whole": False}
        return dict(kept | {name: kept[name] + back for name in ("start_s", "rate_s")} | {"read_s": now_s})
    if now_s < kept["time_s"]:  # a clock that was set back
        back = now_s - kept["time_s"]
        return dict(kept | {name: kept[name] + back for name in ("start_s", "edge_s", "rate_s", "time_s", "read_s")})
    if now_s - kept["time_s"] < 0.5 and battery == kept["edge"]:
        return dict(kept)
    kept = kept | known | {"time_s": now_s}
    passed_s = now_s - kept["edge_s"]
    up, down = battery > kept["edge"] + _STEP / 2, battery <= kept["edge"] - _STEP + 1e-9
    exact = passed_s > 0 and now_s - kept["read_s"] <= max(30.0, 0.2 * passed_s)  # else nobody knows when it fell
    kept["read_s"] = now_s if fresh else kept["read_s"]
    if down and kept["whole"] and exact:
        e, d = (state["effort"] - kept["effort"]) / passed_s, (kept["edge"] - battery) / passed_s
        kept["sums"] = [_FORGET * a + b for a, b in zip(kept["sums"], (1.0, e, d, e * e, e * d), strict=True)]
    if up or down:
        kept |= {"edge_s": now_s, "edge": battery, "effort": state["effort"], "whole": down and exact}
    passed_s = now_s - kept["rate_s"]
    if passed_s >= 2.0:
        now_hz, old_hz = (state["count"] - kept["count"]) / passed_s, kept["rate_hz"]
        weight = max(1 - math.exp(-passed_s / _RATE_S), passed_s / (now_s - kept["start_s"]))
        kept["rate_hz"] = now_hz if old_hz is None else old_hz + weight * (now_hz - old_hz)
        kept |= {"rate_s": now_s, "count": state["count"]}
    return dict(kept)


def drain(kept: Json) -> tuple[float, float] | None:
    weight, e, d, ee, ed = kept["sums"]
    given = 0.0 if kept["idle"] is None else _GIVEN * (1 - (1 - _FORGET) * weight)
    if not weight + given:
        return None
    weight, d = weight + given, d + given * (kept["idle"] or 0.0)
    mean_e, mean_d, slope = e / weight, d / weight, kept["per_effort"]
    if slope is None:
        apart = ee / weight - mean_e * mean_e
        steepest = mean_d / mean_e if mean_e > 0 else 0.0
        slope = (ed / weight - mean_e * mean_d) / apart if apart > 0.01 * mean_e * mean_e else 0.0
        slope = slope if 0 < slope < steepest else steepest
    return max(mean_d - slope * mean_e, 0.0), slope


def cool(before: tuple[float, float, float], now_s: float, temperature_c: float) -> tuple[float, float, float]:
    at_s, old_c, slope_c = before
    if now_s - at_s < 0.5:
        return (now_s, old_c, slope_c) if now_s < at_s else before
    weight = 1 - math.exp(-(now_s - at_s) / _SMOOTH_S)
    now_c = old_c + weight * (temperature_c - old_c)
    return now_s, now_c, slope_c + weight * ((now_c - old_c) / (now_s - at_s) - slope_c)


def crowd(device: Json, state: Json) -> float:
    load, cores, pressure = state["cpu_load"], state["cpu_cores"], state["cpu_pressure"]
    if load is None or not cores:
        return 1.0 if pressure is None else 1.0 / (1.0 - min(pressure, 0.9))
    return float(max(cores, load * cores + device["threads"]) / max(cores, device["threads"]))


def sift(device: Json, budget: Json, seen: Json, state: Json, wait: bool) -> tuple[list[Json], list[str], str]:
    """The points that the limits leave, one limit after another; which gave way; which ruled out the current one."""
    left, violated_limits, at = device["points"], list[str](), device["batch"].index(seen["rows"] or 1)
    lost_to = ""
    now, slow = state["current"], math.exp(state["mean"]) * crowd(device, state)
    spread = next((i for i, s in enumerate(device["spreads"]) if s >= math.sqrt(state["scatter"])), -1)
    waited_ms = (seen["waited_ms"] or 0.0) if wait else 0.0

    def ms(p: Json) -> float:
        return float(p["mean_ms"][at] if budget["percentile"] is None else p["p95_ms"][spread][at])

    def least(need: Any) -> list[Json]:
        return [p for p in left if need(p) == min(map(need, left))]

    def nearest(need: Any, beside: float) -> list[Json]:  # one percent more must bring one point of accuracy
        low = min(map(need, left))
        whole = max(beside + low, _LEAST)
        worth = min(left, key=lambda p: float((beside + need(p)) / whole - p["accuracy"]))
        return [p for p in left if need(p) <= max(need(worth), low + _TELLS * whole)]

    def keep(field: str | None, need: Any, most: float, spare: float = 1.0, beside: float | None = 0.0) -> bool:
        nonlocal left
        fits = [p for p in left if need(p) <= most and (now is None or need(p) <= max(most * spare, need(now)))]
        violated_limits.extend([field] if field and not fits else [])
        left = fits or (least(need) if beside is None else nearest(need, beside))
        return bool(fits)

    def memory_mb(p: Json) -> float:
        return float(p["memory_mb"])

    for name in budget["priority"]:
        if name == "memory":
            other = (state["base_mb"] or 0.0) + state["excess_mb"]
            if budget["memory_mb"] is not None and state["base_mb"] is not None:
                keep("memory_mb", memory_mb, budget["memory_mb"] - other + _TELLS_MB, beside=other)
            if (free_mb := state["memory_available_mb"]) is not None:
                here = sum(device["memory_mb"][b] for b in state["resident"])
                most = here + 1e-3 if (state["memory_pressure"] or 0.0) > _PRESSED else math.inf
                field = None if "memory_mb" in violated_limits else "memory_mb"
                keep(field, memory_mb, min(free_mb - _RESERVE_MB + here, most), _SPARE, other)
        elif name == "deadline" and budget["deadline_ms"] is not None:
            most = (budget["deadline_ms"] - waited_ms) / slow
            if keep("deadline_ms", lambda p: p["first_ms"][at], most, _SPARE):
                left = [p for p in left if ms(p) <= most] or left
        elif name == "battery" and state["battery"] is not None and not state["plugged"]:
            floor, kept = budget["battery_floor"], state["pace"]
            left = least(effort) if floor is not None and state["battery"] <= floor else left
            if budget["battery_duration_s"] is not None and kept is not None and (line := drain(kept)) is not None:
                end_s, charge = kept["start_s"] + kept["battery_duration_s"], kept["edge"] - (floor or 0.0)
                aim_s = max(kept["start_s"] + kept["battery_duration_s"] * (1 + _AIM) - kept["edge_s"], 1.0)
                spare, per_effort = charge / aim_s - line[0], line[1] * (kept["rate_hz"] or 0.0)
                most = 0.0 if spare <= 0 else spare / per_effort if per_effort > 0 else math.inf
                if not keep(None, effort, math.inf if state["time_s"] >= end_s else most, 0.98):
                    per_s = line[0] + per_effort * effort(left[0])
                    lasts_s = max(charge, 0.0) / per_s if per_s > 0 else math.inf
                    violated_limits.extend(
                        ["battery_duration_s"] if lasts_s < 0.95 * max(end_s - kept["edge_s"], 1.0) else []
                    )
        elif name == "temperature" and budget["temperature_c"] is not None and state["cooling"] is not None:
            _, now_c, slope_c = state["cooling"]
            over = state["temperature_c"] > budget["temperature_c"]  # now, whatever the mean says
            share = (budget["temperature_c"] - now_c - _AHEAD_S * slope_c) / _BAND_C
            share = 0.0 if state["throttled"] or over else share
            if share > 0.0:
                low, high = min(map(effort, device["points"])), max(map(effort, device["points"]))
                keep(None, effort, low + share * (high - low) if share < 1.0 else math.inf, _SPARE)
            else:
                left = least(effort)
                violated_limits.extend(["temperature_c"] if over or now_c > budget["temperature_c"] else [])
        elif name == "latency" and budget["latency_ms"] is not None:
            behind = (seen["queue_length"] or 0) if wait else 0
            if keep("latency_ms", ms, (budget["latency_ms"] - waited_ms) / slow, _SPARE) and behind:
                most = budget["latency_ms"] / slow / (behind / (seen["servers"] or 1) + 1)
                left = [p for p in left if p["mean_ms"][at] <= most] or [min(left, key=lambda p: p["mean_ms"][at])]
        elif name == "energy":
            if budget["energy_mj"] is not None and left[0]["energy_mj"] is not None:
                keep("energy_mj", effort, budget["energy_mj"])
            if budget["cpu_ms"] is not None:
                keep("cpu_ms", lambda p: p["cpu_ms"], budget["cpu_ms"])
        elif name == "drop":
            if budget["max_drop"] is not None:
                keep("max_drop", lambda p: p["promised_drop"], budget["max_drop"], beside=None)
            if budget["min_accuracy"] is not None:
                keep("min_accuracy", lambda p: -p["accuracy"], -budget["min_accuracy"], beside=None)
            if state["drift"] and budget["on_drift"] == "safest":
                left = [min(left, key=lambda p: float(p["promised_drop"]))]  # of equals the first: the reference
        lost_to = lost_to or (name if now is not None and now not in left else "")
    return left, violated_limits, lost_to


def stay(device: Json, budget: Json, needed: set[int], state: Json) -> set[int] | None:
    """The backbones that may stay in memory; None: all."""
    free_mb, pressed = state["memory_available_mb"], (state["memory_pressure"] or 0.0) > _PRESSED
    if free_mb is not None and (free_mb < _RESERVE_MB or pressed):
        return needed
    if budget["memory_mb"] is None and free_mb is not None and not state["everything"]:  # no room for all of them yet
        room = free_mb - _RESERVE_MB + sum(device["memory_mb"][b] for b in state["resident"])
        return None if sum(device["memory_mb"]) <= _SPARE * room else needed | state["resident"]
    if budget["memory_mb"] is None or state["base_mb"] is None:
        return None if budget["memory_mb"] is None else needed
    room, kept = budget["memory_mb"] - state["base_mb"] - state["excess_mb"], set(needed)
    room -= sum(device["memory_mb"][b] for b in needed)
    for b in sorted(state["resident"] - needed, key=lambda b: float(device["memory_mb"][b])):
        room -= device["memory_mb"][b]
        if room < 0:
            break
        kept.add(b)
    return kept


def observe(device: Json, state: Json, given: Json, snapshot: Json) -> None:
    given = full(given, {"stage": 0, "latency_ms": 0.0, "drift": False})
    rows, at = snapshot.get("rows") or 1, device["batch"].index(snapshot.get("rows") or 1)
    state |= {"drift": given["drift"], "count": state["count"] + rows}
    state["effort"] += effort(state["point"]) * rows
    expected_ms = state["point"]["path_ms"][given["stage"]][at] * crowd(device, state)
    if given["latency_ms"] > 0 and expected_ms > 0:
        off, noise = math.log(given["latency_ms"] / expected_ms) - state["mean"], max(_NOISE, state["scatter"])
        side = 0 if off * off <= noise else 1 if off > 0 else -1
        state["run"] = state["run"] + side if side * state["run"] > 0 else side
        variance = (state["variance"] if abs(state["run"]) < _RUN else max(state["variance"], noise)) + _DRIFT
        gain, most = variance / (variance + noise), _FARTHEST * math.sqrt(variance + noise)
        state["scatter"] += 1 / 32 * (max(-2.0, min(2.0, off)) ** 2 - state["scatter"])
        state |= {"mean": state["mean"] + gain * max(-most, min(most, off)), "variance": (1 - gain) * variance}


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    shelf, asked = Path(sys.argv[1]), {k: json.loads(v) for k, v in (word.split("=") for word in sys.argv[2:])}
    golden, same = json.loads((shelf / "golden.json").read_text()), list[bool]()
    for sequence in golden["sequences"]:
        device, state, budget = golden["devices"][sequence["device"]], _START | {"resident": set()}, Json()
        for case in sequence["cases"]:
            full(case, dict.fromkeys(("budget", "snapshot", "decision", "feedback")))
            budget = case.get("budget", budget)
            same.append(decide(device, budget, case["snapshot"], state) == case["decision"])
            if "feedback" in case:
                observe(device, state, case["feedback"], case["snapshot"])
    print(f"{sum(same)} of {len(same)} golden cases as written")
    for path in sorted(shelf.glob("costs/*.json")):
        print(path.stem, *decide(json.loads(path.read_text())["frontier"], asked, {}, dict(_START)).values())
