"""Labelled images as arrays: from folders or zips of class folders, or from scikit-learn's digits."""

import contextlib
import hashlib
import io
import logging
import os
import secrets
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.errors import DynamicError, InputError
from dynamic.progress import track

logger = logging.getLogger("dynamic")

_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")
_CIFAR10 = (
    'CIFAR-10, for one, comes with torchvision.datasets.CIFAR10("data", download=True); '
    "save its images as <split>/<class>/<number>.png"
)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """N images of one size: `images [N, H, W, C]` uint8, `labels [N]` int64 into `classes`.

    Raises InputError where shapes, dtypes or labels do not fit.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.uint8:
            raise InputError(f"images are {self.images.dtype} {list(self.images.shape)}; expected uint8 [N, H, W, C]")
        if self.labels.shape != (len(self.images),) or self.labels.dtype != np.int64:
            raise InputError(
                f"labels are {self.labels.dtype} {list(self.labels.shape)}; expected int64 [{len(self.images)}]"
            )
        if len(self.labels) and not (self.labels.min() >= 0 and self.labels.max() < len(self.classes)):
            raise InputError(
                f"labels run from {self.labels.min()} to {self.labels.max()} for {len(self.classes)} classes"
            )

    def __len__(self) -> int:
        return len(self.images)

    def select(self, which: NDArray[Any]) -> "ImageSet":
        """The images at an index or mask over N."""
        return ImageSet(self.images[which], self.labels[which], self.classes)


def load_images(
    path: str | Path, split: str | None = None, cache: bool = True, progress: bool | None = None
) -> ImageSet:
    """Every image of a folder or `.zip` of `<class>/<image>`, or of `<split>/<class>/<image>`, at any depth.

    Classes are numbered by name, images ordered by class and file name. Gray images have one channel, all
    others three. Nothing is unpacked; `cache` keeps the decoded arrays in the user's cache folder
    ($XDG_CACHE_HOME or ~/.cache, dynamic-inference) until the source changes.

    Raises InputError where there is nothing at `path`, no class folders, several splits and none named, or
    images of different sizes; DynamicError where Pillow is not installed.
    """
    source = Path(path).expanduser()
    if not source.exists():
        raise InputError(f"{source} does not exist; give a folder or .zip of class folders. {_CIFAR10}")
    files = _Archive(source) if source.is_file() else _Folder(source)
    kept = _cache_folder() / f"images-{_key(source, files.state(), split)}.npz" if cache else None
    if kept is not None and (found := _read_cache(kept)) is not None:
        return found
    found = _decode(files, split, progress)
    if kept is not None:
        _write_cache(kept, found)
    return found


def digits() -> ImageSet:
    """scikit-learn's 1,797 handwritten digits, `[1797, 8, 8, 1]`, their 0..16 scaled to 0..255.

    Source: Alpaydin and Kaynak 1998, UCI optical recognition of handwritten digits, its test part. Raises
    DynamicError where scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise DynamicError('digits need scikit-learn: pip install "dynamic-inference[examples]"') from error
    data = load_digits()
    images = np.rint(data.images * (255 / 16)).astype(np.uint8)[..., None]
    return ImageSet(images, data.target.astype(np.int64), tuple(str(name) for name in data.target_names))


def stratified_halves(
    labels: NDArray[np.integer[Any]] | Sequence[int], seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Two halves of the indices of `labels [N]`, sorted; every class is halved, and the whole to within one."""
    array = np.asarray(labels)
    if array.ndim != 1:
        raise InputError(f"labels have shape {list(array.shape)}; expected [N]")
    random = np.random.default_rng(seed)
    first: list[NDArray[np.int64]] = []
    extra = 1  # an odd class gives its extra member to either half in turn
    for kind in np.unique(array):
        members = random.permutation(np.flatnonzero(array == kind))
        first.append(members[: (len(members) + extra) // 2])
        if len(members) % 2:
            extra = 1 - extra
    a = np.sort(np.concatenate(first)) if first else np.empty(0, np.int64)
    return a.astype(np.int64), np.setdiff1d(np.arange(len(array)), a).astype(np.int64)


class _Folder:
    """A folder of files; names are relative, with forward slashes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if _is_image(p.name))

    def state(self) -> Iterator[str]:
        for name in self.names:
            stat = (self.path / name).stat()
            yield f"{name} {stat.st_size} {stat.st_mtime_ns}"

    def contents(self, names: Iterable[str]) -> Iterator[bytes]:
        for name in names:
            yield (self.path / name).read_bytes()


