"""The drift test: how often it alarms without a reason, how soon with one, and what the response is worth.

    python -m benchmarks.statistics.drift

The cascade is that of `cifar_exits.py`, on ONNX Runtime; scores are margins, answers averaged over backbones. Every
observation goes through `DriftTest`, as in a runtime.

False alarms: 200 streams of 100,000 inputs, each drawn at random, with replacement, from the 10,000 test images, and
for each stream a calibration set of 5,000 drawn the same way, of which one half sets the bins and the other is counted.
Once at one operating point, once with another of six every 500 inputs, one of them the last network alone. Beside them
what the same bets do that take the calibration for the truth: p-values against its counts as they stand. Finished
streams are kept in out/, and a run that was cut short goes on from them.

Shifts: the test images blurred, noisy, flat and compressed. 50 times a random half of the test images calibrates (half
of it chooses the point of drop 0.01, the other half is counted), and the other half is the stream: 2,000 images as they
are, then all 5,000 of that half, shifted. Delays are inputs from the shift to the alarm. Then what accuracy is on the
shifted images where the operating point stays, where the policy falls back on the reference (the last network alone),
and at the most accurate point. How strongly to bet was settled after looking at these shifts, about 25 ways having been
tried, so that delays flatter a little; false alarms cannot be chosen that way.
"""

import argparse
import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter
from scipy.stats import binomtest

import dynamic
from benchmarks.cascades import cifar_exits
from benchmarks.harness import cifar
from benchmarks.harness.common import ROOT, add_data_option, data_folder, progress, save
from dynamic.data import ImageSet
from dynamic.policies.certification import drift
from dynamic.policies.certification.drift import DriftTest, exit_bins
from dynamic.policies.certification.replay import replay
from dynamic.policies.certification.temperature import fit_temperatures
from dynamic.policies.certification.threshold_search import Search
from dynamic.policies.records import SEARCH, split
from dynamic.policies.scores import Combiner, ScoreBins

ALPHAS = (0.01, 0.1)
ALPHA = 0.01  # of the shifts
CALIBRATION = 5_000
DROPS = (0.0, 0.005, 0.01, 0.02, 0.05)
STAY = 0.01
STRETCH = 500  # inputs at one operating point where points change
CHUNK = 10  # streams between two writes
QUIET, WITHIN = 2_000, 5_000
NEVER = np.iinfo(np.int64).max

Pixels = NDArray[np.uint8]
Random = np.random.Generator


def blur(image: Pixels, radius: float, random: Random) -> Pixels:
    """Gaussian blur of `radius` pixels."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def noise(image: Pixels, deviation: float, random: Random) -> Pixels:
    """Gaussian noise of that many grey levels."""
    return np.clip(np.rint(image + random.normal(0, deviation, image.shape)), 0, 255).astype(np.uint8)


def contrast(image: Pixels, factor: float, random: Random) -> Pixels:
    """Contrast times `factor`."""
    return np.asarray(ImageEnhance.Contrast(Image.fromarray(image)).enhance(factor))


def jpeg(image: Pixels, quality: float, random: Random) -> Pixels:
    """Through JPEG at that quality."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=int(quality))
    return np.asarray(Image.open(file))


SHIFTS: Mapping[str, tuple[Callable[[Pixels, float, Random], Pixels], tuple[float, ...]]] = {
    "blur": (blur, (0.5, 0.7, 1.0)),
    "noise": (noise, (4, 8, 16)),
    "contrast": (contrast, (0.6, 0.4, 0.2)),
    "jpeg": (jpeg, (95, 80, 40)),
}


def shifted(cascade: dynamic.Cascade, found: ImageSet, kind: str, strength: float) -> dynamic.Records:
    """Records of shifted images, kept in `out/` for as long as the networks stay the same."""
    kept = ROOT / "out" / f"shifted-{kind}-{strength:g}-{len(found)}-{cascade.fingerprint()[:16]}.npz"
    if kept.is_file():
        return dynamic.Records.load(kept)
    progress(f"running {len(found)} images through the cascade: {kind} {strength:g} (kept in {kept.parent})")
    shift, random = SHIFTS[kind][0], np.random.default_rng(0)
    pixels = np.stack([shift(image, strength, random) for image in found.images])
    records = dynamic.calibrate(
        cascade, cifar.batches(ImageSet(pixels, found.labels, found.classes)), preprocess=cifar.PREPROCESS
    )
    kept.parent.mkdir(exist_ok=True)
    records.save(kept)
    return records


@dataclass(frozen=True)
class Watched:
    """What a runtime knows at an operating point: its number, the stage at which each image exits, its score there."""

    number: int
    stage: list[int]
    score: list[float]

    @classmethod
    def of(cls, records: dynamic.Records, combiner: Combiner, thresholds: Sequence[float], number: int) -> "Watched":
        """Of all records under `thresholds [S-1]`."""
        run = replay(records.logits, combiner, thresholds=thresholds, backbone=records.backbone)
        return cls(number, run.stage.tolist(), run.score.tolist())


