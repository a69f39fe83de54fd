"""Draws that are kept in out/, so that an interrupted benchmark continues."""

import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

import dynamic
from dynamic import policies

DELTA = 0.1
CHUNK = 20  # draws in a file
POLICIES = Path(policies.__file__).parent
HELPERS = ("kept_draws.py", "population.py", "label_tasks.py", "certify_worker.py")
CONSTANTS = "free_exit in walks.py has constants that were chosen on seeds 0 to 39 of this benchmark"

Draw = Callable[[int], list[float]]  # seed -> figures


class MemoryStore:
    """The answers of an oracle, in memory."""

    path = None

    def __init__(self) -> None:
        self.labels: dict[int, int] = {}
        self.draw: Any = None

    def add(self, answers: Any) -> None:
        """Keep answers."""
        self.labels |= answers

    def keep_draw(self, draw: Any) -> None:
        """Keep the draw."""
        self.draw = draw


def code(script: str, records: Iterable[dynamic.Records], folder: Path = POLICIES) -> str:
    """A hash of all that draws depend on.

    Args:
        script: The benchmark, a file of this folder. What it imports of this folder counts too.
        records: All records that are drawn from.
        folder: Policies of the library that certifies.

    Returns:
        Twelve digits.
    """
    digest = hashlib.sha256()
    scripts = [Path(__file__).with_name(name) for name in (script, *HELPERS)]
    for path in [*sorted(folder.rglob("*.py")), *scripts]:
        digest.update(path.name.encode() + path.read_bytes())
    for one in records:
        for name in ("logits", "label", "backbone", "macs", "head_macs"):
            digest.update(np.ascontiguousarray(np.asarray(getattr(one, name), dtype=float)).tobytes())
    return digest.hexdigest()[:12]


def draws_of(folder: Path, name: str, draws: int, make: Callable[[], Draw], first_seed: int = 0) -> NDArray[np.float64]:
    """All draws of a cell `[draws, figures]`, those of earlier runs first. `make` is called where some are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[list[float]] = []
    draw = None
    for first in range(first_seed, first_seed + draws, CHUNK):
        path = folder / f"{name}-{first}.json"
        if not path.is_file():
            draw = draw or make()
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps([draw(seed) for seed in range(first, first + CHUNK)]))
            partial.replace(path)
        rows += json.loads(path.read_text())
    return np.array(rows)


def within_chance(draws: int) -> float:
    """The share of draws with a violation that is exceeded by chance once in forty."""
    return int(binom.ppf(0.975, draws, DELTA)) / draws


def check_draws(draws: int, first_seed: int = 0) -> None:
    """Exit where draws are no whole number of files."""
    for option, value in (("--draws", draws), ("--first-seed", first_seed)):
        if value % CHUNK:
            sys.exit(f"{option} {value} must be a multiple of {CHUNK}")


def paired(before: NDArray[np.float64], after: NDArray[np.float64]) -> dict[str, Any]:
    """How costs change, from draws with the same seeds `[draws, figures]`, whose first figure is the cost."""
    change = after[:, 0] - before[:, 0]
    error = float(change.std(ddof=1)) / math.sqrt(len(change))
    return {
        "change": round(float(change.mean()), 4),
        "standard_error": round(error, 4),
        "worse": bool(change.mean() > 2 * error + 1e-9),
    }
