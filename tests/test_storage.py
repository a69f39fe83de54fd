"""Shelves that are replaced, killed, shared and full: what a reader finds is one version, whole."""

import contextlib
import errno
import logging
import multiprocessing
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dynamic
from dynamic import exchanging, locking, partial, shelving
from dynamic.bundle import MANIFEST, Bundle
from dynamic.errors import BundleError, CorruptError, DiskError
from dynamic.locking import one_writer
from dynamic.models import save_weights
from dynamic.writing import keep_text, replace_text

LINUX = sys.platform == "linux"
ROOT = LINUX and os.geteuid() == 0
linux = pytest.mark.skipif(not LINUX, reason="needs Linux")
root = pytest.mark.skipif(not ROOT, reason="needs the rights of root")
FORK = multiprocessing.get_context("fork") if LINUX else None


def make(seed: int) -> Bundle:
    torch.manual_seed(seed)
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(16, width), nn.ReLU(), nn.Linear(width, 4)) for width in (8, 64)]
    inputs, labels = torch.randn(300, 1, 4, 4), torch.arange(300) % 4
    return dynamic.build(networks, [(inputs, labels)])


@pytest.fixture(scope="module")
def one() -> Bundle:
    return make(0)


@pytest.fixture(scope="module")
def other() -> Bundle:
    return make(1)


INPUTS = {"input": np.random.default_rng(0).standard_normal((5, 1, 4, 4)).astype(np.float32)}
ALL = np.array([np.inf], np.float32)


def logits(bundle: Bundle, **options: Any) -> Any:
    engine = bundle.open(**options)
    try:
        return engine.run(INPUTS, ALL).logits
    finally:
        engine.close()


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def forked(work: Any, *args: Any) -> int:
    """What a forked child that runs this ends with."""
    assert FORK is not None
    child = FORK.Process(target=work, args=args)
    child.start()
    child.join(60)
    assert child.exitcode is not None
    return child.exitcode


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"mounts are not allowed here: {done.stderr.decode()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(params=["exchange", "rename"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With and without a kernel that exchanges folders."""
    if request.param == "rename":
        monkeypatch.setattr(shelving, "exchange", lambda one, other: False)
    return str(request.param)


# --- a save that is killed


class Killed(BaseException):
    pass


STEPS = ("os.rename", "os.replace", "exchange", "os.link", "os.unlink", "os.rmdir", "os.mkdir")


