"""A resize inside a network against torch's and Pillow's, and its cascades on both engines with weights stored once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import dynamic
from dynamic.offline.networks.input_resolution import AtResolution, ResizeFilter, resize_matrix
from dynamic.policies.errors import InputError, SettingError

SIZES = [((224, 224), (160, 160)), ((299, 299), (128, 128)), ((37, 64), (64, 21)), ((8, 9), (8, 9)), ((5, 5), (1, 1))]
FILTERS: list[ResizeFilter] = ["bilinear", "bicubic"]


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(("source", "size"), SIZES)
def test_the_resize_is_that_of_torch(
    source: tuple[int, int], size: tuple[int, int], interpolation: ResizeFilter
) -> None:
    x = torch.rand(2, 3, *source, generator=torch.Generator().manual_seed(0)) * 2 - 1
    own = dynamic.at_resolution(nn.Identity(), size, source=source, interpolation=interpolation)(x)
    exact = F.interpolate(x.double(), size, mode=interpolation, antialias=True, align_corners=False)
    torch.testing.assert_close(own.double(), exact, rtol=0, atol=2e-6)
    # torch rounds its weights to float32
    expected = F.interpolate(x, size, mode=interpolation, antialias=True, align_corners=False)
    torch.testing.assert_close(own, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(("source", "size"), SIZES)
def test_the_resize_is_that_of_pillow_but_for_its_rounding(
    source: tuple[int, int], size: tuple[int, int], interpolation: ResizeFilter
) -> None:
    y, x = np.mgrid[: source[0], : source[1]]
    waves = np.stack([127 + 60 * np.sin(x / (3 + c) + y / (7 - c)) for c in range(3)], axis=-1)
    noise = np.random.default_rng(0).uniform(-20, 20, waves.shape)  # what bicubic adds stays within 0 to 255
    image = (waves + noise).astype(np.uint8)
    expected = Image.fromarray(image).resize(size[::-1], Image.Resampling[interpolation.upper()])
    pixels = torch.from_numpy(image.astype(np.float32).transpose(2, 0, 1))[None]
    own = dynamic.at_resolution(nn.Identity(), size, source=source, interpolation=interpolation)(pixels)
    own = own[0].numpy().transpose(1, 2, 0)
    assert np.abs(own - np.asarray(expected, np.float32)).max() <= 1.5


def test_weights_by_hand() -> None:
    # half the side: a triangle of support 2 around each pair, cut off and normalized at the edges
    expected = np.array([[3, 3, 1, 0, 0, 0], [0, 1, 3, 3, 1, 0], [0, 0, 0, 1, 3, 3]]) / [[7], [8], [7]]
    np.testing.assert_allclose(resize_matrix(6, 3, "bilinear"), expected, rtol=1e-6)


def photographs(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise `[B, 3, 48, 48]` in which one colour is brighter, or none."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    images = random.normal(0, 1, (count, 3, 48, 48)) + np.eye(4)[labels][:, :3, None, None]
    return torch.from_numpy(images.astype(np.float32)), torch.from_numpy(labels)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 5, 2, 2), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip
    x, y = photographs(200, 0)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for step in range(60):
        size = (24, 32, 48)[step % 3]
        optimizer.zero_grad()
        F.cross_entropy(network(F.interpolate(x, size, mode="bilinear", antialias=True)), y).backward()
        optimizer.step()
    return network.eval()


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_cascade_of_resolutions_runs_and_stores_the_weights_once(
    network: nn.Module, engine: Any, tmp_path: Path
) -> None:
    pytest.importorskip(engine)
    x, y = photographs(300, 1)
    cascade = dynamic.Cascade(
        [*(dynamic.at_resolution(network, size, source=48) for size in (24, 32)), network], names=("24", "32", "48")
    )
    loader = list(zip(x.split(50), y.split(50), strict=True))
    bundle = dynamic.build(cascade, loader, engine=engine, max_drops=(0.05,), progress=False).save(tmp_path / "shelf")
    own = sum(p.numel() * 4 for p in network.parameters() if p.numel() * 4 >= 256)
    matrices = 4 * 2 * (24 * 48 + 32 * 48)
    files = {path.name: path.stat().st_size for path in (bundle.folder / "backbones").glob("*.weights")}
    assert list(files) == ["0.weights"]
    # two folded norms move 48 numbers into biases, and each tensor begins at a page
    assert own + matrices < files["0.weights"] < own + matrices + 4096 * 16
    stored = {path.name: path.stat().st_size for path in (bundle.folder / "weights").iterdir()}
    assert stored["32.safetensors"] < 4 * 2 * 32 * 48 + 1000 < stored["24.safetensors"]  # the matrices alone
    opened = dynamic.load(bundle.folder).open()
    try:
        fresh, _ = photographs(8, 2)
        with torch.no_grad():
            expected = torch.stack(cascade(fresh), 1).numpy()
        for rows in (1, 8):
            found = opened.all_logits({"input": fresh[:rows].numpy()})
            np.testing.assert_allclose(found, expected[:rows], rtol=1e-3, atol=1e-3)
    finally:
        opened.close()
    with dynamic.load(bundle.folder).runtime(dynamic.Budget(max_drop=0.05)) as run:
        answers = [int(run(image.numpy()).label) for image in fresh]
    assert np.mean(np.array(answers) == np.arange(8) % 4) >= 0.75


def test_exits_of_a_network_at_another_resolution(network: nn.Module) -> None:
    x, _ = photographs(4, 3)
    small = dynamic.at_resolution(network, 32, source=48)
    net = dynamic.wrap(small, x[:2], exits=["network.2"])
    assert net.tracer == "fx"
    with torch.no_grad():
        torch.testing.assert_close(net(x)[-1], small(x))


def test_weights_are_shared_and_the_resolution_is_part_of_the_fingerprint(network: nn.Module) -> None:
    small, other = (dynamic.at_resolution(network, size, source=48) for size in (24, 32))
    assert isinstance(small, AtResolution)
    assert all(a is b for a, b in zip(small.network.parameters(), other.network.parameters(), strict=True))
    names = ("one",)
    prints = {
        dynamic.Cascade([made], names=names).fingerprint()
        for made in (small, other, dynamic.at_resolution(network, 24, source=48, interpolation="bicubic"), network)
    }
    assert len(prints) == 4


def test_what_is_refused(network: nn.Module) -> None:
    for size in (0, -3, 2.5, True, (3,), (3, 4, 5), "160", 100_000):
        with pytest.raises(InputError, match="size="):
            dynamic.at_resolution(network, size, source=48)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="source="):
            dynamic.at_resolution(network, 48, source=size)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"torch\.nn\.Module"):
        dynamic.at_resolution(abs, 24, source=48)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="bicubic"):
        dynamic.at_resolution(network, 24, source=48, interpolation="lanczos")  # type: ignore[arg-type]
    x, y = photographs(20, 0)
    with pytest.raises(InputError, match="does not run on the inputs"):
        dynamic.build([dynamic.at_resolution(network, 24, source=40), network], [(x, y)], progress=False)
