"""The policy as a model for a port to Kotlin, Swift or C++. It needs the standard library and a bundle's JSON alone.

    python examples/policy_port.py shelf/ latency_ms=20 max_drop=0.01

counts the golden cases that it answers as written. It also prints the decision for each machine with a profile.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

Json = dict[str, Any]
_SHARE, _RESERVE_MB, _PRESSED = 0.9, 32.0, 0.1  # share of a limit for a more expensive point than the current one
_TOLERANCE_MB, _TOLERANCE, _SMALLEST = 0.5, 0.01, 1e-9  # too little for a change of the point, and the least divisor
# slowdown: variance gained between requests, variance of one, clip in deviations, and deviations in a row
_DRIFT, _NOISE, _FARTHEST, _RUN = 0.001, 0.09, 2.0, 4
_SOONEST, _LATEST, _PREMATURE, _CALM = 16, 4096, 8, 32  # requests that a better point must last, and multiples of them
_STEP, _AIM, _FORGET, _GIVEN, _RATE_S = 0.01, 0.02, 0.9, 3.0, 1800.0  # pacing a battery
_BAND_C, _AHEAD_S, _SMOOTH_S = 4.0, 20.0, 10.0  # cooling
_PAUSE_S, _SHORTEST_S, _LONGEST_S, _SOON = 30.0, 300.0, 1200.0, 4  # cooldown
_PRIORITY = ["memory", "deadline", "battery", "temperature", "latency", "energy", "drop"]
_BUDGET: Json = {"percentile": 0.95, "on_drift": "safest", "priority": _PRIORITY}
_BUDGET |= dict.fromkeys(["latency_ms", "deadline_ms", "energy_mj", "memory_mb", "battery_floor", "battery_duration_s"])
_BUDGET |= dict.fromkeys(["temperature_c", "max_drop", "min_accuracy", "cpu_ms"])
_SENSORS = ["cpu_load", "cpu_cores", "cpu_pressure", "memory_pressure", "memory_available_mb"]
_SENSORS += ["battery", "battery_mwh", "plugged", "throttled"]
_SNAPSHOT: Json = dict.fromkeys([*_SENSORS, "temperature_c", "memory_process_mb", "rows", "waited_ms", "queue_length"])
_SNAPSHOT |= {"time_s": 0.0, "servers": None}
_START: Json = dict.fromkeys(
    [*_SENSORS, "base_mb", "current", "budget", "battery_pacer", "cooling", "since", "temperature_c", "last"]
)
_START |= {"run": 0, "mean": 0.0, "variance": _NOISE, "scatter": 0.0, "drift": False, "resident": set()}
_START |= {"excess_mb": 0.0, "loaded_s": 0.0, "effort": 0.0, "count": 0, "time_s": 0.0, "everything": True}


def full(given: Json, defaults: Json) -> Json:
    if unknown := given.keys() - defaults.keys():
        raise ValueError(f"unknown to this port: {sorted(unknown)}")
    return defaults | given


def effort(point: Json) -> float:
    return float(point["cpu_ms"] if point["energy_mj"] is None else point["energy_mj"])


def decide(device: Json, asked: Json, snapshot: Json, state: Json) -> Json:
    budget, readings = full(asked, _BUDGET), full(snapshot, _SNAPSHOT)
    budget["priority"] = [*budget["priority"], *(name for name in _PRIORITY if name not in budget["priority"])]
    read_sensors(device, budget, readings, state)
    if budget != state["budget"]:  # a new budget is applied at once
        state |= {"budget": budget, "current": None, "cooldown_s": _SHORTEST_S}
        state |= {"cooldown_start_s": -math.inf, "upgrade_s": -math.inf, "cooldown_effort": math.inf}
        state |= {"needed": _SOONEST, "better": 0, "since": _SOONEST * _PREMATURE}
    points, violated_limits, excluded_by = apply_limits(device, budget, readings, state, wait=False)
    fastest = budget["max_drop"] is not None or budget["min_accuracy"] is not None

    def best(of: list[Json]) -> Json:
        return min(of, key=lambda p: (0 if fastest else -p["accuracy"], p["mean_ms"][0]))

    current, passed_s = state["current"], state["time_s"] - state["cooldown_start_s"]
    state["since"] += 1
    effort_limit = state["cooldown_effort"] if current is not None and 0 < passed_s < state["cooldown_s"] else math.inf
    base = best([p for p in points if effort(p) < effort_limit] or points)
    if current is base:
        state["better"] = 0
        if state["needed"] > _SOONEST and state["since"] >= _CALM * state["needed"]:
            state |= {"needed": state["needed"] // 2, "since": _PREMATURE * state["needed"] // 2}
    elif current is not None and current not in points:  # excluded soon after a change: wait longer next time
        soon = state["since"] - 1 < _PREMATURE * state["needed"] and excluded_by not in ("battery", "temperature")
        needed = min(2 * state["needed"], _LATEST) if soon else state["needed"]
        state |= {"needed": needed, "better": 0, "since": _PREMATURE * needed}
        if excluded_by in ("battery", "temperature"):
            soon = 0 <= state["time_s"] - state["upgrade_s"] < _SOON * state["cooldown_s"]
            cooldown_s = min(2 * state["cooldown_s"], _LONGEST_S) if soon else max(state["cooldown_s"] / 2, _SHORTEST_S)
            state |= {"cooldown_s": cooldown_s, "cooldown_start_s": state["time_s"], "cooldown_effort": effort(current)}
    elif current is not None and 0 < passed_s < _PAUSE_S:
        base, state["since"] = current, state["since"] - 1
    elif current is not None and state["better"] + 1 < state["needed"]:
        base, state["better"] = current, state["better"] + 1
    elif current is not None:
        state |= {"better": 0, "since": 0, "upgrade_s": state["time_s"]}
    else:
        state["since"] -= 1
    point = base
    if readings["waited_ms"] or readings["queue_length"]:  # for this request alone
        points, violated_limits, _ = apply_limits(device, budget, readings, state, wait=True)
        loaded = [p for p in points if {*p["backbones"]} <= state["resident"]]
        point = base if base in points else best(loaded or points)
    resident = backbones_in_memory(device, budget, set(point["backbones"]), state)
    there = state["resident"] | set(point["backbones"]) if resident is None else resident
    if there != state["resident"] or (resident is None) != state["everything"]:
        state |= {"resident": there, "everything": resident is None, "loaded_s": state["time_s"]}
    state |= {"current": base, "point": point}
    answer = {"point": point["name"], "feasible": not violated_limits, "violated_limits": violated_limits}
    return answer | {"keep_loaded": None if resident is None else sorted(resident)}


def read_sensors(device: Json, budget: Json, readings: Json, state: Json) -> None:
    # a sensor without an answer: no change
    state |= {name: readings[name] for name in [*_SENSORS, "temperature_c"] if readings[name] is not None}
    last, state["last"] = state["last"], readings
    clock_stands = last is not None and last["time_s"] == readings["time_s"]
    battery, now_s, used_mb = state["battery"], readings["time_s"], readings["memory_process_mb"]
    fades, state["time_s"] = 0.9 if now_s > state["time_s"] else 1.0, now_s
    if state["base_mb"] is None and used_mb is not None:  # mostly before any network was loaded
        state["base_mb"] = max(used_mb - sum(device["memory_mb"][b] for b in state["resident"]), 0.0)
    settled = (clock_stands and used_mb != last["memory_process_mb"]) or not 0 <= now_s - state["loaded_s"] < 1.0
    if budget["memory_mb"] is not None and used_mb is not None and settled:
        networks = sum(device["memory_mb"][b] for b in state["resident"])
        state["excess_mb"] = max(used_mb - state["base_mb"] - networks, fades * state["excess_mb"], 0.0)
    if budget["battery_duration_s"] is None:
        state["battery_pacer"] = None
    elif battery is not None:
        state["battery_pacer"] = next_pacer(
            device, budget["battery_duration_s"], battery, readings["battery"] is not None, state
        )
    if budget["temperature_c"] is None:
        state["cooling"] = None
    elif (now_c := readings["temperature_c"]) is not None:
        before = state["cooling"] or (now_s, now_c, 0.0)
        if clock_stands and now_c != last["temperature_c"] and now_c > before[1]:  # hotter, and nothing to average over
            before = now_s, now_c, before[2]
        state["cooling"] = cool(before, now_s, now_c)


def next_pacer(device: Json, battery_duration_s: float, battery: float, fresh: bool, state: Json) -> Json:
    now_s, pacer, given = state["time_s"], state["battery_pacer"], dict[str, float | None](idle=None, per_effort=None)
    if state["battery_mwh"] and battery > 0:
        whole_mj = state["battery_mwh"] / battery * 3600
        given["idle"] = None if device["idle_mw"] is None else device["idle_mw"] / whole_mj
        given["per_effort"] = None if device["points"][0]["energy_mj"] is None else 1 / whole_mj
    if pacer is None or pacer["battery_duration_s"] != battery_duration_s:
        pacer = {
            "battery_duration_s": battery_duration_s,
            "start_s": now_s,
            "edge": battery,
            "whole": False,
            "rate_hz": None,
            "sums": [0.0] * 5,
        }
        pacer |= {"edge_s": now_s, "rate_s": now_s, "time_s": now_s, "effort": state["effort"], "count": state["count"]}
        pacer |= given | {"read_s": now_s}
    if state["plugged"]:
        back = min(now_s - pacer["time_s"], 0.0)
        pacer = pacer | {"time_s": now_s, "edge_s": now_s, "edge": battery, "effort": state["effort"], "whole": False}
        return dict(pacer | {name: pacer[name] + back for name in ("start_s", "rate_s")} | {"read_s": now_s})
    if now_s < pacer["time_s"]:  # a clock that was set back
        back = now_s - pacer["time_s"]
        return dict(pacer | {name: pacer[name] + back for name in ("start_s", "edge_s", "rate_s", "time_s", "read_s")})
    if now_s - pacer["time_s"] < 0.5 and battery == pacer["edge"]:
        return dict(pacer)
    pacer = pacer | given | {"time_s": now_s}
    passed_s = now_s - pacer["edge_s"]
    up, down = battery > pacer["edge"] + _STEP / 2, battery <= pacer["edge"] - _STEP + 1e-9
    gap_s = now_s - pacer["read_s"]
    exact = passed_s > 0 and gap_s <= max(30.0, 0.2 * passed_s)  # else the time of the step is unknown
    pacer["read_s"] = now_s if fresh else pacer["read_s"]
    if down and pacer["whole"] and exact:
        e, d = (state["effort"] - pacer["effort"]) / passed_s, (pacer["edge"] - battery) / passed_s
        pacer["sums"] = [_FORGET * a + b for a, b in zip(pacer["sums"], (1.0, e, d, e * e, e * d), strict=True)]
    if up or down:
        pacer |= {"edge_s": now_s, "edge": battery, "effort": state["effort"], "whole": down and exact}
    passed_s = now_s - pacer["rate_s"]
    if passed_s >= 2.0:
        now_hz, old_hz = (state["count"] - pacer["count"]) / passed_s, pacer["rate_hz"]
        weight = max(1 - math.exp(-passed_s / _RATE_S), passed_s / (now_s - pacer["start_s"]))
        pacer["rate_hz"] = now_hz if old_hz is None else old_hz + weight * (now_hz - old_hz)
        pacer |= {"rate_s": now_s, "count": state["count"]}
    return dict(pacer)


def drain(pacer: Json) -> tuple[float, float] | None:
    weight, e, d, ee, ed = pacer["sums"]
    given = 0.0 if pacer["idle"] is None else _GIVEN * (1 - (1 - _FORGET) * weight)
    if not weight + given:
        return None
    weight, d = weight + given, d + given * (pacer["idle"] or 0.0)
    mean_e, mean_d, slope = e / weight, d / weight, pacer["per_effort"]
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


def contention(device: Json, state: Json) -> float:
    load, cores, pressure = state["cpu_load"], state["cpu_cores"], state["cpu_pressure"]
    if load is None or not cores:
        return 1.0 if pressure is None else 1.0 / (1.0 - min(pressure, 0.9))
    return float(max(cores, load * cores + device["threads"]) / max(cores, device["threads"]))


def apply_limits(
    device: Json, budget: Json, readings: Json, state: Json, wait: bool
) -> tuple[list[Json], list[str], str]:
    """The points that all limits allow, the violated limits, and the limit that excluded the current point."""
    points, violated_limits, at = device["points"], list[str](), device["batch"].index(readings["rows"] or 1)
    excluded_by = ""
    now, slow = state["current"], math.exp(state["mean"]) * contention(device, state)
    spread = next((i for i, s in enumerate(device["spreads"]) if s >= math.sqrt(state["scatter"])), -1)
    waited_ms = (readings["waited_ms"] or 0.0) if wait else 0.0

    def ms(p: Json) -> float:
        return float(p["mean_ms"][at] if budget["percentile"] is None else p["p95_ms"][spread][at])

    def least(need: Any) -> list[Json]:
        return [p for p in points if need(p) == min(map(need, points))]

    def nearest(need: Any, beside: float) -> list[Json]:  # one percent more must bring one point of accuracy
        low = min(map(need, points))
        whole = max(beside + low, _SMALLEST)
        worth = min(points, key=lambda p: float((beside + need(p)) / whole - p["accuracy"]))
        return [p for p in points if need(p) <= max(need(worth), low + _TOLERANCE * whole)]

    def keep(field: str | None, need: Any, most: float, share: float = 1.0, beside: float | None = 0.0) -> bool:
        nonlocal points
        fits = [p for p in points if need(p) <= most and (now is None or need(p) <= max(most * share, need(now)))]
        violated_limits.extend([field] if field and not fits else [])
        points = fits or (least(need) if beside is None else nearest(need, beside))
        return bool(fits)

    def memory_mb(p: Json) -> float:
        return float(p["memory_mb"])

    for name in budget["priority"]:
        if name == "memory":
            other = (state["base_mb"] or 0.0) + state["excess_mb"]
            if budget["memory_mb"] is not None and state["base_mb"] is not None:
                keep("memory_mb", memory_mb, budget["memory_mb"] - other + _TOLERANCE_MB, beside=other)
            if (free_mb := state["memory_available_mb"]) is not None:
                here = sum(device["memory_mb"][b] for b in state["resident"])
                most = here + 1e-3 if (state["memory_pressure"] or 0.0) > _PRESSED else math.inf
                field = None if "memory_mb" in violated_limits else "memory_mb"
                keep(field, memory_mb, min(free_mb - _RESERVE_MB + here, most), _SHARE, other)
        elif name == "deadline" and budget["deadline_ms"] is not None:
            most = (budget["deadline_ms"] - waited_ms) / slow
            if keep("deadline_ms", lambda p: p["first_ms"][at], most, _SHARE):
                points = [p for p in points if ms(p) <= most] or points
        elif name == "battery" and state["battery"] is not None and not state["plugged"]:
            floor, pacer = budget["battery_floor"], state["battery_pacer"]
            points = least(effort) if floor is not None and state["battery"] <= floor else points
            if budget["battery_duration_s"] is not None and pacer is not None and (line := drain(pacer)) is not None:
                end_s, charge = pacer["start_s"] + pacer["battery_duration_s"], pacer["edge"] - (floor or 0.0)
                aim_s = max(pacer["start_s"] + pacer["battery_duration_s"] * (1 + _AIM) - pacer["edge_s"], 1.0)
                spare, per_effort = charge / aim_s - line[0], line[1] * (pacer["rate_hz"] or 0.0)
                most = 0.0 if spare <= 0 else spare / per_effort if per_effort > 0 else math.inf
                if not keep(None, effort, math.inf if state["time_s"] >= end_s else most, 0.98):
                    per_s = line[0] + per_effort * effort(points[0])
                    lasts_s = max(charge, 0.0) / per_s if per_s > 0 else math.inf
                    violated_limits.extend(
                        ["battery_duration_s"] if lasts_s < 0.95 * max(end_s - pacer["edge_s"], 1.0) else []
                    )
        elif name == "temperature" and budget["temperature_c"] is not None and state["cooling"] is not None:
            _, now_c, slope_c = state["cooling"]
            over = state["temperature_c"] > budget["temperature_c"]  # the newest reading, whatever the mean is
            share = (budget["temperature_c"] - now_c - _AHEAD_S * slope_c) / _BAND_C
            share = 0.0 if state["throttled"] or over else share
            if share > 0.0:
                low, high = min(map(effort, device["points"])), max(map(effort, device["points"]))
                keep(None, effort, low + share * (high - low) if share < 1.0 else math.inf, _SHARE)
            else:
                points = least(effort)
                violated_limits.extend(["temperature_c"] if over or now_c > budget["temperature_c"] else [])
        elif name == "latency" and budget["latency_ms"] is not None:
            behind = (readings["queue_length"] or 0) if wait else 0
            if keep("latency_ms", ms, (budget["latency_ms"] - waited_ms) / slow, _SHARE) and behind:
                most = budget["latency_ms"] / slow / (behind / (readings["servers"] or 1) + 1)
                served = [p for p in points if p["mean_ms"][at] <= most]
                points = served or [min(points, key=lambda p: p["mean_ms"][at])]
        elif name == "energy":
            if budget["energy_mj"] is not None and points[0]["energy_mj"] is not None:
                keep("energy_mj", effort, budget["energy_mj"])
            if budget["cpu_ms"] is not None:
                keep("cpu_ms", lambda p: p["cpu_ms"], budget["cpu_ms"])
        elif name == "drop":
            if budget["max_drop"] is not None:
                keep("max_drop", lambda p: p["promised_drop"], budget["max_drop"], beside=None)
            if budget["min_accuracy"] is not None:
                keep("min_accuracy", lambda p: -p["accuracy"], -budget["min_accuracy"], beside=None)
            if state["drift"] and budget["on_drift"] == "safest":
                points = [min(points, key=lambda p: float(p["promised_drop"]))]  # of equals the first: the reference
        excluded_by = excluded_by or (name if now is not None and now not in points else "")
    return points, violated_limits, excluded_by


def backbones_in_memory(device: Json, budget: Json, needed: set[int], state: Json) -> set[int] | None:
    """The backbones that may remain in memory. None: all."""
    free_mb, is_short = state["memory_available_mb"], (state["memory_pressure"] or 0.0) > _PRESSED
    if free_mb is not None and (free_mb < _RESERVE_MB or is_short):
        return needed
    if budget["memory_mb"] is None and free_mb is not None and not state["everything"]:  # no room for all of them yet
        room = free_mb - _RESERVE_MB + sum(device["memory_mb"][b] for b in state["resident"])
        return None if sum(device["memory_mb"]) <= _SHARE * room else needed | state["resident"]
    if budget["memory_mb"] is None or state["base_mb"] is None:
        return None if budget["memory_mb"] is None else needed
    room, fitting = budget["memory_mb"] - state["base_mb"] - state["excess_mb"], set(needed)
    room -= sum(device["memory_mb"][b] for b in needed)
    for b in sorted(state["resident"] - needed, key=lambda b: float(device["memory_mb"][b])):
        room -= device["memory_mb"][b]
        if room < 0:
            break
        fitting.add(b)
    return fitting


def observe(device: Json, state: Json, given: Json, snapshot: Json) -> None:
    given = full(given, {"stage": 0, "latency_ms": 0.0, "drift": False})
    rows, at = snapshot.get("rows") or 1, device["batch"].index(snapshot.get("rows") or 1)
    state |= {"drift": given["drift"], "count": state["count"] + rows}
    state["effort"] += effort(state["point"]) * rows
    expected_ms = state["point"]["path_ms"][given["stage"]][at] * contention(device, state)
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
