"""The policy at work on this machine, now: load comes and goes, and the runtime adapts to it.

    python examples/live_on_this_machine.py

Forty seconds of handwritten digits, 25 a second, under a limit on latency that this machine keeps easily while nothing
else runs. Then this script starts processes that do nothing but spin, and stops them again. Every second a line says
what the monitor sees of them, how long answers take, and which operating point runs; every change of it gives its
reason. Nothing is made up here: what your machine does otherwise shows too. The bundle in out/digits is made on the
first run (half a minute). All processes end with the script, also on Ctrl-C.
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import time
from types import TracebackType
from typing import Any, Self

import digits_bundle

import dynamic
from dynamic import Change

RATE_HZ = 25.0
Results = list[dynamic.Prediction | dynamic.BatchResult]
# ends by itself should this script be killed
_SPIN = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    for _ in range(10**6): pass"


class Load:
    """Processes that spin, each on a core if it gets one; none is left after the block."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[bytes]] = []

    def __len__(self) -> int:
        return len(self._running)

    def set(self, count: int) -> None:
        """So many of them."""
        while len(self) > count:
            process = self._running.pop()
            process.kill()
            process.wait()
        while len(self) < count:
            command = [sys.executable, "-S", "-c", _SPIN]
            self._running.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.set(0)


def warm(bundle: dynamic.Bundle, images: Any) -> float:
    """How long the dearest point takes here, at the 95th percentile, in ms: requests as they come, nothing loaded."""
    with bundle.runtime(drift_alpha=None) as run:
        took = []
        for image in itertools.islice(itertools.cycle(images.images), 50):
            took.append(run(image).latency_ms)
            time.sleep(1 / RATE_HZ)
    return statistics.quantiles(took[10:], n=20)[-1]


def tell(second: int, busy: int, run: dynamic.Runtime, results: Results, limit_ms: float) -> None:
    """A line on what happened in a second."""
    took = sorted(result.latency_ms for result in results)
    late = sum(ms > limit_ms for ms in took)
    seen = run.monitor.latest.cpu_load
    load = "unknown" if seen is None else f"{seen:4.0%}"
    last = results[-1].decision
    print(
        f"{second:4d} s  {busy:2d} started  load seen {load}  median {took[len(took) // 2]:6.2f} ms, longest "
        f"{took[-1]:6.2f}, {late:2d} of {len(took)} late  {last.point.name}",
        flush=True,
    )


def serve(run: dynamic.Runtime, images: Any, seconds: float, load: Load, limit_ms: float) -> tuple[int, int]:
    """Requests at a steady rate while load comes and goes: nothing, as many as there are cores, twice that, nothing.

    (how many answers were right, of how many).
    """
    cores = os.cpu_count() or 1
    plan = [(0.0, 0), (0.2, cores), (0.45, 2 * cores), (0.7, 0)]  # from this part of the time on
    stream = itertools.cycle(zip(images.images, images.labels, strict=True))
    right = count = 0
    results: Results = []
    began = time.perf_counter()
    second = 1
    while (now := time.perf_counter() - began) < seconds:
        load.set([busy for part, busy in plan if now >= part * seconds][-1])
        image, label = next(stream)
        results.append(run(image))
        right, count = right + int(results[-1].label == label), count + 1
        if time.perf_counter() - began >= second:
            tell(second, len(load), run, results, limit_ms)
            results, second = [], int(time.perf_counter() - began) + 1
        time.sleep(max(0.0, began + count / RATE_HZ - time.perf_counter()))
    return right, count


def main() -> None:
    """Adapt for a while and say so."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=40.0)
    given = parser.parse_args()
    bundle, images = digits_bundle.ready()
    limit_ms = 1.5 * warm(bundle, images)
    print(f"{len(bundle.frontier.points)} operating points; answers within {limit_ms:.2f} ms, 95 in 100\n")

    def changed(change: Change) -> None:
        before = "begin with" if change.before is None else f"{change.before.name} ->"
        print(f"        {before} {change.after.name}\n        because {change.decision.reason}", flush=True)

    budget = dynamic.Budget(latency_ms=limit_ms)
    try:
        with Load() as load, bundle.runtime(budget, drift_alpha=None, on_change=changed) as run:
            right, count = serve(run, images, given.seconds, load, limit_ms)
            stats = run.stats()
    except KeyboardInterrupt:
        sys.exit("\nstopped; nothing is left running")
    shares = ", ".join(f"{name} {share:.0%}" for name, share in stats.point_shares.items())
    print(f"\n{count} answers, {right / count:.1%} right; {stats.decision_changes} changes; ran: {shares}")


if __name__ == "__main__":
    main()
