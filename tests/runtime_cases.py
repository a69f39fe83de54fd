"""A bundle and a monitor that the tests of the runtime share."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

import dynamic


def blobs(folder: Path) -> dynamic.Bundle:
    """A small and a large network on blobs that the large one tells apart better, with costs far apart."""
    torch.manual_seed(0)
    centers = torch.randn(4, 12)
    label = torch.arange(1200) % 4
    inputs = centers[label] + 1.1 * torch.randn(1200, 12)
    small = nn.Sequential(nn.Linear(12, 2), nn.Linear(2, 4))
    large = nn.Sequential(nn.Linear(12, 2000), nn.ReLU(), nn.Linear(2000, 2000), nn.ReLU(), nn.Linear(2000, 4))
    for network, steps in ((small, 60), (large, 12)):
        optimizer = torch.optim.Adam(network.parameters(), lr=0.003 if network is large else 0.05)
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs[:600]), label[:600]).backward()
            optimizer.step()
    built = dynamic.build([small, large], [(inputs[600:], label[600:])], classes=tuple("abcd"))
    return built.save(folder / "blobs").profile(batch=(1, 16), seconds=0.2)


def monitor(**readings: Any) -> dynamic.FixedMonitor:
    """These readings, always."""
    return dynamic.FixedMonitor(dynamic.Snapshot(time_s=0.0, **readings))
