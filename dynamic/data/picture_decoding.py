"""One reader of pictures, for building and for running: upright, 8 bits a channel, gray or RGB."""

import io
import logging
import sys
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.errors import DynamicError, InputError

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_PIXELS = 178_956_970  # Pillow's own limit of a decompression bomb: half a gigabyte as RGB

_GRAY = ("1", "L", "LA", "La")
_DEEP = ("I;16", "I;16L", "I;16B", "I;16N")
_SIXTEEN_BITS = ("PNG", "PPM")  # formats of which some versions of Pillow give 16 bits as mode "I", of 32
_ORIENTATION = 0x0112  # EXIF 2.32, table 4
_TIFF_WIDTH, _TIFF_BITS = 0x0100, 0x0102  # TIFF 6.0, pages 34 and 29
# how EXIF's orientation is undone on [H, W, ...]: (transposed first, flipped upside down, flipped left to right)
_TURNS = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}

logger = logging.getLogger("dynamic")


class PictureError(InputError):
    """A picture that does not read. `name` is the picture, `reason` the cause."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} does not read as an image ({reason}): remove it, or copy it again")
        self.name, self.reason = name, reason


def is_picture(image: Any) -> TypeGuard["Image"]:
    """Whether this is an image of Pillow. Pillow is not imported: where it is not loaded, there is no such image."""
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(image, pillow.Image)


def read_picture(
    content: bytes, name: str, channels: int | None = None, *, formats: tuple[str, ...] | None = None
) -> NDArray[np.uint8]:
    """Decode an image file.

    Args:
        content: The bytes of the file.
        name: What messages call it.
        channels: 1 for gray, 3 for RGB, None for gray where the image is gray and else RGB.
        formats: Pillow's names of the formats that are read, such as "PNG". None: all that Pillow has.

    Returns:
        `[H, W, channels]`, turned as its EXIF orientation says. Of 16 bits a channel the upper 8 are taken.

    Raises:
        PictureError: The file is empty, damaged, too large or of pixels without a fixed range.
        DynamicError: Pillow is not installed.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ModuleNotFoundError as error:
        raise DynamicError('decoding images needs Pillow: pip install "dynamic-inference[images]"') from error
    if not content:
        raise PictureError(name, "the file is empty")
    try:
        with Image.open(io.BytesIO(content), formats=formats) as image:
            _check_size(image)
            image.load()
            _check_size(image)  # again: the directory of an ICO file may have another size than the PNG inside
            return _pixels(image, channels, alpha=False)
    except UnidentifiedImageError as error:  # its message names an internal buffer
        raise PictureError(
            name, "no format of Pillow" if formats is None else f"none of {', '.join(formats)}"
        ) from error
    except Exception as error:  # on damaged files Pillow's plugins raise any exception
        raise PictureError(name, str(error) or type(error).__name__) from error


def picture_pixels(image: "Image") -> NDArray[np.uint8]:
    """The pixels of an image of Pillow, as `read_picture` returns them for its file.

    Args:
        image: The image. It is not changed.

    Returns:
        `[H, W, C]`: C is 1 for a gray image, 4 for mode RGBA, and else 3.

    Raises:
        PictureError: Its file is damaged, or its pixels have no fixed range.
    """
    try:
        return _pixels(image, None, alpha=True)
    except Exception as error:  # as above: Pillow reads the pixels of a file late
        raise PictureError("the image", str(error) or type(error).__name__) from error


def picture_shape(image: "Image") -> tuple[int, int, int]:
    """The shape `[H, W, C]` of `picture_pixels`, without decoding the image."""
    turn = _TURNS.get(_orientation(image))
    height, width = image.height, image.width
    if turn is not None and turn[0] and getattr(image, "tag_v2", {}).get(_TIFF_WIDTH, width) == width:
        height, width = width, height  # newer versions of Pillow have turned a TIFF already
    gray = image.mode in (*_GRAY, *_DEEP, "I", "F")
    return height, width, 1 if gray else 4 if image.mode == "RGBA" else 3


def copy_picture(image: "Image") -> "Image":
    """A copy of an image with its pixels and orientation, independent of its file.

    Args:
        image: The image.

    Returns:
        The copy.

    Raises:
        Exception: Whatever Pillow raises on a damaged file.
    """
    from PIL.Image import Exif

    image.load()  # see _pixels
    copied = image.copy()
    copied.format = image.format  # it decides how deep pixels are, and Pillow's own copy has none
    if hasattr(image, "tag_v2"):  # of TIFF
        copied.tag_v2 = image.tag_v2  # type: ignore[attr-defined]
    if hasattr(image, "filename"):  # a group of the drift test may be found by it
        copied.filename = image.filename  # type: ignore[attr-defined]
    orientation = _orientation(image)
    if orientation in _TURNS and _orientation(copied) != orientation:  # of TIFF it is no EXIF data
        exif = Exif()
        exif[_ORIENTATION] = orientation
        copied.info["exif"] = exif.tobytes()
    return copied


def _check_size(image: "Image") -> None:
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels, and at most {MOST_PIXELS} are read")


def _pixels(image: "Image", channels: int | None, alpha: bool) -> NDArray[np.uint8]:
    image.load()  # first: newer versions of Pillow turn a TIFF here, and it then has no orientation any more
    turn = _TURNS.get(_orientation(image))
    image = _eight_bits(image)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # to RGB at once, Pillow warns
        alpha = False
    gray = image.mode in _GRAY if channels is None else channels == 1
    mode = "L" if gray else "RGBA" if alpha and image.mode == "RGBA" else "RGB"
    array = np.asarray(image if image.mode == mode else image.convert(mode))
    if turn is not None:
        transposed, upside_down, mirrored = turn
        array = array.swapaxes(0, 1) if transposed else array
        array = np.ascontiguousarray(array[:: -1 if upside_down else 1, :: -1 if mirrored else 1])
    return array[..., None] if gray else array


def _eight_bits(image: "Image") -> "Image":
    """An image of 8 bits a channel. Pillow's own conversion clips at 255, so that 16 bits become white."""
    from PIL import Image

    deep = image.mode in _DEEP or (image.mode == "I" and image.format in _SIXTEEN_BITS)
    if deep:  # the upper byte, which Pillow takes of 16 bits in colour too
        return Image.fromarray((np.asarray(image).astype(np.int64) >> (_depth(image) - 8)).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are 32-bit numbers without a fixed range, mode {image.mode}: save it with 8 bits")
    return image


def _depth(image: "Image") -> int:
    """Bits of a pixel of a deep image. TIFF may use 12 of the 16 that Pillow gives."""
    bits = getattr(image, "tag_v2", {}).get(_TIFF_BITS, (16,))
    return int(min(16, max(8, *bits)))


def _orientation(image: "Image") -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception as error:  # EXIF may be damaged and the pixels good
        logger.debug("EXIF data of %s do not read (%s): taken as upright", image, error)
        return 1
