"""The whole road: trained networks in, adaptive inference under a budget out.

    python examples/quickstart.py
        offline: scikit-learn's handwritten digits, three small networks trained on the spot (under a minute)
    python examples/quickstart.py --data cifar10.zip --weights weights/
        CIFAR-10 with pretrained ResNets (resnet20_cifar10.safetensors, ... in the folder): no training at all

Prints accuracy, latency, CPU time and where inputs leave for the cascade and every static network, then tightens
and relaxes the budget while inputs stream, and draws accuracy against latency.
"""

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import dynamic
from dynamic.models import CifarResNet, load_weights, resnet20, resnet32, resnet56
from dynamic.offline.images import ImageSet, digits, load_images, stratified_halves
from dynamic.policies import BudgetPolicy

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@dataclass(frozen=True)
class Problem:
    """Networks, smallest first, and images that none of them was trained on."""

    networks: list[nn.Module]
    names: list[str]
    preprocess: dynamic.Preprocess
    calibrate: ImageSet
    report: ImageSet


def cifar(data: Path, weights: Path) -> Problem:
    """Pretrained ResNets; one half of the test images calibrates, the other reports."""
    networks: list[nn.Module] = []
    names = ["resnet20", "resnet32", "resnet56"]
    for name, make in zip(names, (resnet20, resnet32, resnet56), strict=True):
        network = make()
        load_weights(network, weights / f"{name}_cifar10.safetensors")
        networks.append(network.eval())
    images = load_images(data, "test")
    half, other = stratified_halves(images.labels, seed=0)
    return Problem(networks, names, dynamic.Preprocess.of(**IMAGENET), images.select(half), images.select(other))


def small(epochs: int = 20) -> Problem:
    """Digits, 8 x 8 pixels: a third trains three networks, a third calibrates, a third reports."""
    images = digits()
    preprocess = dynamic.Preprocess.of()
    train, rest = stratified_halves(images.labels, seed=0)
    train, spare = train[: len(train) * 2 // 3], train[len(train) * 2 // 3 :]
    rest = np.concatenate([rest, spare])
    held_out = images.select(rest)
    half, other = stratified_halves(held_out.labels, seed=1)
    x = torch.from_numpy(preprocess(images.images[train]))
    y = torch.from_numpy(images.labels[train])
    sizes = {"depth 8, width 4": (8, 4), "depth 8, width 16": (8, 16), "depth 20, width 24": (20, 24)}
    networks: list[nn.Module] = []
    for name, (depth, width) in sizes.items():
        torch.manual_seed(0)
        network = CifarResNet(depth, in_channels=1, width=width).train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
        for epoch in range(epochs):
            for batch in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(x[batch]), y[batch]).backward()
                optimizer.step()
            print(f"\rtraining {name}: epoch {epoch + 1} of {epochs}", end="", flush=True)
        print()
        networks.append(network.eval())
    return Problem(networks, list(sizes), preprocess, held_out.select(half), held_out.select(other))


@dataclass
class Row:
    """One way to answer: thresholds on the same engine; a static network has all other exits off."""

    name: str
    thresholds: NDArray[np.float32]
    static: bool
    accuracy: float = 0.0
    shares: str = ""
    latency_ms: list[float] | None = None
    cpu_ms: float = 0.0


def contenders(bundle: dynamic.Bundle, names: list[str]) -> list[Row]:
    """Every static network alone, then every point of the frontier that uses more than one."""
    rows = []
    for stage, name in enumerate(names):
        limits = np.full(len(names) - 1, np.inf, np.float32)
        if stage < len(names) - 1:
            limits[stage] = -np.inf
        rows.append(Row(name, limits, static=True))
    rows += [
        Row(f"cascade, {p.point.name}", np.array(p.point.thresholds, np.float32), static=False)
        for p in bundle.frontier.points
        if max(p.point.shares) < 1
    ]
    return rows


def measure(bundle: dynamic.Bundle, rows: list[Row], report: ImageSet, single: int) -> None:
    """Accuracy over all of `report`, latency one image at a time; contenders take turns on each image."""
    assert bundle.preprocess is not None
    engine = bundle.open()
    inputs = bundle.preprocess(report.images)
    for row in rows:
        stages, right = [], 0
        for start in range(0, len(inputs), 64):
            output = engine.run({"input": inputs[start : start + 64]}, row.thresholds)
            stages.append(output.stage)
            right += int((output.logits.argmax(1) == report.labels[start : start + 64]).sum())
        row.accuracy = right / len(inputs)
        left = np.bincount(np.concatenate(stages), minlength=len(bundle.spec.stages)) / len(inputs)
        row.shares = " ".join(f"{share:4.0%}" for share in left)
        row.latency_ms = []
    chosen = np.random.default_rng(0).permutation(len(inputs))[:single]
    for image in chosen:
        for row in rows:
            cpu, began = time.process_time(), time.perf_counter()
            engine.run({"input": inputs[image : image + 1]}, row.thresholds)
            assert row.latency_ms is not None
            row.latency_ms.append((time.perf_counter() - began) * 1e3)
            row.cpu_ms += (time.process_time() - cpu) * 1e3 / len(chosen)
    engine.close()


