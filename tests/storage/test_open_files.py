"""Files that a bundle keeps open: how many, whose they are, and files that became pipes."""

import contextlib
import errno
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.storage_cases import ALL, INPUTS, forked, linux, logits, names

import dynamic
from dynamic.bundle.bundle import Bundle
from dynamic.bundle.manifest import MANIFEST
from dynamic.engines.model_files.graph_files import BundleFiles
from dynamic.errors import CorruptError, EngineError
from dynamic.storage import open_files
from dynamic.storage.atomic_write import copy_file
from dynamic.storage.open_files import HeldFiles

FILES = ["bundle.json", "graph.onnx", "graph_single.onnx", "backbones/0.weights", "backbones/0_0.onnx", "records.npz"]


@pytest.fixture
def shelf(one: Bundle, tmp_path: Path) -> Path:
    return one.save(tmp_path / "shelf").folder


@linux
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_becomes_a_pipe_holds_nobody(shelf: Path, name: str) -> None:
    """In a process of its own: one that waits for a pipe cannot be woken."""
    loaded = dynamic.load(shelf)
    (shelf / name).unlink(missing_ok=True)
    os.mkfifo(shelf / name)

    def work() -> None:
        for step in (
            lambda: logits(loaded, route="stages"),
            lambda: logits(loaded, route="graph"),
            lambda: loaded.records,
            lambda: loaded.canaries,
            lambda: loaded.save(shelf.parent / "saved"),
            lambda: dynamic.load(shelf),
        ):
            with contextlib.suppress(dynamic.DynamicError):
                step()
        os._exit(0)

    assert forked(work) == 0


@linux
@pytest.mark.parametrize("name", ["graph.onnx", "backbones/0.weights"])
def test_a_pipe_in_a_shelf_is_words(shelf: Path, name: str) -> None:
    loaded = dynamic.load(shelf)
    (shelf / name).unlink()
    os.mkfifo(shelf / name)
    with pytest.raises(CorruptError, match=r"is missing\. Copy the bundle again"):
        dynamic.load(shelf)
    with pytest.raises(EngineError, match="is missing, so it is not run"):
        BundleFiles(shelf, loaded.hashes).load(name, lambda path: None)
    with pytest.raises(OSError, match="it is no file"):
        copy_file(shelf / name, shelf.parent / "copy")
    with pytest.raises(ValueError, match=r"is no file|it is no file"):
        HeldFiles.of(shelf, shelf, MANIFEST, [name])


def test_a_manifest_that_has_grown_is_not_read_whole(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = dynamic.load(shelf)
    assert loaded.place == shelf
    monkeypatch.setattr(open_files, "MOST_BYTES", 10)
    assert loaded.place is None


def test_the_size_of_a_file_is_that_of_the_version_that_was_loaded(shelf: Path, tmp_path: Path) -> None:
    loaded = dynamic.load(shelf)
    sizes = {name: (shelf / name).stat().st_size for name in loaded.hashes}
    for name in loaded.hashes:
        with (shelf / name).open("ab") as file:
            file.write(b"another version")
    assert {name: loaded.size_of(name) for name in loaded.hashes} == sizes
    shutil.rmtree(shelf)
    assert {name: loaded.size_of(name) for name in loaded.hashes} == sizes


@linux
def test_bundles_leave_descriptors_for_others(
    shelf: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import resource

    count = len(dynamic.load(shelf).hashes)
    already = len(open_files._owners)
    limit = 2 * (already + 2 * count)  # half of which is room for two such bundles
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limit, limit))
    with caplog.at_level(logging.WARNING, "dynamic"):
        bundles = [dynamic.load(shelf) for _ in range(4)]
    assert [bundle._held.holds(MANIFEST) for bundle in bundles if bundle._held] == [False] * 4, "it is kept in memory"
    assert [bundle._held.holds("graph.onnx") for bundle in bundles if bundle._held] == [True, True, False, False]
    assert len(open_files._owners) == already + 2 * count
    assert caplog.text.count("are not kept open: bundles of this process have") == 2
    assert all(logits(bundle).shape == (5, 4) for bundle in bundles)
    del bundles
    assert len(open_files._owners) == already


