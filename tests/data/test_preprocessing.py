"""Preprocessing on the device against torchvision's transforms on PIL images, pixel by pixel."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import models, tv_tensors
from torchvision import transforms as v1
from torchvision.transforms import InterpolationMode, v2

from dynamic.data import RGB, CenterCrop, Gray, Normalize, Preprocess, Resize, Scale
from dynamic.offline.torchvision_transforms import from_transforms
from dynamic.policies.errors import CorruptError, DynamicError, InputError, SchemaError, SettingError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TO_TENSOR = [v1.ToTensor(), v1.Normalize(MEAN, STD)]


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray[Any, Any]:
    """Smooth waves with noise on top: both interpolation and rounding matter."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [127 + 100 * np.sin(x / (3 + c) + y / (7 - c)) for c in range(channels)]
    image = np.stack(waves, axis=-1) + random.normal(0, 40, (height, width, channels))
    image = np.clip(image, 0, 255).astype(np.uint8)
    return image[..., 0] if channels == 1 else image


def same(transform: Any, image: np.ndarray[Any, Any]) -> None:
    """`transform` on the PIL image and what travelled, through JSON, on the array: equal to the last bit."""
    travelled = from_transforms(transform)
    assert travelled is not None
    there = Preprocess.from_json(json.loads(json.dumps(travelled.to_json())))
    assert there == travelled
    expected = transform(Image.fromarray(image)).numpy()[None]
    found = there(image)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, expected)


SIZES = [(256, 256), (231, 413), (413, 231), (97, 333), (500, 37), (30, 31), (224, 225), (1, 1), (7, 512)]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize(
    "weights",
    [
        models.ResNet18_Weights.IMAGENET1K_V1,  # bilinear, 256 -> 224
        models.EfficientNet_B0_Weights.IMAGENET1K_V1,  # bicubic
        models.ResNet50_Weights.IMAGENET1K_V2,  # 232 -> 224
        models.Inception_V3_Weights.IMAGENET1K_V1,  # 342 -> 299: an odd difference
    ],
)
def test_transforms_of_torchvision_weights(weights: Any, height: int, width: int) -> None:
    same(weights.transforms(), picture(height, width))


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("mode", list(InterpolationMode))
@pytest.mark.parametrize("size", [64, 65, (48, 81)])
def test_every_interpolation(mode: InterpolationMode, size: Any, height: int, width: int) -> None:
    same(v1.Compose([v1.Resize(size, mode), *TO_TENSOR]), picture(height, width))


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("crop", [32, (33, 224), (300, 20), 511])
def test_crop_and_its_padding(crop: Any, height: int, width: int) -> None:
    # offsets of .5 round to even; what is smaller than the crop is padded, more to the right and below
    same(v1.Compose([v1.CenterCrop(crop), *TO_TENSOR]), picture(height, width))


@pytest.mark.parametrize("mode", ["bicubic", "nearest-exact", Image.Resampling.LANCZOS])
def test_interpolation_by_other_names(mode: Any) -> None:
    same(v2.Compose([v2.Resize(40, mode), *TO_TENSOR]), picture(97, 33))


@pytest.mark.parametrize("max_size", [65, 100, 128])
def test_longest_side(max_size: int) -> None:
    same(v1.Compose([v1.Resize(64, max_size=max_size), *TO_TENSOR]), picture(97, 333))


@pytest.mark.parametrize("channels", [1, 3])
def test_gray(channels: int) -> None:
    normalize = v1.Normalize(MEAN[:channels], STD[:channels])
    image = picture(61, 83)
    for order in ([v1.Grayscale(channels), v1.Resize(40)], [v1.Resize(40), v1.Grayscale(channels)]):
        same(v1.Compose([*order, v1.ToTensor(), normalize]), image)
        same(v1.Compose([*order, v1.ToTensor(), normalize]), picture(61, 83, 1))
    same(v2.Compose([v2.Grayscale(channels), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]), image)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_rgb_of_gray_and_of_alpha(channels: int) -> None:
    same(v2.Compose([v2.RGB(), v2.Resize(40), *TO_TENSOR]), picture(61, 83, channels))


