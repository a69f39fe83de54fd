"""The hashes of the batches that a training run reads."""

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from dynamic.offline.batches import Batch, labelled_batches
from dynamic.offline.networks.used_data import batch_hash
from dynamic.offline.training.epoch_seeds import seeded

Labels = TypeVar("Labels")


class UsedBatches:
    """Hashes of the first whole reading of a loader, and of what was read before it."""

    def __init__(self) -> None:
        self.hashes: set[str] = set()
        self._complete = False

    def watch(self, batches: Iterable[tuple[Batch, Labels]]) -> Iterator[tuple[Batch, Labels]]:
        """The same batches. Later epochs are not hashed: augmented inputs would be other ones each time."""
        if self._complete:
            yield from batches
            return
        for inputs, labels in batches:
            self.hashes.add(batch_hash(inputs))
            yield inputs, labels
        self._complete = True

    def complete(self, loader: Iterable[Any], seed: int) -> None:
        """Read the loader where the run did not, as where a checkpoint held every epoch."""
        if not self._complete and not isinstance(loader, Iterator):
            with seeded(seed, -2, loader):
                for _ in self.watch(labelled_batches(loader)):
                    pass
