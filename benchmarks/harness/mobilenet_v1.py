"""MobileNetV1 with real ImageNet weights, for the benchmarks: 0.25 at 128 pixels, 0.50 at 160, 0.75 at 192."""

from collections import OrderedDict
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.harness.photographs import convolution

# width as in the name of the file -> (channels of the first layer, pixels of its images)
SIZES = {"025": (8, 128), "050": (16, 160), "075": (24, 192)}
# (times the channels of the first layer, stride) of each depthwise and pointwise layer (Howard et al. 2017, table 1)
_LAYERS = ((2, 1), (4, 2), (4, 1), (8, 2), (8, 1), (16, 2), *[(16, 1)] * 5, (32, 2), (32, 1))


class MobileNetV1(nn.Module):
    """Batch norm folded: `[B, 3, H, W]` of `(pixel - 128) / 128` -> logits `[B, 1000]`.

    Args:
        channels: Of the first layer.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict(conv0=convolution(3, channels, 3, 2), relu=nn.ReLU6())
        width = channels
        for number, (times, stride) in enumerate(_LAYERS):
            layers[f"dw{number}"] = convolution(width, width, 3, stride, width)
            layers[f"dw{number}_relu"] = nn.ReLU6()
            layers[f"pw{number}"] = nn.Conv2d(width, times * channels, 1)
            layers[f"pw{number}_relu"] = nn.ReLU6()
            width = times * channels
        self.layers = nn.Sequential(layers)
        self.fc = nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.layers(x).mean((2, 3)))
        return logits


def mobilenet_v1(data: Path, width: str) -> nn.Module:
    """The network of a width, "025", "050" or "075", with its weights, in evaluation mode."""
    channels, pixels = SIZES[width]
    network = MobileNetV1(channels)
    given = load_file(data / "weights" / f"mobilenet_v1_{width}_{pixels}.safetensors")
    network.load_state_dict({name: given[_given(name)].float() for name in network.state_dict()})
    return network.eval()


def _given(name: str) -> str:
    """The name of a tensor in the file: `layers.dw1.1.weight` is `dw1.weight` there."""
    return ".".join(part for part in name.split(".") if part != "layers" and not part.isdigit())
