"""How long certifying takes: 50,000 records, 6 stages, 10 and 100 classes.

    python -m benchmarks.statistics.search

The goal: one `certify` for 20 targets under 5 s on two cores. Timed are that, and `certify` for the five targets it has
by default, on records that choose or certify as `calibrate` divides them; the larger parts of it; and the search by
labels alone, as where nothing can be certified, where all records choose. CPU seconds tell what was spent where
something else ran beside it.

The records are made up, after what heads on a frozen ResNet-56 give on CIFAR-10. A record has a difficulty, drawn
from a normal distribution; at each stage its own class stands out by a margin less the difficulty, over noise of which
70% of the variance is the same at all stages, so that stages err on the same inputs. Margins are set so that the stages
are right in the shares ACCURACY, and logits are stretched by half, so that temperatures have something to do.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from benchmarks.harness.common import progress, save
from dynamic.policies import Combiner, Records, Search, certify
from dynamic.policies.certification.ladders.settings import MAX_DROPS
from dynamic.policies.certification.ladders.walks import FINE_QUANTILES, STANDARD_ERRORS
from dynamic.policies.certification.temperature import fit_temperatures
from dynamic.policies.records import SEARCH, split
from dynamic.profiling.machine import machine_name

ACCURACY = (0.62, 0.74, 0.80, 0.87, 0.91, 0.935)
GOAL_S = 5.0
TARGETS = tuple(np.linspace(0.0, 0.095, 20).round(3).tolist())
MARGIN = 1.0  # certify's own


def made_up(count: int, classes: int, seed: int = 0) -> Records:
    """Records as the module describes them."""
    random, stages = np.random.default_rng(seed), len(ACCURACY)
    label, difficulty = random.integers(classes, size=count), random.normal(size=count)
    shared = np.sqrt(0.7) * random.normal(size=(count, classes))
    logits = np.empty((count, stages, classes), np.float32)
    each = np.arange(count)
    for stage, wanted in enumerate(ACCURACY):
        noise = shared + np.sqrt(0.3) * random.normal(size=(count, classes))
        rival = noise.copy()
        rival[each, label] = -np.inf
        # right where the margin exceeds this: the margin is a quantile of it
        needed = rival.max(axis=1) - noise[each, label] + difficulty
        noise[each, label] += np.quantile(needed, wanted) - difficulty
        logits[:, stage] = 1.5 * noise
    return Records(
        logits=logits,
        label=label,
        group=None,
        part=split(None, count),
        backbone=(0,) * stages,
        macs=(20e6,) * stages,
        head_macs=(0.05e6,) * stages,
        stage_names=tuple(f"stage {s}" for s in range(stages)),
        fingerprint="made up",
    )


def timed(work: Callable[[], object], runs: int) -> dict[str, list[float]]:
    """Seconds by the clock and of CPU time, after one run to warm up."""
    took: dict[str, list[float]] = {"seconds": [], "cpu_seconds": []}
    for run in range(runs + 1):
        cpu, began = time.process_time(), time.perf_counter()
        work()
        if run:
            took["seconds"].append(round(time.perf_counter() - began, 4))
            took["cpu_seconds"].append(round(time.process_time() - cpu, 4))
    return took


def ask_path(search: Search) -> None:
    """What `certify` asks of a search before it certifies."""
    search.path(STANDARD_ERRORS)
    search.most_accurate(STANDARD_ERRORS)
    search.least_cost()


def ask_cheapest(search: Search) -> None:
    """What `certify` asks of a search where nothing can be certified."""
    search.most_accurate(MARGIN)
    for drop in MAX_DROPS:
        search.cheapest(drop, MARGIN)
    search.least_cost()


def measure(count: int, classes: int, runs: int) -> dict[str, Any]:
    """`certify` and its parts on the same records."""
    records = made_up(count, classes)
    chosen = records.select(records.part == SEARCH)
    combiner = Combiner(fit_temperatures(records), "max_probability", combine="backbones", backbone=records.backbone)

    def expecting() -> Search:
        return Search(chosen, combiner, quantiles=FINE_QUANTILES, expected=True)

    work: dict[str, Callable[[], object]] = {
        f"certify, {count} records, {len(TARGETS)} targets": lambda: certify(records, TARGETS),
        f"certify, {count} records, {len(MAX_DROPS)} targets": lambda: certify(records),
        "  of it: temperatures": lambda: fit_temperatures(records),
        f"  of it: search, {len(chosen)} choose": lambda: ask_path(expecting()),
        "    of it: Search()": expecting,
        f"search, {count} choose": lambda: ask_cheapest(Search(records, combiner)),
    }
    found = {}
    for name, one in work.items():
        progress(f"{classes} classes: {name.strip()}")
        found[name] = timed(one, runs)
    return found


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each (default 5)")
    parser.add_argument("--records", type=int, default=50_000, help="how many (default 50,000)")
    options = parser.parse_args()
    by_classes = {classes: measure(options.records, classes, options.runs) for classes in (10, 100)}
    print(f"{machine_name()}, numpy {np.__version__}; seconds, {options.runs} runs of each")
    print(f"{'':46}{'median':>8}{'min':>8}{'max':>8}{'CPU':>8}")
    for classes, found in by_classes.items():
        print(f"{len(ACCURACY)} stages, {classes} classes")
        for name, took in found.items():
            wall = took["seconds"]
            row = (median(wall), min(wall), max(wall), median(took["cpu_seconds"]))
            print(f"  {name:44}" + "".join(f"{value:8.2f}" for value in row))
    path = save(
        "statistics/search",
        {
            "goal": f"certify, 50,000 records, 6 stages, 10 classes, {len(TARGETS)} targets: below {GOAL_S:g} s",
            "records": options.records,
            "accuracy": ACCURACY,
            "max_drops": MAX_DROPS,
            "classes": {str(classes): found for classes, found in by_classes.items()},
        },
    )
    print(f"written to {path}")


if __name__ == "__main__":
    main()
