"""Do certified thresholds keep their promise, and what does that cost?

    python -m benchmarks.statistics.certified [--draws 1000]

The population is what the cascade says about the 10,000 test images of CIFAR-10, so that every true risk is known. Each
draw takes n of them with replacement as a calibration set, fits temperatures and thresholds on it anew, certifies, and
looks the true risk up. A draw violates where that is above the target; at delta = 0.1 a tenth of them may. Beside it:

- search: the cheapest thresholds that meet the target on the n images, all of which choose: what is usually done;
- oracle: the cheapest thresholds that meet the target on the population, which nobody who has a sample can know;
- floor: the cheapest thresholds on the population that stay 1.28 standard errors of n images below the target. Whoever
  may be wrong in a tenth of draws must stay about so far below it, even where all that is unknown is the risk, and
  the best thresholds for every risk are known (normal approximation).

Costs are shares of the last network's multiply-adds ("stock": ResNet-20, 32, 56) or of its latency ("exits": the
cascade of benchmarks/cascades/headline.py). Draws are kept in out/ and an interrupted run goes on.

The share that searches and the margin of the path were settled on these images too: costs are a little optimistic for
it, violations are not touched by it.
"""

import argparse
import hashlib
import json
import math
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binom

import dynamic
from benchmarks.cascades import cifar_exits
from benchmarks.harness import cifar
from benchmarks.harness.common import ROOT, add_data_option, data_folder, progress, save
from benchmarks.statistics.population import Population
from dynamic.policies.certification.certificates import certify
from dynamic.policies.certification.temperature import fit_temperatures
from dynamic.policies.certification.threshold_search import Search
from dynamic.policies.records import SEARCH_SHARE, split
from dynamic.policies.scores import Combiner, Score

COUNTS = (500, 1000, 2000, 5000)
TARGETS = (0.005, 0.01, 0.02)
DELTA = 0.1
STOCK = ("resnet20", "resnet32", "resnet56")
SCORE: Score = "max_probability"
ONE_SIDED_90 = 1.281552  # quantile of the normal distribution
CHUNK = 20  # draws

_shared: dict[str, tuple[dynamic.Records, tuple[float, ...], tuple[float, ...]]] = {}


def everything(records: dynamic.Records) -> dynamic.Records:
    """The records, all of which choose."""
    return replace(records, part=np.zeros(len(records), np.int8))


def draw(cascade: str, count: int, seed: int, share: float) -> dict[str, Any]:
    """What becomes of one calibration set."""
    records, body, head = _shared[cascade]
    random = np.random.default_rng([count, seed])
    taken = records.select(random.integers(len(records), size=count))
    sample = replace(taken, part=split(None, count, search_share=share, seed=seed))
    ladder = certify(sample, (0.0, *TARGETS, 0.05), delta=DELTA, score=SCORE, body_cost=body, head_cost=head)
    combiner = Combiner(ladder.temperature, SCORE, combine=ladder.combine, backbone=ladder.backbone)
    population = Population(records, combiner, body, head)
    alone = population.truth([math.inf] * (records.stages - 1))
    found: dict[str, Any] = {
        "ladder": any(
            p.bound is not None and population.truth(p.thresholds)[0] > p.bound + 1e-12 for p in ladder.points
        ),
        "points": len(ladder.points) if ladder.certified else 1,
    }
    for target in TARGETS:
        single = certify(sample, (target,), delta=DELTA, score=SCORE, body_cost=body, head_cost=head)
        point = next((p for p in single.points if single.certified and p.target == target), None)
        found[f"certified {target:g}"] = (*alone, 0) if point is None else (*population.truth(point.thresholds), 1)
    whole = everything(taken)
    temperature = fit_temperatures(whole)
    plain = Combiner(temperature, SCORE, combine="backbones", backbone=records.backbone)
    population, search = Population(records, plain, body, head), Search(whole, plain, body=body, head=head)
    for target in TARGETS:
        candidate = search.cheapest(target)
        assert candidate is not None
        found[f"search {target:g}"] = population.truth(candidate.thresholds)
    return found


def _chunk(task: tuple[str, int, int, int, float]) -> list[dict[str, Any]]:
    cascade, count, first, draws, share = task
    return [draw(cascade, count, seed, share) for seed in range(first, first + draws)]


def chunks(cascade: str, count: int, draws: int, share: float, pool: Any) -> Iterator[list[dict[str, Any]]]:
    """All draws of a size, those kept from before first."""
    folder = ROOT / "out" / "certified"
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{cascade}-{count}-{share:g}-{first}-{code()}.json" for first in range(0, draws, CHUNK)]
    missing = [(first, path) for first, path in zip(range(0, draws, CHUNK), files, strict=True) if not path.is_file()]
    tasks = [(cascade, count, first, CHUNK, share) for first, _ in missing]
    yield from (json.loads(path.read_text()) for path in files if path.is_file())
    for (_, path), found in zip(missing, pool.imap(_chunk, tasks), strict=True):
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(found))
        partial.replace(path)
        yield json.loads(json.dumps(found))


