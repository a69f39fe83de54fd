"""The classifiers that `wrap` puts on intermediate features."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynamic.offline.networks.network_copies import deep_copy
from dynamic.policies.errors import LayoutError

Classifier = Callable[[int, int], nn.Module]  # (width of the pooled feature, classes) -> module [B, D] -> [B, C]
# (shape of the feature without the batch, dimension of the channels from 1, classes) -> module [B, ...] -> [B, C]
Head = Callable[[tuple[int, ...], int, int], nn.Module]

# (cells along each side of an image, hidden units), the best first: 4 x 4 means and a hidden layer were right on 0.87
# of CIFAR-10, a linear layer on mean and maximum of the whole on 0.71 (frozen ResNet-56, exit at 0.67 of its compute)
_SIZES = ((4, 256), (4, 128), (4, 64), (2, 128), (2, 64), (1, 128), (1, 64))
_PARAMETERS, _MACS = 0.2, 0.01  # of the backbone's, that a head may have


@dataclass(frozen=True)
class Room:
    """What a backbone has, of which a head may be a small share: `parameters`, and multiply-adds `macs`."""

    parameters: float
    macs: float


class ExitHead(nn.Module):
    """Pools a feature over its positions and classifies the result: logits `[B, classes]`.

    Images are averaged over the cells of a grid of up to 4 x 4. Where only one cell fits, and for everything else,
    mean and maximum over all positions are pooled (Kaya et al. 2019, "Shallow-Deep Networks", section 4, mix the two).
    Grid and hidden layer are as large as the backbone permits: 20% of its weights and 1% of its multiply-adds. Without
    room for the smallest there is no hidden layer.

    Args:
        shape: Of the feature, without the batch.
        channel: The feature's dimension, from 1, that holds the channels: 1 for `[B, C, H, W]`, 3 for `[B, H, W, C]`,
            2 for `[B, N, D]`.
        classes: How many.
        classifier: A function `(width, classes)` that makes the classifier. None: batch norm, a hidden layer, and a
            linear layer.
        room: The size of the backbone.
        resized: Whether the positions have more than one size, so that the cells of a grid depend on the feature.
    """

    cells: Tensor | None

    def __init__(
        self,
        shape: tuple[int, ...],
        channel: int,
        classes: int,
        classifier: Classifier | None,
        room: Room,
        resized: bool = False,
    ) -> None:
        super().__init__()
        self.resized = resized
        rank, channels = len(shape) + 1, shape[channel - 1]
        self.channel = channel
        self.positions = tuple(d for d in range(1, rank) if d != channel)
        side = min(shape[d - 1] for d in self.positions) if len(self.positions) == 2 else 1
        most = min(_PARAMETERS * room.parameters, _MACS * room.macs)
        fitting = [
            (grid, hidden)
            for grid, hidden in _SIZES
            if grid <= side and hidden * (self._width(channels, grid) + classes) <= most
        ]
        self.grid, hidden = fitting[0] if fitting else (1, 0)
        self.sides = tuple(shape[d - 1] for d in self.positions)
        cells = _cell_weights(self.sides, self.grid) if self.grid > 1 and not resized else None
        self.register_buffer("cells", cells, persistent=False)
        width = self._width(channels, self.grid)
        make = (_hidden(hidden) if hidden else _linear) if classifier is None else classifier
        self.classifier = make(width, classes)

    def _width(self, channels: int, grid: int) -> int:
        """Numbers in the pooled feature."""
        if not self.positions:
            return channels
        return channels * grid**2 if grid > 1 else 2 * channels

    def pool(self, feature: Tensor) -> Tensor:
        """`[B, ...]` -> `[B, D]`."""
        if not self.positions:
            return feature
        if self.grid == 1:
            return torch.cat([feature.mean(self.positions), feature.amax(self.positions)], dim=1)
        image = feature if self.channel == 1 else feature.movedim(self.channel, 1)  # [B, C, H, W]
        if self.resized:
            rows, columns = (_sized_means(image, d, self.grid) for d in (2, 3))
            return (rows @ image @ columns.T).flatten(1)  # [grid, H] @ [B, C, H, W] @ [W, grid]
        if self.cells is not None and image.shape[2:] == self.sides:
            return (image.flatten(2) @ self.cells).flatten(1)  # [B, C, H W] @ [H W, grid grid]
        return F.adaptive_avg_pool2d(image, self.grid).flatten(1)

    def classify(self, pooled: Tensor) -> Tensor:
        """`[B, D]` -> logits `[B, classes]`."""
        logits: Tensor = self.classifier(pooled)
        return logits

    def forward(self, feature: Tensor) -> Tensor:
        """`[B, ...]` -> logits `[B, classes]`."""
        return self.classify(self.pool(feature))


class ConvHead(nn.Module):
    """Strided 3 x 3 convolutions down to `side` positions a side, then the mean and a linear layer: `[B, classes]`.

    Early features of a convolutional network are fine and say little about the class. An exit needs coarser and wider
    ones (Huang et al. 2018, "Multi-Scale Dense Networks", section 4). Each convolution halves both sides and doubles
    the channels. Where the feature is as coarse already, one convolution keeps its size. This head is for early exits
    that are trained with the backbone. It costs a few percent of the backbone's multiply-adds.

    Args:
        shape: Of the feature, without the batch.
        channel: The feature's dimension, from 1, that holds the channels.
        classes: How many.
        side: Positions a side at the end.
        most_channels: The most that convolutions give.
        extra: Further convolutions at the final size.

    Raises:
        LayoutError: The feature is no image.

    Example:
        >>> head = dynamic.models.ConvHead((16, 32, 32), 1, 10)
        >>> head(torch.zeros(2, 16, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self, shape: tuple[int, ...], channel: int, classes: int, side: int = 8, most_channels: int = 64, extra: int = 0
    ) -> None:
        super().__init__()
        if len(shape) != 3:
            raise LayoutError(
                f"ConvHead needs an image [B, C, H, W] or [B, H, W, C], not {['B', *shape]}: use ExitHead"
            )
        self.channel = channel
        channels = shape[channel - 1]
        height, width = (s for d, s in enumerate(shape, 1) if d != channel)
        layers: list[nn.Module] = []
        strides = [2] * max(0, math.ceil(math.log2(min(height, width) / side)))
        for stride in [*(strides or [1]), *[1] * extra]:
            wider = max(channels, min(2 * channels, most_channels)) if stride == 2 else channels
            layers += [nn.Conv2d(channels, wider, 3, stride, 1, bias=False), nn.BatchNorm2d(wider)]
            layers.append(nn.ReLU(inplace=True))
            channels = wider
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, feature: Tensor) -> Tensor:
        """Classify a feature.

        Args:
            feature: `[B, C, H, W]` or `[B, H, W, C]`.

        Returns:
            Logits `[B, classes]`.

        Raises:
            RuntimeError: The feature has another number of channels than the head was made for.

        Example:
            >>> dynamic.models.ConvHead((16, 8, 8), 1, 10)(torch.zeros(2, 16, 8, 8)).shape
            torch.Size([2, 10])
        """
        image = feature if self.channel == 1 else feature.movedim(self.channel, 1)
        logits: Tensor = self.classifier(self.features(image).mean((2, 3)))
        return logits


