"""From images to the input of a network: the pixels that torchvision computes on PIL images, without torch.

Everything but the resize is numpy. The resize is Pillow's own, so that antialiasing and rounding are the same.
"""

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, asdict, dataclass
from pathlib import PurePath
from types import ModuleType
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from dynamic.data.arrays import as_array
from dynamic.data.picture_decoding import is_picture, picture_pixels, picture_shape
from dynamic.policies.errors import CorruptError, DynamicError, InputError, SchemaError
from dynamic.policies.validation.fields import items, mapping, short
from dynamic.policies.validation.numbers import plain_items

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)
MOST_RESIZED = 2**26  # pixels that a resize makes: a picture one pixel high becomes gigabytes else

_MOST_STEPS = 100  # that a file may hold
_CHANNELS = (1, 3, 4)  # gray, RGB, RGBA
_CONVERTED = ("P", "PA", "CMYK", "YCbCr", "HSV", "LAB", "RGBX", "RGBa")  # modes of PIL that the user converts


def _plain(step: Any) -> None:
    """Numbers of numpy become Python's own: steps are compared and written as JSON."""
    for name, value in vars(step).items():
        object.__setattr__(step, name, plain_items(value))


@dataclass(frozen=True)
class Resize:
    """Resize with Pillow.

    Args:
        size: Length of the shorter side, or (height, width). With a length the ratio of the sides remains.
        interpolation: Pillow's filter: "nearest", "bilinear", "bicubic", "lanczos", "box" or "hamming".
        longest: Upper limit of the longer side, which shrinks the shorter one too. Only with a length.

    Raises:
        InputError: A size is out of range, the filter is unknown, or `longest` does not exceed `size`.

    Example:
        >>> dynamic.data.Resize(256)(np.zeros((300, 600, 3), np.uint8)).shape
        (256, 512, 3)
    """

    size: int | tuple[int, int]
    interpolation: Interpolation = "bilinear"
    _: KW_ONLY
    longest: int | None = None

    def __post_init__(self) -> None:
        _plain(self)
        _check_positive("Resize", self.size)
        if self.interpolation not in INTERPOLATIONS:
            raise InputError(f"interpolation={self.interpolation!r} is not known: use one of {INTERPOLATIONS}")
        if self.longest is not None and not (
            isinstance(self.size, int) and isinstance(self.longest, int) and self.size < self.longest <= MOST_RESIZED
        ):
            raise InputError(f"longest={self.longest} must exceed size={self.size}, the shorter side (an int)")

    def target(self, height: int, width: int) -> tuple[int, int]:
        """Compute the size after the step.

        Args:
            height: Height before the step.
            width: Width before the step.

        Returns:
            Height and width.

        Raises:
            ZeroDivisionError: The image has no pixel.

        Example:
            >>> dynamic.data.Resize(256).target(300, 600)
            (256, 512)
        """
        if not isinstance(self.size, int):
            return self.size
        shorter, longer = min(height, width), max(height, width)
        new_shorter, new_longer = self.size, int(self.size * longer / shorter)
        if self.longest is not None and new_longer > self.longest:
            new_shorter, new_longer = int(self.longest * new_shorter / new_longer), self.longest
        new_shorter = max(1, new_shorter)
        return (new_longer, new_shorter) if width <= height else (new_shorter, new_longer)

    def shape(self, height: int, width: int, channels: int) -> tuple[int, int, int]:
        """Compute the shape after the step.

        Args:
            height: Height before the step.
            width: Width before the step.
            channels: Number of channels.

        Returns:
            `[H', W', C]`.

        Raises:
            ZeroDivisionError: The image has no pixel.

        Example:
            >>> dynamic.data.Resize((32, 48)).shape(300, 600, channels=3)
            (32, 48, 3)
        """
        return (*self.target(height, width), channels)

    def __call__(self, image: Pixels) -> Pixels:
        """Resize an image.

        Args:
            image: Pixels `[H, W, C]`, uint8.

        Returns:
            Pixels `[H', W', C]`.

        Raises:
            InputError: The result would be too large.
            DynamicError: Pillow is not installed.

        Example:
            >>> dynamic.data.Resize((4, 6))(np.zeros((8, 8, 1), np.uint8)).shape
            (4, 6, 1)
        """
        height, width = self.target(*image.shape[:2])
        if image.shape[:2] == (height, width):
            return image
        if isinstance(self.size, int) and height * width > MOST_RESIZED:
            raise InputError(
                f"an image of {image.shape[0]} x {image.shape[1]} pixels would be resized to {height} x {width}, and "
                f"at most {MOST_RESIZED} pixels are made: cut it first, or resize to (height, width)"
            )
        pillow = import_pillow()
        gray = image.shape[2] == 1
        picture = pillow.fromarray(np.ascontiguousarray(image[..., 0] if gray else image))
        resized = np.asarray(picture.resize((width, height), pillow.Resampling[self.interpolation.upper()]))
        return resized[..., None] if gray else resized


