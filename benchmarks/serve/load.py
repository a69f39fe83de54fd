"""How much load a cascade takes on Ray Serve within a deadline, against a static network of equal accuracy, batched.

    python -m benchmarks.serve.load

Both are bundles behind `dynamic.serve.application` with one deployment, one replica and two engine threads, on the same
Ray Serve, one after the other. Requests share batches. The cascade is the most accurate of two networks in
`results/photographs/resolutions.json`, with a budget of 2% drop. The static network is its last one, which is also the
best static network of its accuracy. Both are built on half of the photographs, and clients send others as tensors from
a process of their own, in an open loop of Poisson arrivals. No request carries a deadline, so that every answer is a
full one.

First a rate far above what can be answered says what saturates each. Then each gets 10 to 120% of that for 60 s, after
10 s of warm-up, three times. Goodput is what is answered within the deadline, 100 ms unless it is given. The figure is
the highest offered load whose p99 is within the deadline. Every point is written to `out/serve/load.json`, and a run
that was interrupted goes on there. It takes 65 minutes. `--smoke` takes 2, with smaller networks, and writes nothing.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

import dynamic
from benchmarks.harness.common import RESULTS, add_data_option, data_folder, progress, save
from benchmarks.photographs import members
from benchmarks.serve.arrivals import Clients, Load, Outcomes, joined
from benchmarks.serve.deployed import OUT, Kept, deployed, local_serve

CASCADE, STATIC = ("lite0@192", "lite2@224"), ("lite2@224",)
SMOKE = ("v1 0.25@128", "v1 0.5@160"), ("v1 0.5@160",)
SHARES = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.2)
SECONDS, WARM_S, RUNS, SENT = 60.0, 10.0, 3, 96
DEADLINE_MS, DROP, GOAL = 100.0, 0.02, 1.7
THREADS, BATCHES = 2, (1, 4, 16)


def bundles(data: Path, smoke: bool) -> tuple[dict[str, dynamic.Bundle], Any, dict[str, float]]:
    """The bundles by name, inputs that none was calibrated with, and the accuracy of both on these."""
    from benchmarks.photographs.resolutions import photographs

    given = photographs(data)
    half, other = given.halves(0)
    half, other = (half[:200], other[:100]) if smoke else (half, other)
    networks = members.members(data) if not smoke else _small(data)
    built = {}
    for name, chosen in zip(("cascade", "static"), SMOKE if smoke else (CASCADE, STATIC), strict=True):
        folder = OUT / f"{'smoke-' * smoke}{name}"
        if not (folder / "bundle.json").is_file():
            progress(f"building {chosen}")
            cascade = dynamic.Cascade([networks[one] for one in chosen], names=list(chosen))
            bundle = dynamic.build(cascade, given.loader(half), max_drops=(0.3 if smoke else DROP,), progress=False)
            bundle.save(folder)
        built[name] = dynamic.load(folder).profile(batch=BATCHES, threads=THREADS)
    accuracy = {}
    for name, bundle in built.items():
        with bundle.runtime(_budget(smoke), threads=THREADS) as run:
            labels = run.predict(given.pictures[other])
        accuracy[name] = round(float(np.mean(labels == given.labels[other])), 4)
    return built, given.pictures[other[:SENT]], accuracy


def _small(data: Path) -> Any:
    """The MobileNets alone, which need no timm."""
    from safetensors.torch import load_file

    networks = {}
    for name in ("025_128", "050_160"):
        width, side = members.MOBILE[name]
        network = members.MobileNetV1(width)
        given = load_file(data / "weights" / f"mobilenet_v1_{name}.safetensors")
        network.load_state_dict({key: value.float() for key, value in given.items()})
        networks[f"v1 {width:g}@{side}"] = members.at(members.Member(network, 128.0), side).eval()
    return networks


def _budget(smoke: bool) -> dynamic.Budget:
    return dynamic.Budget(max_drop=0.3 if smoke else DROP, on_drift="report")


def saturation(clients: Clients, items: tuple[int, ...], seconds: float) -> float:
    """Answers a second while far more is asked than can be answered."""
    rate = 20.0
    while True:
        outcomes = clients.run(Load(rate, seconds, items))
        ended_s = max(float((outcomes.due_s + outcomes.ms / 1e3)[outcomes.status == 200].max()), seconds)
        answered = float((outcomes.status == 200).sum()) / ended_s
        if answered < 0.7 * rate:
            return answered
        rate *= 2


def measure(kept: Kept, name: str, clients: Clients, items: tuple[int, ...], options: argparse.Namespace) -> None:
    """Every point of one contender."""
    if f"{name} saturation" not in kept:
        clients.run(Load(5.0, options.warm_s, items))
        kept.keep(f"{name} saturation", saturation(clients, items, options.seconds / 6))
    top = kept.parts[f"{name} saturation"]
    for share in options.shares:
        for number in range(options.runs):
            part = f"{name} {share:g} {number}"
            if part in kept:
                continue
            clients.run(Load(share * top, options.warm_s, items, seed=1000 + number))
            outcomes = clients.run(Load(share * top, options.seconds, items, seed=number))
            kept.keep(part, [outcomes.due_s.tolist(), outcomes.ms.tolist(), outcomes.status.tolist()])
            progress(f"{part}: {outcomes.figures(options.seconds, options.deadline_ms)}")


def table(kept: Kept, options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """By contender, a row for each offered load."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for name in ("cascade", "static"):
        for share in options.shares:
            runs = [kept.parts[f"{name} {share:g} {number}"] for number in range(options.runs)]
            each = [Outcomes(*(np.array(column) for column in one)) for one in runs]
            offered = round(share * kept.parts[f"{name} saturation"], 2)
            goodput = [one.figures(options.seconds, options.deadline_ms)["goodput_per_s"] for one in each]
            whole = joined(each).figures(options.seconds * options.runs, options.deadline_ms)
            spread = {"goodput_least": min(goodput), "goodput_most": max(goodput)}
            rows.setdefault(name, []).append({"share": share, "offered_per_s": offered} | whole | spread)
    return rows


