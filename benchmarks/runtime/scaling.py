"""What grows with the number of stages and with the batch, and how fast?

    python -m benchmarks.runtime.scaling

A ResNet-56 is wrapped with 0 to 11 exits and run on batches of 1 to 256: all the way (every exit evaluated, nobody
leaves) and leaving at the first exit, as the single graph and stage by stage, on ONNX Runtime and OpenVINO f32 at the
library's own settings. Beside it stand the steps around inference: export, size on disk, loading, `certify` on 5,000
made-up records, `Frontier.of`, a decision.

Growth is the slope of log time over log stages: 1 is linear. A constant part hides growth, so two are given: fitted
through all (of the steps: from 2 stages on) and between the last two. Deciding takes one core: its figures are CPU
time, of one operating point where more stages bring more of them, and go to 24 stages, since `certify` searches
otherwise beyond 7. Weights are random: times do not depend on them.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dynamic
from benchmarks.harness.common import RESULTS, Contender, progress, save, spread, take_turns
from benchmarks.runtime.one_stays import plain, unsettle
from dynamic.engines.engine_factory import open_engine
from dynamic.models import resnet56
from dynamic.offline.onnx_export.stage_graphs import export_stages
from dynamic.offline.onnx_export.whole_graph import write_graphs
from dynamic.policies import Budget, BudgetPolicy, Costs, Frontier, Ladder, Records, Snapshot, certify
from dynamic.policies.records import split
from dynamic.policies.scores import Combiner
from dynamic.profiling.graph_profile import NOBODY

STAGES = (1, 2, 3, 6, 12)
DECIDED = (*STAGES, 24)
REPEATS = {1: 40, 4: 20, 16: 10, 64: 5, 256: 3}  # by batch size
ENGINES = ("onnxruntime", "openvino")
ROUTES = ("graph", "stages")
RECORDS, CLASSES = 5000, 10
LINEAR = 1.15  # a slope beyond it is called faster than linear
NOT_MEASURED = ("ARM", "phones", "accelerators", "bf16", "torch", "cascades of several backbones", "memory")
SHAPE = (3, 32, 32)


def export(stages: int, folder: Path) -> tuple[Any, Ladder, dict[str, float]]:
    """(spec, ladder, seconds and MB that it took): stages and both graphs written to `folder`."""
    torch.manual_seed(0)
    network = resnet56().eval()
    unsettle(network)
    example = torch.randn(2, *SHAPE)
    cascade = dynamic.Cascade(dynamic.wrap(network, example, exits=stages - 1) if stages > 1 else network)
    for one in cascade.networks:  # the heads are new
        unsettle(one)
    began = time.perf_counter()
    spec = export_stages(cascade, folder, example)
    exported = time.perf_counter()
    ladder = plain(cascade, spec, SHAPE)
    nesting = time.perf_counter()
    write_graphs(folder, spec, ladder)
    took = {
        "export stages, s": exported - began,
        "nest into graphs, s": time.perf_counter() - nesting,
        "on disk, MB": sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6,
        "of it graph.onnx, MB": (folder / "graph.onnx").stat().st_size / 1e6,
    }
    return spec, ladder, took


def run(name: str, folder: Path, spec: Any, ladder: Ladder, times: float) -> tuple[dict[str, Any], dict[str, float]]:
    """(ms by batch size, route and depth; seconds to load by route) of one engine."""
    combiner = Combiner(ladder.temperature, ladder.score, combine=ladder.combine, backbone=ladder.backbone)
    last = len(spec.stages) - 1
    depths = {"full": np.full(last, NOBODY, np.float32), "first": np.full(last, -np.inf, np.float32)}
    loading: dict[str, list[float]] = {}
    for _ in range(max(2, round(3 * times))):
        for what in ("single graph", "batch graph", "stages"):
            engine = open_engine(name, folder, spec, combiner)
            assert engine.graph is not None
            began = time.perf_counter()
            if what == "stages":
                engine.load(spec.backbones)
            else:
                engine.graph.load(1 if what == "single graph" else 2)
            loading.setdefault(f"load {name} {what}, s", []).append(time.perf_counter() - began)
            engine.close()
    opened = {route: open_engine(name, folder, spec, combiner, route=route) for route in ROUTES}
    found: dict[str, Any] = {}
    for rows, repeats in REPEATS.items():
        inputs = {"input": np.random.default_rng(0).standard_normal((rows, *SHAPE)).astype(np.float32)}

        def way(route: str, depth: str, inputs: dict[str, Any] = inputs) -> Contender:
            return Contender(f"{route}, {depth}", lambda _: opened[route].run(inputs, depths[depth]))

        ways = [way(route, depth) for route in ROUTES for depth in depths]
        take_turns(ways, range(2))
        took = take_turns(ways, range(max(3, round(repeats * times))))
        found[str(rows)] = {label: spread(ms) for label, ms in took.items()}
    for engine in opened.values():
        engine.close()
    return found, {what: statistics.median(seconds) for what, seconds in loading.items()}


def made_up(stages: int) -> Records:
    """Records whose stages err on the same inputs, the later ones less often."""
    random = np.random.default_rng(0)
    label = random.integers(CLASSES, size=RECORDS)
    truth = np.eye(CLASSES, dtype=np.float32)[label]
    shared, difficulty = random.normal(size=(RECORDS, CLASSES)), random.normal(size=(RECORDS, 1))
    logits = np.empty((RECORDS, stages, CLASSES), np.float32)
    for stage in range(stages):
        noise = 0.85 * shared + 0.5 * random.normal(size=(RECORDS, CLASSES))
        logits[:, stage] = 1.5 * (noise + truth * (2 + 2 * (stage + 1) / stages - difficulty))
    return Records(
        logits=logits,
        label=label,
        group=None,
        part=split(None, RECORDS),
        backbone=(0,) * stages,
        macs=(126e6 / stages,) * stages,
        head_macs=(1e6,) * stages,
        stage_names=tuple(f"stage {s}" for s in range(stages)),
        fingerprint="made up",
    )


def made_up_costs(stages: int) -> Costs:
    """12 ms and their share for each stage, at the batch sizes that a profile takes."""
    batch = (1, 8, 64)
    table = tuple(tuple(12 / stages * rows**0.8 for rows in batch) for _ in range(stages))
    return Costs(
        machine="made up",
        engine="onnxruntime",
        precision="f32",
        threads=2,
        batch=batch,
        latency_ms=table,
        latency_p95_ms=tuple(tuple(1.2 * ms for ms in row) for row in table),
        head_ms=tuple(tuple(0.02 * ms for ms in row) for row in table),
        call_ms=(0.05,) * len(batch),
        cpu_ms=table,
        energy_mj=None,
        energy_source=None,
        memory_mb=(10.0,),
        idle_mw=None,
        not_measured=(),
    )


def deciding(stages: int, times: float) -> dict[str, float]:
    """CPU seconds of `certify`, `Frontier.of`, the first decision for a batch size, and any later one."""
    records, costs, budget = made_up(stages), made_up_costs(stages), Budget(latency_ms=50, max_drop=0.01)
    seen, policy = Snapshot(time_s=0.0, cpu_load=0.2, cpu_cores=2, rows=16), BudgetPolicy()
    ladder = certify(records)
    known = Frontier.of(ladder, costs)
    policy.decide(known, budget, seen, policy.initial())  # remembers its figures

    def timed(work: Callable[[Any], object], repeats: float, on: Callable[[], Any] = lambda: None) -> float:
        took = []
        for _ in range(max(3, round(repeats * times))):
            given = on()
            began = time.process_time()
            work(given)
            took.append(time.process_time() - began)
        return statistics.median(took)

    def decide(frontier: Frontier) -> object:
        return policy.decide(frontier, budget, seen, policy.initial())

    points = len(ladder.points)
    return {
        "certify, s": timed(lambda _: certify(records), 3),
        "Frontier.of a point, s": timed(lambda _: Frontier.of(ladder, costs), 20) / points,
        "first decision a point, s": timed(decide, 20, lambda: Frontier.of(ladder, costs)) / points,
        "later decision, s": timed(decide, 100, lambda: known),
    }


def slopes(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """Of log y over log x: fitted through all, and over the last step."""
    fitted = float(np.polyfit(np.log(x), np.log(y), 1)[0])
    last = float(np.log(y[-1] / y[-2]) / np.log(x[-1] / x[-2]))
    return {"all": round(fitted, 2), "last": round(last, 2)}


def growth(steps: dict[str, dict[str, float]], latency: dict[str, Any]) -> Iterator[tuple[str, list[float], Any]]:
    """(what, its values, slopes): steps and full depth over stages, then full depth over the batch."""
    for name in steps[str(STAGES[-1])]:
        counts = [s for s in DECIDED if name in steps[str(s)]]
        values = [steps[str(s)][name] for s in counts]
        yield name, values, slopes(counts[1:], values[1:])  # one stage has nothing to search, and one point
    for name in latency:
        for route, rows in itertools.product(ROUTES, ("1", "64")):
            values = [latency[name][str(s)][rows][f"{route}, full"]["median"] for s in STAGES]
            yield f"{name} {route}, full depth, batch {rows}, ms", values, slopes(STAGES, values)
    for name, route in itertools.product(latency, ROUTES):
        of = latency[name][str(STAGES[-1])]
        values = [of[str(rows)][f"{route}, full"]["median"] for rows in REPEATS]
        yield f"{name} {route}, full depth, ms over the batch", values, slopes(tuple(REPEATS), values)


def draw(latency: dict[str, Any], steps: dict[str, dict[str, float]]) -> Path:
    """Three panels: full depth and first exit over stages, time a row over the batch, the other steps over stages."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(14, 4.6), layout="constrained")
    colours = dict(zip(latency, ("tab:blue", "tab:orange"), strict=False))
    dashes = {"graph": "-", "stages": "--"}
    for name, of in latency.items():
        for route in ROUTES:
            style = {"color": colours[name], "linestyle": dashes[route], "marker": "o", "markersize": 3.5}
            base = of["1"]["64"][f"{route}, full"]["median"]
            for depth, alpha in (("full", 1.0), ("first", 0.4)):
                y = [of[str(s)]["64"][f"{route}, {depth}"]["median"] / base for s in STAGES]
                left.plot(STAGES, y, **style, alpha=alpha)
            y = [of[str(STAGES[-1])][str(rows)][f"{route}, full"]["median"] / rows for rows in REPEATS]
            middle.plot(list(REPEATS), y, **style, label=f"{name}, {route}")
    left.set(title="batch 64, relative to the network alone\n(pale: all leave at the first exit)", xlabel="stages")
    left.set(ylim=(0, None), xticks=STAGES)
    middle.set(title=f"{STAGES[-1]} stages, full depth: ms a row", xlabel="batch", xscale="log", ylim=(0, None))
    middle.set_xticks(list(REPEATS), [str(rows) for rows in REPEATS])
    for number, step in enumerate(n for n in steps[str(STAGES[-1])] if n.endswith(", s")):
        counts = [s for s in DECIDED if step in steps[str(s)]]
        dash = "-" if number < 10 else "--"  # ten colours
        right.plot(counts, [steps[str(s)][step] for s in counts], dash, marker="o", markersize=3.5, label=step[:-3])
    right.plot(DECIDED, [3e-6 * s for s in DECIDED], "k:", label="linear")
    right.set(title="seconds of the steps around inference", xlabel="stages", xscale="log", yscale="log")
    right.set_xticks(DECIDED, [str(s) for s in DECIDED])
    for axes in (middle, right):
        axes.minorticks_off()
    middle.legend(fontsize=8)
    right.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    path = RESULTS / "runtime" / "scaling.png"
    figure.savefig(path, dpi=80)
    return path


