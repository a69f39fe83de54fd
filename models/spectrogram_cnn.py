"""A small network for log-mel features of speech commands and other short sounds."""

import torch
from torch import Tensor, nn

from dynamic.policies.errors import SettingError

_RANGE = 7.0  # natural logarithms of energy below the loudest point, 30 dB: what is below is noise of the recording


class SpectrogramCNN(nn.Module):
    """Five 3x3 convolutions on log-mel features, the mean over time in each filter, and a linear layer.

    The shape is that of the small networks of Sainath and Parada 2015, "Convolutional Neural Networks for
    Small-footprint Keyword Spotting", with strides in place of pooling. The loudest point of each sound is subtracted
    first, and what lies more than 30 dB below it is cut off. So neither loudness nor the noise of a microphone shows.

    It takes `[B, 1, mels, frames]`, with natural logarithms, and returns logits `[B, classes]`. Any number of frames
    works.

    Args:
        classes: Number of classes.
        mels: Number of filters.
        width: Channels of the first convolution. The last has four times as many.
        dropout: Share of the last features that is left out in training.

    Raises:
        SettingError: A number is below 1, or `dropout` is not in [0, 1).

    Example:
        >>> from dynamic.models import SpectrogramCNN
        >>> SpectrogramCNN(10, mels=40, width=8)(torch.zeros(2, 1, 40, 50)).shape
        torch.Size([2, 10])
    """

    def __init__(self, classes: int, mels: int, *, width: int = 16, dropout: float = 0.3) -> None:
        super().__init__()
        for name, value in (("classes", classes), ("mels", mels), ("width", width)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise SettingError(f"{name}={value!r:.80} must be a whole number from 1")
        if not 0 <= dropout < 1:
            raise SettingError(f"dropout={dropout} must lie in [0, 1), 0.3 is usual")
        self.features = nn.Sequential(
            _convolution(1, width, 2),
            _convolution(width, width, 1),
            _convolution(width, 2 * width, 2),
            _convolution(2 * width, 2 * width, 1),
            _convolution(2 * width, 4 * width, 2),
        )
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(4 * width * -(-mels // 8), classes)

    def forward(self, x: Tensor) -> Tensor:
        """The logits of a batch.

        Args:
            x: Features `[B, 1, mels, frames]`.

        Returns:
            Logits `[B, classes]`.

        Raises:
            RuntimeError: `x` has several channels, or another number of filters.

        Example:
            >>> from dynamic.models import SpectrogramCNN
            >>> SpectrogramCNN(4, mels=16, width=4).forward(torch.zeros(1, 1, 16, 8)).shape
            torch.Size([1, 4])
        """
        loudest = torch.amax(x, (1, 2, 3), keepdim=True)
        x = torch.clamp(x - loudest, min=-_RANGE) / (_RANGE / 2) + 1  # -1 to 1
        x = self.features(x)  # [B, 4 width, mels/8, frames/8]
        logits: Tensor = self.linear(self.dropout(torch.flatten(torch.mean(x, 3), 1)))
        return logits


def _convolution(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU())