def alarmed_at(test: DriftTest, stretches: Iterator[tuple[Watched, Sequence[int]]]) -> int | None:
    """The number of the input that alarms; None where none does. `stretches`: a point and the images seen at it."""
    observe = test.observe
    for point, images in stretches:
        number, stage, score = point.number, point.stage, point.score
        for i in images:
            if observe(number, stage[i], score[i]):
                return test.inputs
    return None


def with_parts(records: dynamic.Records, seed: int) -> dynamic.Records:
    """The records, half of which choose."""
    return replace(records, part=split(None, len(records), search_share=0.5, seed=seed))


def fitted(records: dynamic.Records) -> Combiner:
    """Margins at the temperatures of the part that chooses."""
    return Combiner(fit_temperatures(records), "margin", combine="backbones", backbone=records.backbone)


def searched(records: dynamic.Records, combiner: Combiner) -> Search:
    """A search on the part that chooses."""
    return Search(records.select(records.part == SEARCH), combiner)


# false alarms


@dataclass(frozen=True)
class Population:
    """Images to draw from: their records, how they are scored, and the operating points."""

    records: dynamic.Records
    combiner: Combiner
    thresholds: tuple[tuple[float, ...], ...]
    points: tuple[Watched, ...]

    def bins(self, random: Random) -> tuple[tuple[ScoreBins, ...], ...]:
        """Those of a calibration set that is drawn at random, by point and stage."""
        part = np.arange(CALIBRATION, dtype=np.int8) % 2
        drawn = self.records.select(random.integers(len(self.records), size=CALIBRATION))
        return exit_bins(replace(drawn, part=part), self.combiner, self.thresholds)


def stretches(
    points: Sequence[Watched], order: NDArray[np.int64], stretch: int = STRETCH
) -> Iterator[tuple[Watched, Sequence[int]]]:
    """Images in `order`, at another of the points after each `stretch`."""
    for number, (start, stop) in enumerate(pairwise(range(0, len(order) + stretch, stretch))):
        yield points[number % len(points)], order[start:stop].tolist()


def false_alarm(population: Population, settings: Sequence[int], length: int, seed: int) -> list[int | None]:
    """When one stream alarms, at each of ALPHAS."""
    random = np.random.default_rng((seed, len(settings)))
    bins, order = population.bins(random), random.integers(len(population.records), size=length)
    points = [population.points[i] for i in settings]
    found: dict[float, int | None] = {}
    for alpha in sorted(ALPHAS, reverse=True):
        # the same money, which has further to go: no alarm at the larger is none at the smaller
        needless = None in found.values()
        test = DriftTest(bins, alpha, seed)
        found[alpha] = None if needless else alarmed_at(test, stretches(points, order))
    return [found[alpha] for alpha in ALPHAS]


def as_truth(population: Population, setting: int, streams: int, length: int) -> NDArray[np.int64]:
    """When bets alarm that take calibration counts for the truth, by stream, at each of ALPHAS `[A, streams]`."""
    random = np.random.default_rng(0)
    point = population.points[setting]
    stage, score = np.array(point.stage), np.array(point.score)
    low, width = (np.empty((streams, len(score))) for _ in range(2))
    for number in range(streams):
        bins = population.bins(random)[point.number]
        counts = np.concatenate([own.counts[::-1] for own in bins])  # from usual to strange
        ends = np.cumsum([len(own.counts) for own in bins])
        place = np.empty(len(score), np.int64)
        for s, own in enumerate(bins):
            here = stage == s
            place[here] = ends[s] - 1 - np.searchsorted(own.edges, score[here])
        share_of = counts / counts.sum()
        low[number], width[number] = (np.cumsum(share_of) - share_of)[place], share_of[place]
    strengths, waves = np.array(drift.STRENGTHS)[:, None, None], np.arange(1, drift.WAVES + 1)[:, None]
    tails, strange = (np.array(own)[:, None] for own in zip(*drift.TAILS, strict=True))
    stakes, others, idle = np.zeros((len(strengths), len(waves), streams)), np.zeros((len(tails), streams)), 1.0
    at, each = np.full((len(ALPHAS), streams), NEVER), np.arange(streams)
    for number in range(1, length + 1):
        image = random.integers(len(score), size=streams)
        p = low[each, image] + random.random(streams) * width[each, image]
        fresh, idle = idle - 1 / np.log2(number + 2), 1 / np.log2(number + 2)
        stakes = np.minimum((stakes + fresh) * (1 + strengths * np.cos(np.pi * waves * p)), 1e100)
        others = np.minimum((others + fresh) * (1 - strange + strange / tails * (p > 1 - tails)), 1e100)
        money = (stakes.mean(axis=(0, 1)) + others.mean(axis=0)) / 2 + idle
        for a, alpha in enumerate(ALPHAS):
            at[a] = np.where((at[a] == NEVER) & (money >= 2 / alpha), number, at[a])
    return at


