"""Is a cascade faster over two deployments or in one, and does `cut="auto"` know?

    python -m benchmarks.serve.split

Made cascades (`made_networks.py`) whose last network takes 3, 30 or 300 ms, and of whose inputs 5, 30 or 60% continue.
Each runs in one deployment of two replicas, and split into a head and a tail of one replica each, on the same two CPUs
with one engine thread each. Then `auto` is asked what it would choose, with its reason. Clients are a process of their
own, in an open loop of Poisson arrivals at 0.8 of what saturates the one deployment, for 30 s. The deadline is 5 times
the last network's time, 50 ms at least. The better is the one of more goodput within the deadline.

Every cell is written to `out/serve/split.json`, and a run that was interrupted goes on there. It takes 25 minutes,
`--smoke` 2 with one cell.
"""

import argparse
import logging
from typing import Any

import dynamic
from benchmarks.harness.common import progress, save
from benchmarks.serve.arrivals import Clients, Load
from benchmarks.serve.deployed import OUT, Kept, deployed, local_serve
from benchmarks.serve.load import saturation
from benchmarks.serve.made_networks import cascade, inputs

TIMES_MS, SHARES = (3.0, 30.0, 300.0), (0.05, 0.3, 0.6)
SECONDS, WARM_S, OF_SATURATION, SENT = 30.0, 5.0, 0.8, 200
WAYS: dict[str, dict[str, Any]] = {"one": {"cut": None, "replicas": 2}, "split": {"cut": 1}}
NEARLY = 0.95  # of the better's goodput


def deadline_ms(ms: float) -> float:
    """Of requests to a cascade whose last network takes so long."""
    return max(50.0, 5 * ms)


def measure(kept: Kept, ms: float, share: float, port: int, seconds: float, warm_s: float) -> None:
    """One cell: both ways, and what `auto` chooses."""
    cell = f"{ms:g} ms, {share:.0%} continue"
    if cell in kept:
        return
    bundle = cascade(ms, share)
    budget = dynamic.Budget(max_drop=0.05, on_drift="report")
    x, _ = inputs(SENT, share, seed=2)
    (name,) = (one.name for one in bundle.spec.inputs)
    items, figures = tuple(range(SENT)), dict[str, Any]()
    for way, how in WAYS.items():
        _, url = deployed(bundle, budget, port, **how)
        with Clients(url, OUT / "bodies", x, name) as clients:
            clients.run(Load(5.0, warm_s, items))
            if "rate" not in figures:
                figures["rate"] = round(OF_SATURATION * saturation(clients, items, seconds / 3), 2)
            outcomes = clients.run(Load(figures["rate"], seconds, items))
        figures[way] = outcomes.figures(seconds, deadline_ms(ms))
        progress(f"{cell}, {way}: {figures[way]}")
    handle, _ = deployed(bundle, budget, port, cut="auto")
    split = handle.state.remote().result(timeout_s=60)["split"]
    goodput = {way: figures[way]["goodput_per_s"] for way in WAYS}
    best, chosen = max(goodput, key=lambda way: goodput[way]), "one" if split["cut"] is None else "split"
    reached = round(goodput[chosen] / goodput[best], 3) if goodput[best] else 1.0
    kept.keep(cell, figures | {"auto": chosen, "reason": split["reason"], "better": best, "reached": reached})


def main() -> None:
    """Measure, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times-ms", type=float, nargs="+", default=TIMES_MS)
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--warm-s", type=float, default=WARM_S)
    parser.add_argument("--fresh", action="store_true", help="begin anew")
    parser.add_argument("--smoke", action="store_true", help="one short cell, no figures written")
    options = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("dynamic").setLevel(logging.INFO)
    if options.smoke:
        options.times_ms, options.shares, options.seconds, options.warm_s = (3.0,), (0.3,), 3.0, 1.0
    kept = Kept("split-smoke" if options.smoke else "split", options.fresh or options.smoke)
    with local_serve(2) as port:
        for ms in options.times_ms:
            for share in options.shares:
                measure(kept, ms, share, port, options.seconds, options.warm_s)
    for cell, figures in kept.parts.items():
        print(f"{cell}: {figures}")
    chosen = [figures["auto"] == figures["better"] or figures["reached"] >= 1.0 for figures in kept.parts.values()]
    least = min(figures["reached"] for figures in kept.parts.values())
    print(f"auto chose the better in {sum(chosen)} of {len(chosen)}, {least} of its goodput at least, goal {NEARLY}")
    if not options.smoke:
        print(save("serve/split", {"chose_better": sum(chosen), "of": len(chosen), "least": least} | kept.parts))


if __name__ == "__main__":
    main()
