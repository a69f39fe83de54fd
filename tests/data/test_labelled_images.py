"""Image folders and zips, written here pixel by pixel and read back."""

import logging
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dynamic.data.labelled_images as module
from dynamic.data import ImageSet, digits, load_images, stratified_halves
from dynamic.policies.errors import DynamicError, InputError


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dynamic-inference"


def pixels(seed: int, height: int = 6, width: int = 5, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    gray = image.shape[2] == 1
    Image.fromarray(image[..., 0] if gray else image).save(path, lossless=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two splits of two classes: train has 3 images, test 2."""
    root = tmp_path / "pets"
    write(root / "data/train/dog/b.png", pixels(2))
    write(root / "data/train/cat/z.png", pixels(1))
    write(root / "data/train/dog/a.webp", pixels(3))
    write(root / "data/test/cat/1.png", pixels(4))
    write(root / "data/test/dog/1.PNG", pixels(5))
    (root / "data/train/cat/notes.txt").write_text("no image")
    (root / "data/train/cat/.hidden.png").write_bytes(b"no image")
    return root


def zipped(folder: Path) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as file:
        for entry in sorted(folder.rglob("*")):
            file.write(entry, entry.relative_to(folder.parent))
    return path


@pytest.mark.parametrize("as_zip", [False, True])
def test_reads_a_split(folder: Path, as_zip: bool) -> None:
    found = load_images(zipped(folder) if as_zip else folder, "train")
    assert found.classes == ("cat", "dog")
    assert found.labels.tolist() == [0, 1, 1]
    assert found.labels.dtype == np.int64
    np.testing.assert_array_equal(found.images, np.stack([pixels(1), pixels(3), pixels(2)]))
    assert len(load_images(zipped(folder) if as_zip else folder, "test")) == 2


def test_reads_a_folder_without_splits(folder: Path) -> None:
    found = load_images(folder / "data" / "train")
    np.testing.assert_array_equal(found.images, np.stack([pixels(1), pixels(3), pixels(2)]))


def test_gray_and_mixed_channels(tmp_path: Path) -> None:
    write(tmp_path / "set/a/0.png", pixels(0, channels=1))
    write(tmp_path / "set/b/0.png", pixels(1, channels=1))
    np.testing.assert_array_equal(
        load_images(tmp_path / "set").images, np.stack([pixels(0, channels=1), pixels(1, channels=1)])
    )
    write(tmp_path / "set/b/1.png", pixels(2))
    mixed = load_images(tmp_path / "set").images
    np.testing.assert_array_equal(mixed[0], np.repeat(pixels(0, channels=1), 3, axis=2))
    np.testing.assert_array_equal(mixed[2], pixels(2))


@pytest.mark.parametrize("as_zip", [False, True])
def test_cache_is_used_until_the_source_changes(
    folder: Path, as_zip: bool, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = zipped(folder) if as_zip else folder
    first = load_images(source, "train")
    assert [p.suffix for p in cache_folder.iterdir()] == [".npz"]  # no partial file is left
    decode = module._decode
    monkeypatch.setattr(module, "_decode", lambda *_: pytest.fail("decoded again"))
    again = load_images(source, "train")
    np.testing.assert_array_equal(again.images, first.images)
    np.testing.assert_array_equal(again.labels, first.labels)
    assert again.classes == first.classes
    monkeypatch.setattr(module, "_decode", decode)
    assert len(load_images(source, "test")) == 2  # another split is another entry
    write(folder / "data/train/cat/z.png", pixels(99))
    os.utime(folder / "data/train/cat/z.png", (10**9, 10**9))
    if as_zip:
        os.utime(zipped(folder), (10**9, 10**9))
    np.testing.assert_array_equal(load_images(source, "train").images[0], pixels(99))


def test_without_cache_nothing_is_written(folder: Path, cache_folder: Path) -> None:
    load_images(folder, "train", cache=False)
    assert not cache_folder.exists()


def test_a_damaged_cache_is_made_again(folder: Path, cache_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = load_images(folder, "train")
    (kept,) = cache_folder.iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    with caplog.at_level(logging.WARNING, "dynamic"):
        again = load_images(folder, "train")
    np.testing.assert_array_equal(again.images, first.images)
    assert "decoding again" in caplog.text
    assert kept.stat().st_size > 100


def test_a_cache_that_cannot_be_written_costs_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(load_images(folder, "train")) == 3
    assert "could not be stored" in caplog.text


def test_cache_lies_in_the_home_folder_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert module.cache_folder() == tmp_path / ".cache" / "dynamic-inference"


def test_errors_name_the_remedy(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"torchvision\.datasets\.CIFAR10\(.*download=True"):
        load_images(tmp_path / "nothing.zip")
    with pytest.raises(InputError, match="split='train'"):
        load_images(folder)
    with pytest.raises(InputError, match=r"no split 'val': it has \['test', 'train'\]"):
        load_images(folder, "val")
    write(tmp_path / "flat/a.png", pixels(0))
    with pytest.raises(InputError, match="no images in class folders"):
        load_images(tmp_path / "flat")
    (tmp_path / "bad.zip").write_bytes(b"no zip")
    with pytest.raises(InputError, match="no zip that reads"):
        load_images(tmp_path / "bad.zip")
    write(tmp_path / "sizes/a/0.png", pixels(0))
    write(tmp_path / "sizes/a/1.png", pixels(0, height=7))
    with pytest.raises(InputError, match=r"\(6, 5\) to \(7, 5\)"):
        load_images(tmp_path / "sizes")
    (tmp_path / "sizes/a/1.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"a/1\.png .* does not read"):
        load_images(tmp_path / "sizes")


def test_without_pillow(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DynamicError, match=r"dynamic-inference\[images\]"):
        load_images(folder, "train")


def test_image_set_checks_itself() -> None:
    images, labels = np.zeros((2, 4, 4, 1), np.uint8), np.array([0, 1])
    chosen = ImageSet(images, labels, ("a", "b")).select(np.array([1]))
    assert len(chosen) == 1
    assert chosen.labels.tolist() == [1]
    for wrong in (
        (images.astype(np.float32), labels, ("a", "b")),
        (images[0], labels, ("a", "b")),
        (images, labels[:1], ("a", "b")),
        (images, labels, ("a",)),
        (images, labels.astype(np.int32), ("a", "b")),
    ):
        with pytest.raises(InputError):
            ImageSet(*wrong)


def test_digits() -> None:
    from sklearn.datasets import load_digits

    found = digits()
    assert found.images.shape == (1797, 8, 8, 1)
    assert found.classes == tuple("0123456789")
    raw = load_digits()
    np.testing.assert_array_equal(found.labels, raw.target)
    # 16 grey levels stay apart and can be had back
    np.testing.assert_array_equal(np.rint(found.images[..., 0] / 255 * 16), raw.images)
    assert (found.images.min(), found.images.max()) == (0, 255)


def test_halves_are_stratified() -> None:
    labels = np.repeat([0, 1, 2, 3], [10, 7, 5, 1])
    a, b = stratified_halves(labels, seed=3)
    assert sorted([*a, *b]) == list(range(23))
    assert abs(len(a) - len(b)) <= 1
    for kind in range(4):
        assert abs((labels[a] == kind).sum() - (labels[b] == kind).sum()) <= 1
    assert (np.diff(a) > 0).all()
    again = stratified_halves(labels, seed=3)
    np.testing.assert_array_equal(a, again[0])
    np.testing.assert_array_equal(b, again[1])
    assert stratified_halves(labels, seed=4)[0].tolist() != a.tolist()
    assert [len(half) for half in stratified_halves([], seed=0)] == [0, 0]
    with pytest.raises(InputError):
        stratified_halves(np.zeros((2, 2), np.int64))


def test_the_real_zip(shared_data: Path, tmp_path: Path) -> None:
    # 30 of the real images, copied as they are into a small zip of the same layout
    small = tmp_path / "cifar10.zip"
    with zipfile.ZipFile(shared_data / "cifar10.zip") as whole, zipfile.ZipFile(small, "w") as part:
        chosen = [name for name in whole.namelist() if name.startswith("cifar10/test/")][::347]
        for name in chosen:
            part.writestr(name, whole.read(name))
    found = load_images(small, "test")
    assert found.images.shape == (len(chosen), 32, 32, 3)
    assert found.classes[0] == "airplane"
    assert len(found.classes) == 10
    with zipfile.ZipFile(small) as file:
        last = np.asarray(Image.open(file.open(sorted(chosen)[-1])).convert("RGB"))
    np.testing.assert_array_equal(found.images[-1], last)