_population: Population  # of a process that works on streams


def _receive(population: Population) -> None:
    global _population
    _population = population


def _chunk(settings: Sequence[int], length: int, seeds: Sequence[int]) -> list[list[int | None]]:
    return [false_alarm(_population, settings, length, seed) for seed in seeds]


def false_alarms(records: dynamic.Records, streams: int, length: int, processes: int) -> dict[str, Any]:
    """Part one: shares of streams that ever alarm."""
    chosen = with_parts(records, 0)
    combiner = fitted(chosen)
    search = searched(chosen, combiner)
    cheapest = [search.cheapest(drop, 1.0) for drop in DROPS]
    thresholds = [candidate.thresholds for candidate in cheapest if candidate is not None]
    thresholds.append((float("inf"),) * (records.stages - 1))
    points = tuple(Watched.of(records, combiner, t, number) for number, t in enumerate(thresholds))
    population = Population(records, combiner, tuple(thresholds), points)
    stay = DROPS.index(STAY)
    settings = {"one point": (stay,), "points in turn": tuple(range(len(thresholds)))}
    source = Path(drift.__file__).read_bytes() + repr(thresholds).encode()
    kept = ROOT / "out" / f"drift-{length}-{hashlib.sha256(source).hexdigest()[:16]}.json"
    done: dict[str, list[list[int | None]]] = json.loads(kept.read_text()) if kept.is_file() else {}
    figures: dict[str, Any] = {
        "streams": streams,
        "inputs": length,
        "thresholds": [list(map(str, t)) for t in thresholds],
    }
    with ProcessPoolExecutor(processes, initializer=_receive, initargs=(population,)) as pool:
        for name, at in settings.items():
            rows = done.setdefault(name, [])
            starts = range(len(rows), streams, CHUNK)
            chunks = [range(start, min(start + CHUNK, streams)) for start in starts]
            for found in pool.map(_chunk, [at] * len(chunks), [length] * len(chunks), chunks):
                rows += found
                kept.write_text(json.dumps(done))
                progress(f"{name}: {len(rows)} of {streams} streams")
            figures[name] = {
                str(alpha): share([NEVER if row[a] is None else row[a] for row in rows[:streams]], length)
                for a, alpha in enumerate(ALPHAS)
            }
    progress("the same bets against the calibration as it stands")
    naive = as_truth(population, stay, streams, length)
    figures["calibration as truth"] = {str(alpha): share(naive[a], length) for a, alpha in enumerate(ALPHAS)}
    return figures


def share(at: Sequence[Any] | NDArray[np.int64], length: int) -> dict[str, Any]:
    """Share of streams that alarm within so many inputs, and, over all of them, its exact 95% limits."""
    times = np.array(at, np.int64)
    limits = binomtest(int((times <= length).sum()), len(times)).proportion_ci(method="exact")
    steps = [n for n in (1_000, 10_000, 100_000) if n <= length] or [length]
    return {
        "within": {str(n): float((times <= n).mean()) for n in steps},
        "limits": [round(float(limits.low), 4), round(float(limits.high), 4)],
    }


# shifts


