"""Image files one by one, from files, folders and zips. Building and running read them in the same way."""

import logging
import os
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from dynamic.data.picture_decoding import PictureError, read_picture
from dynamic.policies.errors import InputError

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")
MOST_BYTES = 2**30  # of one file: a zip can hold far more than it weighs

logger = logging.getLogger("dynamic")


@dataclass(frozen=True)
class Picture:
    """An image that is read on demand.

    Args:
        name: Name for messages.
        folder: Name of the folder that holds it, in data sets its class. For a link, that of the link.
        read: Returns the bytes of the file.
        place: Path within the folder or zip that was searched.
    """

    name: str
    folder: str
    read: Callable[[], bytes]
    place: PurePosixPath

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
        except PictureError:
            raise
        except FileNotFoundError as error:
            raise PictureError(self.name, "it does not exist, or is a link without a target") from error
        except Exception as error:  # zipfile raises RuntimeError for a password, zlib.error for damage, and others
            raise PictureError(self.name, str(error) or type(error).__name__) from error
        return read_picture(content, self.name, channels)


def find_pictures(paths: Iterable[Path], split: str | None = None) -> list[Picture]:
    """Find every image at some paths.

    Args:
        paths: Image files, folders and zips.
        split: Name of the folder above the class folders. None: images of all folders.

    Returns:
        The images. Those of a folder or zip come by name.

    Raises:
        InputError: A path does not exist or holds no image.
    """
    pictures: list[Picture] = []
    for path in paths:
        if not path.exists():
            raise InputError(f"{path} does not exist: give image files, folders or zips")
        if path.is_file() and not zipfile.is_zipfile(path):
            folder = os.path.basename(os.path.dirname(os.path.abspath(path)))
            pictures.append(Picture(str(path), folder, partial(_content, path), PurePosixPath(path.name)))
            continue
        inside = pictures_in(path)
        chosen = [picture for picture in inside if split is None or picture.place.parent.parent.name == split]
        if not chosen:
            have = sorted({picture.place.parent.parent.name for picture in inside} - {""})
            wanted = f" of split {split!r}: it has {have}" if inside else f": they end in {', '.join(ENDINGS)}"
            raise InputError(f"{path} holds no images{wanted}")
        pictures += chosen
    return pictures


def pictures_in(source: Path) -> list[Picture]:
    """Every image in a folder or zip, by name.

    Args:
        source: The folder, in which links are followed as torchvision's ImageFolder does, or the zip.

    Returns:
        The images. What is hidden, or has another ending, is none.

    Raises:
        InputError: A folder cannot be listed, or a zip does not read or holds links.
    """
    return sorted(_folder(source) if source.is_dir() else _archive(source), key=lambda picture: picture.place)


def folders_in(source: Path, place: PurePosixPath) -> list[str]:
    """Names of the folders at a place in a folder or zip, links without a target included."""
    if source.is_dir():
        entries = _entries(source / place)
        return [entry.name for entry in entries if _is_folder(entry) or _leads_nowhere(entry)]
    prefix = "" if place == PurePosixPath() else f"{place}/"
    with zipfile.ZipFile(source) as archive:
        names = [name.removeprefix("./") for name in archive.namelist()]
    inside = (name[len(prefix) :].partition("/") for name in names if name.startswith(prefix))
    return sorted({first for first, slash, _ in inside if slash and not _is_hidden(PurePosixPath(first))})


def _folder(source: Path) -> Iterator[Picture]:
    for place in _walk(source, PurePosixPath(), frozenset()):
        path = source / place
        folder = os.path.basename(os.path.dirname(os.path.abspath(path)))
        yield Picture(str(path), folder, partial(_content, path), place)


def _walk(source: Path, place: PurePosixPath, above: frozenset[tuple[int, int]]) -> Iterator[PurePosixPath]:
    """Places of images. `above` holds device and inode of the folders on the way, as a link may lead back to one."""
    status = (source / place).stat()
    key = status.st_dev, status.st_ino
    if key in above:
        logger.warning("%s is a link to a folder above it and is skipped", source / place)
        return
    for entry in _entries(source / place):
        inside = place / entry.name
        if _is_folder(entry):
            yield from _walk(source, inside, above | {key})
        elif inside.suffix.lower() in ENDINGS:
            yield inside
        elif _leads_nowhere(entry):
            logger.warning("%s is a link without a target and is skipped", source / inside)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _entries(folder: Path) -> "list[os.DirEntry[str]]":
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not _is_hidden(PurePosixPath(e.name))), key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"{folder} cannot be listed ({error.strerror}): grant the right to read it") from error


def _leads_nowhere(entry: "os.DirEntry[str]") -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)


def _archive(source: Path) -> Iterator[Picture]:
    try:
        archive = zipfile.ZipFile(source)  # open as long as a picture refers to it
    except zipfile.BadZipFile as error:
        raise InputError(f"{source} is no zip that reads ({error}): give a folder or .zip of class folders") from error
    for info in archive.infolist():
        place = PurePosixPath(info.filename)
        if _is_hidden(place):
            continue
        if stat.S_ISLNK(info.external_attr >> 16):
            raise InputError(f"{place} in {source} is a link: zip again with links followed, without --symlinks")
        if place.suffix.lower() in ENDINGS and not info.is_dir():
            yield Picture(f"{source}/{place}", place.parent.name, partial(_member, archive, info), place)


def _content(path: Path) -> bytes:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise PictureError(str(path), "it is no file")  # reading a pipe would wait
    _check_size(str(path), status.st_size)
    return path.read_bytes()


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    _check_size(info.filename, info.file_size)
    return archive.read(info)


def _check_size(name: str, count: int) -> None:
    if count > MOST_BYTES:
        raise PictureError(name, f"{count} bytes, and at most {MOST_BYTES} are read")


def _is_hidden(place: PurePosixPath) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in place.parts)
