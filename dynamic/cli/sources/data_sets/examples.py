"""Labelled examples of a data set before they are preprocessed, and their division by lot."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dynamic.data.labelled_images import stratified_halves
from dynamic.policies.errors import InputError

Kind = Literal["images", "sounds", "texts", "batches"]
Half = Literal["all", "train", "held out"]


@dataclass(frozen=True, eq=False)
class Examples:
    """N labelled examples of one kind. Of kind "batches" they are what a user's function gives, and go as they are.

    Args:
        name: Of the data set, for messages.
        kind: What they are.
        items: Files or arrays of images, files of sounds, or texts. Of batches the loader itself.
        labels: Class of each `[N]`, an index into `classes`. Of batches it is empty.
        classes: Names of the classes. Of batches they may be missing.
        split: Name of the folder above the class folders, where there are several.
        half: Which half it is, where one set is divided.
        lot: Seed of the lot that divided it.
        preprocess: Of batches, what made their inputs.

    Raises:
        InputError: There are fewer than two classes.
    """

    name: str
    kind: Kind
    items: Any
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    split: str | None = None
    half: Half = "all"
    lot: int = 0
    preprocess: Any = None

    def __post_init__(self) -> None:
        if self.kind != "batches" and len(self.classes) < 2:
            raise InputError(
                f"{self.name} has the one class {list(self.classes)}: give examples of two classes or more"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, which: Sequence[int] | NDArray[np.int64]) -> "Examples":
        """Some of the examples, with all classes."""
        return replace(self, items=[self.items[i] for i in which], labels=self.labels[list(which)])

    def drawn(self, limit: int | None, seed: int) -> "Examples":
        """In random order, `limit` of them at most."""
        return self.select(np.random.default_rng(seed).permutation(len(self))[:limit])

    def halves(self, seed: int) -> "tuple[Examples, Examples]":
        """Two halves by lot, the same ones for the same seed: for training, and held out.

        Args:
            seed: Of the lot.

        Returns:
            The half that trains, and the half that is held out.

        Raises:
            InputError: Batches of a function cannot be divided, or there are fewer than four examples.
        """
        if self.kind == "batches":
            raise InputError(
                f"{self.name} gives batches, which are not divided: name data that train, --train-data file.py:function"
            )
        if len(self) < 4:
            raise InputError(f"{self.name} has {len(self)} examples, too few to be divided: give at least 4")
        first, second = stratified_halves(self.labels, seed)
        return replace(self.select(first), half="train", lot=seed), replace(
            self.select(second), half="held out", lot=seed
        )

    def labelled_as(self, classes: tuple[str, ...]) -> "Examples":
        """The same with labels in the order of a network's classes, which include all of these."""
        number = {name: label for label, name in enumerate(classes)}
        labels = np.array([number[self.classes[label]] for label in self.labels], np.int64)
        return replace(self, labels=labels, classes=classes)
