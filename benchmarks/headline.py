"""The cascade against every static network, as a user would run them: CIFAR-10, one request at a time, by engine.

    python benchmarks/headline.py

The cascade is that of `cifar_exits.py`. One half of the test images chooses temperatures and thresholds, through the
engine and precision that is timed (scores differ between them), in requests of one image; the other half, shuffled,
reports. On each engine take turns, as processes of their own: the cascade as its single graph and stage by stage, and
ResNet-20, 32, 44 and 56 unsplit, each in every setting, the best by mean latency being used. Accuracy is that of the
timed processes themselves on the whole report half.

Also: what a request costs that leaves nowhere, CPU time at 5 requests a second, and whether a static network would do:
"use the static network" where one is as accurate and faster.
"""

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cifar
import numpy as np
from alternating import (
    ENGINES,
    HEADER,
    Contender,
    Timed,
    Workers,
    alternate,
    best_row,
    circumstances,
    columns,
    engines_here,
    not_measured,
    workers,
)
from common import add_data_option, best, data_folder, progress, ratio, save, spread
from headline_contenders import ROUTES, Prepared

from dynamic.profiling_graph import NOBODY

GOALS = {"onnxruntime f32": 0.38, "openvino f32": 0.44, "openvino bf16": 0.50}  # of ResNet-56's mean latency
REFERENCE = "resnet56"
BLOCK = 40
RATE_S, RATE_BLOCK = 0.2, 25


@dataclass(frozen=True)
class Best:
    """The contender of every row that won by mean latency, and what all took."""

    by_row: Mapping[str, Contender]
    took: Mapping[str, Timed]

    @property
    def cascade(self) -> str:
        """The row of the faster route."""
        return min(ROUTES.values(), key=self.mean)

    def mean(self, row: str) -> float:
        """Latency in ms."""
        return statistics.fmean(self.ms(row))

    def ms(self, row: str) -> list[float]:
        """Of every request."""
        return self.took[self.by_row[row].key].ms


