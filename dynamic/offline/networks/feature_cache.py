"""What the exit heads of a frozen backbone see, computed once: in memory, or on disk beyond a limit."""

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dynamic.offline.batches import Batch, labelled_batches, named_tensors, run_on, taken_by
from dynamic.offline.build_steps.loaders import check_labels
from dynamic.offline.networks.acceleration import Acceleration
from dynamic.offline.networks.row_independence import check_classes, check_rows
from dynamic.offline.staged_network import Stage
from dynamic.policies.errors import InputError
from dynamic.storage.atomic_write import disk_errors
from dynamic.storage.temporary_files import TemporaryFolder


@dataclass(frozen=True)
class FeatureCache:
    """The features `[N, ...]` f32 of each head, in the loader's order, and the labels `[N]`."""

    features: tuple[NDArray[np.float32], ...]
    labels: NDArray[np.int64]
    on_disk: bool

    @property
    def size_mb(self) -> float:
        """All features together."""
        return sum(part.nbytes for part in self.features) / 1e6

    def rows(self, index: NDArray[np.int64]) -> tuple[list[Tensor], Tensor]:
        """The features of some inputs, one tensor `[B, ...]` a head, and their labels `[B]`."""
        features = [torch.from_numpy(np.ascontiguousarray(part[index])) for part in self.features]
        return features, torch.from_numpy(self.labels[index])

    def order(self) -> str:
        """Hash of the labels in order, equal where a loader gave the same inputs in the same order."""
        return hashlib.sha256(self.labels.tobytes()).hexdigest()


def pooled(head: nn.Module) -> Callable[[Tensor], Tensor]:
    """The part of a head without parameters, `pool`, after which its feature is small. Else the identity."""
    return cast(Callable[[Tensor], Tensor], head.pool) if _split(head) else nn.Identity()


def classified(head: nn.Module) -> Callable[[Tensor], Tensor]:
    """The rest of the head: `classify`, so that `head(x) == classify(pool(x))`. Else the head itself."""
    return cast(Callable[[Tensor], Tensor], head.classify) if _split(head) else head


@contextmanager
def extracted(
    network: nn.Module,
    stages: Sequence[Stage],
    trained: Sequence[int],
    batches: Iterable[tuple[Batch, NDArray[np.int64]]],
    acceleration: Acceleration,
    *,
    memory_limit_mb: float,
    cache_dir: str | Path | None,
) -> Iterator[FeatureCache]:
    """Run the bodies of `stages`, all of `network`'s, once on every batch and keep what the `trained` heads read.

    Nothing behind the last trained head is run. Beyond `memory_limit_mb` features move to files in a fresh
    folder in `cache_dir` (None: the system's), removed at the end. Raises InputError on an empty
    loader and on labels that do not fit.
    """
    stores = {i: _Store() for i in trained}
    used = list(stores.values())
    labels: list[NDArray[np.int64]] = []
    classes: int | None = None
    with ExitStack() as owned:
        folder: Path | None = None
        for inputs, batch_labels in batches:
            with torch.no_grad(), acceleration.autocast():
                named = {name: acceleration.place(t) for name, t in named_tensors(network, inputs).items()}
                carry = tuple(named.values())
                if classes is None:
                    with taken_by(network, named):
                        few = run_on(network, {name: t[:2] for name, t in named.items()})
                        classes = check_logits(few, len(stages), batch_labels)
                        check_rows(network, named, values=False)
                check_labels(batch_labels, classes)
                labels.append(batch_labels)
                for i, stage in enumerate(stages[: trained[-1] + 1]):
                    carry = stage.body(*carry)
                    if i in stores:
                        # a copy: the next stage may change its carry in place
                        stores[i].add(pooled(stage.head)(carry[0]).float().numpy(force=True).copy(), len(batch_labels))
            if folder is None and sum(store.nbytes for store in used) > memory_limit_mb * 1e6:
                if cache_dir is not None:
                    Path(cache_dir).mkdir(parents=True, exist_ok=True)
                with disk_errors("features", Path(cache_dir or tempfile.gettempdir())):
                    owner = TemporaryFolder("features", None if cache_dir is None else Path(cache_dir))
                    folder = owned.enter_context(owner)
                    for number, store in enumerate(used):
                        owned.callback(store.stop)
                        store.move(folder / f"{number}.f32")
        if not labels:
            raise InputError("the loader gave no batch. It is empty, or an iterator that was already used up")
        yield FeatureCache(tuple(store.finish() for store in used), np.concatenate(labels), folder is not None)


