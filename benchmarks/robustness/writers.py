"""Two writers and two readers of one shelf at the same time: does every load give one version, whole?"""

import logging
import random
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

import dynamic
from benchmarks.robustness.shelves import FORK, answers, build_both, left

_PAUSE_S = 0.1  # at most, between saves: the lock is not fair, and one writer alone would have it all the time
_EVERY = 10  # loads, until one is run too, after another version may have taken its place


def writers(seed: int, amount: float) -> dict[str, Any]:
    """So many seconds, in processes of their own."""
    logging.getLogger("dynamic").setLevel(logging.ERROR)
    counts, errors = Counter[str](), list[str]()
    with tempfile.TemporaryDirectory() as given:
        sources = build_both(Path(given, "sources"), seed)
        shelf = dynamic.load(sources[0]).save(Path(given, "models", "shelf")).folder
        until_s = time.monotonic() + amount
        children = []
        for work, source in ((_write, sources[0]), (_write, sources[1]), (_read, sources), (_read, sources)):
            here, there = FORK.Pipe(duplex=False)
            child = FORK.Process(target=work, args=(shelf, source, until_s, there))
            child.start()
            children.append((child, here))
        for child, here in children:
            if here.poll(amount + 120):
                some, wrong = here.recv()
                counts.update(some)
                errors += wrong
            else:
                errors.append("a process gave no answer")
                counts["failed_loads"] += 1
                child.kill()
            child.join()
        counts["left"] = len(left(shelf))
    zeros = dict.fromkeys(("failed_loads", "mixed_loads", "failed_saves"), 0)
    return {**zeros, **counts, "errors": errors[:5]}


def _write(shelf: Path, source: Path, until_s: float, to: Connection) -> None:
    counts, errors, bundle, chance = Counter[str](), list[str](), dynamic.load(source), random.Random(str(source))
    while time.monotonic() < until_s:
        time.sleep(chance.uniform(0, _PAUSE_S))
        try:
            bundle.save(shelf)
            counts["saves"] += 1
        except Exception as error:  # of any kind
            counts["failed_saves"] += 1
            errors.append(f"save: {error!r}"[:200])
    to.send((counts, errors))


def _read(shelf: Path, sources: list[Path], until_s: float, to: Connection) -> None:
    counts, errors = Counter[str](), list[str]()
    known = [dynamic.load(source) for source in sources]
    expected = [answers(bundle) for bundle in known]
    kept = known[0], expected[0]
    while time.monotonic() < until_s:
        try:
            bundle = dynamic.load(shelf)
            counts["loads"] += 1
            version = next((i for i, k in enumerate(known) if k.hashes == bundle.hashes), None)
            if version is None or bundle.ladder != known[version].ladder:
                counts["mixed_loads"] += 1
            elif counts["loads"] % _EVERY == 1:
                kept = bundle, expected[version]
            elif counts["loads"] % _EVERY == 0:
                counts["loads_run"] += 1
                counts["run_after_another_save"] += kept[0].place is None
                counts["mixed_loads"] += not np.array_equal(answers(kept[0]), kept[1])
        except Exception as error:  # of any kind
            counts["failed_loads"] += 1
            errors.append(f"load: {error!r}"[:200])
    to.send((counts, errors))
