"""A modern fast network for CIFAR-10, shallow and wide, trained here: a stronger static opponent than ResNet-56.

    nice -n 19 python -m benchmarks.cascades.modern_network [--epochs 16] [--threads 2] [--smoke]

The network and its recipe follow airbench94 (K. Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024,
arXiv 2404.00498, section 3): a whitening convolution that is computed and not learned, six convolutions of 3 x 3 in
three groups of 64, 256 and 256 channels, Dirac initialization, a higher rate for the biases of norms, lookahead,
alternating flips and shifts by 2 pixels. It differs in three points. ReLU replaces GELU, since an int8 graph has it for
nothing. Epochs are whole, and the rate is highest after two of them. Steps have 1,000 images.

Training sees the training split alone, and no choice is made by data. It continues after the last whole epoch
(out/modern_network/). `--held-out` trains without that many images and reports accuracy on them, for comparisons.
"""

import argparse
import copy
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from benchmarks.cascades.family_networks import eight
from benchmarks.harness import cifar
from benchmarks.harness.common import ROOT, WEIGHTS, add_data_option, data_folder, progress, required, save
from dynamic.data import ImageSet
from dynamic.offline.networks.acceleration import Acceleration
from dynamic.offline.networks.checkpoints import Checkpoint, load_weights, save_weights

WIDTHS, FILTERS = (64, 256, 256), 24
COMMAND = "python -m benchmarks.cascades.modern_network"
FILE = WEIGHTS / "modern_network.safetensors"
WHITENED, WHITENING_EPSILON = 5000, 5e-4  # images whose patches are whitened, and what is added to their variances
LOOKAHEAD_STEPS = 5
PEAK = 2  # epochs up to the highest rate. Until then nothing depends on the number of epochs


@dataclass(frozen=True)
class Recipe:
    """How the network is trained. Defaults are those of airbench94, as rates of the mean loss.

    Args:
        epochs: Times each image is seen.
        batch: Images a step.
        rate: The highest learning rate.
        momentum: Of Nesterov's method.
        weight_decay: Of weights. That of the norms' biases is divided by `bias_factor`.
        bias_factor: Learning rate of the norms' biases, as a multiple.
        smoothing: Label smoothing.
        shift: Largest random shift, in pixels.
        scale: Factor of the logits in the loss. It goes into the weights of the last layer in the end.
        whitening_epochs: Epochs in which the bias of the whitening convolution is learned.
        seed: Of weights, order, shifts and mirroring.
    """

    epochs: int = 16
    batch: int = 1000
    rate: float = 1.5
    momentum: float = 0.85
    weight_decay: float = 1.33e-3
    bias_factor: float = 64.0
    smoothing: float = 0.2
    shift: int = 2
    scale: float = 1 / 9
    whitening_epochs: int = 3
    seed: int = 0


