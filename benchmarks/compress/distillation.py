"""What a teacher is worth: ResNet-20 from scratch on labels alone, taught by ResNet-56, and taught by four networks.

    python -m benchmarks.compress.distillation [--teach NAME ...] [--seeds 0 1 2] [--report] [--smoke]

Every arm of a seed starts from the same weights and sees the same images in the same order, for the same few epochs:
what differs is the teacher, so differences are told seed by seed. An image comes as one of `COPIES` augmented copies,
shifted by up to 4 pixels and mirrored; what the teachers say of each copy is computed once (`--teach`) and kept in
`out/`. Runs go on where they stopped; processes may work beside each other on other seeds or teachers. `--report`
prints and writes what all finished runs say. The teachers saw the same training images, for 200 epochs, so a part of
what they give is their own longer training: the comparison is what a user has who owns them.
"""

import argparse
import json
import shutil
import statistics
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import dynamic
from benchmarks.harness import cifar
from benchmarks.harness.common import ROOT, add_data_option, data_folder, progress, save
from dynamic.data import ImageSet
from dynamic.models import CifarResNet
from dynamic.models.compress.distillation.distillation import mean_logits
from dynamic.offline.networks.acceleration import Acceleration
from dynamic.offline.networks.checkpoints import read_tensors, write_tensors
from dynamic.progress import track

ARMS: dict[str, tuple[str, ...]] = {"alone": (), "resnet56": ("resnet56",), "ensemble": cifar.NAMES}
COPIES, SHIFT, BATCH = 2, 4, 128
SETTINGS = {"epochs": 2, "lr": 0.1, "weight_decay": 1e-4, "temperature": 4.0, "distill_share": 0.9}


