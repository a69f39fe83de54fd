"""Files that are written under a random name and take their place once they are complete.

Each is locked while its writer lives. What a killed writer left has no lock, and the next writer removes it.
"""

import contextlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dynamic.storage.disk_sync import sync, sync_folder
from dynamic.storage.file_locks import closes_first, is_same_file, process_identity, try_lock

_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


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
    _remove_abandoned(path.parent, _partial_names(path))
    process = process_identity()
    partial, descriptor = _new_file(path)
    is_open = True
    try:
        try:
            yield partial
            sync(descriptor)
        finally:
            if closes_first():  # and holds no lock
                os.close(descriptor)
                is_open = False
        partial.replace(path)
    finally:
        if process == process_identity():  # else a child that was forked meanwhile leaves the block
            partial.unlink(missing_ok=True)
        if is_open:
            os.close(descriptor)
    sync_folder(path.parent)


@contextmanager
def fresh_folder(path: Path) -> Iterator[Path]:
    """A folder beside a file, for a library that writes the file in its own way.

    Args:
        path: The file that is to come.

    Yields:
        The folder. It goes after the block, with what is still in it.

    Raises:
        OSError: It could not be made.
    """
    _remove_abandoned(path.parent, _partial_names(path))
    while True:
        folder = _partial(path)
        folder.mkdir()
        descriptor = _hold(folder)
        if descriptor is not None:
            break
    process = process_identity()
    try:
        yield folder
    finally:
        if process == process_identity():
            shutil.rmtree(folder, ignore_errors=True)
            _release(descriptor)


class TemporaryFolder:
    """A folder for temporary files. What was not removed because of a kill is, when the next one is made.

    Args:
        kind: What it is for, as part of its name.
        place: The folder to make it in. None: the system's.
    """

    def __init__(self, kind: str, place: Path | None = None) -> None:
        prefix = f"dynamic-{kind}-"
        place = Path(tempfile.gettempdir()) if place is None else place
        _remove_abandoned(place, re.compile(re.escape(prefix) + "[a-z0-9_]{8}"))
        self._process = process_identity()
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
            descriptor = _hold(self.path)
            if descriptor is not None:
                break
        self.descriptor = descriptor

    def __enter__(self) -> Path:
        """The folder, for as long as the block runs."""
        return self.path

    def __exit__(self, *_: object) -> None:
        """Remove it."""
        self.remove()

    def remove(self) -> None:
        """Remove it now. Does nothing in a forked child: the folder is its parent's."""
        if self._process != process_identity():
            return
        shutil.rmtree(self.path, ignore_errors=True)
        _release(self.descriptor)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")


def _partial_names(path: Path) -> re.Pattern[str]:
    return re.compile(re.escape(f".{path.name}.") + "[0-9a-f]{16}[.]partial")


def _new_file(path: Path) -> tuple[Path, int]:
    """A new file beside `path`, open and locked. A link that was planted under its name is not followed."""
    while True:
        partial = _partial(path)
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        # one who looked between these lines may have taken it for abandoned
        if try_lock(descriptor) is not False and is_same_file(descriptor, partial):
            return partial, descriptor
        os.close(descriptor)
        partial.unlink(missing_ok=True)


def _open_abandoned(path: Path) -> int:
    """What may be abandoned, open. For writing where that goes, since NFS locks no file that is open for reading."""
    flags = os.O_NONBLOCK | _NO_LINK
    try:
        return os.open(path, os.O_RDWR | flags)
    except (IsADirectoryError, PermissionError):
        return os.open(path, os.O_RDONLY | flags)


_UNLOCKED = -1  # a system that opens no folders


def _hold(folder: Path) -> int | None:
    """Lock a new folder. None where another took it for abandoned."""
    if not hasattr(os, "O_DIRECTORY"):
        return _UNLOCKED
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    if try_lock(descriptor) is not False and is_same_file(descriptor, folder):
        return descriptor
    os.close(descriptor)
    return None


def _release(descriptor: int) -> None:
    if descriptor != _UNLOCKED:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def _remove_abandoned(place: Path, names: re.Pattern[str]) -> None:
    """Remove what killed writers of this user left: what nobody has locked."""
    if not hasattr(os, "geteuid"):  # a system without these locks either
        return
    try:
        left = [place / name for name in os.listdir(place) if names.fullmatch(name)]
    except OSError:  # writing says why
        return
    for path in left:
        with contextlib.suppress(OSError):
            descriptor = _open_abandoned(path)
            try:
                if os.fstat(descriptor).st_uid == os.geteuid() and try_lock(descriptor):
                    if path.is_dir():
                        shutil.rmtree(path, ignore_errors=True)
                    else:
                        path.unlink()
            finally:
                os.close(descriptor)
