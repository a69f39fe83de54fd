"""Steps of preprocessing on float32 pixels: scale and normalize."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.errors import InputError, SettingError
from dynamic.policies.validation.numbers import plain_items

Floats = NDArray[np.float32]


def own_numbers(step: Any) -> None:
    """Replace numbers of numpy in a step by Python's own: steps are compared and written as JSON."""
    for name, value in vars(step).items():
        object.__setattr__(step, name, plain_items(value))


def check_count(name: str, value: object, most: int) -> None:
    """Check a setting that counts something.

    Args:
        name: As in "LogMel(mels".
        value: The setting.
        most: The largest value.

    Raises:
        SettingError: The value is no whole number from 1 to `most`.
    """
    if not is_count(value, most):
        raise SettingError(f"{name}={value!r:.80}): give a whole number from 1 to {most}")


def is_count(value: object, most: int) -> bool:
    """Return whether a value is a whole number from 1 to `most`."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


@dataclass(frozen=True)
class Scale:
    """Divide pixels, which are float32 from here on.

    Args:
        divisor: A positive number.
        reciprocal: Whether to multiply by the inverse, as torchvision's v2 does. The last bit differs.

    Raises:
        SettingError: `divisor` is not a positive number.

    Example:
        >>> dynamic.data.Scale().divisor
        255.0
    """

    divisor: float = 255.0
    reciprocal: bool = False

    def __post_init__(self) -> None:
        own_numbers(self)
        if isinstance(self.divisor, bool) or not 1e-30 < self.divisor < 1e30:
            raise SettingError(f"Scale(divisor={self.divisor}): give a positive number, usually 255")

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
        SettingError: Numbers of means and standard deviations differ, or one of them is out of range.

    Example:
        >>> dynamic.data.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)).mean[0]
        0.485
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        own_numbers(self)
        if not (len(self.mean) > 0 and len(self.std) in (1, len(self.mean))):
            raise SettingError(f"Normalize has {len(self.mean)} means and {len(self.std)} stds: give as many of each")
        with np.errstate(over="ignore", under="ignore"):  # as float32, which has a smaller range
            mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        if not np.isfinite(mean).all() or not (np.isfinite(std).all() and std.min() > 0):
            raise SettingError(f"Normalize(mean={self.mean}, std={self.std}): give finite means and positive stds")

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


NumberStep = Scale | Normalize  # on float32 [B, C, H, W]