@dataclass(frozen=True)
class CenterCrop:
    """Cut the middle out of an image. A smaller image is padded with zeros first.

    Args:
        size: (height, width) of the result.

    Raises:
        InputError: A size is out of range.

    Example:
        >>> dynamic.data.CenterCrop((224, 224))(np.zeros((256, 256, 3), np.uint8)).shape
        (224, 224, 3)
    """

    size: tuple[int, int]

    def __post_init__(self) -> None:
        _plain(self)
        _check_positive("CenterCrop", self.size)

    def shape(self, height: int, width: int, channels: int) -> tuple[int, int, int]:
        """Compute the shape after the step.

        Args:
            height: Height before the step.
            width: Width before the step.
            channels: Number of channels.

        Returns:
            `[H', W', C]`.

        Raises:
            Nothing: images of any size can be cropped.

        Example:
            >>> dynamic.data.CenterCrop((224, 224)).shape(256, 256, channels=3)
            (224, 224, 3)
        """
        return (*self.size, channels)

    def __call__(self, image: Pixels) -> Pixels:
        """Crop images.

        Args:
            image: Pixels `[..., H, W, C]`, uint8.

        Returns:
            Pixels `[..., H', W', C]`.

        Raises:
            ValueError: The array has fewer than three dimensions.

        Example:
            >>> dynamic.data.CenterCrop((2, 2))(np.arange(16, dtype=np.uint8).reshape(4, 4, 1))[..., 0].tolist()
            [[5, 6], [9, 10]]
        """
        missing = [max(0, want - have) for want, have in zip(self.size, image.shape[-3:-1], strict=True)]
        if any(missing):
            around = [(short // 2, (short + 1) // 2) for short in missing]
            image = np.pad(image, [*[(0, 0)] * (image.ndim - 3), *around, (0, 0)])
        # Python's round, half to even, as torchvision has it
        top, left = (round((have - want) / 2.0) for want, have in zip(self.size, image.shape[-3:-1], strict=True))
        return image[..., top : top + self.size[0], left : left + self.size[1], :]


@dataclass(frozen=True)
class Gray:
    """Luma of an RGB image (ITU-R BT.601 in Pillow's fixed point).

    Args:
        channels: Number of equal channels of the result, 1 or 3.

    Raises:
        InputError: `channels` is neither 1 nor 3.

    Example:
        >>> dynamic.data.Gray()(np.full((1, 1, 3), [255, 0, 0], np.uint8)).tolist()
        [[[76]]]
    """

    channels: int = 1

    def __post_init__(self) -> None:
        _plain(self)
        if self.channels not in (1, 3):
            raise InputError(f"Gray(channels={self.channels}): give 1 or 3")

    def shape(self, height: int, width: int, channels: int) -> tuple[int, int, int]:
        """Compute the shape after the step.

        Args:
            height: Height before the step.
            width: Width before the step.
            channels: Number of channels before the step.

        Returns:
            `[H, W, C']`.

        Raises:
            Nothing: the number of channels is that of the step.

        Example:
            >>> dynamic.data.Gray().shape(8, 8, channels=3)
            (8, 8, 1)
        """
        return height, width, self.channels

    def __call__(self, image: Pixels) -> Pixels:
        """Convert images.

        Args:
            image: Pixels `[..., H, W, C]`, uint8, of 1, 3 or 4 channels.

        Returns:
            Pixels `[..., H, W, channels]`.

        Raises:
            IndexError: The images have two channels.

        Example:
            >>> dynamic.data.Gray(channels=3)(np.zeros((8, 8, 1), np.uint8)).shape
            (8, 8, 3)
        """
        if image.shape[-1] != 1:
            red, green, blue = (image[..., c].astype(np.uint32) for c in range(3))
            luma = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16  # Pillow, Convert.c, L24
            image = luma.astype(np.uint8)[..., None]
        return image if self.channels == 1 else np.repeat(image, 3, axis=-1)


@dataclass(frozen=True)
class RGB:
    """Convert to three channels: gray is repeated, alpha is dropped.

    Example:
        >>> dynamic.data.RGB()(np.zeros((8, 8, 1), np.uint8)).shape
        (8, 8, 3)
    """

    def shape(self, height: int, width: int, channels: int) -> tuple[int, int, int]:
        """Compute the shape after the step.

        Args:
            height: Height before the step.
            width: Width before the step.
            channels: Number of channels before the step.

        Returns:
            `[H, W, 3]`.

        Raises:
            Nothing: the number of channels is that of the step.

        Example:
            >>> dynamic.data.RGB().shape(8, 8, channels=4)
            (8, 8, 3)
        """
        return height, width, 3

    def __call__(self, image: Pixels) -> Pixels:
        """Convert images.

        Args:
            image: Pixels `[..., H, W, C]`, uint8, of 1, 3 or 4 channels.

        Returns:
            Pixels `[..., H, W, 3]`.

        Raises:
            IndexError: The array has no dimension.

        Example:
            >>> dynamic.data.RGB()(np.zeros((8, 8, 4), np.uint8)).shape
            (8, 8, 3)
        """
        return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image[..., :3]


@dataclass(frozen=True)
class Scale:
    """Divide pixels, which are float32 from here on.

    Args:
        divisor: A positive number.
        reciprocal: Whether to multiply by the inverse, as torchvision's v2 does. The last bit differs.

    Raises:
        InputError: `divisor` is not a positive number.

    Example:
        >>> dynamic.data.Scale().divisor
        255.0
    """

    divisor: float = 255.0
    reciprocal: bool = False

    def __post_init__(self) -> None:
        _plain(self)
        if isinstance(self.divisor, bool) or not 1e-30 < self.divisor < 1e30:
            raise InputError(f"Scale(divisor={self.divisor}): give a positive number, usually 255")

    def apply(self, pixels: Floats) -> None:
        """Scale pixels in place.

        Args:
            pixels: `[B, C, H, W]`, float32.

        Raises:
            ValueError: The array is read-only.

        Example:
            >>> pixels = np.full((1, 1, 1, 1), 51, np.float32)
            >>> dynamic.data.Scale().apply(pixels)
            >>> round(float(pixels[0, 0, 0, 0]), 6)
            0.2
        """
        if self.reciprocal:
            pixels *= np.float32(1.0 / self.divisor)
        elif self.divisor != 1.0:
            pixels /= np.float32(self.divisor)


@dataclass(frozen=True)
class Normalize:
    """Normalize pixels: (pixel - mean) / std.

    Args:
        mean: Mean of each channel, or one for all channels.
        std: Standard deviation of each channel, or one for all channels. Above 0.

    Raises:
        InputError: Numbers of means and standard deviations differ, or one of them is out of range.

    Example:
        >>> dynamic.data.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)).mean[0]
        0.485
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        _plain(self)
        if not (len(self.mean) > 0 and len(self.std) in (1, len(self.mean))):
            raise InputError(f"Normalize has {len(self.mean)} means and {len(self.std)} stds: give as many of each")
        with np.errstate(over="ignore", under="ignore"):  # as float32, which has a smaller range
            mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        if not np.isfinite(mean).all() or not (np.isfinite(std).all() and std.min() > 0):
            raise InputError(f"Normalize(mean={self.mean}, std={self.std}): give finite means and positive stds")

    def check(self, channels: int) -> None:
        """Check the number of channels.

        Args:
            channels: Number of channels of the images.

        Raises:
            InputError: The step has means for another number of channels.

        Example:
            >>> dynamic.data.Normalize((0.5,), (0.25,)).check(3)
        """
        if len(self.mean) not in (1, channels):
            raise InputError(
                f"the images have {channels} channels, Normalize has {len(self.mean)} means: "
                "convert the images, or put RGB() or Gray() before it"
            )

    def apply(self, pixels: Floats) -> None:
        """Normalize pixels in place.

        Args:
            pixels: `[B, C, H, W]`, float32.

        Raises:
            InputError: The step has means for another number of channels.

        Example:
            >>> pixels = np.ones((1, 1, 1, 1), np.float32)
            >>> dynamic.data.Normalize((0.5,), (0.25,)).apply(pixels)
            >>> float(pixels[0, 0, 0, 0])
            2.0
        """
        self.check(pixels.shape[1])
        pixels -= np.asarray(self.mean, np.float32)[:, None, None]
        pixels /= np.asarray(self.std, np.float32)[:, None, None]


ImageStep = Resize | CenterCrop | Gray | RGB  # on uint8 images
NumberStep = Scale | Normalize  # on float32 [B, C, H, W]
Step = ImageStep | NumberStep
_KINDS: dict[str, type[Step]] = {
    "resize": Resize,
    "center_crop": CenterCrop,
    "gray": Gray,
    "rgb": RGB,
    "scale": Scale,
    "normalize": Normalize,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


@dataclass(frozen=True)
class Preprocess:
    """The steps from uint8 images to the float32 input of a network.

    Image steps come first, then at most one `Scale`, then `Normalize`. Without `Scale` values remain 0 to 255.

    Args:
        steps: The steps in order.

    Raises:
        InputError: The steps are in another order, or one of them is no step.

    Example:
        >>> from dynamic.data import CenterCrop, Normalize, Resize, Scale
        >>> steps = (Resize(256), CenterCrop((224, 224)), Scale(), Normalize((0.5,), (0.25,)))
        >>> preprocess = dynamic.Preprocess(steps)
        >>> preprocess(np.zeros((300, 400, 3), np.uint8)).shape
        (1, 3, 224, 224)
    """

    steps: tuple[Step, ...] = (Scale(),)

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        ranks = []
        for step in self.steps:
            if type(step) not in _NAMES:
                raise InputError(f"{step!r} is no preprocessing step: use {[k.__name__ for k in _NAMES]}")
            ranks.append(1 if isinstance(step, Scale) else 2 if isinstance(step, Normalize) else 0)
        if ranks != sorted(ranks) or ranks.count(1) > 1:
            raise InputError(
                f"steps {[_NAMES[type(s)] for s in self.steps]} are out of order: "
                "give image steps first, then at most one Scale, then Normalize"
            )

    @classmethod
    def of(
        cls,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        *,
        resize: int | tuple[int, int] | None = None,
        crop: int | tuple[int, int] | None = None,
        interpolation: Interpolation = "bilinear",
    ) -> Self:
        """Make the usual steps: resize, center crop, scale to 0..1, normalize.

        Args:
            mean: Mean of each channel. None: no normalization, or means of 0 where `std` is given.
            std: Standard deviation of each channel. None: no normalization, or 1 where `mean` is given.
            resize: Length of the shorter side, or (height, width). None: no resize.
            crop: Side of a square, or (height, width). None: no crop.
            interpolation: Pillow's filter for the resize.

        Returns:
            The preprocessing.

        Raises:
            InputError: A size, mean or standard deviation is out of range, or the filter is unknown.

        Example:
            >>> dynamic.Preprocess.of(mean=(0.5,), std=(0.25,), resize=32, crop=28)(np.zeros((40, 40), np.uint8)).shape
            (1, 1, 28, 28)
        """
        steps: list[Step] = []
        resize, crop = plain_items(resize), plain_items(crop)
        mean, std = plain_items(mean), plain_items(std)
        if resize is not None:
            steps.append(Resize(resize, interpolation))
        if crop is not None:
            steps.append(CenterCrop((crop, crop) if isinstance(crop, int) else crop))
        steps.append(Scale())
        if mean is not None or std is not None:
            steps.append(Normalize(tuple(mean or (0.0,) * len(std or ())), tuple(std or (1.0,))))
        return cls(tuple(steps))

    def to_json(self) -> dict[str, Any]:
        """Return plain data for a manifest."""
        return {
            "steps": [
                {"step": _NAMES[type(step)]}
                | {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(step).items()}
                for step in self.steps
            ]
        }

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Read what `to_json` returned.

        Args:
            data: The plain data.

        Returns:
            The preprocessing.

        Raises:
            SchemaError: A step is unknown to this version.
            CorruptError: The data do not read.

        Example:
            >>> preprocess = dynamic.Preprocess.of(resize=32)
            >>> dynamic.Preprocess.from_json(preprocess.to_json()) == preprocess
            True
        """
        steps: list[Step] = []
        try:
            for entry in items(data["steps"], "steps", mapping, most=_MOST_STEPS):
                values = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items() if k != "step"}
                kind: Any = _KINDS.get(entry["step"])
                if kind is None:
                    raise SchemaError(
                        f"preprocessing step {entry['step']!r} is not known to this version: update dynamic-inference"
                    )
                steps.append(kind(**values))
            return cls(tuple(steps))
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
            raise CorruptError(
                f"preprocessing {short(data)} does not read ({error}): build the bundle again"
            ) from error

    def __call__(self, images: Any, shape: Sequence[int] | None = None) -> Floats:
        """Preprocess images.

        Colours are in the order RGB. OpenCV's order is BGR: give `image[..., ::-1]`. PIL images may have mode 1, L, LA,
        RGB, RGBA or 16 bits. They are turned by their EXIF orientation. Of 16 bits the upper 8 are used, as in files.

        Args:
            images: uint8 `[H, W]`, `[H, W, C]` or `[B, H, W, C]`, a PIL image, or a list of single images.
            shape: Required `[C, H, W]` of the result. It is checked before an image is decoded or converted. None: any.

        Returns:
            float32 `[B, C, H, W]`.

        Raises:
            InputError: The images are of another kind, dtype or shape, or several sizes result.
            DynamicError: A resize needs Pillow, which is not installed.

        Example:
            >>> dynamic.Preprocess()(np.full((2, 2, 3), 255, np.uint8)).shape
            (1, 3, 2, 2)
        """
        try:
            if isinstance(images, (list, tuple)):
                if not images:
                    raise InputError("no images: give at least one")
                pixels = _stacked([self._image(_one_image(self._read(image, shape))) for image in images])
            else:
                pixels = self._read(images, shape)
                if pixels.ndim < 4:
                    pixels = self._image(_one_image(pixels))[None]
                elif any(isinstance(step, Resize) for step in self.steps):
                    pixels = _stacked([self._image(_one_image(image)) for image in _checked_batch(pixels)])
                else:
                    pixels = self._image(_checked_batch(pixels))
            return self._numbers(pixels)
        except MemoryError as error:
            raise InputError(
                f"the images do not fit in memory ({error}): give fewer or smaller ones at a time"
            ) from error

    def check(self, images: Any, shape: Sequence[int]) -> None:
        """Check the shape that images would have after preprocessing, without decoding them.

        Lists of numbers are no images yet and pass.

        Args:
            images: Images as for a call.
            shape: Required `[C, H, W]` of the result.

        Raises:
            InputError: The result would have another shape.

        Example:
            >>> dynamic.Preprocess().check(np.zeros((8, 8, 3), np.uint8), shape=(3, 8, 8))
        """
        several = isinstance(images, (list, tuple))
        for image in images if several else (images,):
            if is_picture(image):
                self._check_sizes(image, shape)
            elif hasattr(image, "shape"):
                pixels = _array(image)
                self._check_sizes(_one_image(pixels) if several or pixels.ndim < 4 else _checked_batch(pixels), shape)

    def _read(self, image: Any, shape: Sequence[int] | None) -> Pixels:
        """The pixels of images whose shape fits."""
        if shape is not None and is_picture(image):  # before it is decoded
            self._check_sizes(image, shape)
        pixels = _array(image)
        if shape is not None:
            self._check_sizes(pixels, shape)
        return pixels

    def _check_sizes(self, image: Any, shape: Sequence[int]) -> None:
        """Raise InputError where an image, or those of a batch, would not result in `shape [C, H, W]`."""
        sizes = _sizes(image)
        if sizes is None:
            return
        height, width, channels = sizes
        for step in self.steps:
            if not isinstance(step, (Scale, Normalize)):
                height, width, channels = step.shape(height, width, channels)
        if (channels, height, width) != tuple(shape):
            raise InputError(
                f"the image has shape {list(sizes)}, of which preprocessing makes {[channels, height, width]}, "
                f"expected {list(shape)}: resize or crop it first, and give as many channels"
            )

    def _image(self, pixels: Pixels) -> Pixels:
        for step in self.steps:
            if not isinstance(step, (Scale, Normalize)):
                pixels = step(pixels)
        return pixels

    def _numbers(self, pixels: Pixels) -> Floats:
        # channels move while they are bytes, then float32 in place: the fastest order measured
        moved = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))  # [B, C, H, W]
        numbers = moved.astype(np.float32)
        for step in self.steps:
            if isinstance(step, (Scale, Normalize)):
                step.apply(numbers)
        return numbers