@linux
def test_descriptors_that_were_closed_and_given_again_are_not_closed_twice(shelf: Path, tmp_path: Path) -> None:
    """A daemon closes what it did not open. What it loads then has the same numbers, and the same files perhaps."""

    def daemon() -> None:
        first = dynamic.load(shelf)
        os.closerange(3, 4096)
        second = dynamic.load(shelf)
        assert second._held is not None
        assert second._held.holds("graph.onnx")
        del first
        good = second._held.holds("graph.onnx")
        shutil.rmtree(shelf)
        os._exit(0 if good and logits(second).shape == (5, 4) else 1)

    assert forked(daemon) == 0


@linux
def test_a_child_does_not_close_numbers_of_its_parent(shelf: Path) -> None:
    """The child has closed them, and opened the same files by itself."""
    loaded = [dynamic.load(shelf)]
    assert loaded[0]._held is not None
    numbers = {name: held[0] for name, held in loaded[0]._held._files.items()}

    def child() -> None:
        for name, number in numbers.items():
            os.close(number)
            own = os.open(shelf / name, os.O_RDONLY)
            if own != number:
                os.dup2(own, number)
                os.close(own)
        loaded.clear()  # its finalizer runs
        with contextlib.suppress(OSError):
            for number in numbers.values():
                os.fstat(number)
            os._exit(0)
        os._exit(1)

    assert forked(child) == 0


class Held:
    """Files of a version that lies in its folder. `states`: what `state` says, one after the other."""

    def __init__(self, folder: Path, states: list[tuple[int, ...]]) -> None:
        self.folder, self.states = folder, states

    def place(self) -> Path | None:
        return self.folder

    def state(self) -> tuple[int, ...] | None:
        return self.states.pop(0)

    def on_disk(self, names: Any) -> Any:
        raise AssertionError("it lies where it was")


@pytest.mark.parametrize(
    ("states", "tries"),
    [([(1,), (1,)], 1), ([(1,), (2,), (2,), (2,)], 2), ([(1,), (2,), (2,), (3,), (3,), (3,)], 3)],
)
def test_a_graph_that_does_not_load_is_tried_again_only_where_the_folder_was_exchanged(
    tmp_path: Path, states: list[tuple[int, ...]], tries: int
) -> None:
    calls = []

    def read(path: Path) -> None:
        calls.append(path)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        BundleFiles(tmp_path, None, Held(tmp_path, states)).load("graph.onnx", read)
    assert len(calls) == tries
    assert not states


def test_a_temporary_copy_is_not_taken_for_abandoned(
    one: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of weights that are links, for a caller without open files. Another process makes its own meanwhile."""
    from dynamic.storage.temporary_files import TemporaryFolder

    shelf = one.save(tmp_path / "shelf").folder
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    hashes = dict(one.hashes)
    (shelf / "backbones" / "0.weights").rename(shelf / "blob")
    (shelf / "backbones" / "0.weights").symlink_to(shelf / "blob")
    name = next(n for n in hashes if n.startswith("backbones/0") and b"0.weights" in (shelf / n).read_bytes())
    with BundleFiles(shelf, hashes).verify(name) as path:
        TemporaryFolder("held").remove()
        assert path.exists()
        assert (path.parent / "0.weights").read_bytes() == (shelf / "blob").read_bytes()
    assert names(tmp_path / "temporary") == []


def test_each_session_is_looked_at_in_its_own_time(shelf: Path, monkeypatch: pytest.MonkeyPatch, one: Bundle) -> None:
    """At one request in a second the first stage is looked at, and so are those behind it."""
    now = [100.0]
    monkeypatch.setattr("dynamic.engines.onnxruntime.time.monotonic", lambda: now[0])
    engine = dynamic.load(shelf).open("onnxruntime", route="stages", threads=1)
    looked: list[str] = []
    sessions = engine.executor._sessions  # type: ignore[attr-defined]
    monkeypatch.setattr(sessions._files, "check_loaded", looked.append)
    engine.run(INPUTS, ALL)
    graphs = [stage.graph for stage in engine.spec.stages][1:]  # the exit of the first is off, and so is its network
    both = np.array([0.9999999], np.float32)
    engine.run(INPUTS, both)
    looked.clear()
    for _ in range(3):
        now[0] += 1.0
        engine.run(INPUTS, both)
    assert sorted(looked) == sorted([engine.spec.stages[0].graph, *graphs] * 3)
    engine.close()


def test_copying_a_file_that_cannot_be_read_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file") as error:
        copy_file(tmp_path / "none", tmp_path / "copy")
    assert error.value.errno == errno.ENOENT