def code() -> str:
    """What the draws hang on, in short: chunks of other code are not taken up."""
    files = sorted((ROOT / "policies").rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in (*files, Path(__file__)))).hexdigest()[:12]


def references(cascade: str, counts: Sequence[int]) -> dict[str, float]:
    """Costs that know the population: the oracle's by target, and the floor's by target and number of images."""
    records, body, head = _shared[cascade]
    whole = everything(records)
    search = Search(
        whole,
        Combiner(fit_temperatures(whole), SCORE, combine="backbones", backbone=records.backbone),
        body=body,
        head=head,
    )
    found = {}
    for target in TARGETS:
        asked = {f"oracle {target:g}": 0.0}
        asked |= {f"floor {target:g} {n}": ONE_SIDED_90 * math.sqrt(len(records) / n) for n in counts}
        for name, margin in asked.items():
            candidate = search.cheapest(target, margin)
            assert candidate is not None
            found[name] = min(candidate.cost, search.reference.cost)
    return found


def main() -> None:
    """Draw, certify, look up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--search-share", type=float, default=SEARCH_SHARE)
    parser.add_argument("--cascades", nargs="+", default=["exits", "stock"], choices=["exits", "stock"])
    parser.add_argument("--counts", nargs="+", type=int, default=COUNTS)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    if options.draws % CHUNK:
        parser.error(f"--draws {options.draws} must be a multiple of {CHUNK}")
    data = data_folder(options.data)
    images = cifar.images(data, "test")
    exits = cifar.records(cifar_exits.headline_cascade(data), images)
    stock = cifar.records(dynamic.Cascade(cifar.networks(data, STOCK), names=STOCK), images)
    whole = stock.macs[-1] + stock.head_macs[-1]
    _shared["exits"] = exits, *cifar_exits.costs(exits)
    _shared["stock"] = stock, tuple(m / whole for m in stock.macs), tuple(m / whole for m in stock.head_macs)
    most = int(binom.ppf(0.975, options.draws, DELTA)) / options.draws
    table: dict[str, Any] = {}
    print(f"{options.draws} draws, delta {DELTA}: violations up to {most:.3f} are within chance (97.5%)")
    head = f"{'cascade':8}{'n':>6}{'target':>8}{'certified':>10}{'violates':>9}{'risk':>8}{'cost':>7}{'/oracle':>9}"
    print(f"{head}{'/floor':>8}{'search violates':>17}{'cost':>7}{'oracle':>8}{'floor':>7}")
    with multiprocessing.get_context("fork").Pool(options.processes) as pool:
        for cascade in options.cascades:
            known = references(cascade, options.counts)
            for count in options.counts:
                rows: list[dict[str, Any]] = []
                for found in chunks(cascade, count, options.draws, options.search_share, pool):
                    rows += found
                    if len(rows) % 200 == 0:
                        progress(f"{cascade}, {count} images: {len(rows)} of {options.draws} draws")
                for target in TARGETS:
                    risk, cost, got = np.array([row[f"certified {target:g}"] for row in rows]).T
                    their_risk, their_cost = np.array([row[f"search {target:g}"] for row in rows]).T
                    oracle, floor = known[f"oracle {target:g}"], known[f"floor {target:g} {count}"]
                    row = {
                        "certified": got.mean(),
                        "violations": (risk > target + 1e-12).mean(),
                        "risk": risk.mean(),
                        "cost": cost.mean(),
                        "search_violations": (their_risk > target + 1e-12).mean(),
                        "search_cost": their_cost.mean(),
                        "oracle_cost": oracle,
                        "floor_cost": floor,
                    }
                    table[f"{cascade} {count} {target:g}"] = {k: round(float(v), 4) for k, v in row.items()}
                    print(
                        f"{cascade:8}{count:6}{target:8g}{row['certified']:10.0%}{row['violations']:9.1%}"
                        f"{row['risk']:8.4f}{row['cost']:7.3f}{row['cost'] / oracle:9.3f}{row['cost'] / floor:8.3f}"
                        f"{row['search_violations']:17.1%}{row['search_cost']:7.3f}{oracle:8.3f}{floor:7.3f}"
                    )
                ladder = float(np.mean([row["ladder"] for row in rows]))
                points = float(np.mean([row["points"] for row in rows]))
                table[f"{cascade} {count} ladder"] = {"violations": ladder, "points": points}
                print(f"{cascade:8}{count:6}  any point of a ladder of {points:.1f}: {ladder:.1%}")
    settings = {"draws": options.draws, "delta": DELTA, "search_share": options.search_share, "within_chance": most}
    print(save("statistics/certified", settings | {"table": table}))


if __name__ == "__main__":
    main()
