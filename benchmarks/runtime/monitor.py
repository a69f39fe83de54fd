"""What the monitor itself costs: its share of one core at 5 readings a second, and nanoseconds to read `latest`.

    python -m benchmarks.runtime.monitor [--seconds 20] [--runs 3]

The share is CPU time of the process, kernel included, over time; what Python takes while nothing runs is measured too.
"""

import argparse
import statistics
import time
import timeit

from benchmarks.harness.common import progress, save
from dynamic import Monitor

HZ = 5


def share(seconds: float) -> float:
    """Percent of one core that this process takes while the main thread sleeps."""
    began, cpu_began = time.perf_counter(), time.process_time()
    time.sleep(seconds)
    return (time.process_time() - cpu_began) / (time.perf_counter() - began) * 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    idle, watched, sources = [], [], {}
    for run in range(options.runs):
        progress(f"run {run + 1} of {options.runs}")
        idle.append(share(1.0))
        with Monitor(1 / HZ) as monitor:
            time.sleep(1.0)  # searching the file tree happens once
            watched.append(share(options.seconds))
            sources = {r.name: str(r.problem) if r.reading is None else r.reading.origin for r in monitor.sources()}
    with Monitor(1 / HZ) as monitor:
        times = timeit.repeat("monitor.latest", globals={"monitor": monitor}, number=100_000, repeat=20)
    figures = {
        "hz": HZ,
        "seconds": options.seconds,
        "percent_of_one_core": round(statistics.median(watched), 3),
        "percent_of_one_core_each": [round(value, 3) for value in watched],
        "percent_without_monitor": round(statistics.median(idle), 3),
        "latest_ns": round(statistics.median(times) / 100_000 * 1e9, 1),
        "sources": sources,
        "not_measured": "devices with more sensors than this one; those that are absent here cost a search every 10 s",
    }
    path = save("runtime/monitor", figures)
    print(f"{figures['percent_of_one_core']}% of one core; latest in {figures['latest_ns']} ns: {path}")


if __name__ == "__main__":
    main()
