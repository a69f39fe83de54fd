"""Files that appear whole or not at all, and words where the disk refuses."""

import contextlib
import errno
import functools
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Concatenate, ParamSpec

from dynamic.locking import is_same_file, try_lock
from dynamic.policies.errors import DiskError

P = ParamSpec("P")

_NO_SYNC = (errno.EINVAL, errno.EROFS, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)  # of volumes that cannot


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
            f"{what} could not be written to {target}: {error.strerror or error}{_free(error, target)}; "
            "choose another folder"
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


@contextmanager
def fresh_file(path: Path) -> Iterator[Path]:
    """A new file that takes the place of another once it is complete. Readers see the old one or the new one.

    Args:
        path: The file to replace. A link is replaced, never followed.

    Yields:
        Where to write: an empty file beside `path`, which the umask gives its rights.

    Raises:
        OSError: It could not be written. Nothing is left of it.
    """
    _remove_abandoned(path)
    partial, descriptor = _exclusive(path)
    try:
        try:
            yield partial
            os.fsync(descriptor)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    finally:
        os.close(descriptor)
    sync_folder(path.parent)


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
        OSError: It could not be written, or the room is a link: what is written stays in the bundle.
    """
    place = folder / room
    with contextlib.suppress(FileExistsError):
        place.mkdir()
    if not is_own_folder(place):
        raise OSError(errno.ENOTDIR, "it is a link or no folder, so nothing is written there: remove it", str(place))
    replace_text(place / name, text)


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
        OSError: It cannot be read or written.
    """
    shutil.copyfile(source, target)
    with contextlib.suppress(OSError):  # some volumes keep no times
        stat = source.stat()
        os.utime(target, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def sync_tree(folder: Path) -> None:
    """Wait until the files below a folder are on the disk, where a power cut leaves them.

    Args:
        folder: The folder.

    Raises:
        OSError: The disk is full, or failed.
    """
    for place, _, names in os.walk(folder):
        for name in names:
            sync_file(Path(place, name))
        sync_folder(Path(place))


def sync_file(path: Path) -> None:
    """Wait until a file is on the disk. Raises OSError where the disk is full, or failed."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk. Does nothing on a system that opens no folders."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    with contextlib.suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _sync(descriptor)
        finally:
            os.close(descriptor)


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def _exclusive(path: Path) -> tuple[Path, int]:
    """A new file beside `path` under a random name, open and locked. A link that was planted is not followed."""
    while True:
        partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        # the lock says that its writer lives; one who looked in between may have removed it
        if try_lock(descriptor) is not False and is_same_file(descriptor, partial):
            return partial, descriptor
        os.close(descriptor)
        partial.unlink(missing_ok=True)


def _remove_abandoned(path: Path) -> None:
    """Remove what killed writers left of their files: what nobody has locked."""
    pattern = re.compile(re.escape(f".{path.name}.") + "[0-9a-f]{16}.partial")
    try:
        names = [name for name in os.listdir(path.parent) if pattern.fullmatch(name)]
    except OSError:  # writing says why
        return
    for name in names:
        with contextlib.suppress(OSError):
            descriptor = os.open(path.with_name(name), os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
            try:
                if try_lock(descriptor):
                    path.with_name(name).unlink()
            finally:
                os.close(descriptor)


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
