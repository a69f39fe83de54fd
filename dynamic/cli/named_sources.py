"""Networks, images and sizes by the names of a shell user."""

import importlib
import math
import os
import sys
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from dynamic.data.labelled_images import ImageSet
from dynamic.data.preprocessing import Preprocess
from dynamic.engines.engine_factory import is_there
from dynamic.policies.errors import InputError, SettingError


def network_at(path: str) -> nn.Module:
    """The network of a factory. The working folder is searched last, and only for it.

    Args:
        path: The factory, `package.module:factory`.

    Returns:
        The network.

    Raises:
        SettingError: `path` is not of that form.
        InputError: There is no such factory, or it returns no module.
    """
    module, _, name = path.partition(":")
    if not (module and name):
        raise SettingError(f"network {path!r}: give module:factory, such as dynamic.models:resnet20")
    if os.getcwd() not in sys.path and not is_there(module.partition(".")[0]):
        sys.path.append(os.getcwd())  # last: no package that is installed is taken from there
    try:
        factory = getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise InputError(
            f"network {path!r} is not found from {os.getcwd()} ({error}): give module:factory as Python imports it"
        ) from error
    network = factory() if callable(factory) else factory
    if not isinstance(network, nn.Module):
        raise InputError(f"network {path!r} gave a {type(network).__name__}: its factory must return a torch.nn.Module")
    return network


class ImageBatches:
    """A loader of `(inputs [B, C, H, W], labels [B])`: images in random order, preprocessed a batch at a time.

    Args:
        images: The images.
        preprocess: Their preprocessing.
        seed: Seed of the order.
        limit: Number of images to use, at least 1. None: all.

    Raises:
        SettingError: `limit` is below 1.
    """

    def __init__(self, images: ImageSet, preprocess: Preprocess, seed: int, limit: int | None = None) -> None:
        if limit is not None and limit < 1:
            raise SettingError(f"limit={limit} must be at least 1")
        order = np.random.default_rng(seed).permutation(len(images))[:limit]
        self._parts = np.array_split(order, math.ceil(len(order) / 64))
        self._images, self._preprocess = images, preprocess

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for part in self._parts:
            inputs = self._preprocess(self._images.images[part])
            yield torch.from_numpy(inputs), torch.from_numpy(self._images.labels[part])


def numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """`0.5,0.4` as numbers. Raises SettingError with the `option` on anything else."""
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise SettingError(f"{option} {text!r}: give numbers with commas between them, 0.485,0.456,0.406") from error


def size(option: str, text: str | None) -> int | tuple[int, int] | None:
    """`224`, or `224x320` as (height, width). Raises SettingError with the `option` on anything else."""
    try:
        sizes = [] if text is None else [int(part) for part in text.split("x")]
    except ValueError:
        sizes = [0]
    if len(sizes) > 2 or any(side < 1 for side in sizes):
        raise SettingError(f"{option} {text!r}: give a whole number, 224, or HEIGHTxWIDTH, 224x320")
    return None if not sizes else sizes[0] if len(sizes) == 1 else (sizes[0], sizes[1])
