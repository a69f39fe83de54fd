"""Shelves in mounted volumes and on full disks."""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.storage_cases import logits, mounted, names, root
from torch import nn

import dynamic
from dynamic.bundle.bundle import Bundle
from dynamic.bundle.manifest import MANIFEST
from dynamic.bundle.sharing.model_card import CARD
from dynamic.errors import DiskError
from dynamic.models import save_weights


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
    assert there == sorted([CARD, MANIFEST, *saved.hashes])
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
        with pytest.raises(DiskError, match=r"No space left on device, 0\.0 MB are free\. Choose another folder"):
            other.save(shelf)
        bundle = dynamic.load(shelf).profile(batch=(1,), seconds=0.01)
        assert bundle.costs is not None
        assert bundle.hashes == one.hashes
        assert "No space left on device" in caplog.text
        assert not list(disk.rglob(".*"))
        assert names(disk) == ["fill", "shelf"]


def test_a_volume_without_hard_links_is_saved_into(
    one: Bundle, other: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)  # as FAT does
    (tmp_path / "models" / "lost+found").mkdir(parents=True)
    for bundle in (one, other):
        saved = bundle.save(tmp_path / "models")
        assert dynamic.load(saved.folder).hashes == bundle.hashes
        assert not list(saved.folder.rglob(".*"))


@root
def test_features_on_a_full_disk_are_one_line(tmp_path: Path) -> None:
    net = dynamic.wrap(
        nn.Sequential(nn.Conv2d(1, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 36, 4)),
        torch.zeros(2, 1, 8, 8),
        exits=1,
    )
    loader = [(torch.randn(64, 1, 8, 8), torch.arange(64) % 4)] * 40
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=8k", "none") as disk:
        with pytest.raises(DiskError, match=r"features could not be written to .*No space left on device"):
            dynamic.fit(net, loader, epochs=1, training=dynamic.TrainingConfig(memory_limit_mb=1e-3, cache_dir=disk))
        assert names(disk) == []
