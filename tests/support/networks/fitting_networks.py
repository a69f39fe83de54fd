"""A small real network with exits, and the digits it learns, for the tests of training."""

import copy
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import dynamic
from dynamic.models import CifarResNet
from dynamic.offline.staged_network import Stage, StagedNetwork
from dynamic.offline.training.configs import fit_arguments
from dynamic.offline.training.fit_report import FitReport


def fit(network: nn.Module, train_loader: Iterable[Any], **options: Any) -> FitReport:
    """`dynamic.fit` with options by name, those of its configs among them."""
    return dynamic.fit(network, train_loader, **fit_arguments(options))


class PooledHead(nn.Module):
    """Mean over positions, batch norm, linear."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels)
        self.linear = nn.Linear(channels, classes)

    def pool(self, feature: Tensor) -> Tensor:
        return feature.mean((2, 3))

    def classify(self, pooled: Tensor) -> Tensor:
        return self.linear(self.norm(pooled))

    def forward(self, feature: Tensor) -> Tensor:
        return self.classify(self.pool(feature))


class WholeHead(nn.Sequential):
    """The same head without the two methods."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(channels), nn.Linear(channels, classes))


class ExitNet(StagedNetwork):
    """A ResNet-8 with exits after its first two groups."""

    def __init__(self, head: type[nn.Module] = PooledHead, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.backbone = CifarResNet(8, in_channels=1, width=8)
        self.heads = nn.ModuleList([head(8, 10), head(16, 10)])

    def forward(self, x: Tensor) -> list[Tensor]:
        net = self.backbone
        first = net.layer1(torch.relu(net.bn1(net.conv1(x))))
        second = net.layer2(first)
        return [self.heads[0](first), self.heads[1](second), net.linear(net.layer3(second).mean((2, 3)))]

    @property
    def exit_stages(self) -> tuple[Stage, ...]:
        net = self.backbone
        bodies = [
            nn.Sequential(net.conv1, net.bn1, nn.ReLU(), net.layer1),
            nn.Sequential(net.layer2),
            nn.Sequential(net.layer3, nn.AdaptiveAvgPool2d(1), nn.Flatten(), net.linear),
        ]
        heads = [*self.heads, nn.Identity()]
        return tuple(
            Stage(f"exit{i + 1}", _Carrying(_view(body)), _view(head)).eval()
            for i, (body, head) in enumerate(zip(bodies, heads, strict=True))
        )


class _Carrying(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.body(x),)


def _view(module: nn.Module) -> nn.Module:
    seen = copy.copy(module)
    seen._modules = {name: _view(child) for name, child in module._modules.items() if child is not None}
    return seen


@cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Real handwritten digits: train and test images `[N, 1, 8, 8]` and labels."""
    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    y = torch.tensor(data.target)
    return x[:1200], y[:1200], x[1200:], y[1200:]


def digits_loader(shuffle: bool = True, count: int = 1200) -> DataLoader[tuple[Tensor, ...]]:
    x, y, _, _ = digits()
    return DataLoader(TensorDataset(x[:count], y[:count]), batch_size=100, shuffle=shuffle)


def accuracies(network: ExitNet) -> list[float]:
    """Accuracy of each exit on the digits kept for testing."""
    _, _, x, y = digits()
    was = network.training
    network.eval()
    with torch.no_grad():
        found = [(logits.argmax(1) == y).float().mean().item() for logits in network(x)]
    network.train(was)
    return found
