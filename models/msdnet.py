"""MSDNet of Huang et al. 2018, "Multi-Scale Dense Networks for Resource Efficient Image Classification"."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from dynamic.offline.networks.module_modes import view
from dynamic.offline.staged_network import Stage, StagedNetwork
from dynamic.policies.errors import SettingError

Scales = tuple[Tensor, ...]
"""Features `[B, C_s, H_s, W_s]`, the coarsest scale first. Heads read entry 0. Pruned scales are missing at the end."""


@dataclass(frozen=True)
class MSDNetShape:
    """The shape of an MSDNet. `factors` and `bottlenecks` go from the finest scale to the coarsest.

    Args:
        steps: Dense layers in each block. A classifier follows each block.
        channels: Channels of the finest scale after the first layer. The other scales have this times their factor.
        growth: Channels that each layer adds at the finest scale. The other scales get this times their factor.
        factors: Width of each scale, as a multiple of the finest.
        bottlenecks: Width of the 1x1 convolutions of each scale, in multiples of the convolutions that follow.
        reduction: Share of the channels that remain where the finest scale is dropped.

    Raises:
        SettingError: A field is empty, odd or out of range.

    Example:
        >>> from dynamic.models import MSDNetShape
        >>> MSDNetShape((1, 2, 1), channels=4, growth=2).factors
        (1, 2, 4)
    """

    steps: tuple[int, ...]
    channels: int = 16
    _: KW_ONLY
    growth: int = 6
    factors: tuple[int, ...] = (1, 2, 4)
    bottlenecks: tuple[int, ...] = (1, 2, 4)
    reduction: float = 0.5

    def __post_init__(self) -> None:
        if not self.steps or min(self.steps) < 1:
            raise SettingError(f"steps={self.steps}: every block needs at least one layer")
        if len(self.factors) != len(self.bottlenecks) or not self.factors:
            raise SettingError(
                f"factors={self.factors} and bottlenecks={self.bottlenecks}: give one of each for every scale"
            )
        if self.growth < 2 or self.growth % 2:
            raise SettingError(f"growth={self.growth} is not even: half comes from each of two scales")
        if not 0 < self.reduction <= 1:
            raise SettingError(f"reduction={self.reduction} is not in (0, 1]")

    def scales_at(self, layer: int) -> int:
        """The number of scales that a layer computes (section 4, "network reduction").

        Args:
            layer: The layer, counted from 0 over all blocks.

        Returns:
            All scales in the first third of the layers, one less in each third that follows.

        Raises:
            TypeError: `layer` is no number.

        Example:
            >>> from dynamic.models import MSDNetShape
            >>> shape = MSDNetShape((2, 2, 2))
            >>> [shape.scales_at(layer) for layer in range(6)]
            [3, 3, 2, 2, 1, 1]
        """
        scales = len(self.factors)
        return scales - layer // math.ceil(sum(self.steps) / scales)


class _ConvUnit(nn.Sequential):
    """Convolution, batch norm, ReLU: `[B, C, H, W]` -> `[B, K, H/stride, W/stride]`."""

    def __init__(self, in_channels: int, channels: int, kernel: int = 3, stride: int = 1) -> None:
        conv = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, bias=False)
        super().__init__(conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


def _bottleneck(in_channels: int, channels: int, multiple: int, stride: int = 1) -> nn.Sequential:
    """A 1x1 convolution to at most `multiple * channels`, then a 3x3 convolution (section 4)."""
    inner = min(in_channels, multiple * channels)
    return nn.Sequential(_ConvUnit(in_channels, inner, kernel=1), _ConvUnit(inner, channels, stride=stride))


class _Stem(nn.Module):
    """The first layer: an image `[B, C, H, W]` at every scale, each from the next finer one."""

    def __init__(self, shape: MSDNetShape, in_channels: int) -> None:
        super().__init__()
        widths = [in_channels, *(shape.channels * factor for factor in shape.factors)]
        self.units = nn.ModuleList(
            _ConvUnit(widths[i], widths[i + 1], stride=1 if i == 0 else 2) for i in range(len(shape.factors))
        )

    def forward(self, x: Tensor) -> Scales:
        features = []
        for unit in self.units:
            x = unit(x)
            features.append(x)
        return tuple(reversed(features))


class _DenseLayer(nn.Module):
    """Adds to each remaining scale features of its own and of the next finer scale (section 4, figure 2).

    It takes `before` scales and returns `after`. The features of a dropped scale still reach the next coarser one.
    """

    def __init__(self, shape: MSDNetShape, channels: int, before: int, after: int) -> None:
        super().__init__()
        same, down = [], []
        coarsest = len(shape.factors) - 1
        for scale in range(coarsest, coarsest - after, -1):
            has_finer = scale > coarsest - before + 1
            width = shape.growth * shape.factors[scale] // (2 if has_finer else 1)
            own = channels * shape.factors[scale]
            same.append(_bottleneck(own, width, shape.bottlenecks[scale]))
            if has_finer:
                finer = channels * shape.factors[scale - 1]
                down.append(_bottleneck(finer, width, shape.bottlenecks[scale - 1], stride=2))
        self.same = nn.ModuleList(same)
        self.down = nn.ModuleList(down)

    def forward(self, scales: Scales) -> Scales:
        features = []
        for i, same in enumerate(self.same):
            parts = [scales[i], same(scales[i])]
            if i < len(self.down):
                parts.insert(1, self.down[i](scales[i + 1]))
            features.append(torch.cat(parts, dim=1))
        return tuple(features)


class _Transition(nn.Module):
    """1x1 convolutions that reduce the channels of every scale."""

    def __init__(self, shape: MSDNetShape, channels: int, reduced: int, scales: int) -> None:
        super().__init__()
        coarse_first = shape.factors[::-1][:scales]
        self.units = nn.ModuleList(_ConvUnit(channels * f, reduced * f, kernel=1) for f in coarse_first)

    def forward(self, scales: Scales) -> Scales:
        return tuple(unit(x) for unit, x in zip(self.units, scales, strict=True))


class _Head(nn.Sequential):
    """A classifier on the coarsest scale: `[B, C, H, W]` -> `[B, classes]`."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(
            _ConvUnit(channels, 128, stride=2),
            _ConvUnit(128, 128, stride=2),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(128, classes),
        )


