"""One camera buffer for every `submit`, and what refusing a picture that is far too large takes.

    python -m benchmarks.robustness.buffers --count 1000

A buffer is filled with one of four classes and submitted, again and again, while a worker answers behind. Each answer
has to be that of its own frame. Then, in processes of their own, a picture of 432 MB is handed to a bundle of small
pictures. Peak memory is counted from before the picture was there, as a multiple of the picture.
"""

import argparse
import json
import logging
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

import dynamic
from benchmarks.harness.common import module_command, module_path

LARGE = 12_000  # pixels of a side
LIMIT, LIMIT_S = 1.2, 60
HOWS = ("run", "submit", "map")


def buffers(seed: int, count: float, side: int = LARGE) -> dict[str, Any]:
    """Submit one buffer many times, and refuse a large picture.

    Args:
        seed: Of the frames.
        count: How many are submitted.
        side: Pixels of a side of the large picture.

    Returns:
        Counts: `submitted`, `right`, `wrong`, the largest of the `peaks`, and `peaks_above_limit`.
    """
    from benchmarks.robustness.asked import CLASSES, SIDE, bundles  # it needs torch, and what is measured must not

    logging.getLogger("dynamic").setLevel(logging.ERROR)
    random, right = np.random.default_rng(seed), 0
    with bundles(seed) as (_, bundle):
        with bundle.runtime(queue=int(count), drift_alpha=None) as run:
            buffer = np.zeros((SIDE, SIDE, 3), np.uint8)
            labels, futures = random.integers(0, CLASSES, int(count)).tolist(), []
            for label in labels:
                buffer[...] = int((label + 0.5) / CLASSES * 255)
                futures.append(run.submit(buffer))
            buffer[...] = 0
            for label, future in zip(labels, futures, strict=True):
                right += np.atleast_1d(future.result(LIMIT_S).label).tolist() == [label]
        peaks = {how: peak(bundle.folder, how, side) for how in HOWS}
    return {
        "submitted": len(labels),
        "right": right,
        "wrong": len(labels) - right,
        "peak_of_a_picture": max(peaks.values()),
        "peaks": peaks,
        "peaks_above_limit": sum(value > LIMIT for value in peaks.values()),
    }


def peak(folder: Path, how: str, side: int) -> float:
    """Peak memory on top of a bundle at work, as a multiple of the picture, measured in a process of its own."""
    command = module_command("robustness.buffers", "--refuse", str(folder), "--how", how, "--side", str(side))
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300, env=module_path())
    return float(done.stdout)


def refuse(folder: Path, how: str, side: int) -> float:
    """Hand in the picture, in this process."""
    import psutil

    logging.getLogger("dynamic").setLevel(logging.ERROR)
    bundle = dynamic.load(folder)
    _, height, width = bundle.spec.inputs[0].shape
    with bundle.runtime(drift_alpha=None) as run:
        answers: dict[str, Any] = {"run": run, "submit": lambda x: run.submit(x).result(LIMIT_S)}
        answers["map"] = lambda x: next(run.map([x]))
        answers[how](np.zeros((height, width, 3), np.uint8))
        before = psutil.Process().memory_info().rss
        picture = np.full((side, side, 3), 7, np.uint8)
        try:
            answers[how](picture)
        except dynamic.errors.InputError:
            return (_highest() - before) / picture.nbytes
    raise AssertionError("it was not refused")


def _highest() -> int:
    """Bytes that this process has held at most."""
    status = Path("/proc/self/status")
    if status.exists():  # what `getrusage` says holds the parent's peak too, from before the child was another program
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--refuse", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--how", choices=HOWS, help=argparse.SUPPRESS)
    parser.add_argument("--side", type=int, default=LARGE)
    options = parser.parse_args()
    if options.refuse:
        print(round(refuse(options.refuse, options.how, options.side), 3))
    else:
        print(json.dumps(buffers(options.seed, options.count, options.side), indent=1))
