"""Batches of preprocessed examples, for torch and numpy."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.cli.sources.data_sets.examples import Examples
from dynamic.data.number_steps import Normalize, Scale
from dynamic.data.picture_decoding import PictureError
from dynamic.data.preprocessing import Preprocess
from dynamic.data.sound.sound_preprocess import SoundPreprocess
from dynamic.data.text.text_preprocessing import USUAL, TextPreprocess
from dynamic.policies.errors import InputError
from dynamic.progress import track

_ROWS = 64
_LISTED = 20  # files named in one message
_MOST_MB = 8000.0  # of examples that are held in memory


class ImageBatches:
    """Batches of images `[B, C, H, W]` with labels `[B]`. They are decoded once, and held as bytes.

    Args:
        examples: Images, in the order in which they are given.
        preprocess: Their preprocessing.
        channels: 1 or 3, where the network says it. None: gray images have one channel.

    Raises:
        InputError: Files do not read, or images have several sizes after preprocessing.
    """

    def __init__(self, examples: Examples, preprocess: Preprocess, channels: int | None = None) -> None:
        steps = preprocess.steps
        sizing = Preprocess(tuple(step for step in steps if not isinstance(step, (Scale, Normalize))))
        self._numbers = Preprocess(tuple(step for step in steps if isinstance(step, (Scale, Normalize))))
        self._labels = examples.labels

        def pixels(item: Any) -> NDArray[np.uint8]:
            image = item if isinstance(item, np.ndarray) else item.pixels(channels)
            rows: NDArray[np.uint8] = sizing(image)[0].astype(np.uint8)
            return rows.transpose(1, 2, 0)

        self._images = _one_array(examples, _decoded(examples, pixels))

    def __len__(self) -> int:
        return math.ceil(len(self._labels) / _ROWS)

    def __iter__(self) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
        for start in range(0, len(self._labels), _ROWS):
            part = slice(start, start + _ROWS)
            yield self._numbers(self._images[part]), self._labels[part]


def batches_of(examples: Examples, preprocess: Any, channels: int | None, inputs: Sequence[str] | None) -> Any:
    """Batches of `(inputs, labels [B])` for a network.

    Args:
        examples: The examples.
        preprocess: Their preprocessing, as data.
        channels: Channels of images, where the network says it.
        inputs: Names of the inputs that a network of texts takes. None: the usual ones.

    Returns:
        A loader that may be read several times.

    Raises:
        InputError: The preprocessing is of another kind, or examples do not read.
    """
    needed = {"images": Preprocess, "sounds": SoundPreprocess, "texts": TextPreprocess}
    if examples.kind == "batches":
        return examples.items
    if not isinstance(preprocess, needed[examples.kind]):
        remedies = {
            "images": "give a network of images",
            "sounds": "give --preprocess file.py:name of a dynamic.data.SoundPreprocess",
            "texts": "give --tokenizer tokenizer.json, or a network hf:folder with its tokenizer",
        }
        what = "nothing" if preprocess is None else f"a {type(preprocess).__name__}"
        remedy = remedies[examples.kind]
        raise InputError(f"{examples.name} holds {examples.kind}, and the network has {what}: {remedy}")
    if isinstance(preprocess, TextPreprocess):
        return preprocess.batches(examples.items, examples.labels, inputs=USUAL if inputs is None else tuple(inputs))
    if isinstance(preprocess, Preprocess):
        return ImageBatches(examples, preprocess, channels)
    assert isinstance(preprocess, SoundPreprocess)
    rows = _one_array(examples, _decoded(examples, lambda item: preprocess(item.sound())[0]))
    starts = range(0, len(rows), _ROWS)
    return [(rows[start : start + _ROWS], examples.labels[start : start + _ROWS]) for start in starts]


def _decoded(examples: Examples, read: Any) -> list[NDArray[Any]]:
    """What `read` makes of each example. InputError names all that do not read."""
    rows: list[NDArray[Any]] = []
    broken: list[tuple[str, str]] = []
    for index in track(range(len(examples)), f"decoding {examples.kind}", len(examples)):
        item = examples.items[index]
        try:
            rows.append(read(item))
        except InputError as error:
            reason = error.reason if isinstance(error, PictureError) else str(error)
            broken.append((str(getattr(item, "place", index)), reason))
            continue
        if (held_mb := rows[0].nbytes * len(examples) / 1e6) > _MOST_MB:
            raise InputError(
                f"{len(examples)} {examples.kind} of {examples.name} need {held_mb:.0f} MB, and {_MOST_MB:.0f} are "
                "held at most: use some of them, --limit 10000, or smaller ones, --resize and --crop"
            )
    if broken:  # all of them at once, so that one correction is enough
        listed = ", ".join(f"{place} ({reason})" for place, reason in broken[:_LISTED])
        more = f", and {len(broken) - _LISTED} more" if len(broken) > _LISTED else ""
        kind = "an image" if examples.kind == "images" else "a sound"
        raise InputError(
            f"{len(broken)} of {len(examples)} files in {examples.name} do not read as {kind}: {listed}{more}: remove "
            "them, or copy them again"
        )
    return rows


def _one_array(examples: Examples, rows: Sequence[NDArray[Any]]) -> NDArray[Any]:
    sizes = sorted({row.shape for row in rows})
    if len({size[:2] for size in sizes}) > 1:
        raise InputError(
            f"the {examples.kind} in {examples.name} have {len(sizes)} sizes, from {sizes[0]} to {sizes[-1]}, and a "
            "network takes one: give --resize 256 --crop 224, for instance, as it was trained"
        )
    if len(sizes) > 1:  # gray ones among colours
        rows = [np.broadcast_to(row, (*row.shape[:2], 3)) for row in rows]
    return np.stack(rows)
