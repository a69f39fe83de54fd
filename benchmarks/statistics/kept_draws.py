"""Draws that are kept in out/, so that an interrupted benchmark continues."""

import hashlib
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from benchmarks.harness.common import ROOT

DELTA = 0.1
CHUNK = 20  # draws in a file

Draw = Callable[[int], list[float]]  # seed -> figures


class MemoryStore:
    """The answers of an oracle, in memory."""

    def __init__(self) -> None:
        self.labels: dict[int, int] = {}
        self.draw: Any = None

    def add(self, answers: Any) -> None:
        """Keep answers."""
        self.labels |= answers

    def keep_draw(self, draw: Any) -> None:
        """Keep the draw."""
        self.draw = draw


def code() -> str:
    """A hash of the code that draws depend on."""
    files = sorted((ROOT / "policies" / "certification").rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


def draws_of(folder: Path, name: str, draws: int, make: Callable[[], Draw]) -> NDArray[np.float64]:
    """All draws of a cell `[draws, figures]`, those of earlier runs first. `make` is called where some are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[list[float]] = []
    draw = None
    for first in range(0, draws, CHUNK):
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


def check_draws(draws: int) -> None:
    """Exit where draws are no whole number of files."""
    if draws % CHUNK:
        sys.exit(f"--draws {draws} must be a multiple of {CHUNK}")


def paired(before: NDArray[np.float64], after: NDArray[np.float64]) -> dict[str, Any]:
    """How costs change, from draws with the same seeds `[draws, figures]`, whose first figure is the cost."""
    change = after[:, 0] - before[:, 0]
    error = float(change.std(ddof=1)) / math.sqrt(len(change))
    return {
        "change": round(float(change.mean()), 4),
        "standard_error": round(error, 4),
        "worse": bool(change.mean() > 2 * error + 1e-9),
    }
