"""Certificates from 200 to 1,000 labelled images, before and after: what do inputs cost under the certified thresholds?

    python -m benchmarks.statistics.few_labels_before --before out/before [--draws 300]

Two installed libraries certify the same draws of the same records, so differences are paired. The earlier one is a
commit of this repository:

    git worktree add ../before c16a715 && pip install --no-deps --target out/before ../before

Kept draws of either library carry a hash of its policies. The constants of `free_exit` in `walks.py` were chosen on
seeds 0 to 39 of this benchmark, so these are some of the draws that it reports.

The population is what cascades say about the 10,000 test images of CIFAR-10. Each draw takes n of them with
replacement, certifies one target, and looks the true risk and the mean cost up. A ladder has four targets, and its
violation is that any of its bounds is wrong. Costs are multiply-adds, as shares of ResNet-56 alone, which runs where
nothing is certified. A cell is worse where the mean difference of costs, after minus before, is above two standard
errors of it. The cascades:

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
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import dynamic
from benchmarks.harness.common import ROOT, add_data_option, data_folder, module_path, required, save
from benchmarks.statistics.kept_draws import (
    CONSTANTS,
    DELTA,
    POLICIES,
    Draw,
    check_draws,
    code,
    draws_of,
    paired,
    within_chance,
)
from benchmarks.statistics.population import Population, cascades, family, two_stages
from dynamic.policies.ladder import RiskName
from dynamic.policies.scores import Combiner

COUNTS = (200, 500, 1000)
TARGETS: dict[RiskName, tuple[float, ...]] = {"drop": (0.01, 0.02, 0.05), "error": (0.08, 0.1, 0.15)}
LADDERS: dict[RiskName, tuple[float, ...]] = {"drop": (0.005, 0.01, 0.02, 0.05), "error": (0.08, 0.1, 0.12, 0.15)}
CASCADES = ("two", "three", "exits", "three and exits")
FOLDER = ROOT / "out" / "few_labels_before"
WORKER = Path(__file__).with_name("certify_worker.py")


def save_records(records: dynamic.Records, path: Path) -> None:
    """Write the records for `certify_worker.py`, which may be an earlier library's."""
    names = ("logits", "label", "backbone", "macs", "head_macs", "stage_names")
    arrays: dict[str, Any] = {name: np.asarray(getattr(records, name)) for name in names}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)


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


class Truths:
    """What becomes of the draws of a cascade that a library certifies.

    Args:
        library: The library.
        records: All records of the cascade.
        request: What is certified, as `certify_worker.py` reads it.
    """

    def __init__(self, library: Library, records: dynamic.Records, request: dict[str, Any]) -> None:
        self._library, self._records, self._request = library, records, request
        self._population = lru_cache(8)(self._population_of)

    def _population_of(self, temperature: tuple[float, ...]) -> Population:
        one, request = self._records, self._request
        combiner = Combiner(temperature, "max_probability", combine=request["combine"], backbone=one.backbone)
        return Population(one, combiner, one.macs, one.head_macs, request["risk"])

    def _points(self, seed: int) -> list[tuple[dict[str, Any], float, float]]:
        """(point, true risk, true cost) of each point of the ladder."""
        found = self._library.certified(self._request | {"seed": seed})
        truth = self._population(tuple(found["temperature"])).truth
        return [(point, *truth(point["thresholds"])) for point in found["points"]]

    def target(self, seed: int) -> list[float]:
        """Cost, whether the bound is wrong, and whether anything is certified, of the only target."""
        (target,) = self._request["targets"]
        for point, risk, cost in self._points(seed):
            if point["target"] == target:
                return [cost, float(risk > target + 1e-12), 1.0]
        return [1.0, 0.0, 0.0]

    def ladder(self, seed: int) -> list[float]:
        """Mean cost over the targets, whether any bound of the ladder is wrong, and the number of points."""
        bounded = [
            (point["bound"], risk, cost) for point, risk, cost in self._points(seed) if point["bound"] is not None
        ]
        targets = self._request["targets"]
        costs = [min([cost for bound, _, cost in bounded if bound <= target], default=1.0) for target in targets]
        wrong = any(risk > bound + 1e-12 for bound, risk, _ in bounded)
        return [float(np.mean(costs)), float(wrong), float(len(bounded))]