class Copies:
    """An epoch of `images`, shuffled, each as one of its copies: inputs (pixels, number of the copy) and labels.

    Shift and mirroring of a copy never change; which copy comes, and when, is drawn from torch's generator, which
    `fit` seeds for each epoch.
    """

    def __init__(self, images: ImageSet, copies: int) -> None:
        self.labels, self.copies = images.labels, copies
        self.padded = np.pad(images.images, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)))
        random = np.random.default_rng(17)
        self.shifts = random.integers(0, 2 * SHIFT + 1, (copies * len(images), 2))
        self.mirrored = random.random(copies * len(images)) < 0.5

    def __len__(self) -> int:
        return -(-len(self.labels) // BATCH)

    def pixels(self, numbers: NDArray[np.int64]) -> Tensor:
        """Copies as networks take them `[B, 3, 32, 32]`; copy k of image i has number k * images + i."""
        count, side = len(self.labels), self.padded.shape[1] - 2 * SHIFT
        span = np.arange(side)
        across = np.where(self.mirrored[numbers, None], span[::-1], span)
        down, right = (self.shifts[numbers, axis, None] for axis in (0, 1))
        cut = self.padded[(numbers % count)[:, None, None], (down + span)[:, :, None], (right + across)[:, None, :]]
        return torch.from_numpy(cifar.PREPROCESS(cut))

    def __iter__(self) -> Iterator[tuple[tuple[Tensor, Tensor], Tensor]]:
        count = len(self.labels)
        numbers = torch.randperm(count) + count * torch.randint(self.copies, (count,))
        for chosen in numbers.split(BATCH):
            labels = torch.from_numpy(self.labels[(chosen % count).numpy()])
            yield (self.pixels(chosen.numpy()), chosen), labels


class Numbered(nn.Module):
    """A network that is handed the copies' numbers too, and has no use for them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor, numbers: Tensor) -> Tensor:
        logits: Tensor = self.network(pixels)
        return logits


class Kept(nn.Module):
    """A teacher that looks its logits up `[copies * images, C]`."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.register_buffer("logits", logits)

    def forward(self, pixels: Tensor, numbers: Tensor) -> Tensor:
        found: Tensor = self.get_buffer("logits")[numbers]
        return found


def said(name: str, data: Path, loader: Copies, folder: Path) -> Tensor:
    """What a given network says of every copy, f16 `[copies * images, C]`; computed once, copy by copy."""
    found = []
    count = len(loader.labels)
    for copy in range(loader.copies):
        kept = folder / f"said-{name}-{copy}.safetensors"
        if not kept.is_file():
            (network,) = cifar.networks(data, [name])
            fast = Acceleration.choose(network, "cpu", None, None)
            if fast.channels_last:
                network.to(memory_format=torch.channels_last)
            parts = np.array_split(np.arange(copy * count, (copy + 1) * count), max(1, count // 250))
            with torch.inference_mode(), fast.autocast():
                logits = [network(fast.place(loader.pixels(p))).half() for p in track(parts, f"{name}, copy {copy}")]
            write_tensors(kept, {"logits": torch.cat(logits)}, {"kind": "logits", "network": name})
        found.append(read_tensors(kept)[0]["logits"])
    return torch.cat(found)


def accuracy(network: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Share of test images that are right, in f32."""
    network.eval()
    with torch.inference_mode():
        right = sum(int((network(x).argmax(1) == y).sum()) for x, y in batches)
    return right / sum(len(y) for _, y in batches)


def run(
    arm: str, seed: int, data: Path, loader: Copies, test: Sequence[tuple[Tensor, Tensor]], folder: Path, epochs: int
) -> None:
    """Train one arm with one seed, from where it stopped, and keep its accuracy."""
    kept = folder / f"{arm}-{seed}.json"
    settings = {**SETTINGS, "epochs": epochs, "copies": loader.copies, "batch": BATCH, "images": len(loader.labels)}
    if kept.is_file() and json.loads(kept.read_text())["settings"] == settings:
        return
    torch.manual_seed(seed)
    student = Numbered(CifarResNet(20))
    distillation = None
    if names := ARMS[arm]:
        logits = torch.stack([said(name, data, loader, folder).float() for name in names])
        temperature, share = SETTINGS["temperature"], SETTINGS["distill_share"]
        teacher = Kept(mean_logits(logits, temperature))
        distillation = dynamic.DistillationConfig(teacher=teacher, share=share, temperature=temperature)
    progress(f"{arm}, seed {seed}")
    report = dynamic.fit(
        student,
        loader,
        mode="joint" if distillation is None else "distill",
        epochs=epochs,
        lr=SETTINGS["lr"],
        training=dynamic.TrainingConfig(weight_decay=SETTINGS["weight_decay"]),
        distillation=distillation,
        checkpoint=folder / f"{arm}-{seed}.safetensors",
        seed=seed,
    )
    found = {
        "settings": settings,
        "arm": arm,
        "seed": seed,
        "accuracy": accuracy(student.network, test),
        "training accuracy": report.accuracy[-1],
        "seconds": round(report.seconds),
        "bf16": report.bf16,
    }
    kept.write_text(json.dumps(found) + "\n")
    progress(f"{arm}, seed {seed}: {found['accuracy']:.4f} on test images")


def teachers(data: Path, test: Sequence[tuple[Tensor, Tensor]], folder: Path) -> dict[str, float]:
    """Accuracy of the teachers on the test images, kept."""
    kept = folder / "teachers.json"
    if not kept.is_file():
        with torch.inference_mode():
            logits = torch.stack([torch.cat([n(x) for x, _ in test]) for n in cifar.networks(data)])
        labels = torch.cat([y for _, y in test])
        answers = {name: logits[i] for i, name in enumerate(cifar.NAMES)}
        answers["ensemble"] = mean_logits(logits, SETTINGS["temperature"])
        kept.write_text(json.dumps({k: float((v.argmax(1) == labels).float().mean()) for k, v in answers.items()}))
    found: dict[str, float] = json.loads(kept.read_text())
    return found


def told(values: Sequence[float]) -> dict[str, Any]:
    """Mean and spread over the seeds."""
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": sd, "low": min(values), "high": max(values), "seeds": list(values)}


def summary(folder: Path) -> dict[str, Any]:
    """Accuracy of each arm, and how far each is above the one before it, seed by seed; points are percent."""
    runs = [json.loads(p.read_text()) for arm in ARMS for p in sorted(folder.glob(f"{arm}-*.json"))]
    if not runs:
        raise SystemExit(f"no finished run in {folder}; run with --seeds first")
    settings = runs[0]["settings"]
    if any(r["settings"] != settings for r in runs):
        raise SystemExit(f"runs in {folder} have different settings; remove those of other settings")
    found = {arm: {r["seed"]: r["accuracy"] for r in runs if r["arm"] == arm} for arm in ARMS}
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in found.values())))
    if not seeds:
        raise SystemExit(f"no seed in {folder} has all of {', '.join(ARMS)}")
    print(f"{len(seeds)} seeds, {settings['epochs']} epochs; accuracy on test images, mean (lowest to highest)")
    for arm in ARMS:
        row = told([found[arm][s] for s in seeds])
        print(f"  {arm:24} {row['mean']:.4f} ({row['low']:.4f} to {row['high']:.4f})")
    apart = {}
    for low, high in [*pairwise(ARMS), ("alone", "ensemble")]:
        row = told([100 * (found[high][s] - found[low][s]) for s in seeds])
        apart[f"{high} - {low}, points"] = row
        print(f"  {high + ' - ' + low:24} {row['mean']:+.2f} points ({row['low']:+.2f} to {row['high']:+.2f})")
    return {
        "settings": settings,
        "bf16": runs[0]["bf16"],
        "accuracy": {arm: told([found[arm][s] for s in seeds]) for arm in ARMS},
        "differences by seed": apart,
        "seconds a run": {arm: [r["seconds"] for r in runs if r["arm"] == arm] for arm in ARMS},
    }


def main() -> None:
    """Teach, train or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--teach", nargs="+", choices=cifar.NAMES, default=[], help="only compute what these say")
    parser.add_argument("--seeds", type=int, nargs="+", default=[], help="train all arms with these")
    parser.add_argument("--report", action="store_true", help="tell and write what the finished runs say")
    parser.add_argument("--threads", type=int, default=1, help="of this process")
    parser.add_argument("--smoke", action="store_true", help="all of it on a few images, nothing written to results/")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.smoke:
        options.seeds, options.report = options.seeds or [0], True
    if not (options.teach or options.seeds or options.report):
        options.seeds, options.report = [0, 1, 2], True
    data = data_folder(options.data)
    folder = ROOT / "out" / ("distillation-smoke" if options.smoke else "distillation")
    if options.smoke:
        shutil.rmtree(folder, ignore_errors=True)  # or a second one would find everything done
    folder.mkdir(parents=True, exist_ok=True)
    chosen, tested = (np.arange(0, n, 100 if options.smoke else 1) for n in (50_000, 10_000))
    if options.teach or options.seeds:
        loader = Copies(cifar.images(data, "train").select(chosen), 1 if options.smoke else COPIES)
        for name in options.teach:
            said(name, data, loader, folder)
    if not (options.seeds or options.report):
        return
    test = cifar.batches(cifar.images(data, "test").select(tested), 500)
    for seed in options.seeds:
        for arm in ARMS:
            run(arm, seed, data, loader, test, folder, 2 if options.smoke else int(SETTINGS["epochs"]))
    if options.report:
        figures = {"teachers": teachers(data, test, folder), **summary(folder)}
        if not options.smoke:
            print(f"written to {save('compress/distillation', figures)}")


if __name__ == "__main__":
    main()