def _sizes(image: Any) -> tuple[int, int, int] | None:
    """The `[H, W, C]` of an image, or of those of a batch. None where another check reports what is wrong."""
    if is_picture(image):
        return picture_shape(image) if image.mode not in _CONVERTED else None
    shape = image.shape
    if len(shape) == 2:
        return shape[0], shape[1], 1
    return shape[-3:] if len(shape) in (3, 4) and shape[-1] in _CHANNELS else None


def _array(image: Any) -> Pixels:
    if is_picture(image):
        if image.mode in _CONVERTED:
            raise InputError(f'the image has PIL mode {image.mode!r}: give image.convert("RGB")')
        return picture_pixels(image)
    if isinstance(image, (str, bytes, PurePath)):
        raise InputError(
            f"{image!r:.200} is a path or bytes, and preprocessing takes uint8 images: open it, PIL.Image.open(path)"
        )
    array = as_array(image, "the image")
    if array.dtype != np.uint8:
        deep = "Of 16 bits give the upper 8, (array >> 8).astype(np.uint8). " if array.dtype == np.uint16 else ""
        raise InputError(
            f"preprocessing takes uint8 images, 0 to 255, [H, W, C] or [B, H, W, C]. This is {array.dtype} "
            f"{list(array.shape)}. {deep}Give inputs that are preprocessed already by name, as {{'input': array}}, "
            "or build the bundle with preprocess=None"
        )
    if array.ndim == 4 and len(array) == 0:
        raise InputError(f"the batch has shape {list(array.shape)}: it is empty. Give at least one image")
    if array.size == 0:
        raise InputError(f"the image has shape {list(array.shape)}: it is empty. Give at least one pixel")
    return array


