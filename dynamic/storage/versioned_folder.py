"""A folder that takes the place of another: at every moment the old one or the new one is there, whole.

Where the file system can exchange two folders in one step, it does. Elsewhere the old one is renamed, and a reader that
comes between finds it under that name. A mounted volume cannot be renamed: there the new content is complete in a
folder inside before the first file of the old one goes, and it is what counts until the last file is in its place.
"""

import contextlib
import errno
import logging
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from dynamic.storage.atomic_write import copy_file, is_own_folder
from dynamic.storage.disk_sync import sync_file, sync_folder, sync_tree
from dynamic.storage.file_locks import one_writer
from dynamic.storage.folder_exchange import exchange

# what a volume holds of its own, so that it is as good as empty
_OF_VOLUMES = ("lost+found", ".Trashes", ".fseventsd", ".Spotlight-V100", "System Volume Information", "$RECYCLE.BIN")
_NO_RENAME = (errno.EBUSY, errno.EXDEV, errno.EACCES, errno.EPERM)
_NO_FILE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT)
_INSIDE = ".bundle"  # what writers have in a volume begins so, as each container mounts it under a name of its own
_READY, _LOCK = f"{_INSIDE}.ready", f"{_INSIDE}.lock"
_logged: dict[Path, tuple[int, int]] = {}  # of folders whose content was read from `_READY`: which one that was

logger = logging.getLogger("dynamic")


def standing(folder: Path, last: str) -> Path:
    """Where the content of a folder lies now.

    Args:
        folder: The folder, as `put_folder` was given it.
        last: The file without which the folder is not valid.

    Returns:
        The folder, or the one beside it or in it that counts while a writer works or after one was killed. Links under
        such names do not count, since a writer leaves none.
    """
    if _is_ready(folder, last):
        _log_once(folder)
        return folder / _READY
    if not os.path.exists(folder):
        real = Path(os.path.realpath(folder))
        olds = [old for old in _leftovers(real.parent, real.name) if old.name.endswith(".old")]
        whole = [old for old in olds if _is_whole(old, last)]
        if whole and not os.path.exists(folder):
            with contextlib.suppress(OSError):  # one is removed meanwhile
                return max(whole, key=lambda old: old.stat().st_ctime_ns)
    return folder


def _is_whole(folder: Path, last: str) -> bool:
    """Whether a folder of a writer has its last file. Unlike Path's tests, these say no where they may not look."""
    return os.path.isdir(folder) and not os.path.islink(folder) and os.path.isfile(folder / last)


def _is_ready(folder: Path, last: str) -> bool:
    """Whether what a writer has completed lies in a volume, and not yet in its place."""
    return _is_whole(folder / _READY, last) and not os.path.islink(folder / _READY / last)