def show(rows: list[Row]) -> None:
    """The table, with the best static network to beat."""
    print(f"\n{'':32} accuracy   mean ms    p50    p95   CPU-ms   leaving at each stage")
    for row in rows:
        assert row.latency_ms is not None
        p50, p95 = np.percentile(row.latency_ms, [50, 95])
        print(
            f"{row.name:32} {row.accuracy:8.2%}  {statistics.fmean(row.latency_ms):7.2f} {p50:6.2f} {p95:6.2f}"
            f"  {row.cpu_ms:7.2f}   {row.shares}"
        )
    for row in rows:
        assert row.latency_ms is not None
        rivals = [r for r in rows if r.static and r.accuracy >= row.accuracy and r.latency_ms]
        if row.static or not rivals:
            continue
        best = min(rivals, key=lambda r: statistics.fmean(r.latency_ms or [0]))
        ratio = statistics.fmean(row.latency_ms) / statistics.fmean(best.latency_ms or [1])
        advice = "" if ratio < 1 else ": use the static network"
        print(f"{row.name} takes {ratio:.2f} of {best.name}, the best static network of at least its accuracy{advice}")


def stream(bundle: dynamic.Bundle, report: ImageSet, count: int) -> None:
    """Change the budget and the device under a running stream; print each decision with its reason."""
    fastest = min(p.p95_ms[0] for p in bundle.frontier.points)
    dearest = max(p.p95_ms[0] for p in bundle.frontier.points)
    monitor = dynamic.FixedMonitor(dynamic.Snapshot(time_s=0.0, battery=0.8, plugged=False))
    steps = [
        ("no limit", dynamic.Budget(), 0.8),
        ("one point of accuracy may go", dynamic.Budget(max_drop=0.01), 0.8),
        ("tighter", dynamic.Budget(latency_ms=(fastest + dearest) / 2), 0.8),
        ("tighter than anything", dynamic.Budget(latency_ms=fastest / 4), 0.8),
        ("relaxed", dynamic.Budget(latency_ms=dearest * 3), 0.8),
        ("battery at 15%, floor 20%", dynamic.Budget(battery_floor=0.2), 0.15),
    ]
    print()
    with bundle.runtime(steps[0][1], monitor=monitor, policy=BudgetPolicy()) as run:
        for name, budget, battery in steps:
            run.budget = budget
            monitor.set(battery=battery)
            last, right = "", 0
            for image, label in zip(report.images[:count], report.labels[:count], strict=True):
                result = run(image)
                right += int(result.label[0]) == label
                if result.decision.point.point.name != last:
                    last = result.decision.point.point.name
                    print(f"[{name}] {result.decision.reason}")
            print(f"    accuracy {right / count:.1%} over {count} inputs")
        stats = run.stats()
    print(
        f"in all {stats.inputs} inputs, {stats.mean_latency_ms:.2f} ms on average, "
        f"{stats.decision_changes} changes of decision, certified answers {stats.certified_share:.0%}"
    )


def draw(rows: list[Row], path: Path) -> None:
    """Accuracy against mean latency; static networks as squares."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4.8), layout="constrained")
    for static, marker, color, label in (
        (True, "s", "tab:gray", "static network"),
        (False, "o", "tab:blue", "cascade"),
    ):
        chosen = [r for r in rows if r.static == static]
        x = [statistics.fmean(r.latency_ms or [0]) for r in chosen]
        axes.scatter(x, [100 * r.accuracy for r in chosen], marker=marker, color=color, label=label, zorder=3)
        for row, at in zip(chosen, x, strict=True):
            name = row.name.removeprefix("cascade, ")
            below = -12 if static else 6
            axes.annotate(name, (at, 100 * row.accuracy), (5, below), textcoords="offset points", fontsize=8)
    axes.set(xlabel="mean latency, one input at a time (ms)", ylabel="accuracy (%)", xlim=(0, None))
    axes.margins(x=0.2, y=0.15)
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
    options = parser.parse_args()
    if (options.data is None) != (options.weights is None):
        parser.error("--data and --weights go together")
    began = time.perf_counter()
    problem = cifar(options.data, options.weights) if options.data else small()

    print("building: export, calibrate, choose thresholds")
    loader = [
        (
            torch.from_numpy(problem.preprocess(problem.calibrate.images[i])),
            torch.from_numpy(problem.calibrate.labels[i]),
        )
        for i in np.array_split(np.arange(len(problem.calibrate.labels)), max(1, len(problem.calibrate.labels) // 100))
    ]
    cascade = dynamic.Cascade(problem.networks, names=problem.names)
    bundle = dynamic.build(cascade, loader, preprocess=problem.preprocess, classes=problem.calibrate.classes)
    bundle.save(options.out / "shelf")

    # from here on no torch is needed: this is what a device does
    bundle = dynamic.load(options.out / "shelf").profile()
    rows = contenders(bundle, problem.names)
    measure(bundle, rows, problem.report, options.single)
    print(f"\n{len(problem.calibrate.labels)} images calibrated, {len(problem.report.labels)} report; "
          f"engine {bundle.engine}, {bundle.costs.threads if bundle.costs else '?'} threads; "
          "the ladder is not certified")  # fmt: skip
    show(rows)
    stream(bundle, problem.report, count=200)
    try:
        draw(rows, options.out / "quickstart.png")
        print(f"\npicture: {options.out / 'quickstart.png'}, bundle: {options.out / 'shelf'}", end="")
    except ModuleNotFoundError:
        print("\nno picture: pip install 'dynamic-inference[plot]'", end="")
    print(f" ({time.perf_counter() - began:.0f} s in all)")


if __name__ == "__main__":
    main()