class MSDNet(StagedNetwork):
    """A dense network with coarse features at every depth and a classifier after each block.

    It takes `[B, in_channels, 32, 32]`. For other image sizes give other `factors`: the classifier divides the coarsest
    scale by 8. Each block is one stage. Its carry is the features of the block, the coarsest scale first. The last
    stage carries its logits.

    Args:
        shape: Blocks, scales and channels.
        classes: Number of classes.
        in_channels: Channels of an image.

    Raises:
        SettingError: `classes` or `in_channels` is below 1.

    Example:
        >>> from dynamic.models import MSDNet, MSDNetShape
        >>> network = MSDNet(MSDNetShape((1, 1), channels=4, growth=2), 5)
        >>> [tuple(logits.shape) for logits in network(torch.zeros(2, 3, 32, 32))]
        [(2, 5), (2, 5)]
    """

    def __init__(self, shape: MSDNetShape, classes: int = 100, *, in_channels: int = 3) -> None:
        super().__init__()
        if classes < 1 or in_channels < 1:
            raise SettingError(f"classes={classes}, in_channels={in_channels}: give at least 1 for both")
        self.shape = shape
        self.stem = _Stem(shape, in_channels)
        blocks, heads = [], []
        channels = shape.channels
        for start, step in zip(accumulate((0, *shape.steps)), shape.steps, strict=False):
            parts: list[nn.Module] = []
            for layer in range(start, start + step):
                before, after = shape.scales_at(max(0, layer - 1)), shape.scales_at(layer)
                parts.append(_DenseLayer(shape, channels, before, after))
                channels += shape.growth
                if after < before and shape.reduction < 1:
                    reduced = math.floor(shape.reduction * channels)
                    parts.append(_Transition(shape, channels, reduced, after))
                    channels = reduced
            blocks.append(nn.Sequential(*parts))
            heads.append(_Head(channels * shape.factors[-1], classes))
        self.blocks = nn.ModuleList(blocks)
        self.heads = nn.ModuleList(heads)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> list[Tensor]:
        """The logits after each block.

        Args:
            x: Images `[B, in_channels, 32, 32]`.

        Returns:
            Logits `[B, classes]` of each block.

        Raises:
            RuntimeError: `x` has another number of channels.

        Example:
            >>> from dynamic.models import MSDNet, MSDNetShape
            >>> len(MSDNet(MSDNetShape((1, 1))).forward(torch.zeros(2, 3, 32, 32)))
            2
        """
        scales = self.stem(x)
        logits = []
        for block, head in zip(self.blocks, self.heads, strict=True):
            scales = block(scales)
            logits.append(head(scales[0]))
        return logits

    @property
    def exit_stages(self) -> tuple[Stage, ...]:
        """One stage a block, in evaluation mode. They share the parameters of this network."""
        return tuple(self._stages())

    def _stages(self) -> Iterator[Stage]:
        last = len(self.blocks) - 1
        for i, (block, head) in enumerate(zip(self.blocks, self.heads, strict=True)):
            stem = view(self.stem) if i == 0 else None
            closing = view(head) if i == last else None
            body = _Body(stem, view(block), closing)
            yield Stage(f"block{i + 1}", body, nn.Identity() if i == last else view(head)).eval()


