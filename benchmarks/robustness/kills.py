"""`kill -9` at random moments of a save, a swap, a build with its save and a profile: is the shelf there afterwards?"""

import contextlib
import logging
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dynamic
from benchmarks.robustness.shelves import FORK, INPUTS, build, build_both, left
from dynamic.bundle.bundle import MANIFEST
from dynamic.storage.temporary_files import TemporaryFolder

_LIMIT_S = 30.0  # for a step that hangs


def kills(seed: int, amount: float) -> dict[str, Any]:
    """So many kills, each of a process that does one thing again and again to one shelf."""
    logging.getLogger("dynamic").setLevel(logging.ERROR)
    chance, counts, errors = random.Random(seed), Counter[str](), []
    with tempfile.TemporaryDirectory() as given:
        temporary = Path(given, "temporary")
        temporary.mkdir()
        tempfile.tempdir = str(temporary)  # of the children too
        try:
            sources = build_both(Path(given, "sources"), seed)
            shelves = [Path(given, "plain", "models"), Path(given, "volume", "models")]
            (shelves[1] / "lost+found").mkdir(parents=True)  # by which a volume is known
            for shelf in shelves:
                dynamic.load(sources[0]).save(shelf)
            durations = {name: _seconds(work, shelves[0], sources) for name, work in _WORKS.items()}
            counts.update({f"ms_of_{name}": round(1e3 * seconds) for name, seconds in durations.items()})
            for number in range(int(amount)):
                name = list(_WORKS)[number % len(_WORKS)]
                shelf = shelves[number // len(_WORKS) % 2]
                _kill(_WORKS[name], shelf, sources, chance.uniform(0, durations[name]))
                counts[f"kills_in_{name}"] += 1
                try:
                    dynamic.load(shelf).check_files()
                except Exception as error:  # every kind of it is a shelf that is lost
                    counts["lost"] += 1
                    errors.append(f"{name}: {error!r}"[:200])
                    (shelf / MANIFEST).unlink(missing_ok=True)
                counts["left_before_the_next_save"] += bool(left(shelf))
                dynamic.load(sources[number % 2]).save(shelf)
                counts["left"] += len(left(shelf))
                TemporaryFolder("build").remove()  # as the next build does
                counts["left_temporary"] += len([p for p in temporary.iterdir() if p.name.startswith("dynamic-build-")])
        finally:
            tempfile.tempdir = None
    return {"kills": int(amount), "lost": 0, "left": 0, "left_temporary": 0, **counts, "errors": errors[:5]}


def _save(shelf: Path, sources: list[Path]) -> None:
    for source in sources:
        dynamic.load(source).save(shelf)


def _swap(shelf: Path, sources: list[Path]) -> None:
    options: dict[str, Any] = {"monitor": dynamic.FixedMonitor()}
    with dynamic.load(sources[0]).runtime(**options) as run:
        for source in sources:
            run.swap(dynamic.load(source).save(shelf))
            run(INPUTS["input"])


def _build(shelf: Path, sources: list[Path]) -> None:
    build(0).save(shelf)


def _profile(shelf: Path, sources: list[Path]) -> None:
    dynamic.load(shelf).profile(batch=(1,), seconds=0.01)


_WORKS: dict[str, Callable[[Path, list[Path]], None]] = {
    "save": _save,
    "swap": _swap,
    "build": _build,
    "profile": _profile,
}


def _seconds(work: Callable[[Path, list[Path]], None], shelf: Path, sources: list[Path]) -> float:
    """How long it takes, so that kills fall on all of it."""
    began = time.monotonic()
    child = FORK.Process(target=work, args=(shelf, sources))
    child.start()
    child.join(_LIMIT_S)
    return time.monotonic() - began


def _kill(work: Callable[[Path, list[Path]], None], shelf: Path, sources: list[Path], after_s: float) -> None:
    """Start it, and kill it with its children."""

    def repeat() -> None:
        os.setsid()
        while True:
            work(shelf, sources)

    child = FORK.Process(target=repeat)
    child.start()
    time.sleep(after_s)
    assert child.pid is not None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)  # no group yet where it has just begun
    with contextlib.suppress(ProcessLookupError):
        os.kill(child.pid, signal.SIGKILL)
    child.join()
