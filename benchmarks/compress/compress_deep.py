"""Deep Compression of ResNet-56 on CIFAR-10: a file at least 20 times smaller, at most half a point lost.

    python -m benchmarks.compress.compress_deep [--epochs 9] [--smoke] [--data FOLDER]

The weights are pruned in three steps over the whole network and trained at each; then each layer shares 16 values that
are trained too. ResNet-56 itself is the teacher; positions and indices are Huffman coded. Training sees training images
only. The packed file is kept in results/, and everything that is reported was read from it. A run that was stopped goes
on from out/compress_deep when started again with the same options; `--report` only reports on the file in results/. The
float32 network that sizes refer to is without batch counters: parameters and statistics of batch norms, 4 bytes each.
"""

import argparse
import logging
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.cascades.frozen_exits import Augmented
from benchmarks.harness import cifar
from benchmarks.harness.common import RESULTS, ROOT, add_data_option, data_folder, progress, save
from dynamic.data import ImageSet
from dynamic.models import CifarResNet
from dynamic.models.compress.packing.deep_compression import deep_compress
from dynamic.models.compress.packing.packed_file import load_packed
from dynamic.models.compress.report import accuracy

GOAL = {"times smaller": 20.0, "points lost": 0.5}
STEPS = (0.5, 0.7, 0.8)  # shares of the weights that are 0
CLUSTERS = 16
CLUSTER_EPOCHS = 2
READS = 21


def float_bytes(network: nn.Module) -> int:
    """Bytes of the network in float32 without the counters of batch norms."""
    return sum(4 * t.numel() for name, t in network.state_dict().items() if not name.endswith("num_batches_tracked"))


def made(network: nn.Module, train: ImageSet, path: Path, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Compress and write `path`; what the method says about itself."""
    last = max(0, options.epochs - CLUSTER_EPOCHS - len(STEPS) + 1)
    epochs = (1, 1, last)
    compressed = deep_compress(
        network,
        torch.zeros(1, 3, 32, 32),
        train_loader=Augmented(train, passes=1, size=128),
        steps=tuple(zip(STEPS, epochs, strict=True)),
        clusters=CLUSTERS,
        cluster_epochs=CLUSTER_EPOCHS,
        skip=("conv1",),  # 432 weights of 853,018
        lr=options.lr,
        cluster_lr=options.cluster_lr,
        distill_share=0.8,
        temperature=4.0,
        path=path,
        checkpoint=folder,
        progress=True,
        latency=False,
    )
    zeros = compressed.report.facts["sparsity"]
    return {
        "steps": [{"zeros": share, "epochs": n} for share, n in zip(STEPS, epochs, strict=True)],
        "clusters": CLUSTERS,
        "cluster epochs": CLUSTER_EPOCHS,
        "lr": options.lr,
        "cluster lr": options.cluster_lr,
        "zeros of each layer": {name: round(share, 4) for name, share in zeros.items()},
        "left alone": dict(compressed.report.left_alone),
        "network": compressed.network,
    }


def decode_ms(path: Path) -> dict[str, float]:
    """Reading the file into a network, hash checked: median and quartiles of `READS`."""
    network = CifarResNet(56)
    took = []
    for _ in range(READS + 1):
        began = time.perf_counter()
        load_packed(network, path)
        took.append((time.perf_counter() - began) * 1e3)
    low, middle, high = statistics.quantiles(took[1:], n=4)
    return {"median": round(middle, 1), "q25": round(low, 1), "q75": round(high, 1)}


def main() -> None:
    """Compress, read back, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--epochs", type=int, default=9, help="of training in all: pruning, then 2 of shared values")
    parser.add_argument("--lr", type=float, default=0.02, help="of pruning")
    parser.add_argument("--cluster-lr", type=float, default=3e-4, help="of shared values")
    parser.add_argument("--smoke", action="store_true", help="few images, results in out/: does it run?")
    parser.add_argument("--report", action="store_true", help="only report on the file in results/")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    data = data_folder(options.data)
    (original,) = cifar.networks(data, ["resnet56"])
    train, test = (cifar.images(data, split) for split in ("train", "test"))
    folder = ROOT / "out" / ("compress_deep_smoke" if options.smoke else "compress_deep")
    if options.smoke:
        train, test = (found.select(np.arange(0, len(found), len(found) // 500)) for found in (train, test))
    path = (folder if options.smoke else RESULTS / "compress") / "compress_deep.packed"
    how: dict[str, Any] = {}
    if not options.report:
        began = time.perf_counter()
        how = made(original, train, path, folder, options)
        progress(f"compressed in {time.perf_counter() - began:.0f} s; reading {path} back")
    network = CifarResNet(56)
    load_packed(network, path)
    exact = None
    if "network" in how:
        saved = how.pop("network").state_dict()
        exact = all(torch.equal(saved[name], tensor) for name, tensor in network.state_dict().items())
    held = cifar.batches(test)
    before, after = accuracy(original, held), accuracy(network, held)
    size, whole = path.stat().st_size, float_bytes(original)
    nonzero = sum(int(p.count_nonzero()) for p in network.parameters())
    lost = 100 * (before - after)
    decode = decode_ms(path)
    reached = size * GOAL["times smaller"] <= whole and lost <= GOAL["points lost"] and exact is not False
    print(f"file      {whole} -> {size} bytes, {whole / size:.1f} times smaller (goal: {GOAL['times smaller']:g})")
    print(f"accuracy  {before:.4f} -> {after:.4f} on {len(test)} test images, {lost:+.2f} points lost (goal: 0.5)")
    print(f"numbers   {nonzero} besides 0; bit-exact decode: {exact}; decode {decode['median']} ms")
    print("within the goal" if reached else "NOT within the goal")
    if options.smoke:
        return
    figures = {
        "goal": GOAL,
        "within the goal": reached,
        "float32 bytes": whole,
        "file bytes": size,
        "times smaller": round(whole / size, 2),
        "accuracy": {"before": before, "after": after, "points lost": round(lost, 2), "images": len(test)},
        "numbers besides 0": nonzero,
        "bit-exact decode": exact,
        "decode ms": decode,
        **how,
    }
    print(f"written to {save('compress/compress_deep', figures)}")


if __name__ == "__main__":
    main()
