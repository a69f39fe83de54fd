"""The ResNets for CIFAR of He et al. 2015, "Deep Residual Learning for Image Recognition", section 4.2."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynamic.policies.errors import InputError


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a parameter-free shortcut (option A): `[B, C, H, W]` -> `[B, K, H/s, W/s]`.

    Where the shape changes, the shortcut takes every second pixel and fills the new channels with zeros, half
    on each side.
    """

    def __init__(self, in_channels: int, channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.new_channels = channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both paths, rectified `[B, K, H/s, W/s]`."""
        found = F.relu(self.bn1(self.conv1(x)))
        found = self.bn2(self.conv2(found))
        shortcut = x
        if self.stride != 1:
            shortcut = shortcut[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            before = self.new_channels // 2
            shortcut = F.pad(shortcut, (0, 0, 0, 0, before, self.new_channels - before))
        return F.relu(found + shortcut)


class CifarResNet(nn.Module):
    """A residual network of `depth` 6n + 2: three groups of n blocks, `width`, 2 and 4 times `width` channels.

    Takes `[B, in_channels, H, W]` (32x32 in the paper; any size from 4 up), gives logits `[B, classes]`.
    Raises InputError where `depth` is not 8, 14, 20, ...
    """

    def __init__(self, depth: int, classes: int = 10, *, in_channels: int = 3, width: int = 16) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise InputError(f"depth={depth} is not 6n + 2; use 8, 14, 20, 32, 44, 56 or 110")
        if min(classes, in_channels, width) < 1:
            raise InputError(f"classes={classes}, in_channels={in_channels}, width={width}: all have to be at least 1")
        self.conv1 = nn.Conv2d(in_channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _group(width, width, blocks, 1)
        self.layer2 = _group(width, 2 * width, blocks, 2)
        self.layer3 = _group(2 * width, 4 * width, blocks, 2)
        self.linear = nn.Linear(4 * width, classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)  # He et al. 2015, "Delving Deep into Rectifiers", eq. 10

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, classes]` of `x [B, in_channels, H, W]`."""
        x = F.relu(self.bn1(self.conv1(x)))  # [B, width, H, W]
        x = self.layer3(self.layer2(self.layer1(x)))  # [B, 4 width, H/4, W/4]
        logits: Tensor = self.linear(torch.mean(x, (2, 3)))
        return logits


def _group(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride=stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels) for _ in range(blocks - 1)))


def resnet20(classes: int = 10) -> CifarResNet:
    """ResNet-20 for 32x32 images: 0.27 M parameters, 41 M multiply-adds."""
    return CifarResNet(20, classes)


def resnet32(classes: int = 10) -> CifarResNet:
    """ResNet-32 for 32x32 images: 0.46 M parameters, 69 M multiply-adds."""
    return CifarResNet(32, classes)


def resnet44(classes: int = 10) -> CifarResNet:
    """ResNet-44 for 32x32 images: 0.66 M parameters, 97 M multiply-adds."""
    return CifarResNet(44, classes)


def resnet56(classes: int = 10) -> CifarResNet:
    """ResNet-56 for 32x32 images: 0.85 M parameters, 125 M multiply-adds."""
    return CifarResNet(56, classes)


def resnet110(classes: int = 10) -> CifarResNet:
    """ResNet-110 for 32x32 images: 1.7 M parameters, 253 M multiply-adds."""
    return CifarResNet(110, classes)
