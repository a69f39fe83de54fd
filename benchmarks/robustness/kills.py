"""`kill -9` at random moments of a save, a swap, a build, its save and a profile: is the shelf there afterwards?

The delay is drawn from the moment at which the writing begins. A build takes so much longer than the save after it that
kills would hardly fall on the save otherwise.
"""

import contextlib
import logging
import os
import random
import re
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dynamic
from benchmarks.robustness.shelves import FORK, INPUTS, build, build_both, left
from dynamic.bundle.manifest import MANIFEST
from dynamic.storage.temporary_files import TemporaryFolder

_LIMIT_S = 60.0  # for a step that hangs
Begins = Callable[[], object]  # called when the writing begins
Work = Callable[[Path, list[Path], Begins], None]


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
                for kind in {_kind(path) for path in temporary.iterdir()} - {None}:
                    TemporaryFolder(kind).remove()  # as the next of its kind does
                counts["left_temporary"] += len([p for p in temporary.iterdir() if p.name.startswith("dynamic-")])
        finally:
            tempfile.tempdir = None
    return {"kills": int(amount), "lost": 0, "left": 0, "left_temporary": 0, **counts, "errors": errors[:5]}


def _kind(path: Path) -> Any:
    """What a temporary folder of the library is for. None: it is another one."""
    found = re.fullmatch(r"dynamic-([a-z]+)-[a-z0-9_]{8}", path.name)
    return None if found is None else found[1]


def _save(shelf: Path, sources: list[Path], begins: Begins) -> None:
    for source in sources:
        bundle = dynamic.load(source)
        begins()
        bundle.save(shelf)


def _swap(shelf: Path, sources: list[Path], begins: Begins) -> None:
    options: dict[str, Any] = {"monitor": dynamic.FixedMonitor()}
    with dynamic.load(sources[0]).runtime(**options) as run:
        for source in sources:
            bundle = dynamic.load(source)
            begins()
            run.swap(bundle.save(shelf))
            run(INPUTS["input"])


def _build(shelf: Path, sources: list[Path], begins: Begins) -> None:
    begins()
    build(0)


def _save_of_build(shelf: Path, sources: list[Path], begins: Begins) -> None:
    bundle = build(0)
    begins()
    bundle.save(shelf)


def _profile(shelf: Path, sources: list[Path], begins: Begins) -> None:
    bundle = dynamic.load(shelf)
    begins()
    bundle.profile(batch=(1,), seconds=0.01)


_WORKS: dict[str, Work] = {
    "save": _save,
    "swap": _swap,
    "build": _build,
    "save_of_build": _save_of_build,
    "profile": _profile,
}


def _seconds(work: Work, shelf: Path, sources: list[Path]) -> float:
    """How long it takes from its first begin to its end or its next begin, so that kills fall on all of it."""
    times = FORK.Queue()

    def measured() -> None:
        work(shelf, sources, lambda: times.put(time.monotonic()))
        times.put(time.monotonic())

    child = FORK.Process(target=measured)
    child.start()
    began_s: float = times.get(timeout=_LIMIT_S)
    ended_s: float = times.get(timeout=_LIMIT_S)
    child.join(_LIMIT_S)
    return ended_s - began_s


def _kill(work: Work, shelf: Path, sources: list[Path], after_s: float) -> None:
    """Start it, and kill it with its children so long after it has begun to write."""
    began = FORK.Event()

    def repeat() -> None:
        os.setsid()
        while True:
            work(shelf, sources, began.set)

    child = FORK.Process(target=repeat)
    child.start()
    began.wait(_LIMIT_S)
    time.sleep(after_s)
    assert child.pid is not None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)  # no group yet where it has just begun
    with contextlib.suppress(ProcessLookupError):
        os.kill(child.pid, signal.SIGKILL)
    child.join()
