"""Steps of preprocessing on uint8 images beside the resize: crop, gray and RGB."""

from dataclasses import dataclass

import numpy as np

from dynamic.data.number_steps import own_numbers
from dynamic.data.resize_step import Pixels, Resize, check_sides
from dynamic.policies.errors import SettingError


@dataclass(frozen=True)
class CenterCrop:
    """Cut the middle out of an image. A smaller image is padded with zeros first.

    Args:
        size: (height, width) of the result.

    Raises:
        SettingError: A size is out of range.

    Example:
        >>> dynamic.data.CenterCrop((224, 224))(np.zeros((256, 256, 3), np.uint8)).shape
        (224, 224, 3)
    """

    size: tuple[int, int]

    def __post_init__(self) -> None:
        own_numbers(self)
        check_sides("CenterCrop", self.size)

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
        SettingError: `channels` is neither 1 nor 3.

    Example:
        >>> dynamic.data.Gray()(np.full((1, 1, 3), [255, 0, 0], np.uint8)).tolist()
        [[[76]]]
    """

    channels: int = 1

    def __post_init__(self) -> None:
        own_numbers(self)
        if self.channels not in (1, 3):
            raise SettingError(f"Gray(channels={self.channels}): give 1 or 3")

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


ImageStep = Resize | CenterCrop | Gray | RGB  # on uint8 images
