"""One reader of pictures: orientation, bit depth, colour, limits and errors, against hand calculation and Pillow."""

import io
import logging
import os
import stat
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torchvision.datasets import ImageFolder

from dynamic.data import CenterCrop, Preprocess, Resize, load_images
from dynamic.data.picture_decoding import PictureError, copy_picture, picture_pixels, read_picture
from dynamic.data.picture_files import find_pictures
from dynamic.errors import InputError

RAMP = (np.arange(64, dtype=np.uint16) * 1040).reshape(8, 8)  # 0 to 65520
COLOURS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def with_orientation(value: int, kind: str = "PNG") -> bytes:
    image = Image.fromarray(COLOURS)
    exif = image.getexif()
    exif[0x0112] = value
    return encoded(image, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))


def both(content: bytes, tmp_path: Path) -> list[NDArray[np.uint8]]:
    """What building and running read of one file in a class folder."""
    (tmp_path / "set" / "a").mkdir(parents=True)
    (tmp_path / "set" / "a" / "1.png").write_bytes(content)
    built = load_images(tmp_path / "set", cache=False, progress=False).images[0]
    return [built, find_pictures([tmp_path / "set"])[0].pixels()]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PGM"])
def test_of_16_bits_the_upper_8_are_taken(kind: str, tmp_path: Path) -> None:
    pgm = b"P5 8 8 65535\n" + RAMP.astype(">u2").tobytes()
    content = pgm if kind == "PGM" else encoded(Image.fromarray(RAMP), kind)
    for pixels in both(content, tmp_path):
        np.testing.assert_array_equal(pixels, (RAMP // 256).astype(np.uint8)[..., None])
    preprocessed = Preprocess.of()(Image.open(io.BytesIO(content)))  # as a user hands it to run(x)
    np.testing.assert_allclose(preprocessed[0, 0], (RAMP // 256) / np.float32(255), rtol=1e-6)
    assert read_picture(content, "ramp", 3).shape == (8, 8, 3)


def test_16_bits_in_big_endian_and_in_colour() -> None:
    swapped = Image.frombytes("I;16B", (8, 8), RAMP.astype(">u2").tobytes())
    np.testing.assert_array_equal(picture_pixels(swapped)[..., 0], RAMP // 256)
    # a PNG of 16 bits in RGB, written by hand: Pillow cannot
    rows = b"".join(b"\0" + np.repeat(row[:, None], 3, 1).astype(">u2").tobytes() for row in RAMP)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(read_picture(png, "colour"), np.repeat((RAMP // 256)[..., None], 3, 2))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_numbers_without_a_fixed_range_are_refused(dtype: type) -> None:
    image = Image.fromarray(RAMP.astype(dtype))
    with pytest.raises(PictureError, match=r"deep\.tif .* without a fixed range, mode [IF]: save it with 8 bits"):
        read_picture(encoded(image, "TIFF"), "deep.tif")
    with pytest.raises(InputError, match="without a fixed range"):
        Preprocess.of()(image)


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_pictures_are_upright(value: int, kind: str, tmp_path: Path) -> None:
    content = with_orientation(value, kind)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    assert expected.shape == ((9, 6, 3) if value > 4 else (6, 9, 3))
    for pixels in both(content, tmp_path):
        np.testing.assert_array_equal(pixels, expected)
    image = Image.open(io.BytesIO(content))
    np.testing.assert_array_equal(picture_pixels(image), expected)
    np.testing.assert_array_equal(picture_pixels(ImageOps.exif_transpose(image)), expected)


def test_a_tiff_of_12_bits() -> None:
    """Written by hand, as Pillow writes none: two pixels in three bytes, white is 4095."""
    levels = [0, 2048, 4095, 16]
    strip = b"".join((a << 12 | b).to_bytes(3, "big") for a, b in zip(levels[::2], levels[1::2], strict=True))
    tags = [(256, 3, 4), (257, 3, 1), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 3, 1)]
    tags.append((279, 4, len(strip)))
    head = b"II*\0" + struct.pack("<I", 8 + len(strip) + len(strip) % 2) + strip + b"\0" * (len(strip) % 2)
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    content = head + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    expected = [[level >> 4 for level in levels]]
    assert read_picture(content, "scan.tif")[..., 0].tolist() == expected
    with Image.open(io.BytesIO(content)) as image:
        copied = copy_picture(image)
    assert picture_pixels(copied)[..., 0].tolist() == expected


def test_a_photo_that_was_taken_upright_is_read_upright() -> None:
    """A JPEG whose camera was turned: its left half, dark, is the upper half."""
    scene = np.zeros((16, 32, 3), np.uint8)
    scene[:, 16:] = 200
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = read_picture(encoded(Image.fromarray(scene), "JPEG", exif=exif), "photo.jpg")
    assert pixels.shape == (32, 16, 3)
    assert pixels[:12].max() < 20
    assert pixels[20:].min() > 180


@pytest.mark.parametrize("exif", [b"Exif\0\0no TIFF", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x09\0\0\0\x01ab", b""])
def test_damaged_exif_says_nothing(exif: bytes, caplog: pytest.LogCaptureFixture) -> None:
    content = encoded(Image.fromarray(COLOURS), "PNG", **({"exif": exif} if exif else {}))
    np.testing.assert_array_equal(read_picture(content, "picture"), COLOURS)


@pytest.mark.parametrize(
    ("mode", "channels"), [("1", 1), ("L", 1), ("LA", 1), ("P", 3), ("RGB", 3), ("RGBA", 3), ("CMYK", 3)]
)
def test_gray_stays_gray_and_everything_else_is_rgb(mode: str, channels: int) -> None:
    image = Image.fromarray(COLOURS).convert(mode)
    content = encoded(image, "TIFF" if mode == "CMYK" else "PNG")
    wanted = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    np.testing.assert_array_equal(read_picture(content, "picture"), wanted.reshape(6, 9, channels))


def test_red_is_first() -> None:
    content = encoded(Image.new("RGB", (2, 2), (250, 10, 20)), "PNG")
    assert read_picture(content, "red")[0, 0].tolist() == [250, 10, 20]


def test_a_palette_with_transparency_does_not_warn() -> None:
    image = Image.fromarray(COLOURS).quantize(8)
    content = encoded(image, "PNG", transparency=bytes([0, 255, 3]))
    np.testing.assert_array_equal(read_picture(content, "palette"), np.asarray(image.convert("RGB")))


def test_bombs_are_refused_before_they_are_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(Image.fromarray(COLOURS), "PNG")
    (tmp_path / "set" / "a").mkdir(parents=True)
    (tmp_path / "set" / "a" / "bomb.png").write_bytes(content)
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 10)
    with pytest.raises(PictureError, match=r"bomb\.png does not read as an image .*54 pixels"):
        find_pictures([tmp_path / "set"])[0].pixels()
    with pytest.raises(InputError, match=r"bomb\.png .* does not read as an image .*54 pixels"):
        load_images(tmp_path / "set", cache=False, progress=False)
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", None)  # the user has switched Pillow's own limit off
    monkeypatch.setattr("dynamic.data.picture_decoding.MOST_PIXELS", 53)
    with pytest.raises(PictureError, match="9 x 6 pixels, and at most 53 are read"):
        find_pictures([tmp_path / "set"])[0].pixels()


def test_only_formats_that_are_asked_for_are_read() -> None:
    icon = encoded(Image.fromarray(COLOURS), "ICO", sizes=[(9, 6)])
    assert read_picture(icon, "it").shape == (6, 9, 3)
    with pytest.raises(PictureError, match=r"it does not read as an image \(none of PNG, JPEG\)"):
        read_picture(icon, "it", formats=("PNG", "JPEG"))
    png = encoded(Image.fromarray(COLOURS), "PNG")
    np.testing.assert_array_equal(read_picture(png, "it", formats=("PNG", "JPEG")), COLOURS)


@pytest.mark.filterwarnings("ignore:Image was not the expected size")
def test_an_icon_that_is_larger_than_its_directory_says(monkeypatch: pytest.MonkeyPatch) -> None:
    icon = bytearray(encoded(Image.fromarray(COLOURS), "ICO", sizes=[(9, 6)]))
    icon[6:8] = 1, 1  # width and height of the first entry. The PNG inside has 9 x 6
    assert read_picture(bytes(icon), "it").shape == (6, 9, 3)
    monkeypatch.setattr("dynamic.data.picture_decoding.MOST_PIXELS", 53)
    with pytest.raises(PictureError, match="9 x 6 pixels, and at most 53 are read"):
        read_picture(bytes(icon), "it")


def test_a_zip_of_little_weight_is_refused_where_it_holds_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.png", bytes(100_000))
    monkeypatch.setattr("dynamic.data.named_files.MOST_BYTES", 99_999)
    with pytest.raises(PictureError, match="100000 bytes, and at most 99999 are read"):
        find_pictures([tmp_path / "bomb.zip"])[0].pixels()


@pytest.mark.parametrize("shape", [(1, 20_000, 3), (20_000, 1, 3), (2, 20_000, 1)])
def test_a_thin_picture_is_not_blown_up(shape: tuple[int, ...]) -> None:
    thin = np.zeros(shape, np.uint8)
    with pytest.raises(InputError, match=r"would be resized to .* cut it first, or resize to \(height, width\)"):
        Preprocess.of(resize=256, crop=224)(thin)
    assert Preprocess((Resize((8, 8)),))(thin).shape[2:] == (8, 8)
    assert Preprocess((CenterCrop((8, 8)), Resize(16)))(thin).shape[2:] == (16, 16)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "the file is empty"), (b"no picture", "no format of Pillow"), (None, "truncated|broken")],
)
def test_what_does_not_read_is_named_with_the_reason(content: bytes | None, reason: str, tmp_path: Path) -> None:
    whole = encoded(Image.fromarray(COLOURS), "PNG")
    content = whole[: len(whole) // 2] if content is None else content
    folder = tmp_path / "set" / "a"
    folder.mkdir(parents=True)
    (folder / "good.png").write_bytes(whole)
    (folder / "1.png").write_bytes(content)
    with pytest.raises(PictureError, match=rf"1\.png does not read as an image \(.*({reason})"):
        find_pictures([folder / "1.png"])[0].pixels()
    with pytest.raises(InputError, match=rf"^a/1\.png in .* does not read as an image \(.*({reason})"):
        load_images(tmp_path / "set", cache=False, progress=False)
    (folder / "2.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"2 of 3 files in .* a/1\.png \(.*\), a/2\.png \(the file is empty\): remove"):
        load_images(tmp_path / "set", cache=False, progress=False)


def tree(root: Path) -> Path:
    """Three classes, of which one is a link to a folder elsewhere, and a picture that is a link to one elsewhere."""
    for place in ("set/ant/1.png", "set/bee/1.png", "elsewhere/wasps/2.png", "elsewhere/more/3.png"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_bytes(encoded(Image.fromarray(COLOURS), "PNG"))
    (root / "set" / "cat").symlink_to(root / "elsewhere" / "wasps")
    (root / "set" / "bee" / "4.png").symlink_to(root / "elsewhere" / "more" / "3.png")
    return root / "set"


def test_links_are_followed_as_torchvision_follows_them(tmp_path: Path) -> None:
    source = tree(tmp_path)
    theirs = ImageFolder(str(source))
    own = load_images(source, cache=False, progress=False)
    assert list(own.classes) == theirs.classes == ["ant", "bee", "cat"]
    assert own.labels.tolist() == theirs.targets == [0, 1, 1, 2]
    assert [picture.folder for picture in find_pictures([source])] == ["ant", "bee", "bee", "cat"]
    assert [p.folder for p in find_pictures([source / "bee" / "4.png", source / "cat"])] == ["bee", "cat"]


def test_a_split_that_is_a_link_and_one_folder_as_two_classes(tmp_path: Path) -> None:
    source = tree(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "test").symlink_to(source)
    (source / "dog").symlink_to(source / "ant")
    own = load_images(tmp_path / "data", "test", cache=False, progress=False)
    assert own.classes == ("ant", "bee", "cat", "dog")
    assert len(find_pictures([tmp_path / "data"], "test")) == len(own) == 5


def test_a_link_to_a_folder_above_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = tree(tmp_path)
    (tmp_path / "elsewhere" / "wasps" / "back").symlink_to(source)
    assert len(find_pictures([source])) == 4
    assert "is a link to a folder above it and is skipped" in caplog.text


@pytest.mark.parametrize("how", ["empty", "dangling", "other files"])
def test_a_class_without_images_shifts_no_labels(tmp_path: Path, how: str) -> None:
    source = tree(tmp_path)
    if how == "dangling":
        (source / "bat").symlink_to(tmp_path / "nowhere")
    else:
        (source / "bat").mkdir()
        if how == "other files":
            (source / "bat" / "notes.txt").write_text("no picture")
    with pytest.raises(InputError, match=r"bat: a class folder without images, or a link without a target"):
        load_images(source, cache=False, progress=False)
    assert len(find_pictures([source])) == 4


def test_a_class_without_images_in_a_zip_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for name in ("./data/test/a/1.png", "./data/test/c/1.png"):
            archive.writestr(name, encoded(Image.fromarray(COLOURS), "PNG"))
        archive.writestr("data/test/.hidden/1.png", b"")
        archive.writestr("data/other/d/1.txt", b"")
    assert load_images(tmp_path / "data.zip", "test", cache=False).classes == ("a", "c")
    with zipfile.ZipFile(tmp_path / "data.zip", "a") as archive:
        archive.writestr("data/test/b/", b"")
    with pytest.raises(InputError, match=r"test/b: a class folder without images"):
        load_images(tmp_path / "data.zip", "test", cache=False)


def test_a_picture_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    source = tree(tmp_path)
    (source / "ant" / "5.png").symlink_to(tmp_path / "nowhere.png")
    for cache in (True, False):
        with pytest.raises(InputError, match=r"5\.png .*(without a target|No such file)"):
            load_images(source, cache=cache, progress=False)


def test_links_in_a_zip_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "linked.zip", "w") as archive:
        archive.writestr("a/1.png", encoded(Image.fromarray(COLOURS), "PNG"))
        link = zipfile.ZipInfo("b")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "a")
    for read in (lambda path: load_images(path, cache=False), lambda path: find_pictures([path])):
        with pytest.raises(InputError, match=r"b in .*linked\.zip is a link: zip again with links followed"):
            read(tmp_path / "linked.zip")


def test_a_folder_that_may_not_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tree(tmp_path)
    scan = os.scandir

    def refusing(path: Path) -> Any:
        if Path(path).name == "ant":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr("os.scandir", refusing)
    with pytest.raises(InputError, match=r"ant cannot be listed \(Permission denied\)"):
        find_pictures([source])


def test_what_another_reader_has_kept_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tree(tmp_path)
    load_images(source, progress=False)
    monkeypatch.setattr("dynamic.data.labelled_images._READER", 3)
    load_images(source, progress=False)
    assert len(list((tmp_path / "cache" / "dynamic-inference").iterdir())) == 2


def test_logs_stay_quiet_on_good_pictures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "dynamic"):
        load_images(tree(tmp_path), cache=False, progress=False)
    assert caplog.messages == []