def _one_image(image: Any) -> Pixels:
    """`[H, W, C]`."""
    array = _array(image)
    if array.ndim == 2:
        return array[..., None]
    if array.ndim != 3 or array.shape[2] not in _CHANNELS:
        raise InputError(
            f"the image has shape {list(array.shape)}, expected [H, W] or [H, W, C] with C of {_CHANNELS}: "
            "move the channels last, and give a batch of gray images as [B, H, W, 1]"
        )
    return array


def _checked_batch(array: Pixels) -> Pixels:
    if array.ndim != 4 or array.shape[3] not in _CHANNELS:
        raise InputError(
            f"the images have shape {list(array.shape)}, expected [B, H, W, C] with C of {_CHANNELS}: "
            "move the channels last"
        )
    return array


def _stacked(images: Sequence[Pixels]) -> Pixels:
    shapes = sorted({image.shape for image in images})
    if len(shapes) > 1:
        raise InputError(
            f"the images come out of preprocessing as {[list(s) for s in shapes]}. One batch needs one size: "
            "add a CenterCrop, a Resize to (height, width) or RGB(), or give them one by one"
        )
    return np.stack(images)


def _check_positive(name: str, size: int | tuple[int, int]) -> None:
    sides = (size,) if isinstance(size, int) else size
    if len(sides) > 2 or (not isinstance(size, int) and len(sides) != 2):
        raise InputError(f"{name}({size}): give (height, width)")
    if not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides):
        raise InputError(f"{name}({short(size)}): sizes are whole numbers above 0")
    if math.prod(sides) > MOST_RESIZED:
        raise InputError(f"{name}({short(size)}): at most {MOST_RESIZED} pixels are made, give smaller sizes")


def import_pillow() -> ModuleType:
    """Pillow's module `Image`, which resizes.

    Returns:
        The module.

    Raises:
        DynamicError: Pillow is not installed, or does not load.
    """
    try:
        from PIL import Image
    except ImportError as error:
        why = "is not installed" if isinstance(error, ModuleNotFoundError) else f"does not load ({error})"
        raise DynamicError(
            f'this preprocessing resizes, and Pillow {why}: pip install "dynamic-inference[images]"'
        ) from error
    return Image