def test_every_value_of_every_channel() -> None:
    image = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=-1)
    same(v1.Compose(TO_TENSOR), image)
    same(v1.Compose([v1.PILToTensor(), v1.ConvertImageDtype(torch.float32), v1.Normalize(MEAN, STD)]), image)
    same(v1.ToTensor(), image)
    same(v1.Compose([v1.ToTensor(), v1.Normalize((0.5,), (0.25,))]), image)
    same(v1.Compose([v1.ToTensor(), v1.Normalize((0.1307,), (0.3081,))]), image[..., 0].copy())
    tail = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(MEAN), list(STD))]
    same(v2.Compose(tail), image)
    same(v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32), v2.Normalize([127.5] * 3, [60.0] * 3)]), image)
    same(
        v2.Compose(
            [
                v2.ToImage(),
                v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
                v2.ToPureTensor(),
            ]
        ),
        image,
    )


def test_nested_and_sequential_and_late_crop() -> None:
    image = picture(70, 90)
    resize = v1.Compose([v1.Resize(40, InterpolationMode.BICUBIC)])
    same(v1.Compose([resize, v1.Compose([v1.CenterCrop(48), *TO_TENSOR])]), image)
    same(
        nn.Sequential(v2.PILToTensor(), v2.ConvertImageDtype(torch.float32), v2.Normalize(list(MEAN), list(STD))),
        image,
    )
    same(v1.Compose([v1.ToTensor(), v1.CenterCrop((99, 31)), v1.Normalize(MEAN, STD)]), image)


def test_real_images(shared_data: Path) -> None:
    with zipfile.ZipFile(shared_data / "cifar10.zip") as file:
        names = [name for name in file.namelist() if name.endswith(".webp")][::1201]
        images = [np.asarray(Image.open(file.open(name)).convert("RGB")) for name in names]
    weights = models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    plain = v1.Compose(TO_TENSOR)
    for image in images:
        same(weights, image)
    whole = from_transforms(plain)
    assert whole is not None
    expected = np.stack([plain(Image.fromarray(image)).numpy() for image in images])
    np.testing.assert_array_equal(whole(np.stack(images)), expected)


def test_batches_lists_and_pil_images_give_the_same() -> None:
    preprocess = Preprocess.of(MEAN, STD, resize=40, crop=32)
    images = [picture(50, 64, seed=1), picture(50, 64, seed=2)]
    one_by_one = np.concatenate([preprocess(image) for image in images])
    assert one_by_one.shape == (2, 3, 32, 32)
    np.testing.assert_array_equal(preprocess(np.stack(images)), one_by_one)
    np.testing.assert_array_equal(preprocess(images), one_by_one)
    np.testing.assert_array_equal(preprocess([Image.fromarray(image) for image in images]), one_by_one)
    other = [images[0], picture(90, 41)]  # sizes may differ where the steps end in one size
    np.testing.assert_array_equal(preprocess(other)[1:], preprocess(other[1]))


def test_gray_arrays() -> None:
    digits = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    found = Preprocess()(digits)
    np.testing.assert_array_equal(found, digits.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(Preprocess()(digits[2, ..., 0]), found[2:3])
    np.testing.assert_array_equal(Preprocess()([d[..., 0] for d in digits]), found)
    assert Preprocess((RGB(), Scale()))(digits).shape == (5, 3, 8, 8)


def test_input_is_not_changed() -> None:
    image = picture(20, 20)
    before = image.copy()
    Preprocess.of(MEAN, STD)(image)[:] = 0
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((2, 3, 8, 8), np.float32), "by name"),
        (np.zeros((8, 8, 3), np.float64), "float64"),
        (np.zeros((3, 8, 8), np.uint8), "channels last"),
        (np.zeros((2, 3, 8, 8), np.uint8), "channels last"),
        (np.zeros((8,), np.uint8), "expected"),
        (np.zeros((0, 8, 3), np.uint8), "at least one pixel"),
        (np.zeros((0, 8, 8, 3), np.uint8), "at least one image"),
        ([], "at least one"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((9, 8, 3), np.uint8)], "CenterCrop"),
        (np.zeros((8, 8), np.uint8), "RGB()"),
        (Image.new("P", (8, 8)), "convert"),
        ("image.png", "uint8"),
        (None, "uint8"),
    ],
)
def test_refuses_with_a_remedy(images: Any, words: str) -> None:
    with pytest.raises(InputError) as caught:
        Preprocess.of(MEAN, STD)(images)
    assert words in str(caught.value)


