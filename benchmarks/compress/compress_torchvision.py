"""Every method of `dynamic.models.compress` on five networks of torchvision, full size, random weights.

    python -m benchmarks.compress.compress_torchvision [--networks resnet18 swin_t]

For each: whether the compressed network takes the same inputs and gives logits of the same shape, all finite; whether
the original still has every weight as it was and gives the same logits, bit for bit; parameters, nonzero weights and
multiply-adds left; how many parts were left alone. Latency is not measured here. Each network has a process of its own,
under a memory limit.
"""

import argparse
import json
import resource
import subprocess
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from benchmarks.harness.common import module_command, module_path, progress, save
from dynamic.models.compress import (
    Compressed,
    cluster,
    low_rank,
    prune_blocks,
    prune_channels,
    prune_weights,
    quantize,
    quantize_weights,
    separate,
)
from dynamic.policies.errors import DynamicError

NETWORKS = ("resnet18", "mobilenet_v3_large", "convnext_tiny", "vit_b_16", "swin_t")
LIMIT_GB = 12
Method = Callable[[nn.Module, Tensor], Compressed]
METHODS: dict[str, Method] = {
    "prune_weights 0.5": lambda n, x: prune_weights(n, x, amount=0.5, latency=False),
    "prune_channels 0.5": lambda n, x: prune_channels(n, x, amount=0.5, latency=False),
    "prune_blocks 2": lambda n, x: prune_blocks(n, x, count=2, latency=False),
    "low_rank energy 0.5": lambda n, x: low_rank(n, x, energy=0.5, latency=False),
    "separate": lambda n, x: separate(n, x, latency=False),
    "quantize": lambda n, x: quantize(n, x, calibration_loader=[x], latency=False),
    "quantize_weights 4": lambda n, x: quantize_weights(n, x, bits=4, latency=False),
    "cluster 16": lambda n, x: cluster(n, x, clusters=16, latency=False),
}


def one(name: str) -> dict[str, Any]:
    """Every method on one network."""
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_GB << 30, LIMIT_GB << 30))
    torch.manual_seed(0)
    network: nn.Module = getattr(models, name)(weights=None).eval()
    x = torch.randn(2, 3, 224, 224)
    weights = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.no_grad():
        before = network(x)
    rows: dict[str, Any] = {}
    for method, make in METHODS.items():
        began = time.perf_counter()
        try:
            made = make(network, x)
            with torch.no_grad():
                after, again = made.network(x), network(x)
        except DynamicError as error:
            rows[method] = {"refused": f"{type(error).__name__}: {error}"[:200]}
            continue
        same = all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())
        old, new = made.report.before, made.report.after
        rows[method] = {
            "logits": after.shape == before.shape and bool(after.isfinite().all()),
            "original untouched": same and torch.equal(before, again),
            "parameters": round(new.parameters / old.parameters, 3),
            "nonzero": round(new.nonzero / old.nonzero, 3),
            "multiply-adds": round(new.macs / old.macs, 3),
            "file": round(new.file_bytes / old.file_bytes, 3),
            "left alone": len(made.report.left_alone),
            "seconds": round(time.perf_counter() - began, 1),
        }
        progress(f"{name}, {method}: {rows[method]}")
    return rows


def main() -> None:
    """All networks, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--one", choices=NETWORKS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one)))
        return
    found = {}
    for name in options.networks:
        done = subprocess.run(
            module_command("compress.compress_torchvision", "--one", name),
            stdout=subprocess.PIPE,
            text=True,
            env=module_path(),
        )
        found[name] = json.loads(done.stdout) if done.returncode == 0 else {"process ended with": done.returncode}
        print(f"\n{name}\n{'':22}{'logits':>8}{'untouched':>11}{'parameters':>12}{'nonzero':>9}{'macs':>7}{'file':>7}")
        for method, row in found[name].items():
            if not isinstance(row, dict) or "refused" in row:
                print(f"{method:22}  {row}")
                continue
            print(
                f"{method:22}{row['logits']!s:>8}{row['original untouched']!s:>11}{row['parameters']:12.3f}"
                f"{row['nonzero']:9.3f}{row['multiply-adds']:7.3f}{row['file']:7.3f}   {row['left alone']} left alone"
            )
    print(save("compress/compress_torchvision", {"memory limit GB": LIMIT_GB, "networks": found}))


if __name__ == "__main__":
    main()
