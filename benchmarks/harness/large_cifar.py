"""ResNet-18 and MobileNetV3-Large of torchvision, trained here on CIFAR-10 images enlarged to 224 pixels.

    python -m benchmarks.harness.large_cifar [--networks resnet18 mobilenet_v3] [--threads 1]

No trained weights of theirs come with the data, and an int8 network can only be judged on weights that were trained: a
random body passes on little that tells classes apart. Most steps see crops of 64 pixels, the last ones 224. Training
goes on where it was interrupted, and the weights stay in out/large_cifar/. On one core it takes some 15 minutes a
network. They are good enough to measure what int8 changes. They are no reference for accuracy.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import mobilenet_v3_large, resnet18
from torchvision.transforms import v2

from benchmarks.harness import cifar
from benchmarks.harness.common import ROOT, add_data_option, data_folder, progress

PIXELS = 224
NETWORKS: dict[str, Callable[..., nn.Module]] = {"resnet18": resnet18, "mobilenet_v3": mobilenet_v3_large}
# pixels, images a step, steps: by network
PHASES = {
    "resnet18": ((64, 64, 1600), (PIXELS, 16, 240)),
    "mobilenet_v3": ((64, 64, 1600), (PIXELS, 16, 240)),
}
RATES = {64: 0.05, PIXELS: 0.01}  # the highest learning rate of a phase
SMALLEST_CROP = 0.2  # of the area: at 64 pixels the network so learns objects as large as they are at 224
KEPT_EVERY = 50  # steps


def enlarged(images: Tensor, pixels: int = PIXELS) -> Tensor:
    """Images `[B, 3, H, W]` as `[B, 3, pixels, pixels]`."""
    return F.interpolate(images, size=pixels, mode="bilinear", antialias=True)


def network(name: str, data: Path) -> nn.Module:
    """A trained network in evaluation mode, trained first where that was not done."""
    torch.manual_seed(0)
    model = NETWORKS[name](num_classes=10)
    path = ROOT / "out" / "large_cifar" / f"{name}.pt"
    if not path.is_file() or torch.load(path, weights_only=True)["step"] < _steps(name):
        _train(name, model, cifar.images(data, "train"), path)
    model.load_state_dict(torch.load(path, weights_only=True)["network"])
    return model.eval()


def _steps(name: str) -> int:
    return sum(steps for _, _, steps in PHASES[name])


def _train(name: str, model: nn.Module, images: Any, path: Path) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    model.to(memory_format=torch.channels_last)
    start, step, began = 0, 0, time.perf_counter()
    if path.is_file():
        kept = torch.load(path, weights_only=True)
        model.load_state_dict(kept["network"])
        optimizer.load_state_dict(kept["optimizer"])
        start = kept["step"]
    path.parent.mkdir(parents=True, exist_ok=True)
    model.train()
    bf16 = name == "resnet18" and torch.backends.cpu.get_cpu_capability() == "AVX512"  # there it is faster
    for pixels, size, steps in PHASES[name]:
        crop = v2.Compose(
            [v2.RandomResizedCrop(pixels, scale=(SMALLEST_CROP, 1), antialias=True), v2.RandomHorizontalFlip()]
        )
        for at in range(steps):
            step += 1
            if step <= start:
                continue
            torch.manual_seed(step)
            rows = np.random.default_rng(step).choice(len(images.labels), size, replace=False)
            inputs = torch.stack([crop(image) for image in torch.from_numpy(cifar.PREPROCESS(images.images[rows]))])
            rate = RATES[pixels] * min(1.0, 10 * (at + 1) / steps, 1.25 * (1 - at / steps))
            for group in optimizer.param_groups:
                group["lr"] = rate
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                logits = model(inputs.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), torch.from_numpy(images.labels[rows]).long(), label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % KEPT_EVERY == 0 or step == _steps(name):
                partial = path.with_suffix(".partial")
                torch.save({"network": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, partial)
                os.replace(partial, path)
                took = (time.perf_counter() - began) / (step - start)
                progress(
                    f"{name}: step {step} of {_steps(name)} at {pixels} pixels, loss {loss:.2f}, {took:.2f} s each"
                )


def main() -> None:
    """Train, and tell the accuracy on 500 test images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS), metavar="NETWORK")
    parser.add_argument("--threads", type=int, default=1, help="of this process")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = data_folder(options.data)
    test = cifar.images(data, "test")
    for name in options.networks:
        model, right = network(name, data), 0
        with torch.no_grad():
            for i in range(0, 500, 50):
                found = model(enlarged(torch.from_numpy(cifar.PREPROCESS(test.images[i : i + 50])))).argmax(1).numpy()
                right += int((found == test.labels[i : i + 50]).sum())
        print(f"{name}: {right / 500:.3f} of 500 test images")


if __name__ == "__main__":
    main()