class _Archive:
    """The same for a zip, read where it lies and only when needed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def names(self) -> list[str]:
        try:
            with zipfile.ZipFile(self.path) as file:
                return sorted(name for name in file.namelist() if _is_image(name))
        except zipfile.BadZipFile as error:
            raise InputError(
                f"{self.path} is no zip that reads ({error}); give a folder or .zip of class folders"
            ) from error

    def state(self) -> Iterator[str]:
        stat = self.path.stat()
        yield f"{stat.st_size} {stat.st_mtime_ns}"

    def contents(self, names: Iterable[str]) -> Iterator[bytes]:
        with zipfile.ZipFile(self.path) as file:
            for name in names:
                try:
                    yield file.read(name)
                except (zipfile.BadZipFile, zlib.error, RuntimeError) as error:  # RuntimeError: a password
                    raise InputError(f"{name} in {self.path} does not read ({error}); copy it again") from error


def _is_image(name: str) -> bool:
    parts = PurePosixPath(name).parts
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and name.lower().endswith(_ENDINGS)


def _chosen(names: Sequence[str], split: str | None, source: Path) -> dict[str, str]:
    """Image name -> class name, of the split asked for."""
    paths = {name: PurePosixPath(name) for name in names}
    above: dict[str, str] = {}  # image -> the folder that its class folder lies in
    for name, path in paths.items():
        if len(path.parts) >= 2:
            above[name] = path.parent.parent.as_posix()
    if not above:
        raise InputError(f"{source} holds no images in class folders, <class>/<image>. {_CIFAR10}")
    found = sorted(set(above.values()))
    if split is not None:
        above = {name: folder for name, folder in above.items() if PurePosixPath(folder).name == split}
        if not above:
            raise InputError(f"{source} has no split {split!r}; it has {[PurePosixPath(f).name or f for f in found]}")
        found = sorted(set(above.values()))
    if len(found) > 1:
        raise InputError(
            f"{source} holds class folders in {found}: name one, split={PurePosixPath(found[-1]).name!r}, "
            "or give its folder alone"
        )
    return {name: paths[name].parent.name for name in above}


def _decode(files: _Folder | _Archive, split: str | None, progress: bool | None) -> ImageSet:
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise DynamicError('decoding images needs Pillow: pip install "dynamic-inference[images]"') from error
    class_of = _chosen(files.names, split, files.path)
    classes = tuple(sorted(set(class_of.values())))
    order = sorted(class_of, key=lambda name: (class_of[name], name))
    images: list[NDArray[np.uint8]] = []
    contents = track(files.contents(order), "decoding", len(order), progress)
    for name, content in zip(order, contents, strict=True):
        try:
            with Image.open(io.BytesIO(content)) as image:
                array = np.asarray(image if image.mode == "L" else image.convert("RGB"))
        except (OSError, ValueError) as error:
            raise InputError(f"{name} in {files.path} does not read as an image ({error}); remove it") from error
        images.append(array[..., None] if array.ndim == 2 else array)
    if len(sizes := sorted({image.shape[:2] for image in images})) > 1:
        raise InputError(
            f"the images in {files.path} have {len(sizes)} sizes, from {sizes[0]} to {sizes[-1]}; "
            "one array needs one: resize them first, or read them with torchvision.datasets.ImageFolder"
        )
    if len({image.shape[2] for image in images}) > 1:  # gray ones among colours
        images = [np.broadcast_to(image, (*image.shape[:2], 3)) for image in images]
    number = {name: label for label, name in enumerate(classes)}
    labels = np.array([number[class_of[name]] for name in order], np.int64)
    return ImageSet(np.stack(images), labels, classes)


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dynamic-inference"


def _key(source: Path, state: Iterable[str], split: str | None) -> str:
    digest = hashlib.sha256(repr((str(source.resolve()), split)).encode())
    for line in state:
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()[:24]


def _read_cache(path: Path) -> ImageSet | None:
    try:
        # opened here, because np.load leaves a file that does not read open
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return ImageSet(file["images"], file["labels"], tuple(file["classes"].tolist()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("%s does not read (%s): decoding again", path, error)
        return None


def _write_cache(path: Path, found: ImageSet) -> None:
    partial = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            np.savez(file, images=found.images, labels=found.labels, classes=np.array(found.classes, np.str_))
        partial.replace(path)
    except OSError as error:  # a full or read-only disk costs time, not the result
        logger.warning("decoded images could not be kept in %s: %s", path.parent, error)
        with contextlib.suppress(OSError):
            partial.unlink()
