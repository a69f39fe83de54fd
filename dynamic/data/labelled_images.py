"""Labelled images as arrays: from folders or zips of class folders, or from scikit-learn's digits."""

import hashlib
import logging
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.data.named_files import Kind, folders_in
from dynamic.data.picture_decoding import PictureError
from dynamic.data.picture_files import Picture, pictures_in
from dynamic.policies.errors import DynamicError, InputError
from dynamic.progress import track
from dynamic.storage.cache_folder import cache_folder
from dynamic.storage.temporary_files import fresh_file

logger = logging.getLogger("dynamic")

_READER = 2  # of pictures: what another one has decoded is decoded again
_LISTED = 20  # broken images named in one message
_CIFAR10 = (
    'CIFAR-10, for one, comes with torchvision.datasets.CIFAR10("data", download=True). '
    "Save its images as <split>/<class>/<number>.png"
)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """N labelled images of one size.

    Args:
        images: Pixels `[N, H, W, C]`, uint8.
        labels: Class of each image `[N]`, int64, an index into `classes`.
        classes: Names of the classes.

    Raises:
        InputError: Shapes, dtypes or labels do not fit.

    Example:
        >>> images = np.zeros((2, 8, 8, 1), np.uint8)
        >>> pair = dynamic.data.ImageSet(images, np.array([0, 1]), classes=("cat", "dog"))
        >>> len(pair)
        2
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.uint8:
            raise InputError(f"images are {self.images.dtype} {list(self.images.shape)}, expected uint8 [N, H, W, C]")
        if self.labels.shape != (len(self.images),) or self.labels.dtype != np.int64:
            raise InputError(
                f"labels are {self.labels.dtype} {list(self.labels.shape)}, expected int64 [{len(self.images)}]"
            )
        if len(self.labels) and not (self.labels.min() >= 0 and self.labels.max() < len(self.classes)):
            raise InputError(
                f"labels run from {self.labels.min()} to {self.labels.max()} for {len(self.classes)} classes"
            )

    def __len__(self) -> int:
        return len(self.images)

    def select(self, which: NDArray[Any]) -> "ImageSet":
        """Return some of the images.

        Args:
            which: Indices `[M]`, or a mask `[N]`.

        Returns:
            These images, with all classes.

        Raises:
            IndexError: An index is out of range, or the mask is of another length.

        Example:
            >>> digits = dynamic.data.digits()
            >>> len(digits.select(digits.labels == 3))
            183
        """
        return ImageSet(self.images[which], self.labels[which], self.classes)


def load_images(
    path: str | Path, split: str | None = None, *, cache: bool = True, progress: bool | None = None
) -> ImageSet:
    """Read every image of a data set in class folders.

    The folder or `.zip` holds `<class>/<image>`, or `<split>/<class>/<image>`, at any depth. Classes are numbered by
    name. Images come in the order of class and file name. Links are followed. Gray images have one channel, all others
    have three, in the order RGB. A zip is not unpacked. `picture_decoding.read_picture` describes how a file is read.

    Args:
        path: The folder or `.zip`.
        split: Name of the folder above the class folders. None: there is one.
        cache: Whether to store the decoded arrays in the user's cache folder until the source changes. The folder is
            `dynamic-inference` in $XDG_CACHE_HOME or ~/.cache.
        progress: Whether to show a progress bar. None: on a terminal.

    Returns:
        The images.

    Raises:
        InputError: There is nothing at `path`, or no class folder. A class has no image, a file does not read, or
            images have several sizes. There are several splits, and none is named.
        DynamicError: Pillow is not installed.

    Example:
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> for name in ("cat", "dog"):
        ...     Path("pets", name).mkdir(parents=True, exist_ok=True)
        ...     Image.new("L", (8, 8)).save(Path("pets", name, "0.png"))
        >>> pets = dynamic.data.load_images("pets", cache=False)
        >>> pets.classes, pets.images.shape
        (('cat', 'dog'), (2, 8, 8, 1))
    """
    try:
        source = Path(path).expanduser()
    except RuntimeError as error:  # no $HOME, and the user is not in the password file
        raise InputError(
            f"{path} needs a home directory, and this user has no home directory: give the whole path"
        ) from error
    if not source.exists():
        raise InputError(f"{source} does not exist: give a folder or .zip of class folders. {_CIFAR10}")
    pictures = pictures_in(source)
    folder = cache_folder() if cache else None
    cache_file = folder / f"images-{_key(source, _state(source, pictures), split)}.npz" if folder is not None else None
    if cache_file is not None and (images := _read_cache(cache_file)) is not None:
        return images
    images = _decode(source, pictures, split, progress)
    if cache_file is not None:
        _write_cache(cache_file, images)
    return images


def digits() -> ImageSet:
    """Return scikit-learn's 1,797 handwritten digits, their values 0 to 16 scaled to 0 to 255.

    Source: Alpaydin and Kaynak 1998, UCI optical recognition of handwritten digits, its test part.

    Returns:
        Images `[1797, 8, 8, 1]` of 10 classes.

    Raises:
        DynamicError: scikit-learn is not installed.

    Example:
        >>> dynamic.data.digits().images.shape
        (1797, 8, 8, 1)
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
    """Divide a data set into two halves at random. Every class is halved, and so is the whole, to within one.

    Args:
        labels: Class of each element `[N]`.
        seed: Seed of the draw.

    Returns:
        Sorted indices of the first half and of the second.

    Raises:
        InputError: `labels` has another shape.

    Example:
        >>> first, second = dynamic.data.stratified_halves([0, 0, 0, 0, 1, 1])
        >>> len(first), len(second)
        (3, 3)
    """
    array = np.asarray(labels)
    if array.ndim != 1:
        raise InputError(f"labels have shape {list(array.shape)}, expected [N]")
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


