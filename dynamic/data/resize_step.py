"""The resize step of preprocessing, by Pillow."""

import math
from dataclasses import KW_ONLY, dataclass
from types import ModuleType
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from dynamic.data.number_steps import own_numbers
from dynamic.policies.errors import DynamicError, InputError, SettingError
from dynamic.policies.validation.fields import short

Pixels = NDArray[np.uint8]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)
MOST_RESIZED = 2**26  # pixels that a resize makes: a picture one pixel high becomes gigabytes else


@dataclass(frozen=True)
class Resize:
    """Resize with Pillow.

    Args:
        size: Length of the shorter side, or (height, width). With a length the ratio of the sides remains.
        interpolation: Pillow's filter: "nearest", "bilinear", "bicubic", "lanczos", "box" or "hamming".
        longest: Upper limit of the longer side, which shrinks the shorter one too. Only with a length.

    Raises:
        SettingError: A size is out of range, the filter is unknown, or `longest` does not exceed `size`.

    Example:
        >>> dynamic.data.Resize(256)(np.zeros((300, 600, 3), np.uint8)).shape
        (256, 512, 3)
    """

    size: int | tuple[int, int]
    interpolation: Interpolation = "bilinear"
    _: KW_ONLY
    longest: int | None = None

    def __post_init__(self) -> None:
        own_numbers(self)
        check_sides("Resize", self.size)
        if self.interpolation not in INTERPOLATIONS:
            raise SettingError(f"interpolation={self.interpolation!r} is not known: use one of {INTERPOLATIONS}")
        if self.longest is not None and not (
            isinstance(self.size, int) and isinstance(self.longest, int) and self.size < self.longest <= MOST_RESIZED
        ):
            raise SettingError(f"longest={self.longest} must exceed size={self.size}, the shorter side (an int)")

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


def check_sides(name: str, size: int | tuple[int, int]) -> None:
    """Check the size of a step. Raises SettingError on a size that is out of range."""
    sides = (size,) if isinstance(size, int) else size
    if len(sides) > 2 or (not isinstance(size, int) and len(sides) != 2):
        raise SettingError(f"{name}({size}): give (height, width)")
    if not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides):
        raise SettingError(f"{name}({short(size)}): sizes are whole numbers above 0")
    if math.prod(sides) > MOST_RESIZED:
        raise SettingError(f"{name}({short(size)}): at most {MOST_RESIZED} pixels are made, give smaller sizes")


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
