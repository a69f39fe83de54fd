"""Image files one by one, from files, folders and zips. Building and running read them in the same way."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from dynamic.data.named_files import NamedFile, files_in, find_files
from dynamic.data.picture_decoding import PictureError, read_picture


@dataclass(frozen=True)
class Picture(NamedFile):
    """An image that is read on demand. Its fields are those of `NamedFile`."""

    endings: ClassVar = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")
    plural: ClassVar = "images"
    files: ClassVar = "image files"

    def pixels(self, channels: int | None = None) -> NDArray[np.uint8]:
        """Read and decode the image. See `read_picture`.

        Args:
            channels: 1 for gray, 3 for RGB. None: gray for a gray image, else RGB.

        Returns:
            Pixels `[H, W, channels]`.

        Raises:
            InputError: The image does not read.
            DynamicError: Pillow is not installed.
        """
        try:
            content = self.read()
        except FileNotFoundError as error:
            raise PictureError(self.name, "it does not exist, or is a link without a target") from error
        except Exception as error:  # zipfile raises RuntimeError for a password, zlib.error for damage, and others
            raise PictureError(self.name, str(error) or type(error).__name__) from error
        return read_picture(content, self.name, channels)


def find_pictures(paths: Iterable[Path], split: str | None = None) -> list[Picture]:
    """Find every image at some paths. See `find_files`.

    Args:
        paths: Image files, folders and zips.
        split: Name of the folder above the class folders. None: images of all folders.

    Returns:
        The images. Those of a folder or zip come by name.

    Raises:
        InputError: A path does not exist or holds no image.
    """
    return find_files(Picture, paths, split)


def pictures_in(source: Path) -> list[Picture]:
    """Every image in a folder or zip, by name. See `files_in`."""
    return files_in(Picture, source)
