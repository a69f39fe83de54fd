"""A save that is killed at any moment loses nothing, and the next one leaves nothing."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from support.storage_cases import forked, linux, logits, names
from torch import nn

import dynamic
from dynamic.bundle.bundle import Bundle
from dynamic.models import save_weights
from dynamic.storage import temporary_files, versioned_folder
from dynamic.storage.atomic_write import replace_text


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
    monkeypatch.setattr(versioned_folder, "exchange", counted(versioned_folder.exchange))


def save_killed(bundle: Bundle, target: Path, number: int) -> None:
    kill_at(pytest.MonkeyPatch(), number)
    bundle.save(target)
    os._exit(0)


@linux
@pytest.mark.parametrize(
    ("way", "place"),
    # into a volume files move one by one: no folder is exchanged there
    [("exchange", "folder"), ("rename", "folder"), ("exchange", "volume")],
    indirect=["way"],
)
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
        loaded.check_files()
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
        folder = temporary_files.TemporaryFolder("build")
        (folder.path / "0.weights").write_bytes(b"x")
        os.kill(os.getpid(), signal.SIGKILL)

    alive = temporary_files.TemporaryFolder("build")
    assert forked(build_and_die) == -signal.SIGKILL
    assert len(names(tmp_path)) == 2
    last = temporary_files.TemporaryFolder("build")
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
