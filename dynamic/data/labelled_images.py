"""Labelled images as arrays: from folders or zips of class folders, or from scikit-learn's digits."""

import hashlib
import logging
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.data.picture_decoding import PictureError
from dynamic.data.picture_files import Picture, folders_in, pictures_in
from dynamic.policies.errors import DynamicError, InputError
from dynamic.progress import track
from dynamic.storage.temporary_files import fresh_file

logger = logging.getLogger("dynamic")

_READER = 2  # of pictures: what another one has decoded is decoded again
_LISTED = 20  # broken images named in one message
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

    Classes are numbered by name, images ordered by class and file name. Links are followed. Gray images have one
    channel, all others three, RGB. `picture_decoding.read_picture` says how files are read. Nothing is unpacked.
    `cache` keeps the decoded arrays in the user's cache folder ($XDG_CACHE_HOME or ~/.cache, dynamic-inference) until
    the source changes.

    Raises InputError where there is nothing at `path`, no class folders, one of them without images, several splits
    and none named, files that do not read as images (all are named), or images of different sizes; DynamicError where
    Pillow is not installed.
    """
    try:
        source = Path(path).expanduser()
    except RuntimeError as error:  # no $HOME, and the user is not in the password file
        raise InputError(f"{path}: this user has no home directory; give the whole path") from error
    if not source.exists():
        raise InputError(f"{source} does not exist; give a folder or .zip of class folders. {_CIFAR10}")
    pictures = pictures_in(source)
    folder = _cache_folder() if cache else None
    kept = folder / f"images-{_key(source, _state(source, pictures), split)}.npz" if folder is not None else None
    if kept is not None and (found := _read_cache(kept)) is not None:
        return found
    found = _decode(source, pictures, split, progress)
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


def _chosen(pictures: Sequence[Picture], split: str | None, source: Path) -> list[Picture]:
    """The images of the split asked for, by class and name; every class folder of it has some."""
    above = {p.place.parent.parent.as_posix() for p in pictures if len(p.place.parts) >= 2}
    if not above:
        raise InputError(f"{source} holds no images in class folders, <class>/<image>. {_CIFAR10}")
    found = sorted(above)
    if split is not None:
        above = {folder for folder in above if PurePosixPath(folder).name == split}
        if not above:
            raise InputError(f"{source} has no split {split!r}; it has {[PurePosixPath(f).name or f for f in found]}")
        found = sorted(above)
    if len(found) > 1:
        raise InputError(
            f"{source} holds class folders in {found}: name one, split={PurePosixPath(found[-1]).name!r}, "
            "or give its folder alone"
        )
    place = PurePosixPath(found[0])
    chosen = [p for p in pictures if len(p.place.parts) >= 2 and p.place.parent.parent == place]
    classes = {p.place.parent.name for p in chosen}
    empty = [name for name in folders_in(source, place) if name not in classes]
    if empty:  # left out, they would shift the numbers of the classes behind them
        raise InputError(
            f"{', '.join(str(source / place / name) for name in empty)}: a class folder without images, or a link "
            "that leads nowhere; put images there, or remove it"
        )
    return sorted(chosen, key=lambda picture: (picture.place.parent.name, picture.place.as_posix()))


def _decode(source: Path, pictures: Sequence[Picture], split: str | None, progress: bool | None) -> ImageSet:
    chosen = _chosen(pictures, split, source)
    classes = tuple(sorted({picture.place.parent.name for picture in chosen}))
    images: list[NDArray[np.uint8]] = []
    broken: list[tuple[str, str]] = []  # where, why
    for picture in track(chosen, "decoding", len(chosen), progress):
        try:
            images.append(picture.pixels())
        except PictureError as error:
            broken.append((str(picture.place), error.reason))
    if len(broken) == 1:
        raise InputError(
            f"{broken[0][0]} in {source} does not read as an image ({broken[0][1]}); remove it, or copy it again"
        )
    if broken:  # all of them at once: whoever removes them starts again only once
        named = "; ".join(f"{place} ({reason})" for place, reason in broken[:_LISTED])
        more = f"; and {len(broken) - _LISTED} more" if len(broken) > _LISTED else ""
        raise InputError(
            f"{len(broken)} of {len(chosen)} files in {source} do not read as images: {named}{more}: "
            "remove them, or copy them again"
        )
    if len(sizes := sorted({image.shape[:2] for image in images})) > 1:
        raise InputError(
            f"the images in {source} have {len(sizes)} sizes, from {sizes[0]} to {sizes[-1]}; "
            "one array needs one: resize them first, or read them with torchvision.datasets.ImageFolder"
        )
    if len({image.shape[2] for image in images}) > 1:  # gray ones among colours
        images = [np.broadcast_to(image, (*image.shape[:2], 3)) for image in images]
    number = {name: label for label, name in enumerate(classes)}
    labels = np.array([number[picture.place.parent.name] for picture in chosen], np.int64)
    return ImageSet(np.stack(images), labels, classes)


def _cache_folder() -> Path | None:
    """None for a user without a home directory, as containers have them: nothing is kept then."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return folder / "dynamic-inference" if folder.is_absolute() else None


def _state(source: Path, pictures: Sequence[Picture]) -> Iterator[str]:
    """Lines that change when an image does."""
    if source.is_file():
        status = source.stat()
        yield f"{status.st_size} {status.st_mtime_ns}"
        return
    for picture in pictures:
        try:
            status = (source / picture.place).stat()
        except OSError as error:  # a link that leads nowhere
            raise PictureError(picture.name, error.strerror or str(error)) from error
        yield f"{picture.place.as_posix()} {status.st_size} {status.st_mtime_ns}"


def _key(source: Path, state: Iterable[str], split: str | None) -> str:
    digest = hashlib.sha256(repr((str(source.resolve()), split, _READER)).encode())
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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with fresh_file(path) as partial, partial.open("wb") as file:
            np.savez(file, images=found.images, labels=found.labels, classes=np.array(found.classes, np.str_))
    except OSError as error:  # a full or read-only disk costs time, not the result
        logger.warning("decoded images could not be kept in %s: %s", path.parent, error)
