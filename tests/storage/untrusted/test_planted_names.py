"""Links and folders under the names that killed writers leave: they are no shelf, and what they name stays."""

import logging
import os
import shutil
from pathlib import Path

import pytest
from support.storage_cases import names

import dynamic
from dynamic.bundle.bundle import Bundle
from dynamic.bundle.manifest import MANIFEST
from dynamic.errors import BundleError
from dynamic.storage.versioned_folder import standing

BESIDE = [".shelf.deadbeef", ".shelf.0123456789abcdef", ".shelf.deadbeef.old", ".shelf.0123456789abcdef.old"]
INSIDE = [*BESIDE, ".bundle.deadbeef", ".bundle.0123456789abcdef", ".bundle.0123456789abcdef.old", ".bundle.ready"]


@pytest.mark.parametrize("name", [*BESIDE, *(f"shelf/{name}" for name in INSIDE)])
@pytest.mark.parametrize("kind", ["folder", "volume"])
def test_a_link_that_was_planted_takes_nothing_with_it(
    one: Bundle, other: Bundle, tmp_path: Path, name: str, kind: str
) -> None:
    production, shelf = one.save(tmp_path / "production").folder, tmp_path / "shelf"
    if kind == "volume":
        (shelf / "lost+found").mkdir(parents=True)
    one.save(shelf)
    before = {path: path.stat().st_mtime_ns for path in sorted(production.rglob("*"))}
    (tmp_path / name).symlink_to(production)
    other.save(shelf)
    assert {path: path.stat().st_mtime_ns for path in sorted(production.rglob("*"))} == before
    assert dynamic.load(production).hashes == one.hashes
    assert dynamic.load(shelf).hashes == other.hashes
    assert names(tmp_path) == ["production", "shelf"], "the link itself is gone"
    assert not list(shelf.rglob(".*"))


def test_a_link_is_no_content_of_a_shelf(one: Bundle, other: Bundle, tmp_path: Path) -> None:
    forged = other.save(tmp_path / "forged").folder
    shelf = one.save(tmp_path / "shelf").folder
    (shelf / ".bundle.ready").symlink_to(forged)
    assert standing(shelf, MANIFEST) == shelf
    assert dynamic.load(shelf).hashes == one.hashes
    (shelf / ".bundle.ready").unlink()
    (shelf / ".bundle.ready").mkdir()
    (shelf / ".bundle.ready" / MANIFEST).symlink_to(forged / MANIFEST)
    assert dynamic.load(shelf).hashes == one.hashes
    shutil.rmtree(shelf)
    (tmp_path / ".shelf.deadbeef.old").symlink_to(forged)
    with pytest.raises(BundleError):
        dynamic.load(shelf)


def test_what_is_read_in_the_place_of_a_shelf_is_logged(
    one: Bundle, other: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shelf = one.save(tmp_path / "shelf").folder
    dynamic.load(shelf)
    assert "is read from the folder" not in caplog.text
    shutil.copytree(other.folder, shelf / ".bundle.ready")
    with caplog.at_level(logging.WARNING, "dynamic"):
        assert dynamic.load(shelf).hashes == other.hashes, "as after a writer that was killed"
        dynamic.load(shelf)
    assert caplog.text.count(f"{shelf} is read from the folder .bundle.ready in it") == 1


@pytest.mark.parametrize(
    "name", [".env.production", ".env.local", ".bundle.config", ".bundle.old", ".env.deadbeef0", ".env.lock"]
)
def test_a_folder_with_hidden_files_of_a_user_is_not_replaced(one: Bundle, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "env"
    folder.mkdir()
    (folder / name).write_text("SECRET=1")
    with pytest.raises(BundleError, match="exists and is not a bundle"):
        one.save(folder)
    assert (folder / name).read_text() == "SECRET=1"


@pytest.mark.parametrize("name", [".env.deadbeef", ".bundle.0123456789abcdef", ".bundle.lock", "lost+found"])
def test_a_folder_with_what_writers_and_volumes_leave_is_empty(one: Bundle, tmp_path: Path, name: str) -> None:
    (tmp_path / "env" / name).mkdir(parents=True) if name != ".bundle.lock" else (tmp_path / "env").mkdir()
    if name == ".bundle.lock":
        (tmp_path / "env" / name).touch()
    assert dynamic.load(one.save(tmp_path / "env").folder).hashes == one.hashes
    assert [entry for entry in os.listdir(tmp_path / "env") if entry.startswith(".")] == []
