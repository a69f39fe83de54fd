"""Links and names that lie in wait: nothing is written or copied through them."""

import ctypes
import errno
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.storage_cases import ALL, INPUTS, linux, logits, names, root
from torch import nn

import dynamic
from dynamic.bundle.bundle import Bundle
from dynamic.errors import CorruptError
from dynamic.models import save_weights
from dynamic.storage import folder_exchange
from dynamic.storage.atomic_write import keep_text, replace_text


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


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("which", ["weights", "all", "chain", "folder"])
@pytest.mark.parametrize("route", ["stages", "graph"])
def test_weights_that_are_a_link_work_on_every_engine(
    one: Bundle, tmp_path: Path, engine: str, which: str, route: str
) -> None:
    pytest.importorskip(engine)
    shelf = one.save(tmp_path / "shelf").folder
    blobs = shelf / "..data"  # inside, as in volumes of Kubernetes
    blobs.mkdir()
    expected = logits(one, engine=engine, route=route)
    if which == "folder":
        shutil.move(shelf / "backbones", blobs / "backbones")
        (shelf / "backbones").symlink_to(blobs / "backbones")
    for number, path in enumerate(sorted(p for p in shelf.rglob("*") if p.is_file() and blobs not in p.parents)):
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


@linux
def test_two_entries_change_places(tmp_path: Path) -> None:
    if folder_exchange._renameat2() is None:
        pytest.skip("this C library has no renameat2")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").write_text("b")
    # ext4, xfs, btrfs, tmpfs, f2fs and overlayfs can
    assert folder_exchange.exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a").read_text() == "b"
    assert (tmp_path / "b").is_dir()
    with pytest.raises(FileNotFoundError):
        folder_exchange.exchange(tmp_path / "a", tmp_path / "c")


@pytest.mark.parametrize(
    ("number", "cannot"),
    [
        (errno.EINVAL, True),
        (errno.ENOSYS, True),
        (errno.EOPNOTSUPP, True),
        (errno.EBUSY, False),
        (errno.EACCES, False),
    ],
)
def test_exchange_says_where_it_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, cannot: bool
) -> None:
    def refusing(*_: Any) -> int:
        ctypes.set_errno(number)
        return -1

    monkeypatch.setattr(folder_exchange, "_renameat2", lambda: refusing)
    if cannot:
        assert not folder_exchange.exchange(tmp_path / "a", tmp_path / "b")
    else:
        with pytest.raises(OSError, match=re.escape(os.strerror(number))):
            folder_exchange.exchange(tmp_path / "a", tmp_path / "b")
    monkeypatch.setattr(folder_exchange, "_renameat2", lambda: None)
    assert not folder_exchange.exchange(tmp_path / "a", tmp_path / "b")


def test_a_missing_file_is_words_when_saving(one: Bundle, tmp_path: Path) -> None:
    shelf = one.save(tmp_path / "shelf").folder
    loaded = dynamic.load(shelf)
    (shelf / "golden.json").unlink()
    with pytest.raises(CorruptError, match=r"golden\.json.*Copy the bundle again"):
        loaded.save(tmp_path / "saved")
    assert names(tmp_path) == ["shelf"]
