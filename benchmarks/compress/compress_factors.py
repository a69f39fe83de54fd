"""Are thinner layers worth more than a smaller network? ResNet-56 with low-rank and separable layers, and its family.

    python -m benchmarks.compress.compress_factors [--points NAME ...] [--report]

Each point is ResNet-56 with some of its convolutions replaced (`low_rank`: k x 1 then 1 x k; `separate`: depthwise then
1x1), fine-tuned for a short time with ResNet-56 as its teacher. Accuracy is that on the 10,000 test images, latency
that of one image on ONNX Runtime in f32, one thread, all networks taking turns in one process. A point is of use where
it is no worse in both than a static ResNet that was trained for its size (20, 32, 44), which takes no compression.

Which layers: found by timing without training. On this engine channels count in sixteens, so ranks of 8 cost fewer
multiply-adds than 16 and no less time, and two depthwise kernels a channel are no faster than the original.
Points already trained are kept in out/; an interrupted one goes on. `--points` trains some of them, so that several
processes can share the work; `--report` only measures.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import dynamic
from benchmarks.cascades.frozen_exits import Augmented
from benchmarks.harness import cifar
from benchmarks.harness.common import (
    ROOT,
    Contender,
    add_data_option,
    data_folder,
    progress,
    ratio,
    save,
    spread,
    take_turns,
)
from dynamic.data import ImageSet
from dynamic.engines.contract import Executor
from dynamic.engines.engine_factory import open_engine
from dynamic.models import load_weights, save_weights
from dynamic.models.compress.factorization.depthwise_separable import separate
from dynamic.models.compress.factorization.low_rank import low_rank
from dynamic.models.compress.report import Compressed
from dynamic.offline.build_steps.record_collection import plain_combiner
from dynamic.offline.networks.module_modes import evaluating
from dynamic.offline.onnx_export.stage_graphs import export_stages

EXAMPLE = torch.zeros(2, 3, 32, 32)
BATCH = 128
GROUPS = ("layer1", "layer2", "layer3")


@dataclass(frozen=True)
class Settings:
    """How points are fine-tuned; `images` are drawn anew each epoch."""

    epochs: int
    images: int
    lr: float
    test: int | None = None  # images, None: all

    @property
    def folder(self) -> Path:
        """Where points trained like this are kept."""
        tested = "" if self.test is None else f"-t{self.test}"
        return ROOT / "out" / "compress_factors" / f"e{self.epochs}-n{self.images}-lr{self.lr:g}{tested}"


def low(*ranks: int) -> Callable[[nn.Module], Compressed]:
    """Of the convolutions of each group of blocks the rank, 0 where they stay."""

    def make(network: nn.Module) -> Compressed:
        wanted = dict(zip(GROUPS, ranks, strict=True))
        convs = [name for name, m in network.named_modules() if isinstance(m, nn.Conv2d) and name != "conv1"]
        chosen = {name: wanted[name.split(".")[0]] for name in convs}
        return low_rank(network, EXAMPLE, rank={n: r for n, r in chosen.items() if r}, latency=False)

    return make


def depthwise(*groups: str) -> Callable[[nn.Module], Compressed]:
    """The convolutions of these groups of blocks separated."""
    return lambda network: separate(network, EXAMPLE, layers=groups, latency=False)


POINTS: dict[str, Callable[[nn.Module], Compressed]] = {
    "low-rank 0,32,32": low(0, 32, 32),
    "low-rank 0,16,32": low(0, 16, 32),
    "low-rank 16,16,16": low(16, 16, 16),
    "separable 3": depthwise("layer3"),
    "separable 2,3": depthwise("layer2", "layer3"),
    "separable 1,2,3": depthwise(*GROUPS),
}


class Part(Augmented):
    """The first `batches` of each pass, which is a different part of the images every time."""

    def __init__(self, images: ImageSet, batches: int) -> None:
        super().__init__(images, passes=1, size=BATCH)
        self.batches = min(batches, super().__len__())

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return islice(super().__iter__(), self.batches)


def right(network: nn.Module, found: ImageSet) -> NDArray[np.bool_]:
    """Which images the network has right `[N]`."""
    answers = []
    with evaluating(network), torch.no_grad():
        for inputs, labels in cifar.batches(found, 500):
            answers.append((network(inputs).argmax(1) == labels).numpy())
    return np.concatenate(answers)


def stem(name: str) -> str:
    """A point's name as that of a file."""
    return name.replace(" ", "-").replace(",", "_")


