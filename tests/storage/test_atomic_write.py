"""Volumes, full disks and missing homes: what is written appears whole or not at all, and errors are words."""

import errno
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dynamic
from dynamic.bundle.manifest import MANIFEST
from dynamic.data import CenterCrop, Normalize, Resize, Scale, load_images
from dynamic.errors import BundleError, DiskError, InputError
from dynamic.models import save_weights
from dynamic.monitoring.traces import TraceWriter


@pytest.fixture(scope="module")
def bundle() -> dynamic.Bundle:
    torch.manual_seed(0)
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(16, width), nn.ReLU(), nn.Linear(width, 4)) for width in (2, 16)]
    inputs, labels = torch.randn(300, 1, 4, 4), torch.arange(300) % 4
    return dynamic.build(networks, [(inputs, labels)]).profile(batch=(1,), seconds=0.02)


def refuse(monkeypatch: pytest.MonkeyPatch, volume: Path, number: int) -> None:
    """As a mounted volume does: its folder cannot be renamed, nor anything be put in its place."""
    rename = Path.rename

    def refusing(self: Path, target: Path) -> Path:
        if volume in (self, Path(target)):
            raise OSError(number, os.strerror(number), str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refusing)


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EXDEV])
@pytest.mark.parametrize("known", [True, False])
def test_a_bundle_is_put_into_a_mounted_volume(
    bundle: dynamic.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool, number: int
) -> None:
    volume = tmp_path / "models"
    (volume / "lost+found").mkdir(parents=True)
    refuse(monkeypatch, volume, number)
    monkeypatch.setattr("os.path.ismount", lambda path: known and Path(path) == volume)
    for _ in range(2):  # the second time over the first
        saved = bundle.save(volume)
        assert saved.folder == volume
        assert dynamic.load(volume).costs == bundle.costs
        (volume / "stale.onnx").write_text("of the bundle before")
    bundle.save(volume)
    assert dynamic.load(volume).save(volume).folder == volume  # onto itself
    assert dynamic.load(volume).spec == bundle.spec
    assert sorted(p.name for p in tmp_path.iterdir()) == ["models"]
    assert not [p.name for p in volume.iterdir() if p.name.startswith(".") or p.name == "stale.onnx"]
    assert (volume / "lost+found").is_dir()


@pytest.mark.skipif(not hasattr(os, "access"), reason="needs rights of POSIX")
def test_a_bundle_is_put_into_a_folder_whose_parent_is_not_writable(
    bundle: dynamic.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    access = os.access
    monkeypatch.setattr(
        "os.access", lambda path, mode, **kw: False if Path(path) == tmp_path else access(path, mode, **kw)
    )
    refuse(monkeypatch, folder, errno.EACCES)
    bundle.save(folder)
    assert dynamic.load(folder).spec == bundle.spec
    assert sorted(p.name for p in tmp_path.iterdir()) == ["given"]


def test_a_volume_that_fills_up_keeps_the_old_bundle(
    bundle: dynamic.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = bundle.save(tmp_path / "models").folder
    before = (volume / MANIFEST).read_bytes()
    monkeypatch.setattr("os.path.ismount", lambda path: Path(path) == volume)
    fill(monkeypatch, after=3)
    with pytest.raises(BundleError):
        bundle.save(volume)
    assert (volume / MANIFEST).read_bytes() == before
    assert dynamic.load(volume).spec == bundle.spec
    assert not [p.name for p in volume.iterdir() if p.name.startswith(".")]


def test_what_is_no_bundle_is_not_replaced_in_a_volume_either(bundle: dynamic.Bundle, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_text("keep")
    (tmp_path / "photos" / "lost+found").mkdir()
    with pytest.raises(BundleError, match="is not a bundle"):
        bundle.save(tmp_path / "photos")
    assert (tmp_path / "photos" / "1.jpg").read_text() == "keep"


def test_a_saved_bundle_may_be_read_by_whom_new_files_may(bundle: dynamic.Bundle, tmp_path: Path) -> None:
    """The temporary folder that it is built in is for one user alone."""
    (tmp_path / "new").mkdir()
    assert bundle.save(tmp_path / "shelf").folder.stat().st_mode == (tmp_path / "new").stat().st_mode


def fill(monkeypatch: pytest.MonkeyPatch, after: int, number: int = errno.ENOSPC) -> None:
    """A disk that is full after so many files."""
    copy, copies = shutil.copyfileobj, []

    def full(source: Any, target: Any, *options: Any) -> Any:
        copies.append(source)
        if len(copies) > after:
            raise OSError(number, os.strerror(number), str(target))
        return copy(source, target, *options)

    monkeypatch.setattr(shutil, "copyfileobj", full)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    bundle: dynamic.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fill(monkeypatch, 2, number)
    with pytest.raises(DiskError, match=r"the bundle could not be written to .*shelf: .*, .* MB are free\. ") as e:
        bundle.save(tmp_path / "shelf")
    assert os.strerror(number) in str(e.value)
    assert len(str(e.value)) < 300
    assert "\n" not in str(e.value)
    assert list(tmp_path.iterdir()) == []


def test_costs_on_a_full_disk_leave_no_partial_file(
    bundle: dynamic.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shelf = bundle.save(tmp_path / "shelf").folder
    shutil.rmtree(shelf / "costs")

    def full(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)  # the partial file is there already
    assert dynamic.load(shelf).profile(batch=(1,), seconds=0.02).costs is not None
    assert "No space left on device" in caplog.text
    assert list((shelf / "costs").iterdir()) == []
    dynamic.load(shelf).open("auto").close()
    assert list((shelf / "choices").iterdir()) == []


def test_weights_on_a_full_disk_are_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError

    def full(tensors: Any, path: Path, facts: Any) -> None:
        Path(path).write_bytes(b"")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("dynamic.offline.networks.checkpoints.save_file", full)
    with pytest.raises(DiskError, match=r"the weights could not be written to .*No space left on device"):
        save_weights(nn.Linear(2, 2), tmp_path / "net.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["unset", "relative"])
def test_images_are_read_without_a_home_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, caplog: pytest.LogCaptureFixture
) -> None:
    from PIL import Image

    (tmp_path / "data" / "a").mkdir(parents=True)
    Image.new("L", (4, 4)).save(tmp_path / "data" / "a" / "1.png")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if missing == "unset":  # and the user's number is in no password file, as in containers

        def nobody() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "home", staticmethod(nobody))
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", "cache")  # the specification says that such a path is ignored
        monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.INFO, "dynamic"):
        assert len(load_images(tmp_path / "data")) == 1
    assert caplog.messages == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data"]
    monkeypatch.setattr(Path, "expanduser", lambda self: (_ for _ in ()).throw(RuntimeError("no home")))
    with pytest.raises(InputError, match="no home directory: give the whole path"):
        load_images("~/data")


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.float32, np.float64, np.array])
def test_a_budget_takes_numbers_of_numpy(kind: Any) -> None:
    limits = ("latency_ms", "deadline_ms", "energy_mj", "memory_mb", "battery_duration_s", "temperature_c")
    budget = dynamic.Budget(**{name: kind(20) for name in limits})
    assert budget == dynamic.Budget(**dict.fromkeys(limits, 20))
    assert json.loads(json.dumps(budget.to_json()))["latency_ms"] == 20
    assert hash(budget) == hash(dynamic.Budget(**dict.fromkeys(limits, 20)))
    with pytest.raises(dynamic.DynamicError, match=r"latency_ms=-20(\.0)? must be a positive number"):
        dynamic.Budget(latency_ms=np.int64(-20))  # type: ignore[arg-type]
    with pytest.raises(dynamic.DynamicError):
        dynamic.Budget(latency_ms=np.bool_(True))  # type: ignore[arg-type]


