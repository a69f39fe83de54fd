"""Altered bundles: each must be refused in words, measured again, or answer exactly as before.

    python -m benchmarks.robustness.altered --count 5000

A small bundle is built and profiled. Each attempt copies it, alters the copy in one way, as it lies or with the
manifest hashed again, loads it and answers inputs under a budget. In a third of the attempts the copy is loaded before
it is altered, as in a service. What must not be: an exception that is none of this library's, an attempt that hangs,
another operating point without a word in the log, another label that is called certified. Other labels that are not
certified and of which the log says nothing are counted as `changed_unlogged`.

A bit flipped and hashed again, in a threshold or a weight, is another bundle of another maker. No check can tell (see
docs/trust.md), so this is tried for raw exceptions alone, and what changed is counted as `of_another_maker`.
"""

import argparse
import json
import logging
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

import dynamic
from benchmarks.robustness.alterations import AS_IT_LIES, HASHED_AGAIN, Alteration, flip, hash_again
from dynamic.errors import DynamicError

CLASSES, SIDE = 4, 8
MAX_DROP = 0.1
LIMIT_S = 120  # of an attempt that hangs, on a busy machine
LOADED = 1 / 3  # of the attempts alter a bundle that is loaded


def make_shelf(folder: Path) -> dynamic.Bundle:
    """A small network and one with an exit, of images, profiled, with the choice and the report of this machine."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    random = np.random.default_rng(0)
    images, labels = make_images(random, 1200)
    preprocess = dynamic.Preprocess.of(mean=(0.5,), std=(0.25,))
    inputs, truth = torch.from_numpy(preprocess(images)), torch.from_numpy(labels)
    small = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES))
    large = nn.Sequential(
        nn.Flatten(), nn.Linear(SIDE * SIDE, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, CLASSES)
    )
    for network, steps in ((small, 20), (large, 60)):
        optimizer = torch.optim.Adam(network.parameters(), 0.01)
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs[:600]), truth[:600]).backward()
            optimizer.step()
    wrapped = dynamic.wrap(large, inputs[:2], exits=1)
    dynamic.fit(wrapped, [(inputs[:600], truth[:600])], mode="heads", progress=False)
    built = dynamic.build(
        [small, wrapped], [(inputs[600:], truth[600:])], preprocess=preprocess, classes=tuple("abcd"), progress=False
    )
    bundle = built.save(folder).profile(batch=(1, 16), seconds=0.05, progress=False, threads=1)
    bundle.open("auto", threads=1).close()
    bundle.open(threads=1).close()  # runs the canaries and keeps their report
    return dynamic.load(folder)


def make_images(random: np.random.Generator, count: int) -> tuple[Any, Any]:
    """uint8 `[count, SIDE, SIDE, 1]` and labels."""
    centers = np.random.default_rng(1).integers(60, 196, (CLASSES, SIDE, SIDE, 1))
    labels = np.arange(count) % CLASSES
    noisy = centers[labels] + random.normal(0, 60, (count, SIDE, SIDE, 1))
    return noisy.clip(0, 255).astype(np.uint8), labels


@dataclass(frozen=True)
class Answer:
    """What a bundle answered: thresholds of the point, labels, and whether all of it is certified."""

    thresholds: tuple[float, ...]
    labels: tuple[int, ...]
    certified: bool


def answer(bundle: dynamic.Bundle, images: Any) -> Answer:
    """The answer to some images under a budget."""
    monitor = dynamic.FixedMonitor(dynamic.Snapshot(time_s=0.0))
    with bundle.runtime(dynamic.Budget(max_drop=MAX_DROP), monitor=monitor, fallback=(), threads=1) as run:
        result = run(images)
    return Answer(
        result.decision.point.operating_point.thresholds, tuple(np.atleast_1d(result.label).tolist()), result.certified
    )


def outcome(shelf: Path, expected: Answer, costs: Any, images: Any, loaded: dynamic.Bundle | None = None) -> str:
    """What became of an altered bundle. Raises what is none of this library's errors.

    Args:
        shelf: The altered bundle.
        expected: The answer of the bundle as it was.
        costs: Its costs, for a bundle that has lost its own.
        images: The inputs.
        loaded: The bundle, where it was loaded before it was altered.

    Returns:
        The name of a count.
    """
    with messages() as said:
        try:
            bundle = dynamic.load(shelf) if loaded is None else loaded
            again = bundle.costs is None
            if again and not said and any((shelf / "costs").glob("*.json")):
                return "silent_loss_of_costs"
            found = answer(replace(bundle, costs=costs) if again else bundle, images)
        except DynamicError:
            return "refused"
        if not found.certified:
            changed = found.labels != expected.labels
            return "changed_unlogged" if changed and not said else "not_certified"
        if found.labels != expected.labels:
            return "silent_answer"
        if found.thresholds != expected.thresholds:
            return "silent_point"
        return "measured_again" if again or said else "unchanged"


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in the block once so much time is over, where the system has alarms."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def late(*_: Any) -> None:
        raise TimeoutError(f"it hung for {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def messages() -> Iterator[list[str]]:
    """Warnings of the library meanwhile."""
    said: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    logger, handler = logging.getLogger("dynamic"), Kept(logging.WARNING)
    before, logger.propagate = (logger.propagate, logger.level), False
    logger.setLevel(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)
        logger.propagate = before[0]
        logger.setLevel(before[1])


def altered(
    seed: int = 0, count: int = 5000, shelf: Path | None = None, faults: list[str] | None = None, first: int = 0
) -> dict[str, Any]:
    """Alter a bundle so many times and count what became of it.

    Args:
        seed: Of the alterations. Each is drawn on its own, so attempt 4,000 is the same whatever `count` is.
        count: How many.
        shelf: A bundle that `make_shelf` wrote. None: it is made.
        faults: Takes what went wrong, in words.
        first: Number of the first attempt, for a run that was interrupted.

    Returns:
        Counts: `tried`, `raw` exceptions, `silent_point`, `silent_answer`, `silent_loss_of_costs`, which must be 0, and
        `loaded_before`, `refused`, `measured_again`, `not_certified`, `changed_unlogged`, `unchanged`,
        `of_another_maker`. `errors`: the first few faults in words.
    """
    keys = ("tried", "raw", "silent_point", "silent_answer", "silent_loss_of_costs", "changed_unlogged")
    counts, errors = Counter(dict.fromkeys(keys, 0)), list[str]()
    with tempfile.TemporaryDirectory(prefix="altered-") as place:
        folder = Path(place)
        if shelf is None:
            shelf = folder / "shelf"
            make_shelf(shelf)
        original = dynamic.load(shelf)
        images, _ = make_images(np.random.default_rng(seed), 64)
        expected = answer(original, images)
        if not expected.certified:
            raise SystemExit("the bundle is not certified as it was built: nothing could be noticed")
        for attempt in range(first, first + int(count)):
            one, word, by_maker, loaded = _attempt(folder / "try", shelf, Random(f"{seed} {attempt}"))
            counts["tried"] += 1
            counts["loaded_before"] += loaded is not None
            try:
                with time_limit(LIMIT_S):
                    result = outcome(one, expected, original.costs, images, loaded)
            except Exception:  # that is what is looked for
                result = "raw"
                word = f"{word}\n{traceback.format_exc()}"
            if by_maker and loaded is None and result.startswith(("silent", "changed")):
                result = "of_another_maker"
            counts[result] += 1
            if result == "raw" or result.startswith(("silent", "changed")):
                errors.append(f"{result}: seed {seed}, attempt {attempt}: {word}")
            shutil.rmtree(folder / "try")
    if faults is not None:
        faults += errors
    return {**counts, "errors": [error[:300] for error in errors[:5]]}


def _attempt(folder: Path, shelf: Path, random: Random) -> tuple[Path, str, bool, dynamic.Bundle | None]:
    """An altered copy, what was done to it, whether only its maker could tell, and the copy as it was loaded before."""
    one = Path(shutil.copytree(shelf, folder / "shelf"))
    again = random.random() < 0.5
    by_maker = again and random.random() < 0.15
    alteration: Alteration = flip if by_maker else random.choice(HASHED_AGAIN if again else AS_IT_LIES)
    loaded = dynamic.load(one) if random.random() < LOADED else None
    word = alteration(one, random)
    if again:
        hash_again(one)
    return one, f"{word}{', hashed again' if again else ''}{', loaded before' if loaded else ''}", by_maker, loaded


def main() -> None:
    """Print the counts as JSON; exit with 1 where one that must be 0 is not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    faults: list[str] = []
    counts = altered(options.seed, options.count, faults=faults)
    print("\n".join(faults), file=sys.stderr)
    print(json.dumps(counts, indent=1))
    sys.exit(1 if any(counts[name] for name in counts if name.startswith(("raw", "silent"))) else 0)


if __name__ == "__main__":
    main()
