"""Batches of inputs and labels, of torch or numpy, read without torch."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.errors import CalibrationError, InputError

LABELS = ("labels", "label")  # of a dict that a collator makes: never an input of the network

_LOADER = "Give batches: a DataLoader, or a list of (inputs, labels [B])"


def labelled_batches(loader: Iterable[Any]) -> Iterator[tuple[Any, NDArray[np.int64] | None]]:
    """(inputs, labels or None) of each batch of a loader (see `read_batch`).

    Raises InputError on what is no loader, and as `read_batch` does.
    """
    check_loader(loader)
    for item in loader:
        yield read_batch(item)


def check_loader(loader: Any) -> None:
    """Raises InputError on what gives no batches."""
    if isinstance(loader, np.ndarray) or hasattr(loader, "detach"):
        raise InputError(f"a tensor {list(loader.shape)} is no loader. {_LOADER}")
    if isinstance(loader, (str, bytes, Mapping)) or not (hasattr(loader, "__iter__") or hasattr(loader, "__getitem__")):
        raise InputError(f"a {type(loader).__name__} is no loader. {_LOADER}")


def read_batch(item: Any) -> tuple[Any, NDArray[np.int64] | None]:
    """(inputs, labels `[B]` or None) of what a loader gives.

    A pair is `(inputs, labels)`, a dict with "labels" or "label" has them inside, anything else is inputs alone. Labels
    are whole numbers `[B]` or `[B, 1]`, or one-hot `[B, C]`. None stands for no labels. Raises InputError on
    any other, and where a pair has labels twice.
    """
    if isinstance(item, Mapping):
        held = [name for name in LABELS if item.get(name) is not None]
        if len(held) > 1:
            raise InputError(f"a batch has labels under {held}. Give them once")
        inputs = {name: value for name, value in item.items() if name not in LABELS}
        return inputs, class_indices(item[held[0]]) if held else None
    if not (isinstance(item, (tuple, list)) and len(item) == 2):
        return item, None
    inputs, labels = item
    if isinstance(inputs, Mapping) and labels is not None and any(inputs.get(name) is not None for name in LABELS):
        raise InputError("a pair (inputs, labels) has labels among its inputs too. Give them once")
    return inputs, None if labels is None else class_indices(labels)


def class_indices(labels: Any) -> NDArray[np.int64]:
    """Labels as whole numbers `[B]` (see `read_batch`)."""
    expected = "expected class indices, integers [B]"
    try:
        array = _as_array(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        inside = labels[0] if isinstance(labels, (list, tuple)) and labels else labels
        raise InputError(
            f"labels are a {type(labels).__name__} such as {inside!r:.60}, {expected}: number the classes from 0"
        ) from error
    kind, shape = str(getattr(labels, "dtype", array.dtype)), list(array.shape)
    if array.ndim == 0:
        raise InputError(f"labels are {kind} of shape [], {expected}: put a data set of single inputs in a DataLoader")
    if array.ndim == 2 and array.shape[1] > 1 and array.dtype.kind != "c":
        if bool(((array == 0) | (array == 1)).all()) and bool((array.sum(1) == 1).all()):
            return np.asarray(array.argmax(1), np.int64)
        raise InputError(f"labels are {kind} of shape {shape} and not one-hot, {expected}, one class for each input")
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or array.dtype.kind not in "iu":
        remedy = ": call labels.long() where they are whole numbers" if array.ndim == 1 else ""
        raise InputError(f"labels are {kind} of shape {shape}, {expected}{remedy}")
    return array.astype(np.int64)


def check_labels(labels: NDArray[np.int64], classes: int | None) -> None:
    """Raises InputError on a label below 0, or one that the network has no class for."""
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (classes is not None and high >= classes):
        limit = "" if classes is None else f". The network has {classes} classes, 0 to {classes - 1}"
        raise InputError(f"labels run from {low} to {high}{limit}: drop or renumber them, or change the network")


def _as_array(labels: Any) -> NDArray[Any]:
    """An array of numbers. Raises as numpy and torch do."""
    if hasattr(labels, "detach"):  # a tensor
        labels = labels.detach().cpu()
        labels = labels.numpy() if str(labels.dtype) != "torch.bfloat16" else labels.float().numpy()
    array = np.asarray(labels)
    if array.dtype.kind not in "biufc":
        raise TypeError(f"labels are {array.dtype}")
    return array


def peek(loader: Iterable[Any]) -> tuple[Iterable[Any], Any, NDArray[np.int64] | None]:
    """(the loader, inputs and labels of its first batch). Raises CalibrationError where it is empty.

    Nothing is lost that can be read only once. An iterator becomes a list, and the first reading of a loader continues
    behind the first batch.
    """
    check_loader(loader)
    iterator = iter(loader)
    if iterator is loader:
        loader = list(loader)
        iterator = iter(loader)
    for item in iterator:
        inputs, labels = read_batch(item)
        return _Peeked(loader, chain([item], iterator)), inputs, labels
    raise CalibrationError("the held-out loader is empty. Give batches of (inputs, labels)")


class _Peeked:
    """A loader whose first reading is `begun`."""

    def __init__(self, loader: Iterable[Any], begun: Iterator[Any]) -> None:
        self._loader = loader
        self._begun: Iterator[Any] | None = begun

    def __len__(self) -> int:
        return len(self._loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        begun, self._begun = self._begun, None
        yield from self._loader if begun is None else begun