def main() -> None:
    """Measure, print, draw, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=float, default=1.0, help="multiplies the number of repeats")
    options = parser.parse_args()
    steps: dict[str, dict[str, float]] = {}
    latency: dict[str, Any] = {name: {} for name in ENGINES}
    for stages in STAGES:
        with tempfile.TemporaryDirectory() as folder:
            progress(f"{stages} stages: export")
            spec, ladder, found = export(stages, Path(folder))
            for name in ENGINES:
                progress(f"{stages} stages: {name}")
                latency[name][str(stages)], loading = run(name, Path(folder), spec, ladder, options.repeats)
                found |= loading
        steps[str(stages)] = found
    for stages in DECIDED:
        progress(f"{stages} stages: certify and decide")
        steps[str(stages)] = steps.get(str(stages), {}) | deciding(stages, options.repeats)

    rates = list(growth(steps, latency))
    fast = [what for what, _, slope in rates if max(slope.values()) > LINEAR]
    for over, columns in (("stages", DECIDED), ("batch", tuple(REPEATS))):
        print(f"\n{'over the ' + over:52}" + "".join(f"{c:>9}" for c in columns) + f"{'slope':>8}{'last':>7}")
        for what, values, slope in rates:
            if what.endswith(" over the batch") == (over == "batch"):
                mark = "  FASTER THAN LINEAR" if what in fast else ""
                numbers = "".join(f"{v:9.3g}" for v in values).ljust(9 * len(columns))
                print(
                    f"{what.removesuffix(' over the batch'):52}{numbers}{slope['all']:8.2f}{slope['last']:7.2f}{mark}"
                )
    print(f"\nnot measured: {', '.join(NOT_MEASURED)}\n{draw(latency, steps)}")
    figures = {
        "stages": STAGES,
        "not_measured": NOT_MEASURED,
        "slopes": {what: slope for what, _, slope in rates},
        "faster_than_linear": fast,
        "steps": steps,
        "latency_ms": latency,
    }
    print(save("runtime/scaling", figures))


if __name__ == "__main__":
    main()
