"""From images to the input of a network: the pixels that torchvision computes on PIL images, without torch.

Everything but the resize is numpy. The resize is Pillow's own, so that antialiasing and rounding are the same.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import numpy as np

from dynamic.data.arrays import OneInput, Side, as_array, fits
from dynamic.data.image_arrays import checked_batch, one_image, pixels_of, sizes_of, stacked
from dynamic.data.image_steps import RGB, CenterCrop, Gray, ImageStep
from dynamic.data.number_steps import Floats, Normalize, NumberStep, Scale
from dynamic.data.picture_decoding import is_picture
from dynamic.data.resize_step import Interpolation, Pixels, Resize, import_pillow
from dynamic.policies.errors import CorruptError, InputError, SchemaError, SettingError
from dynamic.policies.validation.fields import items, mapping, short
from dynamic.policies.validation.numbers import plain_items

_MOST_STEPS = 100  # that a file may hold


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
class Preprocess(OneInput):
    """The steps from uint8 images to the float32 input of a network.

    Image steps come first, then at most one `Scale`, then `Normalize`. Without `Scale` values remain 0 to 255.

    Args:
        steps: The steps in order.

    Raises:
        SettingError: The steps are in another order, or one of them is no step.

    Example:
        >>> from dynamic.data import CenterCrop, Normalize, Resize, Scale
        >>> steps = (Resize(256), CenterCrop((224, 224)), Scale(), Normalize((0.5,), (0.25,)))
        >>> preprocess = dynamic.Preprocess(steps)
        >>> preprocess(np.zeros((300, 400, 3), np.uint8)).shape
        (1, 3, 224, 224)
    """

    for_images: ClassVar[bool] = True
    steps: tuple[Step, ...] = (Scale(),)

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        ranks = []
        for step in self.steps:
            if type(step) not in _NAMES:
                raise SettingError(f"{step!r} is no preprocessing step: use {[k.__name__ for k in _NAMES]}")
            ranks.append(1 if isinstance(step, Scale) else 2 if isinstance(step, Normalize) else 0)
        if ranks != sorted(ranks) or ranks.count(1) > 1:
            raise SettingError(
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
            SettingError: A size, mean or standard deviation is out of range, or the filter is unknown.

        Example:
            >>> dynamic.Preprocess.of(mean=(0.5,), std=(0.25,), resize=32, crop=28)(np.zeros((40, 40), np.uint8)).shape
            (1, 1, 28, 28)
        """
        steps: list[Step] = []
        resize, crop = plain_items(resize), plain_items(crop)
        mean, std = plain_items(mean), plain_items(std)
        for name, values in (("mean", mean), ("std", std)):
            if values is not None and not hasattr(values, "__iter__"):
                raise SettingError(f"{name}={values!r} must hold a number for each channel, such as ({values!r},)")
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

    def __call__(self, images: Any, shape: Sequence[Side] | None = None) -> Floats:
        """Preprocess images.

        Colours are in the order RGB. OpenCV's order is BGR: give `image[..., ::-1]`. PIL images may have mode 1, L, LA,
        RGB, RGBA or 16 bits. They are turned by their EXIF orientation. Of 16 bits the upper 8 are used, as in files.

        Args:
            images: uint8 `[H, W]`, `[H, W, C]` or `[B, H, W, C]`, a PIL image, or a list of single images.
            shape: Required `[C, H, W]` of the result: a number, or the sizes that are allowed. It is checked before an
                image is decoded or converted. None: any.

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
                pixels = stacked([self._image(one_image(self._read(image, shape))) for image in images])
            else:
                pixels = self._read(images, shape)
                if pixels.ndim < 4:
                    pixels = self._image(one_image(pixels))[None]
                elif any(isinstance(step, Resize) for step in self.steps):
                    pixels = stacked([self._image(one_image(image)) for image in checked_batch(pixels)])
                else:
                    pixels = self._image(checked_batch(pixels))
            return self._numbers(pixels)
        except MemoryError as error:
            raise InputError(
                f"the images do not fit in memory ({error}): give fewer or smaller ones at a time"
            ) from error

    def check(self, images: Any, shape: Sequence[Side]) -> None:
        """Check the shape that images would have after preprocessing, without decoding them.

        Lists of numbers are no images yet and pass.

        Args:
            images: Images as for a call.
            shape: Required `[C, H, W]` of the result: a number, or the sizes that are allowed.

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
                pixels = pixels_of(image)
                self._check_sizes(one_image(pixels) if several or pixels.ndim < 4 else checked_batch(pixels), shape)

    def is_single(self, images: Any) -> bool:
        """Return whether this is one image, and not a batch.

        Args:
            images: Images as for a call.

        Returns:
            Whether it is one.

        Raises:
            InputError: It is no array.

        Example:
            >>> dynamic.Preprocess().is_single(np.zeros((8, 8, 3), np.uint8))
            True
        """
        if isinstance(images, (list, tuple)) or is_picture(images):
            return is_picture(images)
        shape = getattr(images, "shape", None)
        return len(as_array(images, "the image").shape if shape is None else shape) < 4

    def check_packages(self) -> None:
        """Check the packages that it needs: Pillow, where it resizes.

        Raises:
            DynamicError: Pillow is not installed.
        """
        if any(isinstance(step, Resize) for step in self.steps):
            import_pillow()

    def _read(self, image: Any, shape: Sequence[Side] | None) -> Pixels:
        """The pixels of images whose shape fits."""
        if shape is not None and is_picture(image):  # before it is decoded
            self._check_sizes(image, shape)
        pixels = pixels_of(image)
        if shape is not None:
            self._check_sizes(pixels, shape)
        return pixels

    def _check_sizes(self, image: Any, shape: Sequence[Side]) -> None:
        """Raise InputError where an image, or those of a batch, would not result in `shape [C, H, W]`."""
        sizes = sizes_of(image)
        if sizes is None:
            return
        height, width, channels = sizes
        for step in self.steps:
            if not isinstance(step, (Scale, Normalize)):
                height, width, channels = step.shape(height, width, channels)
        result = channels, height, width
        if not fits(result, shape):
            raise InputError(
                f"the image has shape {list(sizes)}, of which preprocessing makes {list(result)}, expected "
                f"[{', '.join(map(str, shape))}]: resize or crop it first, and give as many channels"
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
