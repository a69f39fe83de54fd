"""CIFAR ResNets against a plain functional recomputation and their published accuracy."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from dynamic.models import CifarResNet, load_weights, resnet20, resnet32, resnet44, resnet56, resnet110
from dynamic.policies.errors import SettingError


def recomputed(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """Logits by functions alone, from the parameter names; option A written as a concatenation of zeros."""

    def norm(name: str, x: Tensor) -> Tensor:
        mean, var, scale, shift = (
            weights[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(var + 1e-5) * scale + shift

    x = torch.relu(norm("bn1", F.conv2d(x, weights["conv1.weight"], padding=1)))
    for layer in (1, 2, 3):
        block = 0
        while (name := f"layer{layer}.{block}") + ".conv1.weight" in weights:
            stride = 2 if layer > 1 and block == 0 else 1
            found = F.conv2d(x, weights[f"{name}.conv1.weight"], stride=stride, padding=1)
            found = F.conv2d(torch.relu(norm(f"{name}.bn1", found)), weights[f"{name}.conv2.weight"], padding=1)
            if stride == 2:
                x = x[:, :, ::2, ::2]
                zeros = torch.zeros_like(x)[:, : x.shape[1] // 2]
                x = torch.cat([zeros, x, zeros], dim=1)
            x = torch.relu(norm(f"{name}.bn2", found) + x)
            block += 1
    pooled = x.flatten(2).sum(2) / (x.shape[2] * x.shape[3])
    return pooled @ weights["linear.weight"].T + weights["linear.bias"]


def randomized(network: nn.Module) -> nn.Module:
    """Batch-norm statistics and scales off their defaults, so that a mistake in them shows."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return network.eval()


@pytest.mark.parametrize(("depth", "width", "channels", "size"), [(8, 4, 1, 8), (14, 6, 3, 16), (20, 16, 3, 32)])
def test_logits_are_those_of_a_functional_recomputation(depth: int, width: int, channels: int, size: int) -> None:
    torch.manual_seed(0)
    network = randomized(CifarResNet(depth, 7, in_channels=channels, width=width))
    x = torch.randn(3, channels, size, size)
    with torch.no_grad():
        torch.testing.assert_close(network(x), recomputed(network.state_dict(), x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "millions"),
    [(resnet20, 0.27), (resnet32, 0.46), (resnet44, 0.66), (resnet56, 0.85), (resnet110, 1.7)],
)
def test_sizes_are_those_of_the_paper(make: type[CifarResNet], millions: float) -> None:
    # He et al. 2015, table 6
    parameters = sum(p.numel() for p in make().parameters()) / 1e6
    assert abs(parameters - millions) < 0.03 * millions


@pytest.mark.parametrize("depth", [2, 18, 21, 0, -4])
def test_impossible_depth(depth: int) -> None:
    with pytest.raises(SettingError, match=r"6n \+ 2"):
        CifarResNet(depth)


def test_impossible_width() -> None:
    with pytest.raises(SettingError, match="width=0"):
        CifarResNet(8, width=0)


def test_traced_by_fx() -> None:
    network = randomized(CifarResNet(8, width=4))
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(torch.fx.symbolic_trace(network)(x), network(x))


def test_exported_with_a_dynamic_batch() -> None:
    network = randomized(CifarResNet(8, width=4))
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(network, (torch.randn(2, 3, 16, 16),), dynamic_shapes=({0: batch},))
    x = torch.randn(5, 3, 16, 16)
    torch.testing.assert_close(program.module()(x), network(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_onnx_with_a_dynamic_batch(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    network = randomized(CifarResNet(8, width=4))
    path = tmp_path / "net.onnx"
    torch.onnx.export(
        network,
        (torch.randn(2, 3, 16, 16),),
        path,
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = torch.randn(5, 3, 16, 16)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, network(x).detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [resnet20, resnet32, resnet44, resnet56])
def test_real_weights_load(shared_data: Path, make: type[CifarResNet]) -> None:
    path = shared_data / "weights" / f"{make.__name__}_cifar10.safetensors"
    network = make()
    load_weights(network, path)
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        logits = network.eval()(x)
        torch.testing.assert_close(logits, recomputed(load_file(path), x), rtol=1e-4, atol=1e-4)


def test_real_accuracy(shared_data: Path) -> None:
    each = 60
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    with zipfile.ZipFile(shared_data / "cifar10.zip") as archive:
        names = sorted(n for n in archive.namelist() if n.startswith("cifar10/test/") and n.endswith(".webp"))
        classes = sorted({name.split("/")[2] for name in names})
        chosen = [[n for n in names if n.split("/")[2] == kind][:each] for kind in classes]
        images = [
            np.asarray(Image.open(io.BytesIO(archive.read(n))).convert("RGB"), np.float32) / 255
            for group in chosen
            for n in group
        ]
    x = torch.from_numpy((np.stack(images) - mean) / std).permute(0, 3, 1, 2)
    labels = torch.arange(10).repeat_interleave(each)
    network = resnet20()
    load_weights(network, shared_data / "weights" / "resnet20_cifar10.safetensors")
    with torch.no_grad():
        accuracy = (network.eval()(x).argmax(1) == labels).float().mean().item()
    # 0.9173 on all 10,000; on 600 the standard error is 0.0112
    assert abs(accuracy - 0.9173) < 3 * 0.0112
