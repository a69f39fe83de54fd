"""Loaders and streams of batches that are looked at while they are read."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from dynamic.offline.batches import Batch, labelled_batches, read_batch
from dynamic.offline.networks.used_data import batch_hash
from dynamic.offline.training.epoch_seeds import seeded

Labels = TypeVar("Labels")


class UsedBatches:
    """Hashes of the first whole reading of a loader, and of what was read before it.

    Attributes:
        hashes: Of the batches.
        is_training: Whether weights may have changed. Before that the batches were only read.
    """

    def __init__(self) -> None:
        self.hashes: set[str] = set()
        self.is_training = False
        self._complete = False

    def watch(self, batches: Iterable[tuple[Batch, Labels]]) -> Iterator[tuple[Batch, Labels]]:
        """The same batches. Later epochs are not hashed, since augmented inputs differ each time."""
        if self._complete:
            yield from batches
            return
        for inputs, labels in batches:
            self.hashes.add(batch_hash(inputs))
            yield inputs, labels
        self._complete = True

    def complete(self, loader: Iterable[Any], seed: int) -> None:
        """Read the loader where the run did not, for instance where a checkpoint held every epoch."""
        if not self._complete and not isinstance(loader, Iterator):
            with seeded(seed, -2, loader):
                for _ in self.watch(labelled_batches(loader)):
                    pass


class ObservedLoader:
    """A loader that calls a function with the inputs of each batch, before it gives the batch.

    Args:
        loader: The batches.
        observe: What is called.
    """

    def __init__(self, loader: Iterable[Any], observe: Callable[[Batch], object]) -> None:
        self._loader = loader
        self._observe = observe

    def __len__(self) -> int:
        return len(self._loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        for item in self._loader:
            self._observe(read_batch(item)[0])
            yield item
