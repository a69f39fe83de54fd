"""Files and folders that appear whole or not at all, and words where the disk refuses."""

import contextlib
import errno
import functools
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Concatenate, ParamSpec

from dynamic.policies.errors import DiskError

# what a volume holds of its own, so that it is as good as empty
_OF_VOLUMES = ("lost+found", ".Trashes", ".fseventsd", ".Spotlight-V100", "System Volume Information", "$RECYCLE.BIN")
P = ParamSpec("P")

_NO_RENAME = (errno.EBUSY, errno.EXDEV, errno.EACCES, errno.EPERM)


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


def replace_text(path: Path, text: str) -> None:
    """Write a text file that appears whole or not at all.

    Args:
        path: The file. One that is there is replaced.
        text: Its content.

    Raises:
        OSError: It could not be written. Nothing is left of it.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        # exclusive: a link that was planted under this name is not followed
        with partial.open("x", encoding="utf-8") as file:
            file.write(text)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def copy_files(source: Path, target: Path) -> None:
    """Copy the files below a folder to another, which is made.

    Rights are those of new files, as many volumes refuse others, and as temporary folders are for one user alone.

    Args:
        source: The folder. What a volume has of its own is left out, and so is `target` where it lies in it.
        target: The other folder.

    Raises:
        OSError: The first error.
    """
    target.mkdir(exist_ok=True)
    for entry in sorted(source.iterdir()):
        if entry.name in _OF_VOLUMES or entry.samefile(target):
            continue
        if entry.is_dir():
            copy_files(entry, target / entry.name)
        else:
            shutil.copyfile(entry, target / entry.name)
            with contextlib.suppress(OSError):  # some volumes keep no times
                os.utime(target / entry.name, ns=(entry.stat().st_atime_ns, entry.stat().st_mtime_ns))


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but what a volume has of its own, or what was left of an earlier attempt."""
    return not any(_is_content(entry, folder) for entry in folder.iterdir())


def put_folder(target: Path, fill: Callable[[Path], None], last: str) -> None:
    """Put a new folder where `target` is, or its content into `target` where that is a mounted volume.

    Args:
        target: The folder. One that is there is replaced once the new one is complete.
        fill: Writes the content into the folder that it is given.
        last: The file without which the folder is not valid. In a volume it goes first and comes last.

    Raises:
        OSError: The disk refused. The old folder stays.
    """
    name = f".{target.name}.{secrets.token_hex(4)}"
    inside = target.is_dir() and (os.path.ismount(target) or not os.access(target.parent, os.W_OK))
    fresh = (target if inside else target.parent) / name
    try:
        fresh.mkdir()
        fill(fresh)
        if inside:
            _move_into(target, fresh, last)
            return
        try:
            _swap(fresh, target)
        except OSError as error:
            if error.errno not in _NO_RENAME or not target.is_dir():
                raise
            # a mount that only a rename shows, such as one file system's folder on another folder of it
            copy_files(fresh, target / name)
            _move_into(target, target / name, last)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(target / name, ignore_errors=True)


def _move_into(target: Path, fresh: Path, last: str) -> None:
    (target / last).unlink(missing_ok=True)
    for old in target.iterdir():
        if old.name == fresh.name or old.name in _OF_VOLUMES:
            continue
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
        else:
            old.unlink()
    for entry in sorted(fresh.iterdir(), key=lambda entry: entry.name == last):
        entry.rename(target / entry.name)


def _swap(fresh: Path, target: Path) -> None:
    """Put `fresh` where `target` is; the old one goes only once the new one stands."""
    if not target.exists():
        fresh.rename(target)
        return
    old = target.with_name(f".{target.name}.{secrets.token_hex(4)}.old")
    target.rename(old)
    try:
        fresh.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _is_content(entry: Path, folder: Path) -> bool:
    return entry.name not in _OF_VOLUMES and not entry.name.startswith(f".{folder.name}.")


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
