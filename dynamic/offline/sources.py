"""Networks and images as a shell user names them."""

import importlib
import math
import os
import sys
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from dynamic.offline.images import ImageSet
from dynamic.policies.errors import BudgetError, InputError
from dynamic.preprocessing import Preprocess


def network_at(path: str) -> nn.Module:
    """What the factory at `package.module:factory` makes; the working folder is searched too.

    Raises BudgetError where `path` is not of that form, InputError where there is no such factory, or it gives
    something else than a module.
    """
    module, _, name = path.partition(":")
    if not (module and name):
        raise BudgetError(f"network {path!r}: give module:factory, such as dynamic.models:resnet20")
    if os.getcwd() not in sys.path:  # `python -m` has put it there, a console script has not
        sys.path.insert(0, os.getcwd())
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

    `limit`: only so many of them. Raises BudgetError where that is not at least 1.
    """

    def __init__(self, images: ImageSet, preprocess: Preprocess, seed: int, limit: int | None = None) -> None:
        if limit is not None and limit < 1:
            raise BudgetError(f"limit={limit} must be at least 1")
        order = np.random.default_rng(seed).permutation(len(images))[:limit]
        self._parts = np.array_split(order, math.ceil(len(order) / 64))
        self._images, self._preprocess = images, preprocess

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for part in self._parts:
            inputs = self._preprocess(self._images.images[part])
            yield torch.from_numpy(inputs), torch.from_numpy(self._images.labels[part])
