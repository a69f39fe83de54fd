"""Image files one by one, from files, folders and zips: what a shell user points at."""

import io
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.errors import DynamicError, InputError

_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")


@dataclass(frozen=True)
class Picture:
    """An image that is read when asked; `folder` is the name of the folder it lies in, in data sets its class."""

    name: str
    folder: str
    read: Callable[[], bytes]

    def pixels(self, channels: int | None = None) -> NDArray[np.uint8]:
        """`[H, W, channels]`, gray (1) or colour (3); None: gray where the image is, else colour.

        Raises InputError where it does not read, DynamicError where Pillow is not installed.
        """
        try:
            from PIL import Image, UnidentifiedImageError
        except ModuleNotFoundError as error:
            raise DynamicError('decoding images needs Pillow: pip install "dynamic-inference[images]"') from error
        broken = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what Pillow raises
        packed = (zipfile.BadZipFile, zlib.error, RuntimeError)  # RuntimeError: a password
        try:
            with Image.open(io.BytesIO(self.read())) as image:
                gray = image.mode == "L" if channels is None else channels == 1
                array = np.asarray(image.convert("L" if gray else "RGB"))
        except (*broken, *packed) as error:
            # this one names a buffer of ours
            why = "no format that Pillow knows" if isinstance(error, UnidentifiedImageError) else error
            raise InputError(f"{self.name} does not read as an image ({why}); remove it, or copy it again") from error
        return array[..., None] if array.ndim == 2 else array


def find_pictures(paths: Iterable[Path], split: str | None = None) -> list[Picture]:
    """Every image at these paths; of folders and zips all that lie in them, by name.

    `split`: only images of `<split>/<class>/<image>`. Raises InputError where a path does not exist or holds no image.
    """
    found: list[Picture] = []
    for path in paths:
        if not path.exists():
            raise InputError(f"{path} does not exist; give image files, folders or zips")
        if path.is_file() and not zipfile.is_zipfile(path):
            found.append(Picture(str(path), path.resolve().parent.name, path.read_bytes))
            continue
        inside = list(_folder(path) if path.is_dir() else _archive(path))
        chosen = [picture for name, picture in inside if split is None or name.parent.parent.name == split]
        if not chosen:
            have = sorted({name.parent.parent.name for name, _ in inside} - {""})
            wanted = f" of split {split!r}; it has {have}" if inside else f"; they end in {', '.join(_ENDINGS)}"
            raise InputError(f"{path} holds no images{wanted}")
        found += chosen
    return found


def _folder(path: Path) -> Iterator[tuple[PurePosixPath, Picture]]:
    for file in sorted(path.rglob("*")):
        name = PurePosixPath(file.relative_to(path).as_posix())
        if _is_image(name):
            yield name, Picture(str(file), file.resolve().parent.name, file.read_bytes)


def _archive(path: Path) -> Iterator[tuple[PurePosixPath, Picture]]:
    archive = zipfile.ZipFile(path)  # stays open as long as a picture refers to it
    for name in map(PurePosixPath, sorted(archive.namelist())):
        if _is_image(name):
            yield name, Picture(f"{path}/{name}", name.parent.name, partial(archive.read, str(name)))


def _is_image(name: PurePosixPath) -> bool:
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in name.parts)
    return not hidden and name.suffix.lower() in _ENDINGS