class _Body(nn.Module):
    """A block as the body of a stage. The first body begins with the stem. The last ends with its head."""

    def __init__(self, stem: nn.Module | None, block: nn.Module, head: nn.Module | None) -> None:
        super().__init__()
        self.stem = stem
        self.block = block
        self.head = head

    def forward(self, *carry: Tensor) -> Scales:
        scales: Scales = carry if self.stem is None else self.stem(*carry)
        scales = self.block(scales)
        return scales if self.head is None else (self.head(scales[0]),)


def msdnet_anytime(classes: int = 100, blocks: int = 7) -> MSDNet:
    """The CIFAR network for anytime prediction (appendix A): 4 layers, then 2 in each further block.

    On CIFAR-100 its exits cost 15.1, 25.5, 37.1, 46.3, 57.3, 67.0 and 75.9 M multiply-adds, as the authors count them.
    They count the products of each convolution and linear layer, and the additions of a bias of a linear layer. They
    also count one for each input of a ReLU and of average pooling. Batch norm is free, since it is folded.

    Args:
        classes: Number of classes.
        blocks: Number of blocks, each with an exit.

    Returns:
        The network with random weights.

    Raises:
        SettingError: `blocks` or `classes` is below 1.

    Example:
        >>> from dynamic.models import msdnet_anytime
        >>> len(msdnet_anytime(10, blocks=2).exit_stages)
        2
    """
    return _network(classes, blocks, (4, *(2 for _ in range(blocks - 1))))


def msdnet_budgeted(classes: int = 100, blocks: int = 5) -> MSDNet:
    """The CIFAR network for budgeted batches (appendix A): block i has i layers.

    On CIFAR-100 its exits cost 6.9, 14.4, 27.5, 41.7 and 58.5 M multiply-adds, counted as for `msdnet_anytime`.

    Args:
        classes: Number of classes.
        blocks: Number of blocks, each with an exit.

    Returns:
        The network with random weights.

    Raises:
        SettingError: `blocks` or `classes` is below 1.

    Example:
        >>> from dynamic.models import msdnet_budgeted
        >>> msdnet_budgeted(10, blocks=3).shape.steps
        (1, 2, 3)
    """
    return _network(classes, blocks, tuple(range(1, blocks + 1)))


def _network(classes: int, blocks: int, steps: Sequence[int]) -> MSDNet:
    if blocks < 1:
        raise SettingError(f"blocks={blocks}: give at least 1")
    return MSDNet(MSDNetShape(tuple(steps)), classes)
