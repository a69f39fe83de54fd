"""Locks between processes: held by an open file, so that one that is killed leaves none."""

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # a system without them: nothing is locked, and nothing that looks abandoned is removed
    fcntl = None  # type: ignore[assignment]

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF)
_PATIENCE_S = 600.0  # a bundle of 1 GB takes two minutes on a slow card
_LOOK_S = 0.02
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


def try_lock(descriptor: int) -> bool | None:
    """Lock an open file for one alone, without waiting.

    Args:
        descriptor: The open file. Other processes and other openings of it in this one are kept out.

    Returns:
        True where it is locked now, False where another has it, None where the volume or system has no locks.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


def is_same_file(descriptor: int, path: Path) -> bool:
    """Whether an open file still lies under a path.

    Args:
        descriptor: The open file.
        path: Where it was.

    Returns:
        False where it was removed, or another lies there.
    """
    try:
        there, opened = os.stat(path, follow_symlinks=False), os.fstat(descriptor)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (opened.st_dev, opened.st_ino)


@contextmanager
def one_writer(path: Path, patience_s: float = _PATIENCE_S) -> Iterator[bool]:
    """Wait until no other writer has a lock file, and hold it during the block.

    Args:
        path: The lock file. It is made, and removed afterwards. A killed writer's is taken over.
        patience_s: How long to wait for another writer.

    Yields:
        Whether writers are kept out. Some volumes have no locks.

    Raises:
        OSError: The file cannot be made, or another writer had it all the time.
    """
    until_s = time.monotonic() + patience_s
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _NO_LINK, 0o666)
        except PermissionError:
            if not path.exists():
                raise
            descriptor = os.open(path, os.O_RDONLY | _NO_LINK)  # another user's, who was killed
        try:
            locked = try_lock(descriptor)
            if locked is None or (locked and is_same_file(descriptor, path)):
                break
            if time.monotonic() > until_s:
                raise OSError(
                    errno.EBUSY, f"another process has been writing there for {patience_s:.0f} s, end it", str(path)
                )
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if not locked:  # else the writer before has just removed it
            time.sleep(_LOOK_S)
    try:
        yield bool(locked)
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        if locked and fcntl is not None:  # a child that was forked meanwhile has the file open too
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)
