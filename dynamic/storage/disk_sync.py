"""What was written is on the disk, where a power cut leaves it."""

import contextlib
import errno
import os
from pathlib import Path

_NO_SYNC = (errno.EINVAL, errno.EROFS, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)  # of volumes that cannot


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
    """Wait until a file is on the disk.

    Args:
        path: The file.

    Raises:
        OSError: The disk is full, or failed.
    """
    descriptor = os.open(path, os.O_RDONLY if hasattr(os, "geteuid") else os.O_RDWR)  # Windows syncs no reader
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk. Does nothing on a system that opens no folders.

    Args:
        folder: The folder.

    Raises:
        OSError: The disk failed.
    """
    if not hasattr(os, "O_DIRECTORY"):
        return
    with contextlib.suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            sync(descriptor)
        finally:
            os.close(descriptor)


def sync(descriptor: int) -> None:
    """Wait until what was written to an open file is on the disk. Volumes that cannot do that are passed over.

    Args:
        descriptor: The open file or folder.

    Raises:
        OSError: The disk is full, or failed.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