def train(name: str, original: nn.Module, data: Path, settings: Settings) -> None:
    """Fine-tune a point and keep its weights, and what it had right before and after; nothing where that is kept."""
    kept = settings.folder / f"{stem(name)}.npz"
    if kept.is_file():
        progress(f"{name}: kept in {kept.parent}")
        return
    settings.folder.mkdir(parents=True, exist_ok=True)
    made = POINTS[name](original).network
    test = tested(data, settings)
    before = right(made, test)
    progress(f"{name}: {before.mean():.4f} before fine-tuning, on {len(test)} test images")
    done = dynamic.fit(
        made,
        Part(cifar.images(data, "train"), -(-settings.images // BATCH)),
        mode="distill",
        epochs=settings.epochs,
        lr=settings.lr,
        checkpoint=settings.folder / f"{stem(name)}.checkpoint",
        distillation=dynamic.DistillationConfig(teacher=original, temperature=4.0, share=0.9),
    )
    save_weights(made, settings.folder / f"{stem(name)}.safetensors")
    after = right(made, test)
    with kept.with_suffix(".part").open("wb") as file:
        np.savez(file, before=before, after=after, seconds=done.seconds)
    kept.with_suffix(".part").replace(kept)
    (settings.folder / f"{stem(name)}.checkpoint").unlink()
    progress(f"{name}: {after.mean():.4f} after it, {done.seconds:.0f} s")


def tested(data: Path, settings: Settings) -> ImageSet:
    """The test images, or the first of them in an order of their own."""
    test = cifar.images(data, "test")
    return (
        test if settings.test is None else test.select(np.random.default_rng(0).permutation(len(test))[: settings.test])
    )


def latencies(networks: dict[str, nn.Module], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of one image on ONNX Runtime, one thread, in turns."""
    pixels = {"input": np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)}

    def step(executor: Executor, _: int) -> object:
        return executor.step(0, executor.start(pixels), True)

    with tempfile.TemporaryDirectory() as folder, ExitStack() as owned:
        contenders = []
        for number, (name, network) in enumerate(networks.items()):
            progress(f"exporting {name}")
            place = Path(folder) / str(number)
            spec = export_stages(dynamic.Cascade(network), place, EXAMPLE, progress=False)
            engine = open_engine("onnxruntime", place, spec, plain_combiner(spec), threads=1)
            owned.callback(engine.close)
            contenders.append(Contender(name, partial(step, engine.stages.executor)))
        return take_turns(contenders, range(rounds), block=20, warm=3)


def standing(point: dict[str, Any], static: dict[str, dict[str, Any]]) -> str:
    """Which static network the point replaces, or what it is short of beside the best one that is no slower."""
    beaten = [
        name
        for name, other in static.items()
        if point["accuracy"] >= other["accuracy"] and point["latency"]["ratio"] <= other["latency"]["ratio"]
    ]
    slower = [name for name, other in static.items() if other["latency"]["ratio"] >= point["latency"]["ratio"]]
    if not slower:
        return "none: slower than all of them"
    name = beaten[-1] if beaten else slower[0]  # the fastest that is not faster than the point
    change = 100 * (point["accuracy"] - static[name]["accuracy"])
    said = f"{change:+.2f} points (s.e. {point['error'][name]:.2f}) beside {name}, which is no faster"
    return f"no worse in both: {said}" if beaten else f"none: {said}"


def report(
    original: nn.Module, networks: dict[str, nn.Module], data: Path, settings: Settings, rounds: int
) -> dict[str, Any]:
    """Measure all trained points and the static networks, and print both curves."""
    test = tested(data, settings)
    made: dict[str, Compressed] = {}
    correct = {name: right(network, test) for name, network in networks.items()}
    before: dict[str, float] = {}
    for name, make in POINTS.items():
        kept = settings.folder / f"{stem(name)}.npz"
        if not kept.is_file():
            progress(f"{name} is not trained yet: left out")
            continue
        made[name] = make(original)
        load_weights(made[name].network, kept.with_suffix(".safetensors"))
        with np.load(kept) as found:
            correct[name], before[name] = found["after"], float(found["before"].mean())
    took = latencies({**networks, **{name: c.network for name, c in made.items()}}, rounds)
    rows: dict[str, dict[str, Any]] = {}
    for name, hits in correct.items():
        rows[name] = {
            "accuracy": float(hits.mean()),
            "latency ms": spread(took[name]),
            "latency": ratio(took[name], took["resnet56"]),
        }
        if name in made:
            told = made[name].report
            # paired: the same images
            errors = {s: float(100 * np.std(hits.astype(float) - correct[s]) / len(hits) ** 0.5) for s in networks}
            rows[name] |= {"before fine-tuning": before[name], "error": errors}
            rows[name] |= {"macs": told.after.macs / told.before.macs}
    # by medians: a mean on a machine that does other things too is that of the other things
    for row in rows.values():
        row["latency"]["ratio"] = round(row["latency ms"]["median"] / rows["resnet56"]["latency ms"]["median"], 3)
    static = {name: rows[name] for name in networks}
    print(f"{'network':20} {'accuracy':>9} {'latency':>8} {'q25':>6} {'q75':>6} {'macs':>6} {'untuned':>8}")
    for name, row in rows.items():
        line = f"{name:20} {row['accuracy']:9.4f} {row['latency']['ratio']:8.3f} "
        line += f"{row['latency']['q25']:6.3f} {row['latency']['q75']:6.3f}"
        if name in made:
            row["standing"] = standing(row, static)
            line += f" {row['macs']:6.3f} {row['before fine-tuning']:8.4f}   {row['standing']}"
        print(line)
    return {"settings": vars(settings), "rows": rows}


def main() -> None:
    """Train what is not trained yet, then report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--points", nargs="+", choices=list(POINTS), metavar="NAME", help=f"some of {list(POINTS)}")
    parser.add_argument("--report", action="store_true", help="train nothing")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--images", type=int, default=25_000, help="of the training images, each epoch")
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--rounds", type=int, default=600, help="images that latency is measured on")
    parser.add_argument("--smoke", action="store_true", help="two points, a few batches; results stay in out/")
    options = parser.parse_args()
    settings = Settings(options.epochs, options.images, options.lr)
    points = options.points or list(POINTS)
    if options.smoke:
        settings, options.rounds = Settings(1, 4 * BATCH, options.lr, 500), 40
        points = options.points or ["low-rank 16,16,16", "separable 1,2,3"]
    data = data_folder(options.data)
    networks = dict(zip(cifar.NAMES, cifar.networks(data), strict=True))
    original = networks["resnet56"]
    if not options.report:
        for name in points:
            train(name, original, data, settings)
        if options.points and not options.smoke:
            return  # others may still be at work
    figures = report(original, networks, data, settings, options.rounds)
    if not options.smoke:
        print(f"written to {save('compress/compress_factors', figures)}")


if __name__ == "__main__":
    main()
