"""Files of a bundle as bytes: regular files alone, of limited size, opened so that a pipe holds nobody."""

import hashlib
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dynamic.policies.errors import CorruptError
from dynamic.storage.inner_paths import check_inside


@contextmanager
def open_regular(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file for reading, where it is a regular file.

    Args:
        path: The file. Links are followed.

    Yields:
        The open file.

    Raises:
        ValueError: It is a folder, a pipe or a device.
        OSError: It cannot be opened.
    """
    with open(path, "rb", opener=_open) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # of the open file: the path may lead elsewhere by now
            raise ValueError("it is no file")
        yield file


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe must not hold the reader


def read_bytes(path: Path, folder: Path | None, most_bytes: int) -> bytes:
    """The bytes of a file.

    Args:
        path: The file.
        folder: Where it must lie, links followed. None: anywhere.
        most_bytes: The largest size.

    Returns:
        Its content.

    Raises:
        ValueError: It is no file, or is larger, or lies elsewhere.
        OSError: It cannot be read.
    """
    with open_regular(path) as file:
        if folder is not None:
            check_inside(path, folder)
        size = os.fstat(file.fileno()).st_size
        if size > most_bytes:
            raise ValueError(f"it has {size} bytes, the limit is {most_bytes}")
        return file.read(most_bytes)


def file_hash(path: Path) -> str:
    """The SHA-256 of a file.

    Args:
        path: The file.

    Returns:
        64 hexadecimal digits.

    Raises:
        ValueError: It is no regular file.
        OSError: It cannot be read.
    """
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_fault(folder: Path, name: str, sha256: str | None) -> str | None:
    """What is wrong with a file of a bundle.

    Args:
        folder: The folder where it lies, links followed.
        name: Its name in the folder.
        sha256: The hash in the manifest. None: the content is not checked.

    Returns:
        The end of a sentence that begins with its name. None: it is as the manifest says.

    Raises:
        OSError: It cannot be read.
    """
    path = folder / name
    if not path.is_file():
        return "is missing"
    try:
        check_inside(path, folder)
        is_altered = sha256 is not None and file_hash(path) != sha256
    except ValueError as error:
        return f"is not used, since {error}"
    return "was altered" if is_altered else None


def check_hash(folder: Path, name: str, sha256: str | None) -> None:
    """Check that a file of a bundle is as the manifest says.

    Args:
        folder: The folder where it lies, links followed.
        name: Its name in the folder.
        sha256: The hash in the manifest. None: the content is not checked.

    Raises:
        CorruptError: It is missing, no regular file, lies outside, or has another hash.
        OSError: It cannot be read.
    """
    fault = file_fault(folder, name, sha256)
    if fault is None:
        return
    if fault.startswith("is not used"):
        raise CorruptError(f"{folder}: {name} {fault}. Copy the bundle with its links followed, cp -rL")
    after = " after it was written" if fault == "was altered" else ""
    raise CorruptError(f"{folder}: {name} {fault}{after}. Copy the bundle again")