def test_settings_take_numbers_of_numpy(bundle: dynamic.Bundle, tmp_path: Path) -> None:
    assert Resize(np.int64(8)) == Resize(8)  # type: ignore[arg-type]
    assert Resize(np.array([8, 9])) == Resize((8, 9))  # type: ignore[arg-type]
    assert CenterCrop(tuple(np.array([4, 4]))) == CenterCrop((4, 4))
    own = dynamic.Preprocess.of(mean=np.array([0.5]), std=np.array([0.25]), resize=np.int64(8), crop=np.int64(8))  # type: ignore[arg-type]
    assert own == dynamic.Preprocess((Resize(8), CenterCrop((8, 8)), Scale(), Normalize((0.5,), (0.25,))))
    assert dynamic.Preprocess.from_json(json.loads(json.dumps(own.to_json()))) == own
    with bundle.runtime(queue=np.int64(3), workers=np.int64(1), drift_alpha=np.float32(0.01)) as run:  # type: ignore[arg-type]
        run.submit(np.zeros((1, 4, 4), np.float32)).result()
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3))
    for exits in (np.int64(1), np.array([0.5])):
        assert len(dynamic.wrap(net, torch.zeros(2, 1, 8, 8), exits=exits).exits) == 1  # type: ignore[arg-type]
    with (tmp_path / "trace.jsonl").open("w") as file:
        TraceWriter(file, "here", "2026-01-01", {}).add(dynamic.Snapshot(time_s=np.float64(1), battery=np.float32(0.5)))
    assert '"battery": 0.5' in (tmp_path / "trace.jsonl").read_text()


def test_a_mapped_array_is_an_image(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 5, 3), dtype=np.uint8)
    mapped = np.memmap(tmp_path / "pixels", np.uint8, "w+", shape=pixels.shape)
    mapped[:] = pixels
    mapped.flush()
    preprocess = dynamic.Preprocess.of(resize=(4, 4))
    for mode in ("r", "r+", "c"):  # the attribute `mode` of a mapped array is not that of an image
        read = np.memmap(tmp_path / "pixels", np.uint8, mode, shape=pixels.shape)
        np.testing.assert_array_equal(preprocess(read), preprocess(pixels))
        np.testing.assert_array_equal(preprocess(read[0]), preprocess(pixels[0]))


def test_what_is_no_array_is_words(bundle: dynamic.Bundle) -> None:
    with bundle.runtime(monitor=dynamic.FixedMonitor()) as run:
        for wrong in (torch.zeros(1, 1, 4, 4, requires_grad=True), [[1.0, 2.0], [3.0]], {"input": [[1.0], [2.0, 3.0]]}):
            with pytest.raises(InputError, match=r"is no array .* give a numpy array"):
                run(wrong)
    for wrong in ("photo.jpg", Path("photo.jpg"), b"\x89PNG"):
        with pytest.raises(InputError, match=r"open it, PIL\.Image\.open\(path\)"):
            dynamic.Preprocess.of()(wrong)
    with pytest.raises(InputError, match=r"upper 8, \(array >> 8\)"):
        dynamic.Preprocess.of()(np.zeros((4, 4), np.uint16))
