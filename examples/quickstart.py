"""The whole road: trained networks in, adaptive inference under a budget out.

    python examples/quickstart.py
        offline: scikit-learn's handwritten digits, three small networks trained on the spot (one to two minutes)
    python examples/quickstart.py --data cifar10.zip --weights weights/
        CIFAR-10 with pretrained ResNets (resnet20_cifar10.safetensors, ... in the folder): no training at all

Prints accuracy, latency, CPU time and where inputs leave for the cascade and every static network, then tightens
and relaxes the budget while inputs stream, and draws accuracy against latency.
"""

import argparse
import math
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

import digits_bundle
import numpy as np
from digits_bundle import Problem
from numpy.typing import NDArray

import dynamic
from dynamic.bundle.tables import certificate_text
from dynamic.data import ImageSet, load_images, stratified_halves

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def cifar(data: Path, weights: Path) -> Problem:
    """Pretrained ResNets; one half of the test images calibrates, the other reports."""
    from dynamic.models import load_weights, resnet20, resnet32, resnet56

    makers = {"resnet20": resnet20, "resnet32": resnet32, "resnet56": resnet56}
    networks = {name: make().eval() for name, make in makers.items()}
    for name, network in networks.items():
        load_weights(network, weights / f"{name}_cifar10.safetensors")
    images = load_images(data, "test")
    half, other = stratified_halves(images.labels, seed=0)
    preprocess = dynamic.Preprocess.of(IMAGENET["mean"], IMAGENET["std"])
    return Problem(list(networks.values()), list(networks), preprocess, images.select(half), images.select(other))


@dataclass
class Row:
    """One way to answer: thresholds on the same engine; a static network has all other exits off."""

    name: str
    thresholds: NDArray[np.float32]
    static: bool
    accuracy: float = 0.0
    shares: str = ""
    latency_ms: list[float] = field(default_factory=list)
    cpu_ms: float = 0.0

    @property
    def mean_ms(self) -> float:
        """Mean latency."""
        return statistics.fmean(self.latency_ms)


def contenders(bundle: dynamic.Bundle, names: list[str]) -> list[Row]:
    """Every static network alone, then every point of the frontier that uses more than one."""
    rows = []
    for stage, name in enumerate(names):
        limits = np.full(len(names) - 1, np.inf, np.float32)
        if stage < len(names) - 1:
            limits[stage] = -np.inf
        rows.append(Row(name, limits, static=True))
    rows += [
        Row(f"cascade, {p.name}", np.array(p.operating_point.thresholds, np.float32), static=False)
        for p in bundle.frontier.points
        if max(p.shares) < 1
    ]
    return rows


def measure(bundle: dynamic.Bundle, rows: list[Row], report: ImageSet, single: int) -> None:
    """Accuracy over all of `report`, latency one image at a time; contenders take turns on each image."""
    assert bundle.preprocess is not None
    engine = bundle.open()
    inputs = bundle.preprocess.arrays(report.images, bundle.spec.inputs)["input"]
    for row in rows:
        stages, right = [], 0
        for start in range(0, len(inputs), 64):
            output = engine.run({"input": inputs[start : start + 64]}, row.thresholds)
            stages.append(output.stage)
            right += int((output.logits.argmax(1) == report.labels[start : start + 64]).sum())
        row.accuracy = right / len(inputs)
        left = np.bincount(np.concatenate(stages), minlength=len(bundle.spec.stages)) / len(inputs)
        row.shares = " ".join(f"{share:4.0%}" for share in left)
    chosen = np.random.default_rng(0).permutation(len(inputs))[:single]
    for image in chosen:
        for row in rows:
            cpu, began = time.process_time(), time.perf_counter()
            engine.run({"input": inputs[image : image + 1]}, row.thresholds)
            row.latency_ms.append((time.perf_counter() - began) * 1e3)
            row.cpu_ms += (time.process_time() - cpu) * 1e3 / len(chosen)
    engine.close()


def show(rows: list[Row]) -> None:
    """The table, then every cascade against the fastest static network that is no less accurate."""
    print(f"\n{'':24} accuracy   mean ms    p50    p95   CPU-ms   leaving at each stage")
    for row in rows:
        p50, p95 = np.percentile(row.latency_ms, [50, 95])
        print(
            f"{row.name:24} {row.accuracy:8.2%}  {row.mean_ms:7.2f} {p50:6.2f} {p95:6.2f}"
            f"  {row.cpu_ms:7.2f}   {row.shares}"
        )
    print()
    for row in rows:
        if row.static:
            continue
        rivals = [r for r in rows if r.static and r.accuracy >= row.accuracy]
        if not rivals:
            print(f"{row.name}: no static network is as accurate")
            continue
        best = min(rivals, key=lambda r: r.mean_ms)
        ratio = row.mean_ms / best.mean_ms
        advice = "" if ratio < 1 else ": use the static network"
        print(f"{row.name}: {ratio:.2f} of the time of {best.name}, the fastest static network as accurate{advice}")