def checked_batches(loader: Iterable[Any], classes: int | None) -> Iterator[tuple[Batch, NDArray[np.int64]]]:
    """(inputs, labels [B]) of pairs. `classes`, where it is given, bounds the labels.

    Raises InputError on a missing label, one out of range, or more or fewer labels than inputs.
    """
    for inputs, labels in labelled_batches(loader):
        if labels is None:
            raise InputError("the loader gives inputs without labels. Give pairs (inputs, labels [B])")
        if not len(labels):
            continue
        tensors = [inputs] if isinstance(inputs, (Tensor, np.ndarray)) else _listed(inputs)
        rows = {len(t) for t in tensors if isinstance(t, (Tensor, np.ndarray)) and t.ndim}
        wrong = rows - {len(labels)}
        if wrong:
            raise InputError(f"a batch has {wrong.pop()} inputs and {len(labels)} labels. Give one label an input")
        check_labels(labels, classes)
        yield inputs, labels


def check_logits(logits: Any, exits: int, labels: NDArray[np.int64]) -> int:
    """The number of classes of a network's answer to a batch with `labels`.

    Raises InputError where it is not one `[B, C]` for each exit, or a label is out of range.
    """
    if not isinstance(logits, (list, tuple)) or len(logits) != exits:
        actual = f"{len(logits)} answers" if isinstance(logits, (list, tuple)) else f"a {type(logits).__name__}"
        raise InputError(f"the network gave {actual} for {exits} exits. Its forward has to give a list, one each")
    shapes = [list(answer.shape) for answer in logits]
    if any(len(shape) != 2 for shape in shapes) or len({shape[1] for shape in shapes}) != 1:
        raise InputError(f"the exits gave {shapes}, expected [B, C], the same classes C at every exit")
    classes: int = shapes[0][1]
    check_classes("the network", classes)
    check_labels(labels, classes)
    return classes


class _Store:
    """Chunks of one head's features, in a list until they are moved to a file."""

    def __init__(self) -> None:
        self.chunks: list[NDArray[np.float32]] = []
        self.shape: tuple[int, ...] = ()
        self.count = 0
        self.nbytes = 0
        self.file: BinaryIO | None = None

    def add(self, chunk: NDArray[np.float32], rows: int) -> None:
        if len(chunk) != rows:
            raise InputError(f"a feature has {len(chunk)} rows for {rows} inputs. The first dimension is the batch")
        if self.count and chunk.shape[1:] != self.shape:
            raise InputError(
                f"a feature has shape {list(chunk.shape[1:])} after {list(self.shape)}: inputs of one size are "
                f"needed to keep features. Resize or pad them"
            )
        self.shape = chunk.shape[1:]
        self.count += rows
        self.nbytes += chunk.nbytes
        if self.file is None:
            self.chunks.append(chunk)
        else:
            with disk_errors("features", Path(self.file.name)):
                self.file.write(np.ascontiguousarray(chunk).data)

    def move(self, path: Path) -> None:
        self.file = path.open("wb")
        for chunk in self.chunks:
            self.file.write(np.ascontiguousarray(chunk).data)
        self.chunks.clear()

    def stop(self) -> None:
        if self.file is not None:
            self.file.close()

    def finish(self) -> NDArray[np.float32]:
        if self.file is not None:
            with disk_errors("features", Path(self.file.name)):
                self.stop()
        if self.file is not None:
            return np.memmap(self.file.name, np.float32, "r", shape=(self.count, *self.shape))
        features = np.concatenate(self.chunks)
        self.chunks.clear()
        return features


def _split(head: nn.Module) -> bool:
    return callable(getattr(head, "pool", None)) and callable(getattr(head, "classify", None))


def _listed(inputs: Any) -> list[Any]:
    return (
        list(inputs.values())
        if isinstance(inputs, Mapping)
        else list(inputs)
        if isinstance(inputs, (tuple, list))
        else []
    )
