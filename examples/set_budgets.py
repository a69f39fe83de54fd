"""Budgets change while inputs stream, and every decision says why it was taken.

    python examples/set_budgets.py

Handwritten digits; the bundle in out/digits is made on the first run (half a minute). The device's readings are made
up, so that its battery can run low here: leave `monitor` out, and the real ones are read.
"""

import itertools

import digits_bundle

import dynamic


def main() -> None:
    """Serve a stream, a budget at a time."""
    bundle, images = digits_bundle.ready()
    fastest = min(p.p95_ms[0] for p in bundle.frontier.points)
    dearest = max(p.p95_ms[0] for p in bundle.frontier.points)
    print(f"{len(bundle.frontier.points)} operating points, p95 latency {fastest:.2f} to {dearest:.2f} ms")

    # (what changes, the budget, readings of the device)
    changes = [
        ("no limits", dynamic.Budget(), {}),
        ("savings may cost 2 points of accuracy", dynamic.Budget(max_drop=0.02), {}),
        ("nine in ten within a limit", dynamic.Budget(latency_ms=(fastest + dearest) / 2, percentile=0.9), {}),
        ("others take the processor", dynamic.Budget(latency_ms=(fastest + dearest) / 2), {"cpu_load": 0.9}),
        ("the load is gone", dynamic.Budget(latency_ms=(fastest + dearest) / 2), {"cpu_load": 0.0}),
        ("sooner than anything can", dynamic.Budget(latency_ms=fastest / 3, max_drop=0.02), {}),
        ("less memory than the process has", dynamic.Budget(memory_mb=50), {}),
        ("the battery is at its floor", dynamic.Budget(battery_floor=0.2), {"battery": 0.18}),
        ("the charger is plugged in", dynamic.Budget(battery_floor=0.2), {"battery": 0.18, "plugged": True}),
    ]
    device = dynamic.Snapshot(time_s=0.0, cpu_load=0.0, cpu_cores=2, memory_process_mb=90, battery=0.9, plugged=False)
    monitor = dynamic.FixedMonitor(device)
    stream = itertools.cycle(zip(images.images, images.labels, strict=True))
    # not watched for drift: the same few images, again and again and in order, are nothing like a calibration set
    with bundle.runtime(monitor=monitor, drift_alpha=None) as run:
        run(images.images[0])  # loads what it needs
        for name, budget, readings in changes:
            run.budget = budget  # at any time, from any thread
            monitor.set(**readings)
            results, right = [], 0
            for image, label in itertools.islice(stream, 100):
                results.append(run(image))
                right += int(results[-1].label == label)
            decisions = [result.decision for result in results]
            print(f"\n{name}\n    {decisions[0].reason}")
            if not decisions[0].feasible:
                print(f"    not met: {', '.join(decisions[0].violated_limits)}")
            changed = sum(a.point is not b.point for a, b in itertools.pairwise(decisions))
            spent_ms = sum(result.latency_ms for result in results) / len(results)
            print(f"    100 inputs: accuracy {right}%, {spent_ms:.2f} ms on average, {changed} more decisions")
        print(f"\n{run.stats().inputs} inputs; at each stage left {[f'{s:.0%}' for s in run.stats().stage_shares]}")


if __name__ == "__main__":
    main()
