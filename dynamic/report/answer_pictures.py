"""Pictures of answers: an input that is an image, with what the cascade said of it."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.errors import InputError
from dynamic.report.figures import grid_of_axes, one_axes
from dynamic.runtime.result import BatchResult, Prediction, names_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TOP = 3  # classes that are named below an image
_BARS = 10  # classes of a chart without an image
_MOST = 16  # images of a batch
_COLOURS = (1, 3, 4)  # gray, RGB, RGBA


def draw_prediction(answer: Prediction, image: Any, axes: "Axes | None") -> "Axes":
    """One answer: its image with the likeliest classes below, or without an image a bar for each of these.

    Args:
        answer: The answer.
        image: The image, see `pixels`. None: there is none.
        axes: Axes to draw into. None: new ones.

    Returns:
        The axes.
    """
    shown = None if image is None else pixels(image)
    axes = one_axes(axes)
    names, values = _likeliest(answer, _TOP if shown is not None else _BARS)
    certified = "certified" if answer.certified else "not certified"
    axes.set_title(f"stage {answer.stage}, {answer.latency_ms:.3g} ms, {certified}", fontsize=9)
    if shown is None:
        bars = axes.barh(names, values)
        axes.bar_label(bars, fmt="{:.3f}", fontsize=8, padding=3)
        axes.invert_yaxis()
        axes.set(xlabel="probability", xlim=(0, 1.15))
        return axes
    axes.imshow(shown, cmap="gray", vmin=0, vmax=1)
    axes.set(xticks=(), yticks=())
    words = [f"{name} {value:.3f}" for name, value in zip(names, values, strict=True)]
    axes.set_xlabel("\n".join(words) or "no finite answer", fontsize=9)
    return axes


def draw_batch(answers: BatchResult, images: Any, axes: "Axes | None") -> Any:
    """The first answers of a batch with their images. See `draw_prediction`. Returns an array of axes `[N]`."""
    if images is None or axes is not None:
        raise InputError("a batch is drawn into several axes, with its images: batch.plot(images)")
    if len(images) != len(answers):
        raise InputError(f"{len(images)} images for {len(answers)} answers: give those that were answered, in order")
    count = min(len(answers), _MOST)
    every = grid_of_axes(count, columns=min(count, math.ceil(math.sqrt(_MOST))))
    for row, own in enumerate(every):
        draw_prediction(answers[row], images[row], own)
    return every


def pixels(image: Any) -> NDArray[Any]:
    """An image as matplotlib takes it.

    Args:
        image: An image of PIL, the path of a file, or an array `[H, W]`, `[H, W, C]` or `[C, H, W]` of 1, 3 or 4
            channels. Bytes are from 0 to 255. Other numbers are scaled to 0 to 1 where they lie outside of it.

    Returns:
        `[H, W]` or `[H, W, C]` from 0 to 1.

    Raises:
        InputError: It is no image.
    """
    if isinstance(image, str | Path):
        from PIL import Image

        with Image.open(image) as opened:
            image = opened.convert("RGB")
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[-1] not in _COLOURS and array.shape[0] in _COLOURS:
        array = array.transpose(1, 2, 0)
    if (
        array.ndim not in (2, 3)
        or (array.ndim == 3 and array.shape[-1] not in _COLOURS)
        or array.dtype.kind not in "uif"
    ):
        raise InputError(
            f"an image of shape {list(array.shape)} and type {array.dtype} cannot be drawn: give [H, W], [H, W, C] or "
            "[C, H, W] with 1, 3 or 4 channels, an image of PIL, or a path"
        )
    numbers = array / 255 if array.dtype == np.uint8 else array.astype(np.float64)
    low, high = float(np.nanmin(numbers, initial=0.0)), float(np.nanmax(numbers, initial=1.0))
    scaled = numbers if (low, high) == (0.0, 1.0) else (numbers - low) / (high - low)
    return scaled[..., 0] if scaled.ndim == 3 and scaled.shape[-1] == 1 else scaled


def _likeliest(answer: Prediction, most: int) -> tuple[list[str], NDArray[np.float32]]:
    """The names and probabilities of the likeliest classes. Empty: no stage gave a finite answer."""
    values = answer.probabilities
    if answer.label < 0:
        return [], values[:0]
    order = np.argsort(-values, kind="stable")[:most]
    names: Sequence[str | None] = names_of(answer.class_names, order.tolist())
    return [str(label) if name is None else name for label, name in zip(order, names, strict=True)], values[order]