def test_bad_steps_are_refused() -> None:
    for make in (
        lambda: Preprocess((Normalize(MEAN, STD), Scale())),
        lambda: Preprocess((Scale(), CenterCrop((3, 3)))),
        lambda: Preprocess((Scale(), Scale())),
        lambda: Preprocess(("resize",)),  # type: ignore[arg-type]
        lambda: Resize(0),
        lambda: Resize((3, -1)),
        lambda: Resize(5, "cubic"),
        lambda: Resize(5, longest=5),
        lambda: Gray(2),
        lambda: Scale(0.0),
        lambda: Normalize((0.5,), (0.0,)),
        lambda: Normalize((0.5, 0.5), (1.0, 1.0, 1.0)),
        lambda: Normalize((float("nan"),), (1.0,)),
    ):
        with pytest.raises(SettingError):
            make()


def test_json_that_does_not_read() -> None:
    with pytest.raises(SchemaError, match="update"):
        Preprocess.from_json({"steps": [{"step": "rotate", "degrees": 3}]})
    for data in (
        {},
        {"steps": 3},
        {"steps": [{"step": "resize"}]},
        {"steps": [{"step": "gray", "channels": 2}]},
        [],
    ):
        with pytest.raises(CorruptError):
            Preprocess.from_json(data)


def test_nothing_and_itself_pass_through() -> None:
    preprocess = Preprocess.of(MEAN, STD, crop=3)
    assert from_transforms(None) is None
    assert from_transforms(preprocess) is preprocess
    weights = models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    assert from_transforms(weights) == Preprocess.of(MEAN, STD, resize=256, crop=224)


@pytest.mark.parametrize(
    ("transform", "words"),
    [
        (v1.Compose([v1.RandomHorizontalFlip(), v1.ToTensor()]), "RandomHorizontalFlip is augmentation"),
        (v1.Compose([v1.Lambda(lambda x: x), v1.ToTensor()]), "cannot travel"),
        (lambda x: x, "is code"),
        (v1.Compose([v1.Pad(3), v1.ToTensor()]), "Pad cannot travel"),
        (v1.Compose([v1.ToTensor(), v1.Resize(3)]), "before ToTensor"),
        (v2.Compose([v2.ToImage(), v2.Resize(3), v2.ToDtype(torch.float32, scale=True)]), "rounds otherwise"),
        (v1.Compose([v1.ToTensor(), v1.Normalize((0.5,), (0.5,)), v1.CenterCrop(3)]), "before ToTensor"),
        (v1.Compose([v1.PILToTensor(), v1.Normalize((0.5,), (0.5,))]), "before the pixels are floating"),
        (v1.Compose([v1.Resize(3)]), "tensor"),
        (v1.Compose([v1.PILToTensor(), v1.ConvertImageDtype(torch.float16)]), "float16"),
        (3, "is code"),
    ],
)
def test_what_cannot_travel_is_named(transform: Any, words: str) -> None:
    with pytest.raises(InputError) as caught:
        from_transforms(transform)
    assert words in str(caught.value)


def test_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)  # import PIL raises ModuleNotFoundError
    image = picture(20, 30)
    assert Preprocess.of(MEAN, STD, crop=20)(image).shape == (1, 3, 20, 20)
    assert Preprocess.of(MEAN, STD, resize=20)(image).shape == (1, 3, 20, 30)  # nothing to resize
    with pytest.raises(DynamicError, match=r'pip install "dynamic-inference\[images\]"'):
        Preprocess.of(MEAN, STD, resize=10)(image)


def test_imports_neither_torch_nor_pillow() -> None:
    code = "import sys, dynamic.data.preprocessing; print([m for m in ('torch', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("given", [{"mean": 0.5}, {"mean": (0.5,), "std": 0.25}])
def test_one_number_for_all_channels_is_refused_in_words(given: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=r"(mean=0\.5|std=0\.25) must hold a number for each channel, such as \(0\."):
        Preprocess.of(**given)
