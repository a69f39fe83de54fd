"""How many requests get through while bundles are swapped.

    python -m benchmarks.robustness.swaps --count 50

Four threads send requests. Another swaps two bundles in turn, one swap after the other. The rate of requests meanwhile
is compared with the rate without swaps, measured before and after. `without_pauses` is the same with the pauses that
swaps in a row make taken away, which says what a swap itself costs.
"""

import argparse
import json
import logging
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import dynamic
from dynamic.runtime.requests import pauses

THREADS, GOAL = 4, 0.8


def swaps(seed: int, count: float, seconds: float = 3.0) -> dict[str, Any]:
    """Swap under load.

    Args:
        seed: Of the networks and the input.
        count: How many swaps.
        seconds: How long the rate without swaps is measured, before and after.

    Returns:
        Counts: `swaps`, `requests` during them, `failed` requests, rates a second with and without swaps, their
        `ratio`, and whether that is `below_goal`.
    """
    logging.getLogger("dynamic").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        bundles = [_build(Path(folder, str(number)), 2 * seed + number) for number in (0, 1)]
        x = np.random.default_rng(seed).standard_normal((1, 3, 32, 32)).astype(np.float32)
        found = _measured(bundles, x, int(count), seconds)
        longest, pauses.LONGEST_S = pauses.LONGEST_S, 0.0
        try:
            bare = _measured(bundles, x, max(int(count) // 5, 1), seconds)
        finally:
            pauses.LONGEST_S = longest
    return {**found, "below_goal": int(found["ratio"] < GOAL), "ratio_without_pauses": bare["ratio"]}


def _build(folder: Path, seed: int) -> dynamic.Bundle:
    import torch
    from torch import nn

    torch.manual_seed(seed)
    networks = [
        nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4),
        )
        for width in (16, 64)
    ]  # fmt: skip
    batch = torch.randn(300, 3, 32, 32), torch.arange(300) % 4
    built = dynamic.build(networks, [batch], seed=seed, progress=False)
    return built.save(folder).profile(batch=(1,), seconds=0.1, progress=False)


def _measured(bundles: list[dynamic.Bundle], x: Any, count: int, seconds: float) -> dict[str, Any]:
    done, failed, stop = [0] * THREADS, [0] * THREADS, threading.Event()
    with bundles[0].runtime(drift_alpha=None) as run:
        for _ in range(50):
            run(x)

        def send(number: int) -> None:
            while not stop.is_set():
                try:
                    run(x)
                    done[number] += 1
                except Exception:
                    failed[number] += 1

        def rate(work: Callable[[], None]) -> tuple[int, float]:
            before, began_s = sum(done), time.perf_counter()
            work()
            requests = sum(done) - before
            return requests, requests / (time.perf_counter() - began_s)

        def swap() -> None:
            for number in range(count):
                run.swap(bundles[(number + 1) % 2])

        threads = [threading.Thread(target=send, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        try:
            _, before = rate(lambda: time.sleep(seconds))
            requests, during = rate(swap)
            _, after = rate(lambda: time.sleep(seconds))
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    without = (before + after) / 2
    return {
        "swaps": count,
        "requests": requests,
        "failed": sum(failed),
        "rate_without": round(without),
        "rate_during": round(during),
        "ratio": round(during / without, 3),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(json.dumps(swaps(options.seed, options.count), indent=1))
