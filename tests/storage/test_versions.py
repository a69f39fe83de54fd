"""Writers and readers of one shelf at the same time: what is read is one version, whole."""

import errno
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.storage_cases import ALL, INPUTS, forked, linux, logits, names

import dynamic
from dynamic.bundle.bundle import Bundle
from dynamic.storage import file_locks
from dynamic.storage.file_locks import one_writer


def test_writers_and_readers_of_one_shelf(one: Bundle, other: Bundle, tmp_path: Path, way: str) -> None:
    """Two writers save for as long as two readers need for 30 loads each, however long that is."""
    shelf = one.save(tmp_path / "shelf").folder
    stop, errors, loads, saves = threading.Event(), list[BaseException](), list[str](), list[str]()
    expected = {bundle.cascade: (dict(bundle.hashes), bundle.ladder) for bundle in (one, other)}

    def write(bundle: Bundle) -> None:
        while not stop.is_set():
            bundle.save(shelf)
            saves.append(bundle.cascade)

    def read() -> None:
        for _ in range(30):
            bundle = dynamic.load(shelf)
            assert expected[bundle.cascade] == (bundle.hashes, bundle.ladder)
            assert bundle.records.fingerprint == bundle.ladder.fingerprint
            loads.append(bundle.cascade)

    def work(step: Any, *given: Any) -> None:
        try:
            step(*given)
        except BaseException as error:
            errors.append(error)
            stop.set()

    writers = [threading.Thread(target=work, args=(write, bundle)) for bundle in (one, other)]
    readers = [threading.Thread(target=work, args=(read,)) for _ in range(2)]
    for thread in (*writers, *readers):
        thread.start()
    for thread in readers:
        thread.join()
    stop.set()
    for thread in writers:
        thread.join()
    assert errors == []
    assert len(loads) == 60
    assert set(saves) == {one.cascade, other.cascade}
    assert names(tmp_path) == ["shelf"]


