"""torchvision transforms -> steps that travel in a bundle."""

import numbers
from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from torch import nn
from torchvision import transforms as v1
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms._presets import ImageClassification

from dynamic.data.image_steps import RGB, CenterCrop, Gray
from dynamic.data.number_steps import Normalize, Scale
from dynamic.data.preprocessing import Preprocess, Step
from dynamic.data.resize_step import Interpolation, Resize
from dynamic.data.sound.sound_preprocess import SoundPreprocess
from dynamic.data.text.text_preprocessing import TextPreprocess
from dynamic.policies.errors import InputError

_TO_TENSOR = (v1.PILToTensor, v2.PILToTensor, v2.ToImage, v2.ToPureTensor)
_NOTHING = (v2.Identity, nn.Identity)
_PILLOW = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
_HOW = (
    "Build with the evaluation transforms written as Resize, CenterCrop, Grayscale, ToTensor, Normalize, "
    "or with preprocess=None and do it before calling the runtime"
)


def from_transforms(transform: Any) -> Preprocess | SoundPreprocess | TextPreprocess | None:
    """The same preprocessing as data.

    Takes what `weights.transforms()` of a torchvision classification network returns, a `Preprocess`, a
    `SoundPreprocess`, a `TextPreprocess`, a tokenizer, or None. Takes a `Compose` too (v1 or v2, nested or not), an
    `nn.Sequential`, or one step alone. The steps may be Resize, CenterCrop, Grayscale, RGB, ToTensor, PILToTensor,
    ToImage, ConvertImageDtype, ToDtype and Normalize. The result gives the pixels that `transform` gives on PIL images.
    Raises InputError naming the step that cannot travel.
    """
    if transform is None or isinstance(transform, (Preprocess, SoundPreprocess, TextPreprocess)):
        return transform
    if hasattr(transform, "backend_tokenizer") or callable(getattr(transform, "token_to_id", None)):
        return TextPreprocess.of(transform)
    if isinstance(transform, ImageClassification):
        return Preprocess(
            (
                Resize(_resize_size(transform.resize_size), _interpolation(transform.interpolation)),
                CenterCrop(_pair(transform.crop_size)),
                Scale(),
                _normalize(transform),
            )
        )
    return Preprocess(tuple(_steps(_flat(transform))))


def _flat(transform: Any) -> Iterator[Any]:
    if isinstance(transform, (v1.Compose, v2.Compose)):
        for inner in transform.transforms:
            yield from _flat(inner)
    elif isinstance(transform, (nn.Sequential, list, tuple)):
        for inner in transform:
            yield from _flat(inner)
    else:
        yield transform


def _steps(transforms: Iterable[Any]) -> Iterator[Step]:
    tensor = scaled = normalized = False
    late: list[Step] = []  # Scale and Normalize, held back: a crop of scaled pixels is the scaled crop
    for t in transforms:
        if isinstance(t, _NOTHING):
            continue
        if isinstance(t, _TO_TENSOR):
            tensor = True
        elif isinstance(t, (v1.ToTensor, v2.ToTensor)):
            tensor = scaled = True
            late.append(Scale())
        elif isinstance(t, (v1.ConvertImageDtype, v2.ConvertImageDtype, v2.ToDtype)):
            scale = _dtype_step(t)
            if scale is not None and not scaled:
                scaled = True
                late.append(scale)
        elif isinstance(t, (v1.Normalize, v2.Normalize)):
            if not scaled:
                raise InputError(f"{t} comes before the pixels are floating point. Put ToTensor() before it")
            normalized = True
            late.append(_normalize(t))
        elif isinstance(t, (v1.CenterCrop, v2.CenterCrop)):
            if normalized:  # its padding would be 0 after normalization, not black
                raise InputError(f"{t} comes after Normalize. Put it before ToTensor()")
            yield CenterCrop(_pair(t.size))
        else:
            step = _pixel_step(t)
            if tensor:
                raise InputError(
                    f"{t} works on tensors here, and rounds otherwise than on PIL images. Put it before "
                    "ToTensor(), PILToTensor() or ToImage(), calibrate with that, and it can travel"
                )
            yield step
    if not tensor:
        raise InputError(f"the transforms do not end in a tensor, so nothing can be calibrated with them. {_HOW}")
    yield from late


def _pixel_step(t: Any) -> Step:
    if isinstance(t, (v1.Resize, v2.Resize)):
        if t.size is None:
            raise InputError(f"{t} has no size. Give the shorter side or (height, width)")
        return Resize(_resize_size(t.size), _interpolation(t.interpolation), longest=t.max_size)
    if isinstance(t, (v1.Grayscale, v2.Grayscale)):
        return Gray(t.num_output_channels)
    if isinstance(t, v2.RGB):
        return RGB()
    name = type(t).__name__
    if isinstance(t, (v1.Lambda, v2.Lambda)) or not type(t).__module__.startswith("torchvision."):
        raise InputError(f"{t!r} is code, and a bundle holds data only: it cannot travel. {_HOW}")
    if name.startswith("Random") or name in ("ColorJitter", "AutoAugment", "AugMix", "RandAugment"):
        raise InputError(f"{name} is augmentation, for training only: it cannot travel. {_HOW}")
    raise InputError(f"{name} cannot travel in a bundle. {_HOW}")


def _dtype_step(t: Any) -> Scale | None:
    """What a conversion of dtype does to uint8 pixels. None: nothing."""
    dtype = t.dtype
    if isinstance(dtype, dict):
        dtype = dtype.get(tv_tensors.Image, dtype.get("others"))
    if dtype in (torch.uint8, None):
        return None
    if dtype != torch.float32:
        raise InputError(f"{t} makes {dtype}. The device's preprocessing gives float32: convert to torch.float32")
    if isinstance(t, v1.ConvertImageDtype):
        return Scale()
    return Scale(reciprocal=True) if isinstance(t, v2.ConvertImageDtype) or t.scale else Scale(1.0)


def _normalize(t: Any) -> Normalize:
    return Normalize(_floats(t.mean), _floats(t.std))


def _floats(values: Any) -> tuple[float, ...]:
    return (float(values),) if isinstance(values, (int, float)) else tuple(float(v) for v in values)


def _resize_size(size: Any) -> int | tuple[int, int]:
    if isinstance(size, numbers.Integral):
        return int(size)
    return int(size[0]) if len(size) == 1 else (int(size[0]), int(size[1]))


def _pair(size: Any) -> tuple[int, int]:
    pair = _resize_size(size)
    return (pair, pair) if isinstance(pair, int) else pair


def _interpolation(mode: Any) -> Interpolation:
    """Our name of torchvision's mode, string or Pillow constant."""
    name = _PILLOW.get(mode) if isinstance(mode, int) else str(getattr(mode, "value", mode))
    if name is None:
        raise InputError(f"interpolation {mode!r} is not known. Give a torchvision InterpolationMode")
    return cast(Interpolation, name.removesuffix("-exact"))  # on PIL images both of torchvision's nearest are Pillow's