def shifts(
    records: dynamic.Records, by_shift: Mapping[str, dynamic.Records], streams: int
) -> tuple[dict[str, Any], float]:
    """Part two: by shift, delays and accuracies; CPU microseconds that an observation took."""
    delays: dict[str, list[float]] = {name: [] for name in by_shift}
    accuracy: dict[str, list[list[float]]] = {name: [] for name in by_shift}
    leaving: dict[str, list[float]] = {name: [] for name in by_shift}
    inputs, seconds = 0, 0.0
    for seed in range(streams):
        if seed % 10 == 0:
            progress(f"shifts: {seed} of {streams} streams each")
        halves = split(None, len(records), search_share=0.5, seed=seed)
        own = halves == SEARCH
        rest = np.flatnonzero(~own)
        calibration = with_parts(records.select(own), seed)
        combiner = fitted(calibration)
        search = searched(calibration, combiner)
        found = search.cheapest(STAY, 1.0)
        assert found is not None
        nobody = (float("inf"),) * (records.stages - 1)
        ways = (found.thresholds, nobody, search.most_accurate(1.0).thresholds)
        bins = exit_bins(calibration, combiner, [found.thresholds])
        first = next(stage for stage, limit in enumerate((*found.thresholds, -np.inf)) if limit != np.inf)
        quiet = Watched.of(records, combiner, found.thresholds, 0)
        for name, other in by_shift.items():
            random = np.random.default_rng(seed)
            loud = Watched.of(other, combiner, found.thresholds, 0)
            # without a shift the stream goes on with the images that are left
            before, after = random.permutation(rest)[:QUIET], random.permutation(rest)
            if other is records:
                after = random.permutation(np.setdiff1d(rest, before))
            test = DriftTest(bins, ALPHA, seed)
            began = time.process_time()
            at = alarmed_at(test, iter([(quiet, before.tolist()), (loud, after.tolist())]))
            seconds, inputs = seconds + time.process_time() - began, inputs + test.inputs
            delays[name].append(np.inf if at is None else at - QUIET)
            accuracy[name].append([accuracy_of(other.select(rest), combiner, way) for way in ways])
            leaving[name].append(float((np.array(loud.stage)[rest] == first).mean()))
    figures = {}
    for name in by_shift:
        late = np.array(delays[name])
        middle, ninth = np.quantile(late, [0.5, 0.9], method="inverted_cdf")
        stay, reference, best = np.mean(accuracy[name], axis=0)
        figures[name] = {
            "delay_median": None if middle == np.inf else int(middle),
            "delay_p90": None if ninth == np.inf else int(ninth),
            "detected": float(((late > 0) & (late <= WITHIN)).mean()),
            "alarmed_before": float((late <= 0).mean()),
            "leave_first": round(float(np.mean(leaving[name])), 4),
            "accuracy": {"stays": round(stay, 4), "reference": round(reference, 4), "best": round(best, 4)},
        }
    return figures, 1e6 * seconds / inputs


def accuracy_of(records: dynamic.Records, combiner: Combiner, thresholds: Sequence[float]) -> float:
    """Share of right answers."""
    return float(
        (
            replay(records.logits, combiner, thresholds=thresholds, backbone=records.backbone).prediction
            == records.label
        ).mean()
    )


def show(figures: Mapping[str, Any]) -> None:
    """The tables."""
    alarms = figures["false_alarms"]
    print(f"{alarms['streams']} streams of {alarms['inputs']} inputs without drift: share that alarms")
    rows = [name for name in alarms if isinstance(alarms[name], dict)]
    steps = list(alarms[rows[0]][str(ALPHAS[0])]["within"])
    print(f"{'':24}{'alpha':>6}" + "".join(f"{'within ' + n:>16}" for n in steps) + f"{'95% limits':>20}")
    for name in rows:
        for alpha in ALPHAS:
            row = alarms[name][str(alpha)]
            cells = "".join(f"{row['within'][n]:16.3f}" for n in steps)
            print(f"{name:24}{alpha:6}{cells}{row['limits'][0]:12.3f} to {row['limits'][1]:.3f}")
    took = f"{figures['observation_us']} us an observation (CPU time)"
    print(f"\nAfter {QUIET} inputs without drift, alpha {ALPHA}; {took}")
    print(f"{'':16}{'delay':>8}{'p90':>7}{'noticed':>9}{'leave at':>10}{'accuracy if':>13}{'':>11}{'':>7}")
    print(f"{'shift':16}{'median':>8}{'':7}{'':9}{'the first':>10}{'it stays':>13}{'reference':>11}{'best':>7}")
    for name, row in figures["shifts"].items():
        late = [f"{row[key]}" if row[key] is not None else "-" for key in ("delay_median", "delay_p90")]
        accuracy = row["accuracy"]
        print(
            f"{name:16}{late[0]:>8}{late[1]:>7}{row['detected']:9.0%}{row['leave_first']:10.3f}"
            f"{accuracy['stays']:13.4f}{accuracy['reference']:11.4f}{accuracy['best']:7.4f}"
        )


def main() -> None:
    """Both parts, printed and saved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--streams", type=int, default=200, help="without drift (default 200)")
    parser.add_argument("--inputs", type=int, default=100_000, help="in each (default 100,000)")
    parser.add_argument("--shifted", type=int, default=50, help="streams for each shift (default 50)")
    parser.add_argument("--processes", type=int, default=2, help="for the false alarms (default 2)")
    options = parser.parse_args()
    data = data_folder(options.data)
    cascade, found = cifar_exits.headline_cascade(data), cifar.images(data, "test")
    records = cifar.records(cascade, found)
    by_shift = {"none": records}
    for kind, (_, strengths) in SHIFTS.items():
        by_shift |= {f"{kind} {s:g}": shifted(cascade, found, kind, s) for s in strengths}
    table, took_us = shifts(records, by_shift, options.shifted)
    figures = {
        "calibration": CALIBRATION,
        "false_alarms": false_alarms(records, options.streams, options.inputs, options.processes),
        "shifts": table,
        "observation_us": round(took_us, 1),
    }
    show(figures)
    print(save("statistics/drift", figures))


if __name__ == "__main__":
    main()
