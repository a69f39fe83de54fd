"""Three stages and exits from few labels, against the best ladder of two stages: what does an input cost?

    python -m benchmarks.statistics.few_labels_stages [--draws 200] [--first-seed 40]

More stages have more thresholds to choose, and few labels may choose badly. So a ladder of three stages, or of exits,
is compared with every ladder of two stages that it contains, at the same number of labels. The population is what the
cascades say about the 10,000 test images of CIFAR-10. Ways to use n labels:

- labelled: `certify` gets n images with labels, drawn with replacement
- on demand: `Asking` gets max(2 n, 800) images without labels, and asks about n of them at most

Costs are multiply-adds as shares of ResNet-56 alone, from the fixed table of the records. They are those of 10,000
inputs: each label is counted as one of them, at the cost of ResNet-56. Where nothing is certified, ResNet-56 answers
all. "disagreement" is certified with `combine="last"`, "drop" with the default where images have labels. The cascades:

- three: ResNet-20, 32, 56
- exits: ResNet-56 with three of the exits of `frozen_exits.py`
- three and exits: ResNet-20, 32, and 56 with these exits

The best ladder of two stages is the one of the least mean cost in its cell, over the same draws. It is known afterwards
alone. A cell is worse where the mean difference of costs is above two standard errors of it.

The constants of `free_exit` in `walks.py` were chosen on seeds 0 to 39 of this benchmark. So figures begin at seed 40,
unless `--first-seed` says otherwise. A run of some ways keeps the rows of the others in the result, and each row has
the seeds of its draws.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import dynamic
from benchmarks.harness.common import RESULTS, ROOT, add_data_option, data_folder, progress, save
from benchmarks.statistics.kept_draws import (
    CONSTANTS,
    DELTA,
    Draw,
    MemoryStore,
    check_draws,
    code,
    draws_of,
    paired,
    within_chance,
)
from benchmarks.statistics.population import Population, cascades, family, two_stages
from dynamic.policies.certification.few_labels.asking import Asking, DemandSettings, ask
from dynamic.policies.ladder import RiskName
from dynamic.policies.records import SEARCH_SHARE, split
from dynamic.policies.scores import Combination, Combiner

COUNTS = (200, 500, 1000, 2000)
TARGETS = (0.02, 0.05)
INPUTS = 10_000  # over which labels are counted
FIRST_SEED = 40  # seeds below chose constants
RESULT = "statistics/few_labels_stages"
FOLDER = ROOT / "out" / "few_labels_stages"
Way = Literal["labelled", "on demand"]
WAYS: tuple[Way, ...] = ("labelled", "on demand")
RISKS: tuple[RiskName, ...] = ("drop", "disagreement")


@dataclass(frozen=True, eq=False)
class Cell:
    """A ladder of some records, from n labels.

    Args:
        records: All there is.
        way: How labels are used.
        risk: What is bounded.
        target: Its bound.
        count: Labels.
    """

    records: dynamic.Records
    way: Way
    risk: RiskName
    target: float
    count: int

    @property
    def combine(self) -> Combination:
        """How answers of stages are combined."""
        return "backbones" if (self.way, self.risk) == ("labelled", "drop") else "last"

    def draw(self) -> Draw:
        """Seed -> cost with labels counted, labels, whether a bound is wrong, whether anything is certified."""
        population = lru_cache(8)(self._population)
        certified = self._labelled if self.way == "labelled" else self._on_demand

        def draw(seed: int) -> list[float]:
            temperature, thresholds, labels = certified(seed)
            if thresholds is None:
                return [1.0, labels, 0.0, 0.0]
            risk, cost = population(temperature).truth(thresholds)
            return [cost + (1 - cost) * labels / INPUTS, labels, float(risk > self.target + 1e-12), 1.0]

        return draw

    def _population(self, temperature: tuple[float, ...]) -> Population:
        one = self.records
        combiner = Combiner(temperature, "max_probability", combine=self.combine, backbone=one.backbone)
        return Population(one, combiner, one.macs, one.head_macs, self.risk)

    def _labelled(self, seed: int) -> tuple[tuple[float, ...], tuple[float, ...] | None, int]:
        """(temperatures, thresholds, labels) of `certify`."""
        rows = np.random.default_rng([self.count, seed]).integers(len(self.records), size=self.count)
        part = split(None, self.count, search_share=SEARCH_SHARE, seed=seed)
        sample = replace(self.records.select(rows), part=part)
        ladder = dynamic.certify(sample, (self.target,), risk=self.risk, combine=self.combine)
        point = next((p for p in ladder.points if ladder.certified and p.target == self.target), None)
        return ladder.temperature, None if point is None else point.thresholds, self.count

    def _on_demand(self, seed: int) -> tuple[tuple[float, ...], tuple[float, ...] | None, int]:
        """(temperatures, thresholds, labels) of labels on demand."""
        random = np.random.default_rng([self.count, seed])
        pool = self.records.select(random.integers(len(self.records), size=max(2 * self.count, 800)))
        answer = pool.label if self.risk == "drop" else pool.logits[:, -1].argmax(axis=1)
        settings = DemandSettings.of(
            (self.target,), risk=self.risk, budget=self.count, batch_size=max(10, self.count // 10)
        )
        one, store = Asking(pool, settings), MemoryStore()
        ask(one, lambda rows: np.asarray(answer)[rows], store)
        return (1.0,) * pool.stages, one.thresholds(store.labels)[self.target], len(store.labels)


def figures(rows: NDArray[np.float64]) -> dict[str, float]:
    """The means of draws `[draws, 4]`."""
    cost, labels, wrong, certified = rows.mean(axis=0)
    return {
        "cost": round(cost, 4),
        "labels": round(labels, 1),
        "violations": round(wrong, 4),
        "certified": round(certified, 4),
    }


def earlier_rows(ways: Sequence[Way]) -> dict[str, Any]:
    """Rows of the result that are there, without those of some ways."""
    path = RESULTS / f"{RESULT}.json"
    table = json.loads(path.read_text(encoding="utf-8"))["table"] if path.is_file() else {}
    return {cell: row for cell, row in table.items() if not any(f" {way} " in cell for way in ways)}


def main() -> None:
    """Run every cell and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--risks", nargs="+", default=RISKS, choices=RISKS)
    parser.add_argument("--targets", nargs="+", type=float, default=TARGETS)
    parser.add_argument("--counts", nargs="+", type=int, default=COUNTS)
    options = parser.parse_args()
    check_draws(options.draws, options.first_seed)
    records = family(data_folder(options.data))
    several = cascades(records)
    version, within = code(Path(__file__).name, [records]), within_chance(options.draws)
    seeds = [options.first_seed, options.first_seed + options.draws - 1]

    def kept(name: str, cell: Cell) -> NDArray[np.float64]:
        file = f"{name}-{cell.way}-{cell.risk}-{cell.target:g}-{cell.count}-{version}".replace(" ", "-")
        return draws_of(FOLDER, file, options.draws, cell.draw, options.first_seed)

    table = earlier_rows(options.ways)
    print(f"{options.draws} draws, seeds {seeds}, delta {DELTA}: violations up to {within:.3f} are within chance")
    head = f"{'cascade, way, risk, target, n':52}{'cost':>7}{'labels':>8}{'wrong':>7}{'best of two':>28}"
    print(f"{head}{'change':>9}{'se':>8}")
    for way, risk, target, count in product(options.ways, options.risks, options.targets, options.counts):
        singles: dict[str, NDArray[np.float64]] = {}
        for name, one in several.items():
            cell = f"{name} {way} {risk} {target:g} {count}"
            own = kept(name, Cell(one, way, risk, target, count))
            rivals = two_stages(one)
            for rival, pair in rivals.items():
                if rival not in singles:
                    singles[rival] = kept(rival, Cell(pair, way, risk, target, count))
            best = min(rivals, key=lambda rival: float(singles[rival][:, 0].mean()))
            row = table[cell] = (
                figures(own)
                | {"best": best, "best of two": figures(singles[best])}
                | paired(singles[best], own)
                | {"seeds": seeds}
            )
            print(
                f"{cell:52}{row['cost']:7.3f}{row['labels']:8.1f}{row['violations']:7.3f}{best:>20}"
                f"{row['best of two']['cost']:8.3f}{row['change']:9.4f}{row['standard_error']:8.4f}"
                f"{'  worse' if row['worse'] else ''}{'  violates' if row['violations'] > within else ''}",
                flush=True,
            )
        progress(f"{way}, {risk}, {target:g}, {count}: done")
    lists = {
        "worse": [cell for cell, row in table.items() if row["worse"]],
        "violating": [cell for cell, row in table.items() if row["violations"] > within],
    }
    print(f"of {len(table)} cells {len(lists['worse'])} are worse, and {len(lists['violating'])} violate")
    settings = {"draws": options.draws, "delta": DELTA, "within_chance": within, "constants": CONSTANTS}
    print(save(RESULT, settings | lists | {"table": table}))


if __name__ == "__main__":
    main()
