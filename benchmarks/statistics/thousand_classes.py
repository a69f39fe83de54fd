"""Time and memory of calibrating, certifying and building with 10,000 inputs, 1,000 classes and 6 stages.

    python -m benchmarks.statistics.thousand_classes

The network is small, so that what is measured is not its own work: six layers on 64 numbers, a head behind each,
trained for a minute on classes that are clusters. Logits of all stages are 240 MB in float32. Three processes, each
from a fresh start: one imports and makes the network and the inputs, one calibrates and certifies, one builds a bundle.
The peak is the largest resident memory of a process, and what the first process has is in it.

The goal: under 60 s beside inference, and under 2 GB. Inference is counted here, since this network takes next to
none.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import dynamic
from benchmarks.harness.common import progress, save

INPUTS, CLASSES, STAGES, WIDTH = 10_000, 1_000, 6, 64
GOALS = {"seconds_beside_inference": 60, "peak_mb": 2_000}
STEPS = ("start", "certify", "build")


class Layers(nn.Module):
    """Six layers with residuals, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(STAGES)])
        self.classes = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.classes(x)  # type: ignore[no-any-return]


def clusters(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs `[N, 64]` around the centres of their classes, and labels."""
    centres = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(0))
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=draw)
    return centres[labels] + 1.1 * torch.randn(count, WIDTH, generator=draw), labels


def trained(steps: int) -> Any:
    """The network with an exit behind each layer, trained with all its heads."""
    torch.manual_seed(0)
    net = dynamic.wrap(Layers(), torch.zeros(2, WIDTH), exits=[f"blocks.{s}" for s in range(STAGES - 1)])
    optimizer = torch.optim.AdamW(net.train().parameters(), 2e-3)
    for step in range(steps):
        x, labels = clusters(512, 1 + step)
        optimizer.zero_grad()
        sum(cross_entropy(logits, labels) for logits in net(x)).backward()  # type: ignore[union-attr]
        optimizer.step()
    return net.eval()


def measured(step: str, weights: Path) -> dict[str, Any]:
    """What one process does, its seconds and its peak of resident memory."""
    net = trained(0)
    net.load_state_dict(torch.load(weights))
    cascade = dynamic.Cascade([net])
    x, labels = clusters(INPUTS, 10**6)
    loader = list(zip(x.split(250), labels.split(250), strict=True))
    found: dict[str, Any] = {}
    began = time.perf_counter()
    if step == "certify":
        records = dynamic.calibrate(cascade, loader, progress=False)
        found["calibrate_s"] = round(time.perf_counter() - began, 1)
        began = time.perf_counter()
        ladder = dynamic.certify(records)
        found |= {"certify_s": round(time.perf_counter() - began, 1), "points": len(ladder.points)}
        found["accuracy"] = [round(float((records.logits[:, s].argmax(1) == records.label).mean()), 3) for s in (0, -1)]
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            records.save(Path(folder) / "records.npz")
            found["records_mb"] = round((Path(folder) / "records.npz").stat().st_size / 1e6)
        found["save_records_s"] = round(time.perf_counter() - began, 1)
    elif step == "build":
        with tempfile.TemporaryDirectory() as folder:
            dynamic.build(cascade, loader, progress=False).save(f"{folder}/shelf")
        found["build_s"] = round(time.perf_counter() - began, 1)
    return found | {"peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)}


def main() -> None:
    """A table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="of training")
    parser.add_argument("--one", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(options.one, options.weights)))
        return
    found: dict[str, Any] = {"inputs": INPUTS, "classes": CLASSES, "stages": STAGES, "goals": GOALS}
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.pt"
        progress("training")
        torch.save(trained(options.steps).state_dict(), weights)
        for step in STEPS:
            progress(step)
            command = [sys.executable, "-m", "benchmarks.statistics.thousand_classes", "--one", step]
            done = subprocess.run([*command, "--weights", weights], capture_output=True, text=True, check=True)
            found[step] = json.loads(done.stdout)
            print(step, found[step])
    print(save("statistics/thousand_classes", found))


if __name__ == "__main__":
    main()