def stream(bundle: dynamic.Bundle, report: ImageSet, count: int) -> None:
    """Change the budget and the device under a running stream; print each decision with its reason."""
    fastest = min(p.p95_ms[0] for p in bundle.frontier.points)
    dearest = max(p.p95_ms[0] for p in bundle.frontier.points)
    steps = [
        ("no limit", dynamic.Budget(), 0.8),
        ("two points of accuracy may go", dynamic.Budget(max_drop=0.02), 0.8),
        ("tighter", dynamic.Budget(latency_ms=math.sqrt(fastest * dearest)), 0.8),
        ("tighter than anything", dynamic.Budget(latency_ms=fastest / 4), 0.8),
        ("relaxed", dynamic.Budget(latency_ms=dearest * 3), 0.8),
        ("battery at 15%, floor 20%", dynamic.Budget(battery_floor=0.2), 0.15),
    ]
    print("\nbudgets change while inputs stream; the battery's level is made up")
    monitor = dynamic.FixedMonitor(dynamic.Snapshot(time_s=0.0, plugged=False))
    count = min(count, len(report))
    with bundle.runtime(monitor=monitor) as run:
        for name, budget, battery in steps:
            run.budget = budget
            monitor.set(battery=battery)
            print(f"[{name}]")
            last, right, changes = "", 0, 0
            for image, label in zip(report.images[:count], report.labels[:count], strict=True):
                result = run(image)
                right += result.label == label
                if result.decision.point.name != last:
                    last, changes = result.decision.point.name, changes + 1
                    if changes <= 4:
                        print(f"    input {result.id}: {result.decision.reason}")
            more = f", {changes - 4} more changes of decision" if changes > 4 else ""
            print(f"    accuracy {right / count:.1%} over {count} inputs{more}")
        stats = run.stats()
    print(
        f"in all {stats.inputs} inputs, {stats.mean_latency_ms:.2f} ms on average, "
        f"{stats.decision_changes} changes of decision, certified answers {stats.certified_share:.0%}"
    )


def draw(rows: list[Row], title: str, path: Path) -> None:
    """Accuracy against mean latency; static networks as squares."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4.8), layout="constrained")
    looks = {True: ("s", "tab:gray", "static network"), False: ("o", "tab:blue", "cascade, by the drop allowed")}
    for static, (marker, color, label) in looks.items():
        chosen = [r for r in rows if r.static == static]  # from dear to cheap
        x, y = [r.mean_ms for r in chosen], [100 * r.accuracy for r in chosen]
        axes.plot(x, y, marker, linestyle="-" if not static else "", color=color, label=label, zorder=3)
        for number, row in enumerate(chosen):
            name = row.name.removeprefix("cascade, ").removeprefix("drop ")
            # above and left of the cascade is free, unless a neighbour stands there: every other label goes below
            above = not static and number % 2 == 0
            side, at = ("right", (-6, 5)) if above else ("left", (6, -11))
            point = x[number], y[number]
            axes.annotate(name, point, at, textcoords="offset points", ha=side, fontsize=8, color=color)
    axes.set(xlabel="mean latency, one input at a time (ms)", ylabel="accuracy (%)", title=title)
    axes.set_xlim(0, 1.25 * max(row.mean_ms for row in rows))
    axes.margins(y=0.15)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main() -> None:
    """Parse the arguments and walk the road."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="CIFAR-10: a folder or zip with test/<class>/ images")
    parser.add_argument("--weights", type=Path, help="folder with resnet{20,32,56}_cifar10.safetensors")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for bundle and picture")
    parser.add_argument("--single", type=int, default=300, help="images timed one at a time")
    parser.add_argument("--steps", type=int, default=digits_bundle.STEPS, help="training steps of each digits network")
    options = parser.parse_args()
    if (options.data is None) != (options.weights is None):
        parser.error("--data and --weights go together")
    began = time.perf_counter()
    data = "cifar10" if options.data else "digits"
    problem = cifar(options.data, options.weights) if options.data else digits_bundle.problem(options.steps)
    shelf = options.out / data
    digits_bundle.build(problem, shelf)

    # from here on no torch is needed: this is what a device does
    bundle = dynamic.load(shelf).profile(batch=(1,))
    assert bundle.costs is not None
    rows = contenders(bundle, problem.names)
    measure(bundle, rows, problem.report, options.single)
    count = len(problem.report)
    print(
        f"\n{data}: {len(problem.calibrate)} images calibrated, {count} report "
        f"(accuracy to within {1.96 * math.sqrt(rows[0].accuracy * (1 - rows[0].accuracy) / count):.1%}); "
        f"engine {bundle.engine}, {bundle.costs.threads} threads"
        f"\n'drop x' loses no more than x of {problem.names[-1]}'s accuracy, as far as that is certified:"
    )
    print(certificate_text(bundle.ladder))
    show(rows)
    stream(bundle, problem.report, count=200)
    try:
        picture = options.out / f"{data}.png"
        draw(rows, f"{data}: {bundle.costs.machine}", picture)
        print(f"\npicture: {picture}, bundle: {shelf}", end="")
    except ModuleNotFoundError:
        print(f"\nno picture: pip install 'dynamic-inference[plot]'; bundle: {shelf}", end="")
    print(f" ({time.perf_counter() - began:.0f} s in all)")


if __name__ == "__main__":
    main()