class BlockHead(nn.Module):
    """Copies of some of the network's later blocks, then the mean over positions and a linear layer: `[B, classes]`.

    An early exit lacks depth more than a classifier: side branches of BranchyNet have convolutions of their own
    (Teerapittayanon et al. 2016, "BranchyNet", section III). Copies of later blocks have little to learn, and the
    network itself does not change. This head is for an exit that should answer most inputs. It costs as much as its
    blocks. In `wrap`, for one exit:
    `head=lambda shape, channel, classes: BlockHead([net.layer2[0], net.layer3[0]], shape, channel, classes)`.

    Args:
        blocks: They run one after the other, each on the output of the one before.
        shape: Of the feature, without the batch.
        channel: The feature's dimension, from 1, that holds the channels. The last block's output has the same.
        classes: How many.

    Raises:
        LayoutError: A block does not take the output of the one before it, or returns no tensor of the feature's rank.

    Example:
        >>> blocks = [nn.Conv2d(16, 32, 3, stride=2, padding=1)]
        >>> dynamic.models.BlockHead(blocks, (16, 8, 8), 1, 10)(torch.zeros(2, 16, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, blocks: Sequence[nn.Module], shape: tuple[int, ...], channel: int, classes: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(deep_copy(block).requires_grad_(True) for block in blocks))
        first = next(self.blocks.parameters(), torch.empty(0))
        feature = torch.zeros(1, *shape, device=first.device, dtype=first.dtype)
        for number, block in enumerate(self.blocks.eval()):
            before = list(feature.shape)
            try:
                with torch.no_grad():
                    feature = block(feature)
            except Exception as error:
                raise LayoutError(
                    f"block {number} of the head, {type(block).__name__}, does not take {before} ({error}). Give "
                    f"blocks that follow on each other, the first of which takes the exit's feature {['B', *shape]}"
                ) from error
            if not isinstance(feature, Tensor) or feature.ndim != len(before):
                raise LayoutError(
                    f"block {number} of the head, {type(block).__name__}, gives no tensor of {len(before)} dimensions "
                    f"as it takes one. Give blocks that do"
                )
        self.train()
        self.positions = tuple(d for d in range(1, len(shape) + 1) if d != channel)
        self.classifier = nn.Linear(feature.shape[channel], classes, device=first.device, dtype=first.dtype)

    def forward(self, feature: Tensor) -> Tensor:
        """Classify a feature.

        Args:
            feature: `[B, ...]`.

        Returns:
            Logits `[B, classes]`.

        Raises:
            RuntimeError: The feature has another number of channels than the head was made for.

        Example:
            >>> head = dynamic.models.BlockHead([nn.Conv2d(16, 32, 1)], (16, 8, 8), 1, 10)
            >>> head(torch.zeros(2, 16, 8, 8)).shape
            torch.Size([2, 10])
        """
        deep = self.blocks(feature)
        logits: Tensor = self.classifier(deep.mean(self.positions) if self.positions else deep)
        return logits


def _cell_weights(sides: Sequence[int], grid: int) -> Tensor | None:
    """The means over the cells of a grid as a product `[H W] -> [grid grid]`, None where all cells have the same size.

    The exporter writes uneven cells as a gather of every pixel. Of 256 channels of 14 x 14 pixels it takes 1.5 ms on
    OpenVINO and 0.2 on ONNX Runtime. On the same thread all of ResNet-18 takes 33.
    """
    if all(side % grid == 0 for side in sides):
        return None
    return torch.kron(*(_means(side, grid) for side in sides)).T.contiguous()


def _means(side: int, grid: int) -> Tensor:
    """`[grid, side]`: the cells of `adaptive_avg_pool2d` along one side."""
    return F.adaptive_avg_pool1d(torch.eye(side), grid).T


def _sized_means(image: Tensor, dim: int, grid: int) -> Tensor:
    """`_means` of a dimension of an image, in operations that take any size when they are exported."""
    side, device = image.shape[dim], image.device
    first = torch.arange(grid, device=device) * side // grid
    after = (torch.arange(1, grid + 1, device=device) * side + (grid - 1)) // grid
    at = torch.arange(side, device=device)
    inside = (first[:, None] <= at) & (at < after[:, None])
    means: Tensor = inside.to(image.dtype) / (after - first).to(image.dtype)[:, None]
    return means


def _linear(width: int, classes: int) -> nn.Module:
    return nn.Sequential(nn.BatchNorm1d(width), nn.Linear(width, classes))


def _hidden(units: int) -> Classifier:
    def make(width: int, classes: int) -> nn.Module:
        first = nn.Linear(width, units, bias=False)  # the norm behind it has one
        return nn.Sequential(
            nn.BatchNorm1d(width), first, nn.BatchNorm1d(units), nn.ReLU(inplace=True), nn.Linear(units, classes)
        )

    return make