def most(rows: list[dict[str, Any]], deadline_ms: float) -> float:
    """The highest offered load whose p99 is within the deadline. 0: none."""
    within = [row["offered_per_s"] for row in rows if row["p99"] is not None and row["p99"] <= deadline_ms]
    return max(within, default=0.0)


def picture(rows: dict[str, list[dict[str, Any]]], deadline_ms: float, path: Path) -> None:
    """Goodput and p99 against offered load."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, points in rows.items():
        offered = [point["offered_per_s"] for point in points]
        left.plot(offered, [point["goodput_per_s"] for point in points], marker="o", label=name)
        right.plot(offered, [point["p99"] for point in points], marker="o", label=name)
    left.set(xlabel="offered load, requests/s", ylabel=f"answered within {deadline_ms:g} ms, requests/s")
    right.set(xlabel="offered load, requests/s", ylabel="p99, ms", yscale="log")
    right.axhline(deadline_ms, color="grey", linestyle="--")
    left.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measure, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of a point")
    parser.add_argument("--warm-s", type=float, default=WARM_S)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="of what saturates")
    parser.add_argument("--deadline-ms", type=float, default=DEADLINE_MS)
    parser.add_argument("--fresh", action="store_true", help="begin anew")
    parser.add_argument("--smoke", action="store_true", help="small networks, two short points, no figures written")
    options = parser.parse_args()
    if options.smoke:
        options.seconds, options.warm_s, options.runs, options.shares = 4.0, 1.0, 1, (0.3, 1.2)
    kept = Kept("load-smoke" if options.smoke else "load", options.fresh or options.smoke)
    built, pictures, accuracy = bundles(data_folder(options.data), options.smoke)
    (name,) = (one.name for one in built["static"].spec.inputs)
    items = tuple(range(len(pictures)))
    with local_serve(THREADS) as port:
        for contender, bundle in built.items():
            how = {"cut": None, "threads": THREADS, "options": dynamic.serve.ServeOptions(max_batch=BATCHES[-1])}
            _, url = deployed(bundle, _budget(options.smoke), port, **how)
            with Clients(url, OUT / "bodies", pictures, name) as clients:
                measure(kept, contender, clients, items, options)
    rows = table(kept, options)
    for contender, points in rows.items():
        for point in points:
            print(contender, point)
    loads = {contender: most(points, options.deadline_ms) for contender, points in rows.items()}
    times = round(loads["cascade"] / loads["static"], 3) if loads["static"] else None
    print(f"load at p99 within {options.deadline_ms:g} ms: {loads}, {times} times, goal {GOAL}. Accuracy: {accuracy}")
    if not options.smoke:
        path = save(
            "serve/load",
            {
                "goal": GOAL,
                "times": times,
                "load_at_p99_per_s": loads,
                "accuracy": accuracy,
                "deadline_ms": options.deadline_ms,
                "saturation_per_s": {one: kept.parts[f"{one} saturation"] for one in rows},
                "points": rows,
            },
        )
        picture(rows, options.deadline_ms, RESULTS / "serve" / "load.png")
        print(path)


if __name__ == "__main__":
    main()