def _log_once(folder: Path) -> None:
    """Log that the content of a folder is read from `_READY`, once for each that lies there."""
    try:
        state = os.stat(folder / _READY)
    except OSError:  # it is in its place by now
        return
    if _logged.get(folder) != (state.st_dev, state.st_ino):
        _logged[folder] = state.st_dev, state.st_ino
        logger.warning(
            "%s is read from the folder %s in it, which a writer completes or has left unfinished: save again to put "
            "the files in their places",
            folder,
            _READY,
        )


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but what a volume has of its own, or what was left of an earlier attempt."""
    return not any(_is_content(entry, folder) for entry in folder.iterdir())


def put_folder(target: Path, fill: Callable[[Path], None], last: str) -> None:
    """Put a new folder where `target` is, or its content into `target` where that is a mounted volume.

    Writers of one folder wait for each other. What killed ones left is removed.

    Args:
        target: The folder. One that is there is replaced once the new one is complete and on the disk.
        fill: Writes the content into the folder that it is given.
        last: The file without which the folder is not valid.

    Raises:
        OSError: The disk refused. The old folder stays.
    """
    with ExitStack() as locks:
        inside, alone = target.is_dir() and _is_volume(target), True
        if not inside:
            alone = locks.enter_context(one_writer(target.with_name(f".{target.name}.lock")))
            if alone:
                _restore(target, last)
        if target.is_dir():  # who may not write beside it locks it inside: all do, or these do not exclude each other
            alone &= _lock_inside(target, locks, is_needed=inside)
        _recover(target, last, alone)
        place, name = (target, _INSIDE) if inside else (target.parent, f".{target.name}")
        fresh = place / f"{name}.{secrets.token_hex(8)}"
        try:
            fresh.mkdir()
            fill(fresh)
            sync_tree(fresh)
            if inside:
                _put_into(target, fresh, last)
            else:
                _put_at(target, fresh, last)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def _is_volume(target: Path) -> bool:
    if os.path.ismount(target) or not os.access(target.parent, os.W_OK):
        return True
    return any((target / name).exists() for name in _OF_VOLUMES)


def _put_at(target: Path, fresh: Path, last: str) -> None:
    try:
        _swap(fresh, target, last)
    except OSError as error:
        if error.errno not in _NO_RENAME or not target.is_dir():
            raise
        # a mount that only a rename shows, such as one file system's folder on another folder of it
        copy = target / f"{_INSIDE}.{secrets.token_hex(8)}"
        try:
            _copy_tree(fresh, copy)
            sync_tree(copy)
            _put_into(target, copy, last)
        finally:
            shutil.rmtree(copy, ignore_errors=True)


def _swap(fresh: Path, target: Path, last: str) -> None:
    """Put `fresh` where `target` is. The old one goes only once the new one stands, on the disk too."""
    if not target.exists():
        fresh.rename(target)
        sync_folder(target.parent)
        return
    if exchange(fresh, target):
        sync_folder(target.parent)
        _drop(fresh, last)
        return
    old = target.with_name(f".{target.name}.{secrets.token_hex(8)}.old")
    target.rename(old)
    try:
        fresh.rename(target)
    except OSError:
        old.rename(target)
        raise
    sync_folder(target.parent)
    _drop(old, last)


def _put_into(target: Path, fresh: Path, last: str) -> None:
    """Put the content of `fresh` into a volume. From its new name on, readers take it from there."""
    _remove(target / _READY)  # without a manifest, or it would have been rolled forward
    fresh.rename(target / _READY)
    sync_folder(target)
    _roll_forward(target, last)


def _roll_forward(target: Path, last: str) -> None:
    """Bring the files of a complete folder in a volume to their places, the manifest last."""
    ready = target / _READY
    paths = {path.relative_to(ready): is_own_folder(path) for path in ready.rglob("*") if not path.is_symlink()}
    for old in [entry for entry in target.iterdir() if _is_content(entry, target)]:
        for path in [*sorted(old.rglob("*"), reverse=True), old] if is_own_folder(old) else [old]:
            if paths.get(path.relative_to(target)) != is_own_folder(path):
                _remove(path)
    for folder in sorted(path for path, is_folder in paths.items() if is_folder):
        (target / folder).mkdir(exist_ok=True)
    for file in sorted((path for path, is_folder in paths.items() if not is_folder), key=lambda p: str(p) == last):
        if str(file) == last:
            _sync_folders(target, paths)
        _place(ready / file, target / file, target)
    _sync_folders(target, paths)
    _drop(ready, last)


def _sync_folders(target: Path, paths: Mapping[Path, bool]) -> None:
    for folder in [target, *(target / path for path, is_folder in paths.items() if is_folder)]:
        sync_folder(folder)


def _place(source: Path, target: Path, volume: Path) -> None:
    """Give a file a second name, or copy it where the file system has no such names."""
    fresh = volume / f"{_INSIDE}.{secrets.token_hex(8)}"
    try:
        try:
            os.link(source, fresh)
        except OSError:
            copy_file(source, fresh)
            sync_file(fresh)
        fresh.replace(target)
    finally:
        fresh.unlink(missing_ok=True)  # of two names of one file, a rename leaves both


def _copy_tree(source: Path, target: Path) -> None:
    target.mkdir()
    for entry in sorted(source.iterdir()):
        (_copy_tree if is_own_folder(entry) else copy_file)(entry, target / entry.name)


def _lock_inside(target: Path, locks: ExitStack, is_needed: bool) -> bool:
    """Lock a folder inside, and say whether writers are kept out.

    Without the right to write there, the lock beside it has to do, unless that `is_needed`.
    """
    try:
        return locks.enter_context(one_writer(target / _LOCK))
    except OSError as error:
        if is_needed or error.errno not in _NO_FILE:
            raise
        return True


def _restore(target: Path, last: str) -> None:
    """Put an old folder back that a writer was killed with between two renames."""
    place = standing(target, last)
    if place != target and not target.exists():
        place.rename(target)


def _recover(target: Path, last: str, alone: bool) -> None:
    """Finish or undo what killed writers began, and remove what they left."""
    if _is_ready(target, last):
        _roll_forward(target, last)
    if not alone:  # without locks, the rest may be another writer's work
        return
    for place, name in ((target.parent, target.name), (target, target.name), (target, _INSIDE[1:])):
        for left in _leftovers(place, name):
            _drop(left, last)


def _pattern(name: str) -> re.Pattern[str]:
    """The names of what writers of `name` leave. Earlier versions had shorter names."""
    own = re.escape(f".{name}.") + r"([0-9a-f]{8}|[0-9a-f]{16})(\.old)?"
    return re.compile(f"{own}|{re.escape(_READY)}" if name == _INSIDE[1:] else own)


def _leftovers(place: Path, name: str) -> Iterator[Path]:
    """What writers of `name` leave in a folder when they are killed."""
    pattern = _pattern(name)
    with contextlib.suppress(OSError):
        for entry in sorted(place.iterdir()):
            if pattern.fullmatch(entry.name):
                yield entry


def _drop(entry: Path, last: str) -> None:
    """Remove a folder, the manifest first: what lies there without one is not taken for a whole one.

    Of a link nothing but the link goes. Its target is somebody's own.
    """
    if is_own_folder(entry):
        _make_writable(entry)
        with contextlib.suppress(OSError):
            (entry / last).unlink(missing_ok=True)
    _remove(entry)


def _make_writable(folder: Path) -> None:
    """A folder that was made read-only cannot be emptied, even by whoever may remove it."""
    for inside, _, _ in os.walk(folder):
        with contextlib.suppress(OSError):
            os.chmod(inside, os.stat(inside).st_mode | stat.S_IRWXU)


def _remove(path: Path) -> None:
    if is_own_folder(path):
        _make_writable(path)
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_content(entry: Path, folder: Path) -> bool:
    """Whether an entry of a folder is more than what volumes and writers have there."""
    if entry.name in _OF_VOLUMES or entry.name == _LOCK:
        return False
    return not any(_pattern(name).fullmatch(entry.name) for name in (folder.name, _INSIDE[1:]))
