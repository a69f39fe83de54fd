"""Does a memory limit hold on a real machine: when the budget moves, and when another process takes the memory?

    python -m benchmarks.memory.real_memory

Four networks with 40 to 75 MB of weights in one cascade, in a process of their own. First, 10,000 requests are answered
while `memory_mb` moves down and up between what holds one network, two of them, and all. Resident memory is sampled 50
times a second; the goal is that from a second after each move on it stays within the limit, and that no request fails.

Then the same runtime, without a limit of its own, serves inside a memory control group with a fixed limit, which a
second process in the same group fills, a step at a time, until no more than the cheapest network fits, and empties
again: first so far that all networks would just fit by their profile, then altogether. Nothing tells the runtime but
its monitor. The goal: no process is killed, no request fails, and networks are
given back. A step is smaller than the reserve that the policy leaves to others (32 MB): what is taken faster than the
monitor looks, five times a second, nobody can give back in time. Where the machine lets nobody make such a group, the
result says so, and nothing about it was measured.

Networks are untrained, accuracies made up: they only say which point is the better one.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import dynamic
from benchmarks.harness.common import module_command, module_path, progress, save
from benchmarks.memory.memory_group import Filler, Group, end
from dynamic.bundle.bundle_writer import write
from dynamic.offline.onnx_export.stage_graphs import export_stages
from dynamic.offline.onnx_export.whole_graph import plain_ladder, write_graphs
from dynamic.policies.control.limits import RESERVE_MB
from dynamic.policies.ladder import Interval, Ladder, OperatingPoint

SHAPE, CLASSES = (512,), 10
WEIGHTS_MB = (40.0, 50.0, 60.0, 75.0)
SETTLED_S, SLACK_MB = 1.0, 40.0  # what the engine takes beside networks
STEP_MB, STEP_S = 15, 0.7
OFF, ALL, HALF = float("inf"), -float("inf"), 0.5
# which networks answer, in order: how good they are said to be
POINTS = {
    (3,): 0.90,
    (0, 1, 2, 3): 0.93,
    (1, 2, 3): 0.92,
    (2, 3): 0.91,
    (2,): 0.87,
    (0, 1): 0.86,
    (1,): 0.84,
    (0,): 0.80,
}
HOLDS = (
    (2, 3),
    (0, 1),
    (0, 1, 2, 3),
    (0,),
    (2, 3),
    (1, 2, 3),
    (0, 1),
    (3,),
    None,
    (0, 1),
)  # networks, one after another
NOT_MEASURED = ("swap", "other engines than ONNX Runtime", "several runtimes in one process")


class Wide(nn.Module):
    """A network that is mostly weights: so many MB of them in two layers."""

    def __init__(self, weights_mb: float) -> None:
        super().__init__()
        hidden = round(weights_mb * 1e6 / 4 / (2 * SHAPE[0] + CLASSES))
        self.layers = nn.Sequential(
            nn.Linear(SHAPE[0], hidden), nn.ReLU(), nn.Linear(hidden, SHAPE[0]), nn.ReLU(), nn.Linear(SHAPE[0], CLASSES)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [B, C]."""
        found: torch.Tensor = self.layers(x)
        return found


def make(folder: Path, weights_mb: Sequence[float], profile_s: float = 1.0) -> dynamic.Bundle:
    """A bundle of networks of these sizes, profiled here, with a point for every entry of POINTS that they allow."""
    torch.manual_seed(0)
    networks = [Wide(mb).eval() for mb in weights_mb]
    cascade = dynamic.Cascade(networks, names=[f"{mb:.0f} MB" for mb in weights_mb])
    spec = export_stages(cascade, folder, torch.randn(2, *SHAPE), progress=False)
    bare = plain_ladder(spec, cascade.combine)
    write_graphs(folder, spec, bare)
    batches = [(torch.randn(8, *SHAPE), torch.arange(8)) for _ in range(4)]
    records = dynamic.calibrate(cascade, batches, progress=False)
    ladder = replace(bare, points=tuple(points(bare, len(weights_mb))), fingerprint=records.fingerprint)
    write(folder, spec, ladder, records, "onnxruntime", "f32", cascade.fingerprint(), None, None)
    # one thread: what is looked at is memory
    return dynamic.load(folder).profile(batch=(1,), seconds=profile_s, threads=1, progress=False)


def points(ladder: Ladder, count: int) -> Iterator[OperatingPoint]:
    """Points by the networks they need; untrained ones are never sure, so an exit with a threshold keeps everybody."""
    last = count - 1
    for names, accuracy in POINTS.items():
        if max(names) > last:
            continue
        thresholds = [OFF if b not in names else HALF for b in range(last)]
        if max(names) < last:
            thresholds[max(names)] = ALL
        shares = [0.0] * count
        shares[max(names)] = 1.0
        drop = max(0.0, 0.9 - accuracy)
        name = "reference" if names == (last,) else "networks " + ", ".join(map(str, names))
        exact = Interval(accuracy, accuracy, accuracy)
        yield OperatingPoint(name, tuple(thresholds), names, drop, drop, None, None, 32, exact, tuple(shares))


