"""The cascade against every static network, as a user would run them: CIFAR-10, one request at a time, by engine.

    python -m benchmarks.cascades.headline

The cascade is that of `cifar_exits.py`. One half of the test images chooses temperatures and thresholds, through the
engine and precision that is timed (scores differ between them), in requests of one image; the other half, shuffled,
reports. On each engine take turns, as processes of their own: the cascade as its single graph and stage by stage, and
ResNet-20, 32, 44 and 56 unsplit, each in the setting that was fastest on some images of the calibration half. Requests
follow each other, after a warm-up (`alternating.WARM_S`); what waiting between them costs, 5 requests a second show.

Accuracy on one half is off by 0.3 points (standard error of the gain), so the first five splits are run, and the goal
is judged on the mean gain and the ratio of mean latencies over all of them. Everything else is of the first split:
static networks, what a request costs that leaves nowhere, CPU time at 5 requests a second, and whether a static network
would do: "use the static network" where one is as accurate and faster.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cascades.headline_contenders import ROUTES, Prepared, Split, on_split
from benchmarks.harness.alternating import (
    ENGINES,
    HEADER,
    Contender,
    Timed,
    Workers,
    alternate,
    circumstances,
    columns,
    engines_here,
    not_measured,
    row_of,
    winners,
    workers,
)
from benchmarks.harness.common import RESULTS, add_data_option, data_folder, progress, ratio, save, spread
from dynamic.profiling.graph_profile import NOBODY

GOALS = {"onnxruntime f32": 0.38, "openvino f32": 0.44, "openvino bf16": 0.50}  # of ResNet-56's mean latency
REFERENCE = "resnet56"
SPLITS = 5
BLOCK, SCREENED = 40, 160
RATE_S, RATE_BLOCK = 0.2, 25

Chosen = Mapping[str, Contender]  # by row


def measure(
    prepared: Prepared, engine: str, requests: int, rate_requests: int, splits: int, goals: Mapping[str, float] = GOALS
) -> dict[str, Any]:
    """Everything about one engine: figures, printed as a table."""
    progress(f"calibrating on {engine}")
    records = prepared.records(*ENGINES[engine])
    split = prepared.split(0, records)
    listed = prepared.contenders(engine, split)
    with workers(listed) as running:
        progress(f"finding the best of {len(listed)} contenders on {engine}")
        best, means = winners(running, listed, split.calibration[:SCREENED], BLOCK)
        chosen = {c.name: c for c in best}
        cascade = min((chosen[row] for row in ROUTES.values()), key=lambda c: min(means[c.name].values()))
        progress(f"timing them on {engine}")
        took = alternate(running, best, split.report[:requests], BLOCK)
        rows = {c.name: row_of(took[c.key], took[chosen[REFERENCE].key], c) for c in best}
        shares = accuracy(prepared, running, chosen, split, rows, cascade.name)
        deep = all_deep(running, cascade, chosen[REFERENCE], split.report[: max(requests // 4, BLOCK)])
        rate = at_a_rate(running, listed, cascade, chosen[REFERENCE], split.report[:rate_requests])
        ms = {c.name: took[c.key].ms for c in best}
        by_split = [{"gain": rows[cascade.name]["gain"], "ratio": rows[cascade.name]["ratio"]["ratio"]}]
        pooled = [(ms[cascade.name], ms[REFERENCE])]
        for seed in range(1, splits):
            progress(f"split {seed} on {engine}")
            other = prepared.split(seed, records)
            gain, ours, theirs = on_another(prepared, running, cascade, chosen[REFERENCE], other, requests // 2)
            by_split.append({"gain": gain, "ratio": ratio(ours, theirs)["ratio"]})
            pooled.append((ours, theirs))
    figures = {
        "requests": requests,
        "thresholds": [t if np.isfinite(t) else str(t) for t in split.point.thresholds],
        "leave": shares,
        "rows": rows,
        "means_ms": means,
        "all_deep": deep,
        "rate": rate,
        "splits": by_split,
        **verdict(goals[engine], rows, ms, cascade.name, prepared.static, by_split, pooled),
    }
    show(engine, figures)
    return figures


def right(
    prepared: Prepared, running: Workers, contender: Contender, items: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """(whether the answer is right, the stage that gave it) of each item, by the process that is timed."""
    found = running[contender.job].ask("answers", items=items, thresholds=contender.thresholds)
    return np.array(found["label"]) == prepared.labels[items], np.array(found["stage"])


def accuracy(
    prepared: Prepared, running: Workers, chosen: Chosen, split: Split, rows: dict[str, Any], cascade: str
) -> list[float]:
    """Put `accuracy` and `gain` against ResNet-56 into the rows; shares of requests that leave at each stage."""
    found = {name: right(prepared, running, c, split.report) for name, c in chosen.items()}
    for name, (own, _) in found.items():
        gain = own.astype(int) - found[REFERENCE][0]
        rows[name]["accuracy"] = round(float(own.mean()), 5)
        rows[name]["gain"] = round(float(gain.mean()), 5)
        rows[name]["gain_standard_error"] = round(float(gain.std() / np.sqrt(len(gain))), 5)
    stage = found[cascade][1]
    return [round(float(n), 4) for n in np.bincount(stage, minlength=len(prepared.spec.stages)) / len(stage)]


def on_another(
    prepared: Prepared, running: Workers, cascade: Contender, reference: Contender, split: Split, requests: int
) -> tuple[float, list[float], list[float]]:
    """(gain, ms of the cascade, ms of ResNet-56) on another split, in the settings found on the first."""
    ours = on_split(cascade, split)
    with workers([ours]) as extra:
        both = {**running, **extra}
        took = alternate(both, [ours, reference], split.report[:requests], BLOCK)
        own, theirs = (right(prepared, both, c, split.report)[0] for c in (ours, reference))
    gain = round(float(own.mean() - theirs.mean()), 5)
    return gain, took[ours.key].ms, took[reference.key].ms


def all_deep(running: Workers, cascade: Contender, reference: Contender, items: Sequence[int]) -> dict[str, Any]:
    """A request that leaves nowhere, in the settings that won, against ResNet-56 in its own."""
    nobody = replace(cascade, name="all deep", thresholds=(float(NOBODY),) * len(cascade.thresholds or ()))
    took = alternate(running, [nobody, reference], items, BLOCK)
    return row_of(took[nobody.key], took[reference.key], nobody)


def at_a_rate(
    running: Workers, listed: Sequence[Contender], cascade: Contender, reference: Contender, items: Sequence[int]
) -> dict[str, Any] | None:
    """CPU time of a request, waiting included, at 5 a second; each side in the setting that takes least."""
    if not items:
        return None
    progress("5 requests a second")
    # of ResNet-56's settings those of the winning shape: whether the batch is fixed changes nothing about waiting
    fixed = reference.job.setting.fixed
    chosen = [c for c in listed if c.name == cascade.name or (c.name == REFERENCE and c.job.setting.fixed == fixed)]
    took = alternate(running, chosen, items, RATE_BLOCK, warm_s=0, every_s=RATE_S)
    figures: dict[str, Any] = {}
    for name, row in (("cascade", cascade.name), (REFERENCE, REFERENCE)):
        by_settings: dict[str, dict[str, Any]] = {
            c.key.split(" | ")[1]: {"cpu_ms": _cpu(took[c.key]), "latency_ms": spread(took[c.key].ms)}
            for c in chosen
            if c.name == row
        }
        least = min(by_settings, key=lambda setting: by_settings[setting]["cpu_ms"])
        figures[name] = {"settings": least, **by_settings[least], "by_settings": by_settings}
    figures["cpu_ratio"] = round(figures["cascade"]["cpu_ms"] / figures[REFERENCE]["cpu_ms"], 3)
    return figures


def _cpu(timed: Timed) -> float:
    return round(statistics.fmean(timed.cpu_ms), 3)


def verdict(
    goal: float,
    rows: Mapping[str, Any],
    ms: Mapping[str, list[float]],
    cascade: str,
    static: Sequence[str],
    by_split: Sequence[Mapping[str, float]],
    pooled: Sequence[tuple[list[float], list[float]]],
) -> dict[str, Any]:
    """The goal, and the fastest static networks that are as accurate as the cascade and as ResNet-56."""
    statics: dict[str, Any] = {}
    own, reference = rows[cascade]["accuracy"], rows[REFERENCE]["accuracy"]
    for what, least in (("as_accurate_as_cascade", own), ("as_accurate_as_resnet56", reference)):
        able = [name for name in static if rows[name]["accuracy"] >= least]
        name = min(able, key=lambda n: statistics.fmean(ms[n]), default=None)
        statics[what] = None if name is None else {"network": name} | ratio(ms[cascade], ms[name])
    gain = round(statistics.fmean(s["gain"] for s in by_split), 5)
    # every split weighs the same, however many of its requests were timed
    ours, theirs = (statistics.fmean(statistics.fmean(pair[side]) for pair in pooled) for side in (0, 1))
    reached = round(ours / theirs, 3)
    return {
        "route": cascade,
        "gain": gain,
        "ratio": reached,
        "goal": goal,
        "met": gain >= 0 and reached <= goal,
        "fastest_static": statics,
        "use_the_static_network": any(s is not None and s["ratio"] > 1 for s in statics.values()),
    }


def show(engine: str, figures: Mapping[str, Any]) -> None:
    """Print the table of an engine."""
    print(f"\n{engine}: {figures['requests']} requests timed, accuracy on 5,000; ratios to {REFERENCE}; first split")
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
    print("by split: " + ", ".join(f"{s['gain']:+.2%} at {s['ratio']:.3f}" for s in figures["splits"]))
    state = "met" if figures["met"] else "missed"
    print(
        f"over {len(figures['splits'])} splits {figures['gain']:+.2%} at {figures['ratio']:.3f} of {REFERENCE} by "
        f"{figures['route']}; the goal of {figures['goal']} is {state}",
        flush=True,
    )


def measure_all(
    data: Path, engines: Sequence[str], requests: int, rate_requests: int, splits: int = SPLITS
) -> dict[str, Any]:
    """Figures by engine."""
    here, skipped = engines_here(engines)
    with tempfile.TemporaryDirectory() as folder:
        progress("exporting the networks")
        prepared = Prepared(data, Path(folder))
        found = {engine: measure(prepared, engine, requests, rate_requests, splits) for engine in here}
    for name, why in skipped.items():
        print(f"{name}: skipped, {why}")
    return {"cascade": prepared.cascade.names, "engines": found, "skipped": skipped, "not_measured": not_measured()}


def main() -> None:
    """Tables and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--requests", type=int, default=1000, help="timed, of each contender, on the first split")
    parser.add_argument("--rate-requests", type=int, default=100, help="of each at 5 a second (0: leave that out)")
    parser.add_argument("--splits", type=int, default=SPLITS)
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES), metavar="ENGINE")
    options = parser.parse_args()
    data = data_folder(options.data)
    figures = measure_all(data, options.engines, options.requests, options.rate_requests, options.splits)
    kept = RESULTS / "cascades" / "headline.json"
    if kept.is_file() and len(options.engines) < len(ENGINES):  # the others stay as they were measured
        figures["engines"] = json.loads(kept.read_text(encoding="utf-8"))["engines"] | figures["engines"]
    print(circumstances())
    print(save("cascades/headline", figures))


if __name__ == "__main__":
    main()