def in_class_folders(files: Sequence[Kind], split: str | None, source: Path) -> list[Kind]:
    """Files of one split by class and name, from all files of a folder or zip.

    Args:
        files: Images or recordings.
        split: Name of the folder above the class folders. None: there is one.
        source: The folder or zip.

    Returns:
        The files. Every class folder of the split has some.

    Raises:
        InputError: There is no class folder, one is empty, or there are several splits and none is named.
    """
    plural = files[0].plural if files else "images"
    above = {p.place.parent.parent.as_posix() for p in files if len(p.place.parts) >= 2}
    if not above:
        raise InputError(f"{source} holds no {plural} in class folders, <class>/<file>. {_CIFAR10}")
    parents = sorted(above)
    if split is not None:
        above = {folder for folder in above if PurePosixPath(folder).name == split}
        if not above:
            raise InputError(f"{source} has no split {split!r}: it has {[PurePosixPath(f).name or f for f in parents]}")
        parents = sorted(above)
    if len(parents) > 1:
        raise InputError(
            f"{source} holds class folders in {parents}: name one, split={PurePosixPath(parents[-1]).name!r}, "
            "or give its folder alone"
        )
    place = PurePosixPath(parents[0])
    chosen = [p for p in files if len(p.place.parts) >= 2 and p.place.parent.parent == place]
    classes = {p.place.parent.name for p in chosen}
    empty = [name for name in folders_in(source, place) if name not in classes]
    if empty:  # without them, the numbers of the following classes would shift
        raise InputError(
            f"{', '.join(str(source / place / name) for name in empty)}: a class folder without {plural}, or a link "
            f"without a target. Put {plural} there, or remove it"
        )
    return sorted(chosen, key=lambda file: (file.place.parent.name, file.place.as_posix()))


def _decode(source: Path, pictures: Sequence[Picture], split: str | None, progress: bool | None) -> ImageSet:
    chosen = in_class_folders(pictures, split, source)
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
            f"{broken[0][0]} in {source} does not read as an image ({broken[0][1]}): remove it, or copy it again"
        )
    if broken:  # all of them at once, so that one correction is enough
        named = ", ".join(f"{place} ({reason})" for place, reason in broken[:_LISTED])
        more = f", and {len(broken) - _LISTED} more" if len(broken) > _LISTED else ""
        raise InputError(
            f"{len(broken)} of {len(chosen)} files in {source} do not read as images: {named}{more}: "
            "remove them, or copy them again"
        )
    if len(sizes := sorted({image.shape[:2] for image in images})) > 1:
        raise InputError(
            f"the images in {source} have {len(sizes)} sizes, from {sizes[0]} to {sizes[-1]}. "
            "One array needs one size: resize them first, or read them with torchvision.datasets.ImageFolder"
        )
    if len({image.shape[2] for image in images}) > 1:  # gray ones among colours
        images = [np.broadcast_to(image, (*image.shape[:2], 3)) for image in images]
    number = {name: label for label, name in enumerate(classes)}
    labels = np.array([number[picture.place.parent.name] for picture in chosen], np.int64)
    return ImageSet(np.stack(images), labels, classes)


def _state(source: Path, pictures: Sequence[Picture]) -> Iterator[str]:
    """Lines that change when an image changes."""
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
        # opened here: np.load does not close a file that does not read
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return ImageSet(file["images"], file["labels"], tuple(file["classes"].tolist()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("%s does not read (%s): decoding again", path, error)
        return None


def _write_cache(path: Path, images: ImageSet) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with fresh_file(path) as partial, partial.open("wb") as file:
            np.savez(file, images=images.images, labels=images.labels, classes=np.array(images.classes, np.str_))
    except OSError as error:  # a full or read-only disk costs time, not the result
        logger.warning("decoded images could not be stored in %s: %s", path.parent, error)