def job(bundle: dynamic.Bundle, **more: Any) -> str:
    """For the worker."""
    return json.dumps({"folder": str(bundle.folder), "shape": SHAPE, "options": {"threads": 1}, **more})


def moving(
    bundle: dynamic.Bundle,
    holds: Sequence[tuple[int, ...] | None],
    each: int,
    rate_hz: float | None = None,
    slack_mb: float = SLACK_MB,
) -> dict[str, Any]:
    """`each` requests under a limit that holds these networks, then those, and so on; None: no limit."""
    assert bundle.costs is not None
    memory_mb = bundle.costs.memory_mb
    extra = [None if h is None else sum(memory_mb[b] for b in h) + slack_mb for h in holds]
    given = job(bundle, moves=[(each, mb) for mb in extra], rate_hz=rate_hz)
    done = subprocess.run(
        module_command("memory.memory_worker", given), stdout=subprocess.PIPE, text=True, env=module_path(), check=True
    )
    return judged(json.loads(done.stdout.splitlines()[-1]), holds)


def judged(found: dict[str, Any], holds: Sequence[Any]) -> dict[str, Any]:
    """How far resident memory went over each limit, from a second and ten requests after the move on."""
    times_s, resident_mb = np.array(found["sampled_s"]), np.array(found["resident_mb"])
    ends_s = [m["time_s"] for m in found["moves"]] + [times_s[-1]]
    rows = []
    for move, hold, (start_s, end_s) in zip(found["moves"], holds, pairwise(ends_s), strict=True):
        from_s = max(start_s + SETTLED_S, move.get("settled_s", 0.0))
        settled = resident_mb[(times_s >= from_s) & (times_s < end_s)]
        most = float(settled.max()) if len(settled) else None
        limit_mb = move["limit_mb"]
        within = [t for t, mb in zip(times_s, resident_mb, strict=True) if t >= start_s and limit_mb and mb <= limit_mb]
        rows.append(
            {
                "for_s": round(end_s - start_s, 2),
                "holds": hold,
                "limit_mb": None if limit_mb is None else round(limit_mb, 1),
                "most_mb": None if most is None else round(most, 1),
                "within_after_s": round(within[0] - start_s, 2) if within else None,
                "over": limit_mb is not None and most is not None and most > limit_mb,
                "points": [name for t, name, _ in found["points"] if start_s <= t < end_s],
                "violated_limits": sorted({g for t, _, gave in found["points"] if start_s <= t < end_s for g in gave}),
            }
        )
    judged_moves = sum(row["most_mb"] is not None and row["limit_mb"] is not None for row in rows)
    return {
        "requests": found["requests"],
        "failed": found["failed"],
        "engine_failures": found["engine_failures"],
        "policy_failures": found["policy_failures"],
        "base_mb": round(found["base_mb"], 1),
        "moves": rows,
        "moves_judged": judged_moves,
        "moves_over": sum(row["over"] for row in rows),
        "point_shares": {k: round(v, 3) for k, v in found["point_shares"].items()},
        "met": not found["failed"] and judged_moves > 0 and not any(row["over"] for row in rows),
    }


def in_a_group(
    bundle: dynamic.Bundle, step_mb: int = STEP_MB, step_s: float = STEP_S, rate_hz: float = 50.0
) -> dict[str, Any]:
    """The runtime in a group that another process fills and empties; or why there is no such group."""
    assert bundle.costs is not None
    memory_mb = bundle.costs.memory_mb
    limit_mb = 130 + 2.0 * sum(memory_mb) + RESERVE_MB  # loading takes more for a moment than what stays
    try:
        group = Group(limit_mb)
    except PermissionError as error:
        return {"measured": False, "why_not": str(error)}
    with group:
        given = job(bundle, moves=[(10**9, None)], rate_hz=rate_hz, until_stopped=True)
        command = module_command("memory.memory_worker", given)
        worker = group.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=1, env=module_path())
        filler = Filler(group)
        try:
            found = _filled(group, worker, filler, memory_mb, step_mb, step_s)
        finally:
            filler.close()
            end(worker)
            killed = group.killed()
    return {"measured": True, "version": group.version, "limit_mb": round(limit_mb), "killed": killed} | found


