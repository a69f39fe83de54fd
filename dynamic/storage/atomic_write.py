"""Files that appear whole or not at all, and words where the disk refuses."""

import contextlib
import errno
import functools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Concatenate, ParamSpec

from dynamic.policies.errors import DiskError
from dynamic.storage.regular_files import open_regular
from dynamic.storage.temporary_files import fresh_file

_PIECE = 1 << 20  # bytes
P = ParamSpec("P")


@contextmanager
def disk_errors(what: str, target: Path) -> Iterator[None]:
    """Turn an error of the disk into one line of words.

    Args:
        what: What is being written.
        target: Where to.

    Yields:
        Nothing.

    Raises:
        DiskError: The block raised OSError.
    """
    try:
        yield
    except DiskError:
        raise
    except OSError as error:
        raise DiskError(
            f"{what} could not be written to {target}: {error.strerror or error}{_free(error, target)}. "
            "Choose another folder"
        ) from error


def explain_disk_errors(
    what: str,
) -> Callable[[Callable[Concatenate[Path, P], None]], Callable[Concatenate[Path, P], None]]:
    """`disk_errors` around a function whose first argument is the folder that it writes to.

    Args:
        what: What it writes.

    Returns:
        The decorator.
    """

    def decorator(function: Callable[Concatenate[Path, P], None]) -> Callable[Concatenate[Path, P], None]:
        @functools.wraps(function)
        def wrapper(folder: Path, /, *args: P.args, **kwargs: P.kwargs) -> None:
            with disk_errors(what, folder):
                function(folder, *args, **kwargs)

        return wrapper

    return decorator


def replace_text(path: Path, text: str) -> None:
    """Write a text file that appears whole or not at all.

    Args:
        path: The file. One that is there is replaced.
        text: Its content.

    Raises:
        OSError: It could not be written. Nothing is left of it.
    """
    with fresh_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def keep_text(folder: Path, room: str, name: str, text: str) -> None:
    """Write a text file into a room of a bundle's folder, which is made.

    Args:
        folder: The bundle's folder.
        room: Name of a folder in it.
        name: Name of the file.
        text: Its content.

    Raises:
        OSError: It could not be written, or the room is a link.
    """
    replace_text(make_room(folder, room) / name, text)


def make_room(folder: Path, room: str) -> Path:
    """Make a folder in a bundle's folder, where it is not there yet.

    Args:
        folder: The bundle's folder.
        room: Name of the folder in it.

    Returns:
        Its path.

    Raises:
        OSError: It is a link, and what is written has to stay in the bundle, or it could not be made.
    """
    place = folder / room
    with contextlib.suppress(FileExistsError):
        place.mkdir()
    if not is_own_folder(place):
        raise OSError(errno.ENOTDIR, "it is a link or no folder, so nothing is written there: remove it", str(place))
    return place


def is_own_folder(path: Path) -> bool:
    """Whether a path is a folder itself, and no link to one."""
    return path.is_dir() and not path.is_symlink()


def copy_room(source: Path, target: Path) -> None:
    """Copy the JSON files of a room, which no manifest lists. Links, other files and folders stay behind.

    Args:
        source: The folder. One that is missing, or a link, is empty.
        target: The other folder, which is made where there is something to copy.

    Raises:
        OSError: The first error.
    """
    if not is_own_folder(source):
        return
    for entry in sorted(source.iterdir()):
        if entry.name.startswith(".") or entry.suffix != ".json" or entry.is_symlink() or not entry.is_file():
            continue
        if not os.access(entry, os.R_OK):  # of another user, who keeps it private
            continue
        target.mkdir(exist_ok=True)
        try:
            copy_file(entry, target / entry.name)
        except FileNotFoundError:  # replaced or removed meanwhile
            continue


def copy_file(source: Path, target: Path) -> None:
    """Copy a file with its times. Its rights are those of a new file, as volumes and temporary folders have others.

    Args:
        source: The file.
        target: Its copy, in a folder of our own.

    Raises:
        OSError: It cannot be read or written, or is no regular file.
    """
    try:
        with open_regular(source) as content, target.open("wb") as file:
            shutil.copyfileobj(content, file, _PIECE)
            state = os.fstat(content.fileno())
    except ValueError as error:
        raise OSError(errno.EINVAL, str(error), str(source)) from error
    with contextlib.suppress(OSError):  # some volumes keep no times
        os.utime(target, ns=(state.st_atime_ns, state.st_mtime_ns))


def _free(error: OSError, target: Path) -> str:
    """How much room there is, where that was the reason."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return ""
    place = target
    while not place.exists() and place != place.parent:
        place = place.parent
    with contextlib.suppress(OSError):
        return f", {shutil.disk_usage(place).free / 1e6:.1f} MB are free"
    return ""
