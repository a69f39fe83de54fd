"""The pixels of a user's images as arrays, with an error in words where there are none."""

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from dynamic.data.arrays import as_array
from dynamic.data.picture_decoding import is_picture, picture_pixels, picture_shape
from dynamic.data.resize_step import Pixels
from dynamic.policies.errors import InputError

_CHANNELS = (1, 3, 4)  # gray, RGB, RGBA
_CONVERTED = ("P", "PA", "CMYK", "YCbCr", "HSV", "LAB", "RGBX", "RGBa")  # modes of PIL that the user converts


def sizes_of(image: Any) -> tuple[int, int, int] | None:
    """The `[H, W, C]` of an image, or of those of a batch. None where another check reports what is wrong."""
    if is_picture(image):
        return picture_shape(image) if image.mode not in _CONVERTED else None
    shape = image.shape
    if len(shape) == 2:
        return shape[0], shape[1], 1
    return shape[-3:] if len(shape) in (3, 4) and shape[-1] in _CHANNELS else None


def pixels_of(image: Any) -> Pixels:
    """The pixels of an image or a batch, uint8.

    Args:
        image: An image of PIL, or an array `[H, W]`, `[H, W, C]` or `[B, H, W, C]`.

    Returns:
        The pixels, as a view where that is possible.

    Raises:
        InputError: It is something else, of another dtype or mode, or empty.
    """
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


def one_image(image: Any) -> Pixels:
    """The pixels `[H, W, C]` of one image. Raises InputError on another shape."""
    array = pixels_of(image)
    if array.ndim == 2:
        return array[..., None]
    if array.ndim != 3 or array.shape[2] not in _CHANNELS:
        raise InputError(
            f"the image has shape {list(array.shape)}, expected [H, W] or [H, W, C] with C of {_CHANNELS}: "
            "move the channels last, and give a batch of gray images as [B, H, W, 1]"
        )
    return array


def checked_batch(array: Pixels) -> Pixels:
    """The pixels `[B, H, W, C]` of a batch. Raises InputError on another shape."""
    if array.ndim != 4 or array.shape[3] not in _CHANNELS:
        raise InputError(
            f"the images have shape {list(array.shape)}, expected [B, H, W, C] with C of {_CHANNELS}: "
            "move the channels last"
        )
    return array


def stacked(images: Sequence[Pixels]) -> Pixels:
    """Images of one size as a batch. Raises InputError on several sizes."""
    shapes = sorted({image.shape for image in images})
    if len(shapes) > 1:
        raise InputError(
            f"the images come out of preprocessing as {[list(s) for s in shapes]}. One batch needs one size: "
            "add a CenterCrop, a Resize to (height, width) or RGB(), or give them one by one"
        )
    return np.stack(images)