class Group(nn.Module):
    """Two convolutions with their norms, and halving behind the first."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(i, out, 3, padding=1, bias=False) for i in (width, out))
        self.norms = nn.ModuleList(nn.BatchNorm2d(out, eps=1e-12, momentum=0.4) for _ in range(2))
        for convolution in (self.first, self.second):
            nn.init.dirac_(convolution.weight.data[: convolution.in_channels])
        for norm in self.norms:
            norm.weight.requires_grad_(False)

    def folded(self) -> list[nn.Conv2d]:
        """Its convolutions, each with its norm inside."""
        norms = [norm for norm in self.norms if isinstance(norm, nn.BatchNorm2d)]
        return [fuse_conv_bn_eval(c, norm) for c, norm in zip((self.first, self.second), norms, strict=True)]

    def forward(self, x: Tensor) -> Tensor:
        """`[B, width, H, W]` to `[B, out, H // 2, W // 2]`."""
        half = F.relu(self.norms[0](F.max_pool2d(self.first(x), 2)))
        return F.relu(self.norms[1](self.second(half)))


class Trained(nn.Module):
    """The network as it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.whitening = nn.Conv2d(3, FILTERS, 2)
        self.whitening.weight.requires_grad_(False)
        nn.init.zeros_(self.whitening_bias)
        self.groups = nn.Sequential(*(Group(i, o) for i, o in zip((FILTERS, *WIDTHS), WIDTHS, strict=False)))
        self.last = nn.Linear(WIDTHS[-1], 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, 10]` of images `[B, 3, 32, 32]`."""
        features = self.groups(F.relu(self.whitening(x)))  # [B, 256, 3, 3]
        logits: Tensor = self.last(F.max_pool2d(features, 3).flatten(1))
        return logits

    @property
    def whitening_bias(self) -> Tensor:
        """Of the whitening convolution, which has no other learned values `[24]`."""
        assert self.whitening.bias is not None
        return self.whitening.bias

    def whiten(self, images: Tensor) -> None:
        """Set the first convolution so that its outputs on 2 x 2 patches of the images are uncorrelated, and negated.

        The paper's section 3.2.
        """
        size = self.whitening.kernel_size[0]
        patches = F.unfold(images, size).transpose(1, 2).reshape(-1, 3 * size * size)  # [patches, 12]
        variances, vectors = torch.linalg.eigh(torch.cov(patches.double().T))
        filters = (vectors / (variances + WHITENING_EPSILON).sqrt()).T.reshape(-1, 3, size, size)
        self.whitening.weight.data.copy_(torch.cat([filters, -filters]))


def empty_network() -> nn.Sequential:
    """The network as it is deployed, without weights: norms lie in the convolutions, and pooling follows the ReLU."""
    layers: list[nn.Module] = [nn.Conv2d(3, FILTERS, 2), nn.ReLU()]
    for width, out in zip((FILTERS, *WIDTHS), WIDTHS, strict=False):
        layers += [nn.Conv2d(width, out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Conv2d(out, out, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(3), nn.Flatten(), nn.Linear(WIDTHS[-1], 10, bias=False))


def deployed(trained: Trained, scale: float) -> nn.Sequential:
    """The same function in the form of `empty_network`. The logits are multiplied by `scale`.

    A norm with positive factors and ReLU do not change which value is the largest, so they may precede the pooling.
    """
    trained.eval()
    convolutions = [trained.whitening]
    for group in trained.groups:
        assert isinstance(group, Group)
        convolutions += group.folded()
    network = empty_network()
    targets = [layer for layer in network if isinstance(layer, nn.Conv2d)]
    with torch.no_grad():
        for target, source in zip(targets, convolutions, strict=True):
            target.load_state_dict(source.state_dict())
        network[-1].load_state_dict({"weight": scale * trained.last.weight})
    return network.eval()


def modern_network() -> nn.Module:
    """The network as it lies in weights/."""
    network = empty_network()
    load_weights(network, required(FILE, COMMAND))
    return network.eval()


def int8_network(data: Path) -> nn.Module:
    """The network in int8, with ranges from training images."""
    return eight(data, modern_network())


class Images:
    """Training images, shifted by up to `shift` pixels and mirrored in every other epoch, each in its turn."""

    def __init__(self, images: ImageSet, shift: int, seed: int) -> None:
        self.labels, self.shift, self.seed = images.labels, shift, seed
        self.padded = np.pad(images.images, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="reflect")
        self.mirrored_first = np.random.default_rng(seed).random(len(images)) < 0.5

    def epoch(self, number: int, batch: int) -> Any:
        """Shuffled batches of inputs `[batch, 3, 32, 32]` and labels. The number alone decides what they are."""
        random = np.random.default_rng((self.seed, number))
        order = random.permutation(len(self.labels))
        shifts = random.integers(0, 2 * self.shift + 1, (len(order), 2))
        for start in range(0, len(order) - batch + 1, batch):
            chosen = order[start : start + batch]
            yield (
                torch.from_numpy(cifar.PREPROCESS(self.pixels(chosen, shifts[chosen], number))),
                torch.from_numpy(self.labels[chosen]).long(),
            )

    def pixels(self, chosen: NDArray[np.int64], shifts: NDArray[np.int64], epoch: int) -> NDArray[np.uint8]:
        """Images `[B, H, W, 3]`, shifted and mirrored. The paper's section 3.6: flips alternate."""
        span = np.arange(self.padded.shape[1] - 2 * self.shift)
        mirrored = self.mirrored_first[chosen] ^ (epoch % 2 == 1)
        across = np.where(mirrored[:, None], span[::-1], span)
        down, right = (shifts[:, axis, None] for axis in (0, 1))
        cut: NDArray[np.uint8] = self.padded[
            chosen[:, None, None], (down + span)[:, :, None], (right + across)[:, None, :]
        ]
        return cut


def rate_factor(epoch: float, epochs: int) -> float:
    """Share of the highest rate after so many epochs: from 0.2 up to 1 after `PEAK`, then down to 0.07."""
    return float(np.interp(epoch, [0, PEAK, epochs], [0.2, 1.0, 0.07]))


def average_decay(epoch: float, epochs: int) -> float:
    """Share of the old average that lookahead keeps: a cube, as in the paper's section 3.4, from `PEAK` on."""
    return float(0.95**LOOKAHEAD_STEPS * max(0.0, (epoch - PEAK) / (epochs - PEAK)) ** 3)


def optimizer_of(network: Trained, recipe: Recipe) -> torch.optim.SGD:
    """Nesterov's method. Norm biases have a higher rate and the same decay a step."""
    norms = [p for name, p in network.named_parameters() if "norms" in name and p.requires_grad]
    others = [p for name, p in network.named_parameters() if "norms" not in name and p.requires_grad]
    higher = recipe.rate * recipe.bias_factor
    groups = [
        {"params": norms, "lr": higher, "highest": higher, "weight_decay": recipe.weight_decay / recipe.bias_factor},
        {"params": others, "lr": recipe.rate, "highest": recipe.rate, "weight_decay": recipe.weight_decay},
    ]
    return torch.optim.SGD(groups, lr=recipe.rate, momentum=recipe.momentum, nesterov=True)


class Parts:
    """Gradients of a step, of as many parts of it as there are threads, each on a thread of its own.

    oneDNN adds up the gradients of weights behind a barrier that spins: on a busy machine two threads of one operation
    spent 55% of their time there. Norms see a part of a step each.
    """

    def __init__(self, network: Trained, threads: int, recipe: Recipe, fast: Acceleration) -> None:
        torch.set_num_threads(1)
        shared = {id(parameter): parameter for parameter in network.parameters()}
        self.networks = [network, *(copy.deepcopy(network, dict(shared)) for _ in range(threads - 1))]
        self.pool, self.recipe, self.fast = ThreadPoolExecutor(threads), recipe, fast

    def __call__(self, inputs: Tensor, labels: Tensor) -> float:
        """Put the mean gradients into the parameters, and the mean statistics into the norms. The mean loss."""
        network, *copies = self.networks
        for own in copies:  # lookahead and a checkpoint change the first network
            for buffer, first in zip(own.buffers(), network.buffers(), strict=True):
                buffer.copy_(first)
        learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
        count = len(self.networks)
        parts = (self.networks, inputs.chunk(count), labels.chunk(count), [learned] * count)
        results = list(self.pool.map(self.part, *parts))
        for parameter, gradients in zip(learned, zip(*(own for _, own in results), strict=True), strict=True):
            parameter.grad = torch.stack(gradients).mean(0)
        for buffers in zip(*(network.buffers() for network in self.networks), strict=True):
            if buffers[0].is_floating_point():
                buffers[0].copy_(torch.stack(buffers).mean(0))
        return sum(loss for loss, _ in results) / count

    def part(
        self, network: Trained, inputs: Tensor, labels: Tensor, learned: Sequence[Tensor]
    ) -> tuple[float, tuple[Tensor, ...]]:
        """Loss and gradients of a part."""
        network.train()
        with self.fast.autocast():
            logits = network(self.fast.place(inputs))
        loss = F.cross_entropy(self.recipe.scale * logits.float(), labels, label_smoothing=self.recipe.smoothing)
        return loss.item(), torch.autograd.grad(loss, learned)


def train(images: ImageSet, recipe: Recipe, path: Path, threads: int) -> tuple[nn.Sequential, dict[str, Any]]:
    """The network, trained from where the checkpoint at `path` ends, with the losses and the seconds of all epochs."""
    torch.manual_seed(recipe.seed)
    network = Trained()
    fast = Acceleration.choose(network, "cpu", None, None)
    network.whiten(torch.from_numpy(cifar.PREPROCESS(images.images[:WHITENED])))
    if fast.channels_last:
        network.to(memory_format=torch.channels_last)
    optimizer, loader = optimizer_of(network, recipe), Images(images, recipe.shift, recipe.seed)
    floats = {name: tensor for name, tensor in network.state_dict().items() if tensor.is_floating_point()}
    averages = {name: tensor.clone() for name, tensor in floats.items()}
    settings = {"images": len(images), "widths": WIDTHS, **asdict(recipe)}
    settings.pop("epochs")
    checkpoint = Checkpoint(path, settings)
    state = {**network.state_dict(), **{f"average.{name}": tensor for name, tensor in averages.items()}}
    facts = checkpoint.load(state, optimizer) or {"losses": [], "seconds": []}
    if len(facts["losses"]) > PEAK and facts["epochs"] != recipe.epochs:
        raise SystemExit(f"{path} belongs to a run of {facts['epochs']} epochs, not {recipe.epochs}. Remove it")
    facts["epochs"] = recipe.epochs
    of_epoch, step = len(images) // recipe.batch, Parts(network, threads, recipe, fast)
    for epoch in range(len(facts["losses"]), recipe.epochs):
        began, losses = time.perf_counter(), []
        network.whitening_bias.requires_grad_(epoch < recipe.whitening_epochs)
        for number, (inputs, labels) in enumerate(loader.epoch(epoch, recipe.batch)):
            for group in optimizer.param_groups:
                group["lr"] = group["highest"] * rate_factor(epoch + number / of_epoch, recipe.epochs)
            optimizer.zero_grad()  # or the whitening bias would continue with its last gradient
            losses.append(step(inputs, labels))
            optimizer.step()
            if (number + 1) % LOOKAHEAD_STEPS == 0:
                decay = average_decay(epoch + (number + 1) / of_epoch, recipe.epochs)
                for name, tensor in floats.items():
                    tensor.copy_(averages[name].lerp_(tensor, 1 - decay))
            if (number + 1) % 10 == 0:
                took = (time.perf_counter() - began) / (number + 1)
                progress(f"  step {number + 1} of {of_epoch}, loss {losses[-1]:.3f}, {took:.1f} s a step")
        facts["losses"].append(round(float(np.mean(losses)), 4))
        facts["seconds"].append(round(time.perf_counter() - began))
        checkpoint.save(state, optimizer, facts)
        left = (recipe.epochs - epoch - 1) * facts["seconds"][-1] / 60
        progress(
            f"epoch {epoch + 1} of {recipe.epochs}: loss {facts['losses'][-1]:.4f}, {facts['seconds'][-1]} s, "
            f"{left:.0f} minutes to go"
        )
    return deployed(network, recipe.scale), facts | {"bf16": fast.bf16}


def accuracy(network: nn.Module, images: ImageSet) -> float:
    """Share of images that are right after one plain forward pass, in float32."""
    with torch.inference_mode():
        right = [network(inputs).argmax(1) == labels for inputs, labels in cifar.batches(images, 250)]
    return float(torch.cat(right).float().mean())


def main() -> None:
    """Train, and report accuracy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--epochs", type=int, default=Recipe.epochs)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--held-out", type=int, default=0, help="training images that only report, for comparisons")
    parser.add_argument("--threads", type=int, default=2, help="of this process")
    parser.add_argument("--smoke", action="store_true", help="a few images, nothing written to results/ or weights/")
    options = parser.parse_args()
    if options.epochs <= PEAK:
        parser.error(f"--epochs {options.epochs}: give at least {PEAK + 1}, since the rate rises for {PEAK}")
    data = data_folder(options.data)
    folder = ROOT / "out" / ("modern_network-smoke" if options.smoke else "modern_network")
    if options.smoke:
        shutil.rmtree(folder, ignore_errors=True)  # or a second one would find everything done
    folder.mkdir(parents=True, exist_ok=True)
    images = cifar.images(data, "train")
    order = np.random.default_rng(0).permutation(len(images))
    learned = images.select(np.sort(order[options.held_out :][: 500 if options.smoke else None]))
    recipe = Recipe(epochs=options.epochs, batch=100 if options.smoke else Recipe.batch, seed=options.seed)
    name = f"{options.seed}-{options.held_out}.safetensors"
    network, facts = train(learned, recipe, folder / name, options.threads)
    if options.held_out:
        reported = images.select(order[: options.held_out])
        print(f"accuracy on {len(reported)} images held out: {accuracy(network, reported):.4f}")
        return
    if options.smoke:
        print(f"accuracy on the training images: {accuracy(network, learned):.4f}")
        return
    save_weights(network, FILE)
    torch.set_num_threads(options.threads)
    test = cifar.images(data, "test")
    shares = {"float32": accuracy(network, test), "int8": accuracy(int8_network(data), test)}
    result = {"recipe": asdict(recipe), "images": len(learned), **facts, "accuracy_on_test_images": shares}
    print(f"{shares}\n{save('cascades/modern_network', result)}")


if __name__ == "__main__":
    main()