def measure(prepared: Prepared, engine: str, requests: int, rate_requests: int, count: int | None) -> dict[str, Any]:
    """Everything about one engine: figures, printed as a table."""
    progress(f"calibrating on {engine}")
    point = prepared.calibrate(*ENGINES[engine], count)
    listed = prepared.contenders(engine, point)
    items = [i % len(prepared.labels) for i in range(requests)]
    with workers(listed) as running:
        progress(f"timing {len(listed)} contenders on {engine}")
        took = alternate(running, listed, items, BLOCK)
        keys = {c.name: [d.key for d in listed if d.name == c.name] for c in listed}
        rows = {row: best_row(took, own, keys[REFERENCE]) for row, own in keys.items()}
        ms = {key: timed.ms for key, timed in took.items()}
        found = Best({row: _of(listed, best(ms, own)) for row, own in keys.items()}, took)
        progress(f"accuracy on {engine}")
        stages = accuracy(prepared, running, found, rows)
        deep = all_deep(running, found, items[: max(requests // 4, 10)])
        rate = at_a_rate(running, listed, found, items[:rate_requests], engine) if rate_requests else None
    figures = {
        "requests": requests,
        "accuracy_on": len(prepared.labels),
        "thresholds": [t if np.isfinite(t) else str(t) for t in point.thresholds],
        "leave": stages,
        "rows": rows,
        "all_deep": deep,
        "rate": rate,
        **verdict(engine, rows, found),
    }
    show(engine, figures, found.cascade)
    return figures


def _of(listed: Sequence[Contender], key: str) -> Contender:
    return next(c for c in listed if c.key == key)


def accuracy(prepared: Prepared, running: Workers, found: Best, rows: dict[str, Any]) -> list[float]:
    """Put `accuracy` and `gain` against ResNet-56 into the rows; shares of requests that leave at each stage."""
    answers = {
        row: running[c.job].ask("answers", count=len(prepared.labels), thresholds=c.thresholds)
        for row, c in found.by_row.items()
    }
    right = {row: np.array(a["label"]) == prepared.labels for row, a in answers.items()}
    for row, own in right.items():
        gain = own.astype(int) - right[REFERENCE]
        rows[row]["accuracy"] = round(float(own.mean()), 5)
        rows[row]["gain"] = round(float(gain.mean()), 5)
        rows[row]["gain_standard_error"] = round(float(gain.std() / np.sqrt(len(gain))), 5)
    stage = answers[found.cascade]["stage"]
    return [round(float(n), 4) for n in np.bincount(stage, minlength=len(prepared.spec.stages)) / len(stage)]


def all_deep(running: Workers, found: Best, items: Sequence[int]) -> dict[str, Any]:
    """A request that leaves nowhere, in the settings that won, against ResNet-56 in its own."""
    cascade, reference = found.by_row[found.cascade], found.by_row[REFERENCE]
    nobody = Contender("all deep", cascade.job, (float(NOBODY),) * len(cascade.thresholds or ()))
    took = alternate(running, [nobody, reference], items, BLOCK)
    return best_row(took, [nobody.key], [reference.key])


def at_a_rate(
    running: Workers, listed: Sequence[Contender], found: Best, items: Sequence[int], engine: str
) -> dict[str, Any]:
    """CPU time of a request, waiting included, at 5 a second; each side in the setting that takes least."""
    progress(f"5 requests a second on {engine}")
    fixed = found.by_row[REFERENCE].job.setting.fixed
    # of ResNet-56's settings those of the winning shape: whether the batch is fixed changes nothing about waiting
    chosen = [c for c in listed if c.name == found.cascade or (c.name == REFERENCE and c.job.setting.fixed == fixed)]
    took = alternate(running, chosen, items, RATE_BLOCK, warm=1, every_s=RATE_S)
    figures: dict[str, Any] = {}
    cpu = {key: timed.cpu_ms for key, timed in took.items()}
    for row in (found.cascade, REFERENCE):
        own = [c.key for c in chosen if c.name == row]
        key = best(cpu, own)
        figures["cascade" if row == found.cascade else row] = {
            "settings": key.split(" | ")[1],
            "cpu_ms": round(statistics.fmean(cpu[key]), 3),
            "latency_ms": spread(took[key].ms),
            "by_settings": {
                k.split(" | ")[1]: {
                    "cpu_ms": round(statistics.fmean(cpu[k]), 3),
                    "latency_ms": spread(took[k].ms),
                }
                for k in own
            },
        }
    figures["cpu_ratio"] = round(figures["cascade"]["cpu_ms"] / figures[REFERENCE]["cpu_ms"], 3)
    return figures


def verdict(engine: str, rows: Mapping[str, Any], found: Best) -> dict[str, Any]:
    """The goal, and the fastest static networks that are as accurate as the cascade and as ResNet-56."""
    cascade = found.cascade
    reached, own = rows[cascade]["ratio"]["ratio"], rows[cascade]["accuracy"]
    statics: dict[str, Any] = {}
    for what, least in (("as_accurate_as_cascade", own), ("as_accurate_as_resnet56", rows[REFERENCE]["accuracy"])):
        able = [name for name in cifar.NAMES if rows[name]["accuracy"] >= least]
        name = min(able, key=found.mean, default=None)
        statics[what] = None if name is None else {"network": name} | ratio(found.ms(cascade), found.ms(name))
    enough = own >= rows[REFERENCE]["accuracy"]
    return {
        "route": cascade,
        "ratio": reached,
        "goal": GOALS[engine],
        "met": enough and reached <= GOALS[engine],
        "accurate_enough": enough,
        "fastest_static": statics,
        "use_the_static_network": any(s is not None and s["ratio"] > 1 for s in statics.values()),
    }


def show(engine: str, figures: Mapping[str, Any], cascade: str) -> None:
    """Print the table of an engine."""
    print(
        f"\n{engine}: {figures['requests']} requests timed, accuracy on {figures['accuracy_on']}; ratios to {REFERENCE}"
    )
    print(f"{'':16}{'accuracy':>9}{'gain (standard error)':>23}{HEADER}")
    for name, row in figures["rows"].items():
        gain = f"{row['gain']:+.2%} ({row['gain_standard_error']:.2%})"
        print(f"{name:16}{row['accuracy']:9.2%}{gain:>23}{columns(row)}")
    print(f"{'all deep':16}{'':32}{columns(figures['all_deep'])}")
    print(f"leave at each stage: {', '.join(f'{share:.1%}' for share in figures['leave'])}")
    if (rate := figures["rate"]) is not None:
        for name in ("cascade", REFERENCE):
            own = rate[name]
            print(
                f"5 requests a second: {name:9}{own['cpu_ms']:7.2f} CPU-ms a request, mean latency "
                f"{own['latency_ms']['mean']:.2f} ms   {own['settings']}"
            )
        print(f"5 requests a second: CPU time {rate['cpu_ratio']:.3f} of {REFERENCE}'s")
    for what, static in figures["fastest_static"].items():
        words = f"fastest static network {what.replace('_', ' ')}: "
        if static is None:
            print(words + "none is")
        else:
            print(
                f"{words}{static['network']}, ratio {static['ratio']:.3f} ({static['q25']:.3f} to {static['q75']:.3f})"
            )
    if figures["use_the_static_network"]:
        print("use the static network")
    state = "met" if figures["met"] else ("missed" if figures["accurate_enough"] else "missed: less accurate")
    print(f"{figures['ratio']:.3f} of {REFERENCE} by {cascade}; the goal of {figures['goal']} is {state}", flush=True)


def measure_all(
    data: Path, engines: Sequence[str], requests: int, rate_requests: int, count: int | None = None
) -> dict[str, Any]:
    """Figures by engine. `count` images of the calibration half alone, for a quick look."""
    here, skipped = engines_here(engines)
    with tempfile.TemporaryDirectory() as folder:
        progress("exporting the networks")
        prepared = Prepared(data, Path(folder))
        found = {engine: measure(prepared, engine, requests, rate_requests, count) for engine in here}
    for name, why in skipped.items():
        print(f"{name}: skipped, {why}")
    return {"cascade": prepared.cascade.names, "engines": found, "skipped": skipped, "not_measured": not_measured()}


def main() -> None:
    """Tables and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--requests", type=int, default=2000, help="timed, of each contender")
    parser.add_argument("--rate-requests", type=int, default=200, help="of each at 5 a second (0: leave that out)")
    parser.add_argument("--calibration", type=int, help="images of the calibration half (default: all 5,000)")
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES), metavar="ENGINE")
    options = parser.parse_args()
    data = data_folder(options.data)
    figures = measure_all(data, options.engines, options.requests, options.rate_requests, options.calibration)
    print(circumstances())
    print(save("headline", figures))


if __name__ == "__main__":
    main()
