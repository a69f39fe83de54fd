"""The classifier that `wrap` puts on an intermediate feature."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Classifier = Callable[[int, int], nn.Module]  # (width of the pooled feature, classes) -> module [B, D] -> [B, C]


class ExitHead(nn.Module):
    """Pools a feature over all positions and classifies what is left: logits `[B, classes]`.

    `channel` is the dimension of the feature that holds its `channels`: 1 for `[B, C, H, W]`, -1 for
    `[B, H, W, C]` and `[B, N, D]`. The pooled feature is mean and maximum over the positions, `[B, 2 C]` (Kaya et
    al. 2019, "Shallow-Deep Networks", section 4, mix the two), or the feature itself where there are none.
    `classifier(width, classes)` makes the rest; None: batch norm and a linear layer.
    """

    def __init__(
        self, channels: int, classes: int, rank: int, channel: int = 1, classifier: Classifier | None = None
    ) -> None:
        super().__init__()
        own = channel % rank
        self.positions = tuple(d for d in range(1, rank) if d != own)
        width = 2 * channels if self.positions else channels
        self.classifier = (
            nn.Sequential(nn.BatchNorm1d(width), nn.Linear(width, classes))
            if classifier is None
            else classifier(width, classes)
        )

    def pool(self, feature: Tensor) -> Tensor:
        """`[B, ...]` -> `[B, D]`."""
        if not self.positions:
            return feature
        return torch.cat([feature.mean(self.positions), feature.amax(self.positions)], dim=1)

    def classify(self, pooled: Tensor) -> Tensor:
        """`[B, D]` -> logits `[B, classes]`."""
        logits: Tensor = self.classifier(pooled)
        return logits

    def forward(self, feature: Tensor) -> Tensor:
        """`[B, ...]` -> logits `[B, classes]`."""
        return self.classify(self.pool(feature))
