"""Training and evaluation modes that leave the user's modules as they were."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put `module` and everything inside into eval mode; each part's own mode comes back at the end."""
    with in_mode(module, training=False):
        yield


@contextmanager
def in_mode(module: nn.Module, training: bool) -> Iterator[None]:
    """Put `module` and everything inside into one mode; each part's own mode comes back at the end."""
    modes = [(part, part.training) for part in module.modules()]
    for part, _ in modes:  # not module.train(): users override it, to keep batch norm frozen for instance
        part.training = training
    try:
        yield
    finally:
        for part, before in modes:
            part.training = before


def view(module: nn.Module) -> nn.Module:
    """`module` with the same parameters and buffers, and a training flag of its own."""
    seen = copy.copy(module)  # shallow: the dictionaries of parameters and buffers stay shared
    seen._modules = {name: None if child is None else view(child) for name, child in module._modules.items()}
    return seen
