"""Elements of BYTES, decoded: texts, images and sounds. Each raises RequestError where it does not read."""

import base64
import binascii
import io

import numpy as np
from numpy.typing import NDArray

from dynamic.data.picture_decoding import PictureError, read_picture
from dynamic.data.sound.sound_files import load_sound
from dynamic.data.sound.waveform import Sound
from dynamic.policies.errors import InputError
from dynamic.serve.request_errors import RequestError, invalid

# Pillow reads others too. Some of them start programs, as EPS does, or are seldom looked after
FORMATS = ("JPEG", "PNG", "WEBP")


def text_of(content: bytes, what: str) -> str:
    """A text of UTF-8."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise invalid(f"{what} is no UTF-8 ({error.reason} at byte {error.start}): encode it so") from error


def base64_of(content: bytes, what: str) -> bytes:
    """Bytes that a text of JSON encodes."""
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(f"{what} is no base64 ({error}): encode the file so, or send binary tensor data") from error


def sound_of(content: bytes, what: str) -> Sound:
    """A wav file. Several channels become one."""
    try:
        return load_sound(content, mono=True)
    except InputError as error:
        raise invalid(f"{what}: {error}") from error


def pixels_of(content: bytes, what: str) -> int:
    """The number of pixels of an image file, by its header."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return image.width * image.height
    except UnidentifiedImageError as error:
        raise _unreadable(what, "it is none of " + ", ".join(FORMATS) if content else "it is empty") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RequestError("too_large", f"{what} is too large: {error}") from error
    except Exception as error:  # on damaged files Pillow's plugins raise any exception
        raise _unreadable(what, str(error) or type(error).__name__) from error


def picture_of(content: bytes, what: str, channels: int | None) -> NDArray[np.uint8]:
    """The pixels of an image file that `pixels_of` let pass."""
    try:
        return read_picture(content, what, channels, formats=FORMATS)
    except PictureError as error:
        raise _unreadable(what, error.reason) from error


def _unreadable(what: str, reason: str) -> RequestError:
    return invalid(f"{what} does not read as an image ({reason}): send a whole JPEG, PNG or WebP file")
