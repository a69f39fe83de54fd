"""The ResNets for CIFAR of He et al. 2015, "Deep Residual Learning for Image Recognition", section 4.2."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynamic.policies.errors import SettingError


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (option A): `[B, C, H, W]` -> `[B, K, H/s, W/s]`.

    Where the shape changes, the shortcut takes every second pixel. It fills the new channels with zeros, half on each
    side.

    Args:
        in_channels: C.
        channels: K.
        stride: s, of the first convolution.
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
        """The rectified sum of both paths `[B, K, H/s, W/s]`."""
        branch = F.relu(self.bn1(self.conv1(x)))
        branch = self.bn2(self.conv2(branch))
        shortcut = x
        if self.stride != 1:
            shortcut = shortcut[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            before = self.new_channels // 2
            shortcut = F.pad(shortcut, (0, 0, 0, 0, before, self.new_channels - before))
        return F.relu(branch + shortcut)


class CifarResNet(nn.Module):
    """A residual network of three groups of n blocks, with `width`, 2 and 4 times `width` channels.

    It takes `[B, in_channels, H, W]` and returns logits `[B, classes]`. Images are 32x32 in the paper. Any size from 4
    up works.

    Args:
        depth: 6n + 2 layers: 8, 14, 20, 32, 44, 56 or 110, for example.
        classes: Number of classes.
        in_channels: Channels of an image.
        width: Channels of the first group.

    Raises:
        SettingError: `depth` is not 6n + 2, or another argument is below 1.

    Example:
        >>> from dynamic.models import CifarResNet
        >>> network = CifarResNet(8, 4, in_channels=1, width=4)
        >>> network(torch.zeros(2, 1, 16, 16)).shape
        torch.Size([2, 4])
    """

    def __init__(self, depth: int, classes: int = 10, *, in_channels: int = 3, width: int = 16) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise SettingError(f"depth={depth} is not 6n + 2: use 8, 14, 20, 32, 44, 56 or 110")
        if min(classes, in_channels, width) < 1:
            raise SettingError(
                f"classes={classes}, in_channels={in_channels}, width={width}: all have to be at least 1"
            )
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
        """The logits of a batch.

        Args:
            x: Images `[B, in_channels, H, W]`.

        Returns:
            Logits `[B, classes]`.

        Raises:
            RuntimeError: `x` has another number of channels.

        Example:
            >>> from dynamic.models import CifarResNet
            >>> CifarResNet(8).forward(torch.zeros(1, 3, 32, 32)).shape
            torch.Size([1, 10])
        """
        x = F.relu(self.bn1(self.conv1(x)))  # [B, width, H, W]
        x = self.layer3(self.layer2(self.layer1(x)))  # [B, 4 width, H/4, W/4]
        logits: Tensor = self.linear(torch.mean(x, (2, 3)))
        return logits


def _group(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride=stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels) for _ in range(blocks - 1)))


def resnet20(classes: int = 10) -> CifarResNet:
    """ResNet-20 for 32x32 images: 0.27 M parameters, 41 M multiply-adds.

    Args:
        classes: Number of classes.

    Returns:
        The network with random weights.

    Raises:
        SettingError: `classes` is below 1.

    Example:
        >>> from dynamic.models import resnet20
        >>> resnet20(4).linear.out_features
        4
    """
    return CifarResNet(20, classes)


def resnet32(classes: int = 10) -> CifarResNet:
    """ResNet-32 for 32x32 images: 0.46 M parameters, 69 M multiply-adds.

    Args:
        classes: Number of classes.

    Returns:
        The network with random weights.

    Raises:
        SettingError: `classes` is below 1.

    Example:
        >>> from dynamic.models import resnet32
        >>> resnet32(4).linear.out_features
        4
    """
    return CifarResNet(32, classes)


def resnet44(classes: int = 10) -> CifarResNet:
    """ResNet-44 for 32x32 images: 0.66 M parameters, 97 M multiply-adds.

    Args:
        classes: Number of classes.

    Returns:
        The network with random weights.

    Raises:
        SettingError: `classes` is below 1.

    Example:
        >>> from dynamic.models import resnet44
        >>> resnet44(4).linear.out_features
        4
    """
    return CifarResNet(44, classes)


def resnet56(classes: int = 10) -> CifarResNet:
    """ResNet-56 for 32x32 images: 0.85 M parameters, 125 M multiply-adds.

    Args:
        classes: Number of classes.

    Returns:
        The network with random weights.

    Raises:
        SettingError: `classes` is below 1.

    Example:
        >>> from dynamic.models import resnet56
        >>> resnet56(4).linear.out_features
        4
    """
    return CifarResNet(56, classes)


def resnet110(classes: int = 10) -> CifarResNet:
    """ResNet-110 for 32x32 images: 1.7 M parameters, 253 M multiply-adds.

    Args:
        classes: Number of classes.

    Returns:
        The network with random weights.

    Raises:
        SettingError: `classes` is below 1.

    Example:
        >>> from dynamic.models import resnet110
        >>> resnet110(4).linear.out_features
        4
    """
    return CifarResNet(110, classes)