def kill_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """End the process, as kill -9 does, before its n-th step that changes names on the disk."""
    count = [0]

    def counted(function: Any) -> Any:
        def step(*args: Any, **kwargs: Any) -> Any:
            if count[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)
            count[0] += 1
            return function(*args, **kwargs)

        return step

    for name in ("rename", "replace", "link", "unlink", "rmdir", "mkdir"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    monkeypatch.setattr(shelving, "exchange", counted(shelving.exchange))


def save_killed(bundle: Bundle, target: Path, number: int) -> None:
    kill_at(pytest.MonkeyPatch(), number)
    bundle.save(target)
    os._exit(0)


@linux
@pytest.mark.parametrize("place", ["folder", "volume"])
def test_a_save_that_is_killed_at_any_step_loses_nothing_and_leaves_nothing(
    one: Bundle, other: Bundle, tmp_path: Path, way: str, place: str
) -> None:
    shelf = tmp_path / "models"
    if place == "volume":
        (shelf / "lost+found").mkdir(parents=True)  # by which a mounted volume is known
    one.save(shelf)
    hashes = [dict(one.hashes), dict(other.hashes)]
    clean = names(shelf)
    for number in range(400):
        ended = forked(save_killed, other if number % 2 else one, shelf, number)
        loaded = dynamic.load(shelf)
        assert loaded.hashes in hashes, number
        if number % 5 == 0 or ended == 0:  # some leave more than one killed save behind
            saved = (one if number % 2 else other).save(shelf)
            assert names(tmp_path) == ["models"], number
            assert names(shelf) == clean, number
            assert dynamic.load(shelf).hashes == saved.hashes
        if ended == 0:
            break
    assert ended == 0, "the last one was not killed: every step was tried"
    assert number > 20


@linux
def test_a_first_save_that_is_killed_is_there_or_not(one: Bundle, tmp_path: Path, way: str) -> None:
    shelf = tmp_path / "models"
    for number in range(100):
        ended = forked(save_killed, one, shelf, number)
        if shelf.exists():
            assert dynamic.load(shelf).hashes == one.hashes
            shutil.rmtree(shelf)
        if ended == 0:
            break
    one.save(shelf)
    assert names(tmp_path) == ["models"]


def test_what_earlier_versions_left_is_removed_and_what_others_have_stays(one: Bundle, tmp_path: Path) -> None:
    for left in (".shelf.0a1b2c3d", ".shelf.0a1b2c3d.old", ".shelf.0123456789abcdef.old"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "0.weights").write_bytes(b"x")
    kept = [".shelf.backup", ".shelf.old", ".shelf2.0a1b2c3d", "shelf.0a1b2c3d", ".shelf.0a1b2c3d.older"]
    for name in kept:
        (tmp_path / name).mkdir()
    one.save(tmp_path / "shelf")
    assert names(tmp_path) == sorted([*kept, "shelf"])


def test_a_shelf_that_an_earlier_version_lost_between_two_renames_is_found(
    one: Bundle, other: Bundle, tmp_path: Path
) -> None:
    shelf = one.save(tmp_path / "shelf").folder
    shelf.rename(tmp_path / ".shelf.0a1b2c3d.old")
    loaded = dynamic.load(shelf)
    assert (loaded.hashes, loaded.folder) == (one.hashes, shelf)
    assert logits(loaded).shape == (5, 4)
    other.save(shelf)
    assert names(tmp_path) == ["shelf"]
    assert dynamic.load(shelf).hashes == other.hashes


@linux
def test_temporary_bundles_of_killed_processes_go_with_the_next_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def build_and_die() -> None:
        folder = partial.TemporaryFolder()
        (folder.path / "0.weights").write_bytes(b"x")
        os.kill(os.getpid(), signal.SIGKILL)

    alive = partial.TemporaryFolder()
    assert forked(build_and_die) == -signal.SIGKILL
    assert len(names(tmp_path)) == 2
    last = partial.TemporaryFolder()
    assert names(tmp_path) == sorted([alive.path.name, last.path.name])
    for folder in (alive, last):
        folder.remove()
    assert names(tmp_path) == []


@linux
@pytest.mark.parametrize("kind", ["text", "weights"])
def test_partial_files_of_killed_writers_go_with_the_next(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "file"

    def write() -> None:
        if kind == "text":
            replace_text(target, "whole")
        else:
            save_weights(nn.Linear(2, 2), target)

    def die() -> None:
        patch = pytest.MonkeyPatch()
        patch.setattr(Path, "replace", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        write()

    for _ in range(3):
        assert forked(die) == -signal.SIGKILL
        assert len(names(tmp_path)) == 1, "the one before is removed"
    other = tmp_path / ".file.0123456789abcdef.partials"
    other.mkdir()
    write()
    assert names(tmp_path) == [other.name, "file"]


# --- writers and readers at the same time


def test_writers_and_readers_of_one_shelf(one: Bundle, other: Bundle, tmp_path: Path, way: str) -> None:
    shelf = one.save(tmp_path / "shelf").folder
    stop, errors, loads = threading.Event(), [], [0]
    expected = {bundle.cascade: (dict(bundle.hashes), bundle.ladder) for bundle in (one, other)}

    def work(step: Any) -> None:
        try:
            while not stop.is_set():
                step()
        except BaseException as error:
            errors.append(error)

    def read() -> None:
        bundle = dynamic.load(shelf)
        assert expected[bundle.cascade] == (bundle.hashes, bundle.ladder)
        assert bundle.records.fingerprint == bundle.ladder.fingerprint
        loads[0] += 1

    steps = [lambda: one.save(shelf), lambda: other.save(shelf), read, read]
    threads = [threading.Thread(target=work, args=(step,)) for step in steps]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 60
    while loads[0] < 60 and not errors and time.monotonic() < until:
        time.sleep(0.02)
    stop.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert loads[0] >= 60
    assert names(tmp_path) == ["shelf"]


def test_writers_wait_for_each_other(one: Bundle, tmp_path: Path) -> None:
    with one_writer(tmp_path / ".shelf.lock"):
        with pytest.raises(OSError, match="another process has been writing there for 0 s"):
            one_writer(tmp_path / ".shelf.lock", patience_s=0.0).__enter__()
        thread = threading.Thread(target=one.save, args=(tmp_path / "shelf",))
        thread.start()
        time.sleep(0.1)
        assert not (tmp_path / "shelf").exists()
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
    monkeypatch.setattr(locking, "fcntl", Without)
    for bundle in (one, other):
        assert dynamic.load(bundle.save(tmp_path / "shelf").folder).hashes == bundle.hashes
    assert names(tmp_path) == [".shelf.0123456789abcdef", "shelf"], "it may be another writer's"


# --- a bundle that was loaded before its shelf was replaced


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


# --- links and names that lie in wait


def test_only_listed_files_and_what_machines_measured_are_saved(one: Bundle, tmp_path: Path) -> None:
    shelf = one.save(tmp_path / "shelf").folder
    secret = tmp_path / "secret.json"
    secret.write_text("private")
    dynamic.load(shelf).profile(batch=(1,), seconds=0.01)
    before = {path.relative_to(shelf) for path in shelf.rglob("*")}
    for link in ("key.json", "costs/key.json", "backbones/9.weights"):
        (shelf / link).symlink_to(secret)
    (shelf / "checks").rename(shelf / "kept") if (shelf / "checks").exists() else None
    (shelf / "checks").symlink_to(tmp_path)
    (shelf / "choices").symlink_to(tmp_path)
    (shelf / "notes.txt").write_text("unlisted")
    (shelf / "costs" / ".x.json.0123456789abcdef.partial").write_text("unlisted")
    for saved in (dynamic.load(shelf).save(tmp_path / "saved").folder, dynamic.recertify(dynamic.load(shelf)).folder):
        there = {path.relative_to(saved) for path in saved.rglob("*")}
        assert there <= before, there - before
        assert not any(path.is_symlink() for path in saved.rglob("*"))
    assert "costs" in names(tmp_path / "saved")
    dynamic.load(shelf).save(shelf)
    assert not any(path.is_symlink() for path in shelf.rglob("*"))
    assert secret.read_text() == "private"


@pytest.mark.parametrize("room", ["costs", "choices", "checks"])
@pytest.mark.parametrize("kind", ["link", "file", "dangling"])
def test_nothing_is_written_through_a_room_that_is_a_link(
    one: Bundle, tmp_path: Path, room: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    shelf = one.save(tmp_path / "shelf").folder
    outside = tmp_path / "outside"
    outside.mkdir()
    if (shelf / room).exists():
        shutil.rmtree(shelf / room)
    if kind == "file":
        (shelf / room).write_text("mine")
    else:
        (shelf / room).symlink_to(outside if kind == "link" else tmp_path / "nowhere")
    with caplog.at_level(logging.WARNING, "dynamic"):
        bundle = dynamic.load(shelf)
        bundle.check(again=True)
        bundle.profile(batch=(1,), seconds=0.01)
        bundle.open("auto").close()
    assert names(outside) == []
    assert not (tmp_path / "nowhere").exists()
    assert "it is a link or no folder, so nothing is written there: remove it" in caplog.text


def test_a_link_under_the_name_of_a_kept_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("mine")
    (tmp_path / "costs").mkdir()
    for name, link in (("a.json", tmp_path / "target"), ("b.json", tmp_path / "nowhere")):
        (tmp_path / "costs" / name).symlink_to(link)
        keep_text(tmp_path, "costs", name, "new")
        assert not (tmp_path / "costs" / name).is_symlink()
        assert (tmp_path / "costs" / name).read_text() == "new"
    assert (tmp_path / "target").read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()
    save_weights(nn.Linear(2, 2), tmp_path / "w.safetensors")
    content = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").rename(tmp_path / "first")
    (tmp_path / "w.safetensors").symlink_to(tmp_path / "first")
    save_weights(nn.Linear(3, 2), tmp_path / "w.safetensors")
    assert (tmp_path / "first").read_bytes() == content


@linux
def test_writers_with_equal_process_ids_share_no_partial_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in two containers, whose first process has the number 1 each."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    path, texts = tmp_path / "costs.json", ["a" * 200_000, "b" * 100_000]
    replace_text(path, texts[0])
    errors: list[BaseException] = []

    def write(text: str) -> None:
        try:
            for _ in range(60):
                replace_text(path, text)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts * 2]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert path.read_text() in texts
    assert errors == []
    assert names(tmp_path) == ["costs.json"]


@root
def test_two_process_id_namespaces_share_a_shelf(one: Bundle, tmp_path: Path) -> None:
    shelf = one.save(tmp_path / "shelf").folder
    code = (
        "import os, sys, dynamic\n"
        "assert os.getpid() == 1, os.getpid()\n"
        "bundle = dynamic.load(sys.argv[1])\n"
        "for _ in range(6):\n"
        "    bundle.save(sys.argv[1]); dynamic.load(sys.argv[1]).profile(batch=(1,), seconds=0.01, progress=False)\n"
    )
    command = ["unshare", "--pid", "--fork", sys.executable, "-c", code, str(shelf)]
    if subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True, check=False).returncode:
        pytest.skip("namespaces are not allowed here")
    children = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for child in children:
        _, errors = child.communicate(timeout=120)
        assert child.returncode == 0, errors
    assert dynamic.load(shelf).hashes == one.hashes
    assert names(tmp_path) == ["shelf"]
    assert not list(shelf.rglob(".*"))


# --- rights


@linux
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_umask_decides_who_may_read(one: Bundle, tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        one.save(tmp_path / "shelf")  # from a temporary folder, which is for one user alone
        dynamic.load(tmp_path / "shelf").profile(batch=(1,), seconds=0.01).open("auto").close()
        save_weights(nn.Linear(2, 2), tmp_path / "w.safetensors")
    finally:
        os.umask(before)
    for path in [tmp_path / "shelf", tmp_path / "w.safetensors", *(tmp_path / "shelf").rglob("*")]:
        wanted = (0o777 if path.is_dir() else 0o666) & ~mask
        assert oct(stat.S_IMODE(path.stat().st_mode)) == oct(wanted), path


def as_nobody(work: Any) -> int:
    def child() -> None:
        os.setgid(65534)
        os.setuid(65534)
        work()

    return forked(child)


@pytest.fixture
def open_path(tmp_path: Path) -> Path:
    """A folder that every user may reach."""
    for place in (tmp_path, *tmp_path.parents):
        if place == Path("/tmp") or place == Path("/"):
            break
        place.chmod(place.stat().st_mode | 0o055)
    return tmp_path


@root
def test_a_shelf_of_another_user_is_read_and_not_written(one: Bundle, other: Bundle, open_path: Path) -> None:
    shelf = one.save(open_path / "shelf").folder
    expected, before = logits(one), sorted(shelf.rglob("*"))

    def service() -> None:
        try:
            bundle = dynamic.load(shelf).profile(batch=(1,), seconds=0.01, progress=False)
            np.testing.assert_array_equal(logits(bundle, route="stages"), expected)
            assert bundle.costs is not None
            with pytest.raises(
                DiskError, match=r"the bundle could not be written to .*shelf: Permission denied; choose"
            ):
                bundle.save(shelf)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    assert as_nobody(service) == 0
    assert sorted(shelf.rglob("*")) == before
    assert names(open_path) == ["shelf"]
    (shelf / MANIFEST).chmod(0o600)

    def refused() -> None:
        try:
            dynamic.load(shelf)
        except BundleError as error:
            os._exit(0 if "Permission denied" in str(error) else 1)
        os._exit(2)

    assert as_nobody(refused) == 0


@root
def test_the_lock_of_another_user_who_was_killed_is_taken_over(one: Bundle, open_path: Path) -> None:
    (open_path / "models").mkdir()
    (open_path / "models").chmod(0o777)
    (open_path / "models" / ".shelf.lock").touch(0o644)

    def save() -> None:
        dynamic.load(open_path / "first").save(open_path / "models" / "shelf")
        os._exit(0)

    one.save(open_path / "first")
    assert as_nobody(save) == 0
    assert names(open_path / "models") == ["shelf"]


@root
def test_a_read_only_shelf_runs_and_is_not_written(
    one: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one.save(tmp_path / "shelf")
    with mounted(tmp_path / "image", "--bind", str(tmp_path / "shelf")) as image:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(image)], check=True)
        bundle = dynamic.load(image).profile(batch=(1,), seconds=0.01)
        assert bundle.costs is not None
        assert "costs could not be kept in" in caplog.text
        assert logits(bundle).shape == (5, 4)
        with pytest.raises(DiskError, match=r"image: Read-only file system; choose another folder"):
            bundle.save(image)
        assert dynamic.load(image).hashes == one.hashes
    with mounted(tmp_path / "away", "--bind", str(tmp_path / "shelf")) as away:  # unmounted while it is loaded
        loaded = dynamic.load(away)
    assert loaded.place is None
    assert logits(loaded).shape == (5, 4)


# --- volumes and full disks


@root
@pytest.mark.parametrize("kind", ["tmpfs", "bind"])
def test_a_real_mount_is_saved_into(one: Bundle, other: Bundle, tmp_path: Path, kind: str) -> None:
    (tmp_path / "source").mkdir()
    options = ("-t", "tmpfs", "none") if kind == "tmpfs" else ("--bind", str(tmp_path / "source"))
    with mounted(tmp_path / "models", *options) as volume:
        for bundle in (one, other, one):
            loaded = dynamic.load(volume) if (volume / MANIFEST).exists() else None
            bundle.save(volume)
            assert dynamic.load(volume).hashes == bundle.hashes
            if loaded is not None:
                assert logits(loaded).shape == (5, 4)
            assert not list(volume.rglob(".*"))
        dynamic.load(volume).save(volume)  # onto itself
        assert dynamic.load(volume).hashes == one.hashes
    assert names(tmp_path) == ["models", "source"]


@root
def test_a_mount_of_the_same_file_system_that_only_a_rename_shows(
    one: Bundle, other: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source").mkdir()
    monkeypatch.setattr("os.path.ismount", lambda path: False)
    with mounted(tmp_path / "models", "--bind", str(tmp_path / "source")) as volume:
        for bundle in (one, other):
            bundle.save(volume)
            assert dynamic.load(volume).hashes == bundle.hashes
        assert names(tmp_path) == ["models", "source"]
        assert not list(volume.rglob(".*"))


@pytest.mark.parametrize("kind", ["folder over file", "file over folder", "link over file", "more"])
def test_what_lay_in_a_volume_gives_way(one: Bundle, other: Bundle, tmp_path: Path, kind: str) -> None:
    volume, outside = tmp_path / "models", tmp_path / "outside"
    for folder in (volume / "lost+found", outside):
        folder.mkdir(parents=True)
    one.save(volume)
    if kind == "folder over file":
        (volume / "golden.json").unlink()
        (volume / "golden.json").mkdir()
    elif kind == "file over folder":
        shutil.rmtree(volume / "weights")
        (volume / "weights").write_text("x")
    elif kind == "link over file":
        shutil.move(volume / "weights", outside / "weights")
        (volume / "weights").symlink_to(outside / "weights")
        (volume / "backbones" / "old").symlink_to(outside)
    else:
        (volume / "backbones" / "9").mkdir()
        (volume / "backbones" / "9" / "x").write_text("x")
        (volume / "old.onnx").write_text("x")
    before = sorted(outside.rglob("*"))
    saved = other.save(volume)
    there = sorted(str(path.relative_to(volume)) for path in volume.rglob("*") if path.is_file())
    assert there == sorted([MANIFEST, *saved.hashes])
    assert dynamic.load(volume).hashes == other.hashes
    assert sorted(outside.rglob("*")) == before


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def disk_error(step: Callable[[Path], Any], disk: Path) -> str | None:
    try:
        step(disk)
    except DiskError as error:
        return str(error)
    return None


@root
@pytest.mark.parametrize("step", ["save", "build", "weights"])
def test_a_disk_that_is_full_at_any_point_is_one_line(
    one: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    torch.manual_seed(0)
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(16, width), nn.Linear(width, 4)) for width in (2, 8)]
    loader = [(torch.randn(300, 1, 4, 4), torch.arange(300) % 4)]
    whole = sum(path.stat().st_size for path in one.folder.rglob("*") if path.is_file())
    steps: dict[str, Callable[[Path], Any]] = {
        "save": lambda disk: one.save(disk / "shelf"),
        "build": lambda disk: dynamic.build(networks, loader),
        "weights": lambda disk: save_weights(nn.Linear(whole // 4 // 64, 64), disk / "w.safetensors"),
    }
    refused = 0
    for share in np.linspace(0.05, 2.0, 6 if step == "build" else 12):
        size = max(4096, int(whole * share) // 4096 * 4096)
        with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", f"size={size}", "none") as disk:
            with monkeypatch.context() as patch:
                if step == "build":
                    patch.setattr("tempfile.tempdir", str(disk))
                error = disk_error(steps[step], disk)
            if error is None:
                continue
            refused += 1
            assert "No space left on device" in error
            assert "\n" not in error
            assert names(disk) == []
    assert refused


@root
def test_a_full_disk_keeps_the_old_shelf_and_costs_are_measured_again(
    one: Bundle, other: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=1m", "none") as disk:
        shelf = one.save(disk / "shelf").folder
        fill(disk / "fill")
        with pytest.raises(DiskError, match=r"No space left on device, 0\.0 MB are free; choose another folder"):
            other.save(shelf)
        bundle = dynamic.load(shelf).profile(batch=(1,), seconds=0.01)
        assert bundle.costs is not None
        assert bundle.hashes == one.hashes
        assert "No space left on device" in caplog.text
        assert not list(disk.rglob(".*"))
        assert names(disk) == ["fill", "shelf"]


# --- links to weights


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("which", ["weights", "all", "chain", "folder"])
@pytest.mark.parametrize("route", ["stages", "graph"])
def test_weights_that_are_a_link_work_on_every_engine(
    one: Bundle, tmp_path: Path, engine: str, which: str, route: str
) -> None:
    pytest.importorskip(engine)
    shelf, blobs = one.save(tmp_path / "shelf").folder, tmp_path / "blobs"
    blobs.mkdir()
    expected = logits(one, engine=engine, route=route)
    if which == "folder":
        shutil.move(shelf / "backbones", blobs / "backbones")
        (shelf / "backbones").symlink_to(blobs / "backbones")
    for number, path in enumerate(sorted(path for path in shelf.rglob("*") if path.is_file())):
        if which == "folder" or (which == "weights" and path.suffix != ".weights"):
            continue
        shutil.move(path, blobs / str(number))
        if which == "chain":
            (blobs / f"to-{number}").symlink_to(str(number))
        path.symlink_to(blobs / (f"to-{number}" if which == "chain" else str(number)))
    loaded = dynamic.load(shelf)
    opened = loaded.open(engine, route=route)
    np.testing.assert_array_equal(opened.run(INPUTS, ALL).logits, expected)
    opened.close()
    saved = loaded.save(tmp_path / "saved")
    assert not any(path.is_symlink() for path in saved.folder.rglob("*"))
    assert dynamic.load(saved.folder).hashes == one.hashes


def test_exchange_says_where_it_cannot(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").write_text("b")
    if exchanging.exchange(tmp_path / "a", tmp_path / "b"):
        assert (tmp_path / "a").read_text() == "b"
        assert (tmp_path / "b").is_dir()
        with pytest.raises(FileNotFoundError):
            exchanging.exchange(tmp_path / "a", tmp_path / "c")


def test_a_missing_file_is_words_when_saving(one: Bundle, tmp_path: Path) -> None:
    shelf = one.save(tmp_path / "shelf").folder
    loaded = dynamic.load(shelf)
    (shelf / "golden.json").unlink()
    with pytest.raises(CorruptError, match=r"golden\.json.*copy the bundle again"):
        loaded.save(tmp_path / "saved")
    assert names(tmp_path) == ["shelf"]
