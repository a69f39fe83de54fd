"""Certificates from 200 to 1,000 labelled images, before and after: what do inputs cost under the certified thresholds?

    python -m benchmarks.statistics.few_labels_before --before out/before [--draws 300]

Two installed libraries certify the same draws of the same records, so differences are paired. The earlier one is a
commit of this repository:

    git worktree add ../before c16a715 && pip install --no-deps --target out/before ../before

The population is what cascades say about the 10,000 test images of CIFAR-10. Each draw takes n of them with
replacement, certifies one target, and looks the true risk and the mean cost up. Costs are multiply-adds, as shares of
ResNet-56 alone, which runs where nothing is certified. A cell is worse where the mean difference of costs, after minus
before, is above two standard errors of it. The cascades:

- two: ResNet-20, ResNet-56
- three: ResNet-20, 32, 56
- exits: ResNet-56 with three of the exits of `frozen_exits.py`
- three and exits: ResNet-20, 32, and 56 with these exits
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import dynamic
from benchmarks.harness.common import ROOT, add_data_option, data_folder, module_path, progress, required, save
from benchmarks.statistics.kept_draws import DELTA, Draw, check_draws, code, draws_of, paired, within_chance
from benchmarks.statistics.population import Population, cascades, family, two_stages
from dynamic.policies.ladder import RiskName
from dynamic.policies.scores import Combiner

COUNTS = (200, 500, 1000)
TARGETS: dict[RiskName, tuple[float, ...]] = {"drop": (0.01, 0.02, 0.05), "error": (0.08, 0.1, 0.15)}
FOLDER = ROOT / "out" / "few_labels_before"
WORKER = Path(__file__).with_name("certify_worker.py")


def save_records(records: dynamic.Records, path: Path) -> None:
    """Write the records for `certify_worker.py`, which may be an earlier library's."""
    names = ("logits", "label", "backbone", "macs", "head_macs", "stage_names")
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{name: np.asarray(getattr(records, name)) for name in names})


class Library:
    """A library that certifies in a process of its own.

    Args:
        folder: Where it is installed. None: the one of this checkout.
    """

    def __init__(self, folder: Path | None) -> None:
        path = module_path() if folder is None else os.environ | {"PYTHONPATH": str(folder.resolve())}
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=path
        )

    def certified(self, request: dict[str, Any]) -> Any:
        """What it certifies for a request of `certify_worker.py`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        reply = self._process.stdout.readline()
        if not reply:
            sys.exit("certify_worker.py ended: see what it wrote above")
        return json.loads(reply)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


@contextmanager
def libraries(before: Path) -> Iterator[dict[str, Library]]:
    """Both libraries, while they are needed."""
    opened = {"before": Library(before), "after": Library(None)}
    try:
        yield opened
    finally:
        for library in opened.values():
            library.close()


def draw_of(library: Library, records: dynamic.Records, request: dict[str, Any]) -> Draw:
    """Seed -> cost, whether a bound is wrong, whether anything is certified."""

    @lru_cache(8)
    def population(temperature: tuple[float, ...]) -> Population:
        combiner = Combiner(temperature, "max_probability", combine=request["combine"], backbone=records.backbone)
        return Population(records, combiner, records.macs, records.head_macs, request["risk"])

    def draw(seed: int) -> list[float]:
        (found,) = library.certified(request | {"seeds": [seed]})
        thresholds = found["thresholds"]
        if thresholds is None:
            return [1.0, 0.0, 0.0]
        risk, cost = population(tuple(found["temperature"])).truth(thresholds)
        return [cost, float(risk > request["target"] + 1e-12), 1.0]

    return draw


def row_of(before: NDArray[np.float64], after: NDArray[np.float64]) -> dict[str, Any]:
    """The figures of a cell, from draws `[draws, 3]` with the same seeds."""
    figures = {"before": before.mean(axis=0), "after": after.mean(axis=0)}
    row = {
        name: {"cost": round(float(c), 4), "violations": round(float(v), 4), "certified": round(float(k), 4)}
        for name, (c, v, k) in figures.items()
    }
    return row | paired(before, after)


def main() -> None:
    """Certify with both, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--before", type=Path, required=True, help="folder where the earlier library is installed")
    parser.add_argument("--draws", type=int, default=300)
    parser.add_argument("--combine", nargs="+", default=["backbones"], choices=["backbones", "last"])
    parser.add_argument("--risks", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    options = parser.parse_args()
    check_draws(parser, options.draws)
    required(options.before.resolve() / "dynamic" / "__init__.py", "the command that this file begins with")
    records = family(data_folder(options.data))
    populations = {"two": two_stages(records)["resnet20"], **cascades(records)}
    table: dict[str, Any] = {}
    print(
        f"{options.draws} draws, delta {DELTA}: violations up to {within_chance(options.draws):.3f} are within chance"
    )
    print(f"{'cascade, risk, target, n':50}{'before':>8}{'after':>8}{'change':>9}{'se':>8}{'violations':>18}")
    with libraries(options.before) as opened:
        for combine, (name, one) in product(options.combine, populations.items()):
            path = FOLDER / f"records-{name.replace(' ', '-')}.npz"
            save_records(one, path)
            for risk, count in product(options.risks, COUNTS):
                for target in TARGETS[risk]:
                    cell = f"{name} {risk} {target:g} {count} {combine}"
                    request = {"records": str(path), "count": count, "target": target, "risk": risk, "combine": combine}
                    kept = {
                        version: draws_of(
                            FOLDER,
                            f"{version}-{cell.replace(' ', '-')}" + (f"-{code()}" if version == "after" else ""),
                            options.draws,
                            lambda library=library, one=one, request=request: draw_of(library, one, request),
                        )
                        for version, library in opened.items()
                    }
                    row = table[cell] = row_of(kept["before"], kept["after"])
                    print(
                        f"{cell:50}{row['before']['cost']:8.3f}{row['after']['cost']:8.3f}{row['change']:9.4f}"
                        f"{row['standard_error']:8.4f}{row['before']['violations']:9.3f}"
                        f"{row['after']['violations']:9.3f}{'  worse' if row['worse'] else ''}",
                        flush=True,
                    )
            progress(f"{name}, {combine}: done")
    worse = [cell for cell, row in table.items() if row["worse"]]
    print(f"{len(worse)} of {len(table)} cells are worse")
    settings = {"draws": options.draws, "delta": DELTA, "within_chance": within_chance(options.draws)}
    print(save("statistics/few_labels_before", settings | {"worse": worse, "table": table}))


if __name__ == "__main__":
    main()