def row_of(before: NDArray[np.float64], after: NDArray[np.float64], last: str) -> dict[str, Any]:
    """The figures of a cell, from draws `[draws, 3]` with the same seeds. `last` names the last figure."""
    figures = {"before": before.mean(axis=0), "after": after.mean(axis=0)}
    row = {
        name: {"cost": round(float(c), 4), "violations": round(float(v), 4), last: round(float(k), 4)}
        for name, (c, v, k) in figures.items()
    }
    return row | paired(before, after)


def _same(draw: Draw) -> Draw:
    return draw


@dataclass(frozen=True, eq=False)
class Comparison:
    """Both libraries on the same draws.

    Args:
        opened: The libraries by version.
        hashes: Of what draws depend on, by version.
        draws: How many.
    """

    opened: dict[str, Library]
    hashes: dict[str, str]
    draws: int

    def row(self, cell: str, records: dynamic.Records, request: dict[str, Any]) -> dict[str, Any]:
        """The figures of a cell, printed too. A request with several targets is a ladder."""
        kept = {}
        is_ladder = len(request["targets"]) > 1
        for version, library in self.opened.items():
            file = f"{version}-{cell.replace(' ', '-')}-{self.hashes[version]}"
            truths = Truths(library, records, request)
            draw = truths.ladder if is_ladder else truths.target
            kept[version] = draws_of(FOLDER, file, self.draws, partial(_same, draw))
        row = row_of(kept["before"], kept["after"], "points" if is_ladder else "certified")
        print(
            f"{cell:50}{row['before']['cost']:8.3f}{row['after']['cost']:8.3f}{row['change']:9.4f}"
            f"{row['standard_error']:8.4f}{row['before']['violations']:9.3f}"
            f"{row['after']['violations']:9.3f}{'  worse' if row['worse'] else ''}",
            flush=True,
        )
        return row


def main() -> None:
    """Certify with both, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--before", type=Path, required=True, help="folder where the earlier library is installed")
    parser.add_argument("--draws", type=int, default=300)
    parser.add_argument("--risks", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--cascades", nargs="+", default=CASCADES, choices=CASCADES)
    options = parser.parse_args()
    check_draws(options.draws)
    required(options.before.resolve() / "dynamic" / "__init__.py", "the command that this file begins with")
    records = family(data_folder(options.data))
    populations = {"two": two_stages(records)["resnet20"], **cascades(records)}
    within = within_chance(options.draws)
    folders = {"before": options.before / "dynamic" / "policies", "after": POLICIES}
    hashes = {version: code(Path(__file__).name, [records], folder) for version, folder in folders.items()}
    table: dict[str, Any] = {}
    ladders: dict[str, Any] = {}
    print(f"{options.draws} draws, delta {DELTA}: violations up to {within:.3f} are within chance")
    print(f"{'cascade, risk, target, n':50}{'before':>8}{'after':>8}{'change':>9}{'se':>8}{'violations':>18}")
    with libraries(options.before) as opened:
        comparison = Comparison(opened, hashes, options.draws)
        for risk, (name, one), count in product(options.risks, populations.items(), COUNTS):
            if name not in options.cascades:
                continue
            path = FOLDER / f"records-{name.replace(' ', '-')}.npz"
            save_records(one, path)
            usual = {"records": str(path), "count": count, "risk": risk, "combine": "backbones"}
            for target in TARGETS[risk]:
                cell = f"{name} {risk} {target:g} {count} backbones"
                table[cell] = comparison.row(cell, one, usual | {"targets": [target]})
            cell = f"{name} {risk} {count} ladder"
            ladders[cell] = comparison.row(cell, one, usual | {"targets": LADDERS[risk]})
    every = table | ladders
    lists = {
        "worse": [cell for cell, row in every.items() if row["worse"]],
        "violating": [cell for cell, row in every.items() if row["after"]["violations"] > within],
    }
    print(f"of {len(every)} cells {len(lists['worse'])} are worse, and {len(lists['violating'])} violate")
    settings = {
        "draws": options.draws,
        "delta": DELTA,
        "within_chance": within,
        "constants": CONSTANTS,
        "hashes": hashes,
    }
    print(save("statistics/few_labels_before", settings | lists | {"table": table, "ladders": ladders}))


if __name__ == "__main__":
    main()