def test_writers_wait_for_each_other(one: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, refused = file_locks.try_lock, threading.Event()

    def watched(descriptor: int) -> bool | None:
        locked = real(descriptor)
        if locked is False:
            refused.set()
        return locked

    with one_writer(tmp_path / ".shelf.lock"):
        with pytest.raises(OSError, match="another process has been writing there for 0 s"):
            one_writer(tmp_path / ".shelf.lock", patience_s=0.0).__enter__()
        monkeypatch.setattr(file_locks, "try_lock", watched)
        thread = threading.Thread(target=one.save, args=(tmp_path / "shelf",))
        thread.start()
        assert refused.wait(60)
        assert names(tmp_path) == [".shelf.lock"], "it has begun, and has written nothing"
    thread.join()
    assert names(tmp_path) == ["shelf"]


@linux
def test_the_lock_of_a_killed_writer_is_free(one: Bundle, tmp_path: Path) -> None:
    def die() -> None:
        lock = one_writer(tmp_path / ".shelf.lock")
        lock.__enter__()
        os.kill(os.getpid(), signal.SIGKILL)

    assert forked(die) == -signal.SIGKILL
    assert names(tmp_path) == [".shelf.lock"]
    one.save(tmp_path / "shelf")
    assert names(tmp_path) == ["shelf"]


def test_a_volume_without_locks_is_written_to(
    one: Bundle, other: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Without:
        LOCK_EX, LOCK_NB = 2, 4

        @staticmethod
        def flock(*_: int) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    (tmp_path / ".shelf.0123456789abcdef").mkdir()
    monkeypatch.setattr(file_locks, "fcntl", Without)
    for bundle in (one, other):
        assert dynamic.load(bundle.save(tmp_path / "shelf").folder).hashes == bundle.hashes
    assert names(tmp_path) == [".shelf.0123456789abcdef", "shelf"], "it may be another writer's"


@pytest.mark.parametrize("change", ["saved", "saved into a volume", "removed", "removed and copied", "a link moved"])
def test_a_loaded_bundle_stays_the_version_that_it_was(
    one: Bundle, other: Bundle, tmp_path: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    shelf = tmp_path / "shelf"
    if "volume" in change:
        (shelf / "lost+found").mkdir(parents=True)
    if "link" in change:
        one.save(tmp_path / "1")
        other.save(tmp_path / "2")
        shelf.symlink_to("1")
    else:
        one.save(shelf)
    loaded = dynamic.load(shelf)
    expected = logits(one)
    begun = loaded.open(route="stages")
    if "saved" in change:
        other.save(shelf)
    elif "link" in change:
        shelf.unlink()
        shelf.symlink_to("2")
    else:
        shutil.copytree(shelf, tmp_path / "copy")
        shutil.rmtree(shelf)
        if "copied" in change:
            shutil.copytree(tmp_path / "copy", shelf)
    assert (loaded.place is None) == (change != "removed and copied")
    np.testing.assert_array_equal(begun.run(INPUTS, ALL).logits, expected)
    for options in ({"route": "stages"}, {"route": "graph"}):
        np.testing.assert_allclose(logits(loaded, **options), expected, rtol=1e-5, atol=1e-6)
    with loaded.runtime(monitor=dynamic.FixedMonitor()) as run:
        assert run(INPUTS["input"]).label.shape == (5,)
    assert len(loaded.records) == 300
    assert loaded.canaries is not None
    there = names(shelf / "costs") if (shelf / "costs").exists() else None
    loaded.profile(batch=(1,), seconds=0.01)
    if loaded.place is None and shelf.exists():  # costs of one version are not laid into another
        assert (names(shelf / "costs") if (shelf / "costs").exists() else None) == there
        assert "costs are not kept: another bundle lies in" in caplog.text
    dynamic.export(loaded, tmp_path / "model.onnx")
    again = loaded.save(tmp_path / "again")
    assert dynamic.load(again.folder).hashes == one.hashes
    np.testing.assert_array_equal(logits(dynamic.recertify(loaded, (0.5,)), route="stages"), expected)


@linux
def test_open_files_do_not_outlive_a_bundle(one: Bundle, tmp_path: Path) -> None:
    one.save(tmp_path / "shelf")
    dynamic.load(tmp_path / "shelf")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        dynamic.load(tmp_path / "shelf")
    assert len(os.listdir("/proc/self/fd")) <= before


@linux
def test_a_process_that_may_open_few_files_loads(one: Bundle, tmp_path: Path) -> None:
    import resource

    shelf = one.save(tmp_path / "shelf").folder

    def few() -> None:
        opened = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 6, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        os._exit(0 if logits(dynamic.load(shelf)).shape == (5, 4) else 1)

    assert forked(few) == 0


@linux
def test_a_daemon_that_closes_what_it_inherits_says_what_is_missing(one: Bundle, other: Bundle, tmp_path: Path) -> None:
    shelf = one.save(tmp_path / "shelf").folder
    loaded = dynamic.load(shelf)

    def daemon() -> None:
        os.closerange(3, 4096)
        good = logits(loaded).shape == (5, 4)
        other.save(shelf)
        try:
            logits(loaded, route="stages")
        except dynamic.DynamicError as error:
            os._exit(0 if good and "load it again" in str(error) else 2)
        os._exit(3)

    assert forked(daemon) == 0


def test_a_loaded_bundle_is_sent_to_another_process(one: Bundle, other: Bundle, tmp_path: Path) -> None:
    import pickle

    shelf = one.save(tmp_path / "shelf").folder
    sent = pickle.dumps(dynamic.load(shelf))
    received = pickle.loads(sent)
    assert received.place == shelf
    other.save(shelf)
    assert logits(received).shape == (5, 4), "its files were opened again"
    assert pickle.loads(sent).place is None


def test_a_shelf_is_copied_while_another_writer_puts_the_same_bundle_there(one: Bundle, tmp_path: Path) -> None:
    shelf = one.save(tmp_path / "shelf").folder
    loaded, stop = dynamic.load(shelf), threading.Event()

    def write() -> None:
        while not stop.is_set():
            one.save(shelf)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(20):
            assert dynamic.load(loaded.save(tmp_path / "copy").folder).hashes == one.hashes
            assert len(loaded.records) == 300
            assert logits(loaded, route="stages").shape == (5, 4)
            loaded = dynamic.load(shelf)
    finally:
        stop.set()
        thread.join()
    assert names(tmp_path) == ["copy", "shelf"]
