"""MSDNet of Huang et al. 2018, "Multi-Scale Dense Networks for Resource Efficient Image Classification"."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from dynamic.offline.networks.module_modes import view
from dynamic.offline.staged_network import Stage, StagedNetwork
from dynamic.policies.errors import InputError

Scales = tuple[Tensor, ...]
"""Features `[B, C_s, H_s, W_s]`, the coarsest scale first: heads read entry 0, pruned scales leave at the end."""


@dataclass(frozen=True)
class MSDNetShape:
    """What an MSDNet is made of; `factors` and `bottlenecks` run from the finest scale to the coarsest.

    `steps`: dense layers in each block, a classifier after each. `channels` at the finest scale after the
    first layer, `growth` there by each layer; times `factors` at the other scales. `bottlenecks`: width of
    the 1x1 convolutions, in multiples of what they feed. `reduction`: share of the channels kept where the
    finest scale is dropped. Raises InputError on an empty or impossible shape.
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
            raise InputError(f"steps={self.steps}: every block needs at least one layer")
        if len(self.factors) != len(self.bottlenecks) or not self.factors:
            raise InputError(f"factors={self.factors} and bottlenecks={self.bottlenecks}: one each a scale")
        if self.growth < 2 or self.growth % 2:
            raise InputError(f"growth={self.growth}: half comes from each of two scales, so it has to be even")
        if not 0 < self.reduction <= 1:
            raise InputError(f"reduction={self.reduction} is not in (0, 1]")

    def kept(self, layer: int) -> int:
        """Scales that `layer` (from 0) still computes; section 4, "network reduction": one third each."""
        scales = len(self.factors)
        return scales - layer // math.ceil(sum(self.steps) / scales)


class _ConvUnit(nn.Sequential):
    """Convolution, batch norm, ReLU: `[B, C, H, W]` -> `[B, K, H/stride, W/stride]`."""

    def __init__(self, in_channels: int, channels: int, kernel: int = 3, stride: int = 1) -> None:
        conv = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, bias=False)
        super().__init__(conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


def _bottleneck(in_channels: int, channels: int, multiple: int, stride: int = 1) -> nn.Sequential:
    """1x1 convolution to at most `multiple * channels`, then 3x3 (section 4)."""
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
        found = []
        for unit in self.units:
            x = unit(x)
            found.append(x)
        return tuple(reversed(found))


class _DenseLayer(nn.Module):
    """Adds to each kept scale features of its own and of the next finer one (section 4, figure 2).

    Takes `before` scales, gives `after`: where one is dropped, its features still reach the next coarser.
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
        found = []
        for i, same in enumerate(self.same):
            parts = [scales[i], same(scales[i])]
            if i < len(self.down):
                parts.insert(1, self.down[i](scales[i + 1]))
            found.append(torch.cat(parts, dim=1))
        return tuple(found)


class _Transition(nn.Module):
    """1x1 convolutions that shrink every scale's channels."""

    def __init__(self, shape: MSDNetShape, channels: int, reduced: int, scales: int) -> None:
        super().__init__()
        coarse_first = shape.factors[::-1][:scales]
        self.units = nn.ModuleList(_ConvUnit(channels * f, reduced * f, kernel=1) for f in coarse_first)

    def forward(self, scales: Scales) -> Scales:
        return tuple(unit(x) for unit, x in zip(self.units, scales, strict=True))


class _Head(nn.Sequential):
    """Classifier on the coarsest scale `[B, C, H, W]`, two strided convolutions deep: `[B, classes]`."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(
            _ConvUnit(channels, 128, stride=2),
            _ConvUnit(128, 128, stride=2),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(128, classes),
        )


class MSDNet(StagedNetwork):
    """A dense network that keeps coarse features at every depth, with a classifier after each block.

    `forward` takes `[B, in_channels, 32, 32]` and gives the logits `[B, classes]` of each block. `exit_stages`:
    one stage a block; the carry is the block's features, the coarsest scale first. The last stage carries its
    logits. For other image sizes give other `factors`: the classifier divides the coarsest scale by 8.
    """

    def __init__(self, shape: MSDNetShape, classes: int = 100, *, in_channels: int = 3) -> None:
        super().__init__()
        if classes < 1 or in_channels < 1:
            raise InputError(f"classes={classes}, in_channels={in_channels}: both have to be at least 1")
        self.shape = shape
        self.stem = _Stem(shape, in_channels)
        blocks, heads = [], []
        channels = shape.channels
        for start, step in zip(accumulate((0, *shape.steps)), shape.steps, strict=False):
            parts: list[nn.Module] = []
            for layer in range(start, start + step):
                before, after = shape.kept(max(0, layer - 1)), shape.kept(layer)
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
        """The logits `[B, classes]` after each block."""
        scales = self.stem(x)
        found = []
        for block, head in zip(self.blocks, self.heads, strict=True):
            scales = block(scales)
            found.append(head(scales[0]))
        return found

    @property
    def exit_stages(self) -> tuple[Stage, ...]:
        """One stage a block, in evaluation mode, sharing this network's parameters."""
        return tuple(self._stages())

    def _stages(self) -> Iterator[Stage]:
        last = len(self.blocks) - 1
        for i, (block, head) in enumerate(zip(self.blocks, self.heads, strict=True)):
            stem = view(self.stem) if i == 0 else None
            closing = view(head) if i == last else None
            body = _Body(stem, view(block), closing)
            yield Stage(f"block{i + 1}", body, nn.Identity() if i == last else view(head)).eval()


class _Body(nn.Module):
    """A block as a stage's body: from the image where it has the stem, to logits where it has the last head."""

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
    """The CIFAR network for anytime prediction (appendix A): 4 layers, then 2 in each of `blocks - 1` blocks.

    On CIFAR-100 its exits cost 15.1, 25.5, 37.1, 46.3, 57.3, 67.0 and 75.9 M multiply-adds, as the authors
    count them: each convolution's and linear layer's products, a linear layer's additions of its bias, and one
    for each ReLU and average-pooling input; batch norm free (folded).
    """
    return _checked(classes, blocks, (4, *(2 for _ in range(blocks - 1))))


def msdnet_budgeted(classes: int = 100, blocks: int = 5) -> MSDNet:
    """The CIFAR network for budgeted batches (appendix A): block i of `blocks` has i layers.

    On CIFAR-100 its exits cost 6.9, 14.4, 27.5, 41.7 and 58.5 M multiply-adds, counted as for
    `msdnet_anytime`.
    """
    return _checked(classes, blocks, tuple(range(1, blocks + 1)))


def _checked(classes: int, blocks: int, steps: Sequence[int]) -> MSDNet:
    if blocks < 1:
        raise InputError(f"blocks={blocks}: at least one")
    return MSDNet(MSDNetShape(tuple(steps)), classes)
