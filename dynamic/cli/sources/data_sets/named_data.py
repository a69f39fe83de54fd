"""Data sets by the names that commands take."""

import inspect
import zipfile
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dynamic.cli.sources.data_sets.examples import Examples
from dynamic.cli.sources.data_sets.text_tables import ENDINGS, read_texts
from dynamic.cli.sources.factories import call, names_python, object_at
from dynamic.data.labelled_images import in_class_folders
from dynamic.data.named_files import NamedFile, files_in
from dynamic.data.picture_files import Picture
from dynamic.data.sound.recordings import Recording
from dynamic.extras import with_remedy
from dynamic.policies.errors import InputError

Role = Literal["train", "held out"]

FORMS = (
    "a folder or zip of class folders with images or wav files, a table of texts (.csv, .tsv, .jsonl), "
    "torchvision:CIFAR10 with --root, or file.py:function"
)
# splits that are taken where none is named
SPLITS: dict[Role, tuple[str, ...]] = {
    "train": ("train", "training"),
    "held out": ("val", "valid", "validation", "dev", "test", "testing"),
}


def data_named(text: str, split: str | None = None, *, role: Role = "held out", root: str | None = None) -> Examples:
    """The examples of a data set.

    Args:
        text: Its name: see `FORMS`.
        split: The folder above the class folders. None: there is one, or the usual one of the role is taken.
        role: Whether the examples train or are held out.
        root: Folder of a data set of torchvision.

    Returns:
        The examples, none of which is decoded.

    Raises:
        InputError: There is nothing of that name, or what there is does not fit.
    """
    if text.startswith("torchvision:"):
        return _of_torchvision(text, split, role, root)
    path = Path(text).expanduser()
    if not path.exists() and names_python(text):
        return _of_function(text)
    if not path.exists():
        raise InputError(f"data {text!r} do not exist: give {FORMS}")
    if path.suffix.lower() in ENDINGS:
        return _of_texts(path)
    if not path.is_dir() and not zipfile.is_zipfile(path):
        raise InputError(f"data {text!r} are no data set that is known: give {FORMS}")
    pictures, recordings = files_in(Picture, path), files_in(Recording, path)
    if pictures and recordings:
        raise InputError(
            f"data {text!r} hold {len(pictures)} images and {len(recordings)} wav files: give a folder of one kind"
        )
    files: Sequence[NamedFile] = recordings or pictures
    if split is None:
        split = _usual_split(files, role)
    chosen = in_class_folders(files, split, path)
    classes = tuple(sorted({file.place.parent.name for file in chosen}))
    number = {name: label for label, name in enumerate(classes)}
    labels = np.array([number[file.place.parent.name] for file in chosen], np.int64)
    return Examples(str(path), "sounds" if recordings else "images", chosen, labels, classes, split)


def _usual_split(files: Sequence[NamedFile], role: Role) -> str | None:
    """The split of several that a role takes. None: there is one, or the user has to name it."""
    above = {file.place.parent.parent for file in files if len(file.place.parts) >= 2}
    if len(above) < 2:
        return None
    names = {place.name for place in above}
    return next((name for name in SPLITS[role] if name in names), None)


def _of_texts(path: Path) -> Examples:
    rows = read_texts(path)
    classes = tuple(sorted({label for _, _, label in rows}))
    number = {name: at for at, name in enumerate(classes)}
    labels = np.array([number[label] for _, _, label in rows], np.int64)
    return Examples(str(path), "texts", [text for _, text, _ in rows], labels, classes)


def _of_torchvision(text: str, split: str | None, role: Role, root: str | None) -> Examples:
    try:
        from torchvision import datasets
    except ModuleNotFoundError as error:
        raise with_remedy(error, f"data {text!r}") from error
    name = text.partition(":")[2]
    if name not in datasets.__all__ or not inspect.isclass(getattr(datasets, name, None)):
        near = get_close_matches(name, datasets.__all__, 3)
        raise InputError(
            f"data {text!r}: torchvision has no data set {name!r}, did you mean {', '.join(near) or 'CIFAR10'}?"
        )
    if root is None:
        raise InputError(f"data {text!r} need the folder where they lie: give --root data")
    maker: Any = getattr(datasets, name)
    taken = inspect.signature(maker).parameters
    if "train" in taken:
        if split not in (None, "train", "test"):
            raise InputError(f"data {text!r} have no split {split!r}: there are 'train' and 'test'")
        options: dict[str, Any] = {"train": (split or ("train" if role == "train" else "test")) == "train"}
    elif "split" in taken:
        options = {} if split is None and role == "train" else {"split": split or "test"}
    else:
        options = {}
    try:
        found_set = maker(root, **options)
    except (RuntimeError, OSError, ValueError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"data {text!r} do not load from {root} ({reason:.160}): get them first, "
            f"torchvision.datasets.{name}({root!r}, download=True)"
        ) from error
    classes = tuple(str(one) for one in getattr(found_set, "classes", ()))
    labels = getattr(found_set, "targets", getattr(found_set, "labels", None))
    if not classes or labels is None:
        raise InputError(f"data {text!r} have no classes or no labels that are read here: use file.py:function")
    chosen = "train" if options.get("train") else str(options.get("split", "test"))
    return Examples(text, "images", _Images(found_set), np.asarray(labels, np.int64), classes, chosen)


class _Images:
    """The images of a data set of torchvision, as arrays that are read on demand."""

    def __init__(self, data_set: Any) -> None:
        self._data_set = data_set

    def __getitem__(self, index: int) -> Any:
        return np.asarray(self._data_set[int(index)][0].convert("RGB"))

    def __len__(self) -> int:
        return len(self._data_set)


def _of_function(text: str) -> Examples:
    """Batches of a user's function. A data set of torch is put into a DataLoader."""
    made_by = object_at(text, "data")
    loader = call(made_by, text, "data") if callable(made_by) else made_by
    data_set = getattr(loader, "dataset", loader)
    classes = tuple(str(one) for one in getattr(loader, "classes", None) or getattr(data_set, "classes", None) or ())
    preprocess = getattr(loader, "preprocess", None)
    if hasattr(loader, "__getitem__") and not isinstance(loader, (list, tuple)):
        from torch.utils.data import DataLoader

        loader = DataLoader(loader, batch_size=64)
    if not hasattr(loader, "__iter__") or isinstance(loader, (str, bytes, dict)):
        raise InputError(
            f"data {text!r} gave a {type(loader).__name__}: return a DataLoader, a data set, or a list of "
            "(inputs, labels)"
        )
    return Examples(text, "batches", loader, np.empty(0, np.int64), classes, preprocess=preprocess)