def _filled(
    group: Group,
    worker: "subprocess.Popen[str]",
    filler: Filler,
    memory_mb: Sequence[float],
    step_mb: int,
    step_s: float,
) -> dict[str, Any]:
    assert worker.stdout is not None
    assert worker.stdin is not None
    if worker.stdout.readline() != "ready\n":
        sys.exit(f"the runtime ended before it began, with {worker.wait()}")
    time.sleep(4 * step_s)
    steps, alive, stuck = [], True, 0
    began_s = time.perf_counter()

    def note() -> None:
        steps.append((time.perf_counter(), filler.held_mb, round(group.room_mb(), 1)))

    note()
    while alive and stuck < 4 and worker.poll() is None:  # fill until nothing more is given back
        if group.room_mb() > step_mb + 4:
            alive, stuck = filler.take(step_mb), 0
        else:
            stuck += 1
        time.sleep(step_s)
        note()
    full_s = time.perf_counter()
    for room_mb in (1.2 * sum(memory_mb) + RESERVE_MB, float("inf")):
        if alive:
            alive = filler.take(-round(min(room_mb - group.room_mb(), filler.held_mb)))
        for _ in range(6):  # better points come back
            time.sleep(step_s)
            note()
    if worker.poll() is not None:
        return {"crashed": worker.returncode, "met": False, "filled_mb": [mb for _, mb, _ in steps]}
    worker.stdin.write("stop\n")
    worker.stdin.flush()
    found = json.loads(worker.stdout.readline())
    times_s, resident_mb = np.array(found["sampled_s"]), np.array(found["resident_mb"])
    series = []
    for (at_s, held, room), (until_s, _, _) in pairwise([*steps, (times_s[-1], 0, 0)]):
        then = resident_mb[(times_s >= at_s) & (times_s < until_s)]
        name = [n for t, n, _ in found["points"] if t < until_s][-1]
        if len(then):
            series.append([round(at_s - began_s, 1), held, room, round(float(np.median(then)), 1), name])
    full = resident_mb[(times_s > full_s - 2 * step_s) & (times_s < full_s)]
    before = resident_mb[times_s < began_s][-20:]
    given_back_mb = float(np.median(before) - np.median(full))
    return {
        "crashed": None,
        "requests": found["requests"],
        "failed": found["failed"],
        "engine_failures": found["engine_failures"],
        "resident_before_mb": round(float(np.median(before)), 1),
        "resident_full_mb": round(float(np.median(full)), 1),
        "given_back_mb": round(given_back_mb, 1),
        "filled_mb": max(mb for _, mb, _ in steps),
        "point_shares": {k: round(v, 3) for k, v in found["point_shares"].items()},
        "points": [[round(t - began_s, 1), name] for t, name, _ in found["points"]],
        "columns": ["time_s", "filler_mb", "room_mb", "resident_mb", "point"],
        "series": series,
        "met": alive and not found["failed"] and given_back_mb > min(memory_mb) and not group.killed(),
    }


def show(budget: dict[str, Any], group: dict[str, Any]) -> None:
    """Print both tables."""
    print(f"\n{budget['requests']} requests, {sum(budget['failed'].values())} failed; base {budget['base_mb']} MB")
    print(f"{'for s':>6}{'limit MB':>10}{'most MB':>9}{'within s':>10}   points")
    for row in budget["moves"]:
        print(
            f"{row['for_s']:6.1f}{row['limit_mb'] or 'none':>10}{row['most_mb'] or '?':>9}"
            f"{'?' if row['within_after_s'] is None else row['within_after_s']:>10}   {' -> '.join(row['points'])}"
            f"{'  OVER' if row['over'] else ''}{'  violated' if row['violated_limits'] else ''}"
        )
    print(f"{budget['moves_over']} of {budget['moves_judged']} moves over: {'met' if budget['met'] else 'missed'}")
    if not group["measured"]:
        print(f"\nno memory control group, nothing measured in one: {group['why_not']}")
        return
    print(f"\nin a group (v{group['version']}) of {group['limit_mb']} MB; {group['killed']} processes killed")
    if group["crashed"] is None:
        for entry in group["series"]:
            print("  {:6.1f} s  filler {:5d} MB  room {:7.1f} MB  resident {:7.1f} MB  {}".format(*entry))
        print(
            f"{group['requests']} requests, {sum(group['failed'].values())} failed, engine failures "
            f"{group['engine_failures']}, {group['given_back_mb']} MB given back: {'met' if group['met'] else 'missed'}"
        )
    else:
        print(f"the runtime ended with {group['crashed']}")


def main() -> None:
    """Both parts; tables and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--moves", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        progress("building")
        bundle = make(Path(folder) / "shelf", WEIGHTS_MB)
        assert bundle.costs is not None
        progress(f"memory by network: {', '.join(f'{mb:.0f}' for mb in bundle.costs.memory_mb)} MB; moving the limit")
        holds = [HOLDS[i % len(HOLDS)] for i in range(options.moves)]
        budget = moving(bundle, holds, options.requests // options.moves)
        progress("filling a group")
        group = in_a_group(bundle)
    show(budget, group)
    facts = {"weights_mb": WEIGHTS_MB, "memory_mb": [round(mb, 1) for mb in bundle.costs.memory_mb]}
    print(save("memory/real_memory", facts | {"budget": budget, "group": group, "not_measured": NOT_MEASURED}))


if __name__ == "__main__":
    main()
