"""Locks of writers: those with other rights, of other users, that vanish, and systems without any."""

import errno
import os
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.storage_cases import built, forked, linux, names

import dynamic
from dynamic.bundle.bundle import Bundle
from dynamic.bundle.manifest import MANIFEST
from dynamic.storage import file_locks, temporary_files, versioned_folder
from dynamic.storage.file_locks import one_writer
from dynamic.storage.temporary_files import fresh_file
from dynamic.storage.versioned_folder import put_folder


def waits(work: Any, *args: Any) -> threading.Thread:
    thread = threading.Thread(target=work, args=args)
    thread.start()
    return thread


def test_writers_with_and_without_the_right_to_the_parent_exclude_each_other(
    one: Bundle, other: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One exchanges folders and the other fills the folder: while one has begun, the other has not."""
    shelf = one.save(tmp_path / "shelf").folder
    filling, free, order = threading.Event(), threading.Event(), []

    def exchanging(fresh: Path) -> None:
        order.append("exchanging")
        filling.set()
        assert free.wait(30)
        one.copy_to(fresh)
        order.append("done")

    def inside(fresh: Path) -> None:
        order.append("inside")
        other.copy_to(fresh)

    first = waits(put_folder, shelf, exchanging, MANIFEST)
    assert filling.wait(30)
    with monkeypatch.context() as patch:
        patch.setattr(versioned_folder, "_is_volume", lambda target: True)  # as its parent is not writable for it
        tried = threading.Event()
        real = file_locks.try_lock
        patch.setattr(file_locks, "try_lock", lambda descriptor: (tried.set(), real(descriptor))[1])
        second = waits(put_folder, shelf, inside, MANIFEST)
        assert tried.wait(30)
        free.set()
        first.join(30)
        second.join(30)
    assert order == ["exchanging", "done", "inside"]
    assert dynamic.load(shelf).hashes == other.hashes
    assert names(tmp_path) == ["shelf"]
    assert not list(shelf.rglob(".*"))


def test_a_lock_of_another_writer_is_not_removed(tmp_path: Path) -> None:
    """The folder of the lock was exchanged, and another writer has a lock in the new one."""
    (tmp_path / "shelf").mkdir()
    (tmp_path / "new").mkdir()
    lock = tmp_path / "shelf" / ".bundle.lock"
    with ExitStack() as other:
        with one_writer(lock):
            (tmp_path / "shelf").rename(tmp_path / "old")
            (tmp_path / "new").rename(tmp_path / "shelf")
            other.enter_context(one_writer(lock))
        assert lock.exists()
        with pytest.raises(OSError, match="another process has been writing"):
            one_writer(lock, patience_s=0.0).__enter__()
    assert names(tmp_path / "shelf") == []


def test_a_lock_that_vanishes_between_two_looks_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, real, calls = tmp_path / "lock", os.open, []

    def vanishing(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if Path(path) == lock:
            calls.append(flags)
            if len(calls) == 1:  # another writer has it, and removes it before the next look
                raise FileExistsError(errno.EEXIST, "exists", str(path))
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", vanishing)
    with one_writer(lock) as alone:
        assert alone
        assert lock.exists()
    assert len(calls) == 3
    assert names(tmp_path) == []


@linux
def test_a_lock_that_may_not_be_written_is_not_taken_for_a_volume_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS, where a file has to be open for writing to be locked."""
    import fcntl

    lock, real_open, real_lock = tmp_path / "lock", os.open, fcntl.flock

    def of_another_user(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if Path(path) == lock and flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "denied", str(path))
        return real_open(path, flags, *args, **kwargs)

    def as_nfs(descriptor: int, operation: int) -> None:
        if not fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_RDWR:
            raise OSError(errno.EBADF, "not open for writing")
        real_lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", as_nfs)
    with one_writer(lock) as alone:
        assert alone
    lock.touch()
    monkeypatch.setattr(os, "open", of_another_user)
    with pytest.raises(PermissionError, match="another user"):
        one_writer(lock).__enter__()


@linux
def test_partial_files_are_removed_on_nfs_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    real = fcntl.flock

    def as_nfs(descriptor: int, operation: int) -> None:
        if not fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_RDWR:
            raise OSError(errno.EBADF, "not open for writing")
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", as_nfs)
    (tmp_path / ".file.0123456789abcdef.partial").touch()
    with fresh_file(tmp_path / "file") as partial:
        partial.write_text("new")
    assert names(tmp_path) == ["file"]


@linux
def test_files_are_closed_before_they_are_replaced_where_the_system_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, which has no such locks and neither replaces nor removes an open file."""

    def closed(path: Path) -> None:
        for number in os.listdir("/proc/self/fd"):
            place = f"/proc/self/fd/{number}"
            if os.path.exists(place) and path.exists() and os.path.samefile(place, path):
                raise PermissionError(errno.EACCES, "The process cannot access the file", str(path))

    replace, unlink = Path.replace, Path.unlink

    def replacing(self: Path, target: Path) -> Path:
        closed(self)
        return replace(self, target)

    def unlinking(self: Path, missing_ok: bool = False) -> None:
        closed(self)
        unlink(self, missing_ok)

    monkeypatch.setattr(file_locks, "fcntl", None)
    monkeypatch.setattr(Path, "replace", replacing)
    monkeypatch.setattr(Path, "unlink", unlinking)
    with fresh_file(tmp_path / "file") as partial:
        partial.write_text("new")
    with pytest.raises(ValueError, match="no"), fresh_file(tmp_path / "file"):
        raise ValueError("no")
    with one_writer(tmp_path / "lock") as alone:
        assert not alone
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("kind", ["exchange", "rename"])
def test_the_new_folder_is_on_the_disk_before_the_old_one_goes(
    one: Bundle, other: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    shelf, steps = one.save(tmp_path / "shelf").folder, []
    drop, sync = versioned_folder._drop, versioned_folder.sync_folder
    if kind == "rename":
        monkeypatch.setattr(versioned_folder, "exchange", lambda one, other: False)
    monkeypatch.setattr(versioned_folder, "_drop", lambda *given: (steps.append("drop"), drop(*given))[1])
    monkeypatch.setattr(
        versioned_folder, "sync_folder", lambda folder: (steps.append(f"sync {folder.name}"), sync(folder))[1]
    )
    other.save(shelf)
    assert steps[-2:] == [f"sync {tmp_path.name}", "drop"]


@linux
def test_a_volume_that_cannot_sync_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch import nn

    from dynamic.models import save_weights

    def cannot(descriptor: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", cannot)
    with fresh_file(tmp_path / "file") as partial:
        partial.write_text("new")
    save_weights(nn.Linear(2, 2), tmp_path / "weights")
    built(0).save(tmp_path / "shelf")
    built(0).records.save(tmp_path / "records.npz")
    assert names(tmp_path) == ["file", "records.npz", "shelf", "weights"]

    def failed(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", failed)
    with pytest.raises(OSError, match="Input/output"), fresh_file(tmp_path / "other"):
        pass
    with pytest.raises(OSError, match="Input/output"):
        built(0).records.save(tmp_path / "other")
    assert "other" not in names(tmp_path)


@linux
@pytest.mark.parametrize("kind", ["bundle", "folder", "lock", "file", "fresh folder"])
def test_a_forked_child_that_ends_leaves_what_its_parent_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A child that ends by an error or sys.exit runs finalizers, and leaves the blocks that it was forked in."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with ExitStack() as stack:
        if kind == "bundle":
            from dynamic.offline.recertification import TemporaryBundle

            owner = TemporaryBundle()
            stack.callback(lambda: owner)
        elif kind == "folder":
            stack.enter_context(temporary_files.TemporaryFolder("held"))
        elif kind == "lock":
            stack.enter_context(one_writer(tmp_path / "lock"))
        elif kind == "file":
            stack.enter_context(fresh_file(tmp_path / "file"))
        else:
            stack.enter_context(temporary_files.fresh_folder(tmp_path / "file"))
        before = names(tmp_path)
        assert len(before) == 1

        def leave() -> None:
            import gc

            if kind == "bundle":
                import weakref

                for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
                    if finalizer.peek() and finalizer.peek()[0] is owner:
                        finalizer()
            else:
                stack.__exit__(SystemExit, SystemExit(0), None)
            gc.collect()
            os._exit(0)

        assert forked(leave) == 0
        assert names(tmp_path) == before
