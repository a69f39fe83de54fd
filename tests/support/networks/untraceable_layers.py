"""Layers as `timm` writes them, which torch.fx cannot trace or sees as functions, and a small network of them."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SameConv(nn.Conv2d):
    """A convolution that computes TensorFlow's padding from the size of its input: torch.fx cannot trace it."""

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, K, ceil(H / stride), ceil(W / stride)]`."""
        height, width = (
            max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            for size, stride, kernel in zip(x.shape[2:], self.stride, self.kernel_size, strict=True)
        )
        x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class StandardConv(nn.Conv2d):
    """A convolution that standardizes its weights at each call, as Qiao et al. 2019 do."""

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, K, ...]`."""
        centred = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = centred / (centred.square().mean((1, 2, 3), keepdim=True) + 1e-6).sqrt()
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class NormAct(nn.BatchNorm2d):
    """A batch norm with dropout and a rectifier inside."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> the same shape."""
        training = self.training or (self.running_mean is None and self.running_var is None)
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training, 0.1, self.eps)
        result: Tensor = self.act(self.drop(x))
        return result


class Residual(nn.Module):
    """A depthwise and a 1 x 1 convolution beside their input, and a rectifier of the sum."""

    def __init__(self, conv: type[nn.Conv2d], channels: int) -> None:
        super().__init__()
        self.dw, self.bn1 = conv(channels, channels, 3, padding=1, groups=channels, bias=False), NormAct(channels)
        self.pw, self.bn2 = nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> the same shape."""
        result: Tensor = F.relu(x + self.bn2(self.pw(self.bn1(self.dw(x)))))
        return result


class Photos(nn.Module):
    """`[B, 3, H, W]` -> logits `[B, 10]`: a stem, two residual blocks, a mean and a linear layer."""

    def __init__(self, conv: type[nn.Conv2d], channels: int = 16) -> None:
        super().__init__()
        self.stem, self.bn = conv(3, channels, 3, stride=2, padding=1, bias=False), NormAct(channels)
        self.blocks = nn.Sequential(Residual(conv, channels), Residual(conv, channels))
        self.fc = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        logits: Tensor = self.fc(self.blocks(self.bn(self.stem(x))).mean((2, 3)))
        return logits


def photos(conv: type[nn.Conv2d], inputs: Tensor) -> Photos:
    """Batch norms have seen inputs, so that folding them matters. Logits differ from class to class."""
    torch.manual_seed(0)
    network = Photos(conv).train()
    with torch.no_grad():
        network(2 * inputs + 1)
        network.fc.weight.mul_(4)
    return network.eval()
