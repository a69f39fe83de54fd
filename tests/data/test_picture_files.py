"""Pictures are found in files, folders and zips alike, and decoded as training saw them."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dynamic.data import load_images
from dynamic.data.picture_decoding import PictureError
from dynamic.data.picture_files import find_pictures, pictures_in
from dynamic.errors import InputError

RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`test/cat/{1,2}.png`, `test/dog/1.webp`, `train/cat/1.png`, and what is no picture."""
    root = tmp_path_factory.mktemp("pictures") / "data"
    for name in ("test/cat/1.png", "test/cat/2.png", "test/dog/1.webp", "train/cat/1.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RANDOM.integers(0, 256, (6, 5, 3), dtype=np.uint8)).save(root / name, lossless=True)
    (root / "test" / "cat" / "notes.txt").write_text("no picture")
    (root / "test" / "cat" / ".hidden.png").write_bytes(b"no picture")
    with zipfile.ZipFile(root.parent / "data.zip", "w") as archive:
        for file in sorted(root.rglob("*")):
            archive.write(file, file.relative_to(root.parent))
    return root


@pytest.mark.parametrize("packed", [False, True])
def test_a_split_holds_what_load_images_finds(tree: Path, packed: bool) -> None:
    source = tree.parent / "data.zip" if packed else tree
    pictures = find_pictures([source], "test")
    own = load_images(source, "test", cache=False, progress=False)
    assert (
        [picture.folder for picture in pictures]
        == [own.classes[label] for label in own.labels]
        == ["cat"] * 2 + ["dog"]
    )
    np.testing.assert_array_equal([picture.pixels() for picture in pictures], own.images)
    assert len(find_pictures([source])) == 4


def test_files_and_folders_together_keep_their_order(tree: Path) -> None:
    files = [tree / "train" / "cat" / "1.png", tree / "test" / "dog"]
    assert [picture.name for picture in find_pictures(files)] == [str(files[0]), str(files[1] / "1.webp")]
    assert [picture.folder for picture in find_pictures(files)] == ["cat", "dog"]


@pytest.mark.parametrize(
    ("mode", "shape"), [("L", (4, 3, 1)), ("RGB", (4, 3, 3)), ("RGBA", (4, 3, 3)), ("P", (4, 3, 3))]
)
def test_gray_stays_gray_and_everything_else_becomes_colour(tmp_path: Path, mode: str, shape: tuple[int, ...]) -> None:
    Image.new(mode, (3, 4)).save(tmp_path / "image.png")
    pixels = find_pictures([tmp_path])[0].pixels()
    assert pixels.shape == shape
    assert pixels.dtype == np.uint8
    assert [find_pictures([tmp_path])[0].pixels(channels).shape[2] for channels in (1, 3)] == [1, 3]


def test_what_is_not_there_or_broken_is_named(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere does not exist"):
        find_pictures([tmp_path / "nowhere"])
    with pytest.raises(InputError, match="holds no images: they end in"):
        find_pictures([tmp_path])
    with pytest.raises(InputError, match=r"split 'val': it has \['test', 'train'\]"):
        find_pictures([tree], "val")
    whole = (tree / "train" / "cat" / "1.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cut.png does not read as an image"):
        find_pictures([tmp_path])[0].pixels()


def test_links_that_lead_to_themselves_and_pipes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "good.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe.png")
    pictures = {picture.place.name: picture for picture in pictures_in(tmp_path)}
    assert set(pictures) == {"good.png", "loop.png", "pipe.png"}
    assert "loop is a link without a target" in caplog.text
    assert pictures["good.png"].read()[:4] == b"\x89PNG"
    for name, reason in (("loop.png", "Too many levels of symbolic links"), ("pipe.png", "it is no file")):
        with pytest.raises(PictureError, match=reason):
            pictures[name].pixels()
