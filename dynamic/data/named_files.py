"""Files of one kind, such as images or recordings, in folders and zips. All kinds are found in the same way."""

import logging
import os
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import ClassVar, TypeVar

from dynamic.policies.errors import InputError

MOST_BYTES = 2**30  # of one file: a zip can hold far more than it weighs

logger = logging.getLogger("dynamic")


@dataclass(frozen=True)
class NamedFile:
    """A file that is read on demand.

    Args:
        name: Name for messages.
        folder: Name of the folder that holds it, in data sets its class. For a link, that of the link.
        read: Returns the bytes of the file. Raises ValueError where it is too large, or no file.
        place: Path within the folder or zip that was searched.
    """

    endings: ClassVar[tuple[str, ...]]
    plural: ClassVar[str]  # in messages, such as "images"
    files: ClassVar[str]  # in messages, such as "image files"

    name: str
    folder: str
    read: Callable[[], bytes]
    place: PurePosixPath


Kind = TypeVar("Kind", bound=NamedFile)


def find_files(kind: type[Kind], paths: Iterable[Path], split: str | None = None) -> list[Kind]:
    """Find every file of a kind at some paths.

    Args:
        kind: The kind.
        paths: Files of any name, folders, and zips.
        split: Name of the folder above the class folders. None: files of all folders.

    Returns:
        The files. Those of a folder or zip come by name.

    Raises:
        InputError: A path does not exist or holds no such file.
    """
    files: list[Kind] = []
    for path in paths:
        if not path.exists():
            raise InputError(f"{path} does not exist: give {kind.files}, folders or zips")
        if not path.is_dir() and not (path.is_file() and zipfile.is_zipfile(path)):
            folder = os.path.basename(os.path.dirname(os.path.abspath(path)))
            files.append(kind(str(path), folder, partial(_content, path), PurePosixPath(path.name)))
            continue
        inside = files_in(kind, path)
        splits = {file.name: _split_of(file, path) for file in inside}
        chosen = [file for file in inside if split is None or splits[file.name] == split]
        if not chosen:
            have = sorted(set(splits.values()) - {""})
            wanted = f" of split {split!r}: it has {have}" if inside else f": they end in {', '.join(kind.endings)}"
            raise InputError(f"{path} holds no {kind.plural}{wanted}")
        files += chosen
    return files


def files_in(kind: type[Kind], source: Path) -> list[Kind]:
    """Every file of a kind in a folder or zip, by name.

    Args:
        kind: The kind.
        source: The folder, in which links are followed as torchvision's ImageFolder does, or the zip.

    Returns:
        The files. What is hidden, or has another ending, is none.

    Raises:
        InputError: A folder cannot be listed, or a zip does not read or holds links.
    """
    files = _folder(kind, source) if source.is_dir() else _archive(kind, source)
    return sorted(files, key=lambda file: file.place)


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


def _split_of(file: NamedFile, source: Path) -> str:
    """The folder above that of a file, which may be the searched folder itself."""
    above = file.place.parent.parent.name
    if above or not source.is_dir() or file.place.parent == PurePosixPath():
        return above
    return os.path.basename(os.path.abspath(source))


def _folder(kind: type[Kind], source: Path) -> Iterator[Kind]:
    for place in _walk(source, PurePosixPath(), frozenset(), kind.endings):
        path = source / place
        folder = os.path.basename(os.path.dirname(os.path.abspath(path)))
        yield kind(str(path), folder, partial(_content, path), place)


def _walk(
    source: Path, place: PurePosixPath, above: frozenset[tuple[int, int]], endings: tuple[str, ...]
) -> Iterator[PurePosixPath]:
    """Places of files. `above` holds device and inode of the folders on the way, as a link may lead back to one."""
    status = (source / place).stat()
    key = status.st_dev, status.st_ino
    if key in above:
        logger.warning("%s is a link to a folder above it and is skipped", source / place)
        return
    for entry in _entries(source / place):
        inside = place / entry.name
        if _is_folder(entry):
            yield from _walk(source, inside, above | {key}, endings)
        elif inside.suffix.lower() in endings:
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


def _archive(kind: type[Kind], source: Path) -> Iterator[Kind]:
    try:
        archive = zipfile.ZipFile(source)  # open as long as a file refers to it
    except zipfile.BadZipFile as error:
        raise InputError(f"{source} is no zip that reads ({error}): give a folder or .zip of class folders") from error
    for info in archive.infolist():
        place = PurePosixPath(info.filename)
        if _is_hidden(place):
            continue
        if stat.S_ISLNK(info.external_attr >> 16):
            raise InputError(f"{place} in {source} is a link: zip again with links followed, without --symlinks")
        if place.suffix.lower() in kind.endings and not info.is_dir():
            yield kind(f"{source}/{place}", place.parent.name, partial(_member, archive, info), place)


def _content(path: Path) -> bytes:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no file")  # reading a pipe would wait
    _check_size(status.st_size)
    return path.read_bytes()


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    _check_size(info.file_size)
    return archive.read(info)


def _check_size(count: int) -> None:
    if count > MOST_BYTES:
        raise ValueError(f"{count} bytes, and at most {MOST_BYTES} are read")


def _is_hidden(place: PurePosixPath) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in place.parts)
