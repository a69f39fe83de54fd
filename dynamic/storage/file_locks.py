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
_TRIES = 1000  # to open a lock file that others make and remove meanwhile
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_forks = 0  # since the first process of this program


def process_identity() -> tuple[int, int]:
    """What tells this process from the one that it was forked from.

    Returns:
        Its number, and how many forks lie behind it: in a container a child may have the number of its parent.
    """
    return os.getpid(), _forks


def _count_fork() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)


def try_lock(descriptor: int) -> bool | None:
    """Lock an open file for one alone, without waiting.

    Args:
        descriptor: The open file. Other processes and other openings of it in this one are kept out.

    Returns:
        True where it is locked now, False where another has it, None where the volume or system has no locks. NFS has
        none for a file that is open for reading alone.

    Raises:
        OSError: The system refuses for another reason.
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


def closes_first() -> bool:
    """Whether an open file has to be closed before it is replaced or removed, as on Windows.

    Returns:
        True where there are no locks either, so that nothing is lost by it.
    """
    return fcntl is None


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
    until_s, process = time.monotonic() + patience_s, process_identity()
    while True:
        descriptor, may_write = _open_lock(path)
        try:
            locked = try_lock(descriptor)
            if locked is None and not may_write and not closes_first():
                raise PermissionError(
                    errno.EACCES, "this lock of another user cannot be tried without the right to write it", str(path)
                )
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
        if process == process_identity():  # else a child that was forked meanwhile leaves the block
            _remove_lock(path, descriptor, bool(locked))


def _open_lock(path: Path) -> tuple[int, bool]:
    """The lock file, open, and whether for writing: another user's may allow reading alone."""
    for _ in range(_TRIES):
        refusal: OSError | None = None
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_LINK, 0o666), True
        except FileExistsError:
            pass
        except PermissionError as error:  # of a folder: the file may be there all the same
            refusal = error
        try:
            return os.open(path, os.O_RDWR | _NO_LINK), True
        except FileNotFoundError:  # its writer has just removed it
            if refusal is not None:
                raise refusal from None
            continue
        except PermissionError:
            pass
        try:
            return os.open(path, os.O_RDONLY | _NO_LINK), False
        except FileNotFoundError:
            continue
    raise OSError(errno.EBUSY, "it appears and vanishes again and again: remove it", str(path))


def _remove_lock(path: Path, descriptor: int, locked: bool) -> None:
    """Remove the lock file, unless another writer's lies there by now, and let others lock."""
    is_ours = is_same_file(descriptor, path)  # the folder that it lies in may have been exchanged
    if closes_first():
        os.close(descriptor)
    if is_ours:
        with contextlib.suppress(OSError):
            path.unlink()
    if closes_first():
        return
    if locked:  # a child that was forked meanwhile has the file open too
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
