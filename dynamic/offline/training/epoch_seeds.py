"""The same random numbers in each epoch, however often the run was interrupted before it."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def derived_seed(seed: int, epoch: int) -> int:
    """A seed of 63 bits for an epoch. Neighbouring seeds and epochs share nothing."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{epoch}".encode()).digest()[:8], "big") >> 1


@contextmanager
def seeded(seed: int, epoch: int, loader: Any = None) -> Iterator[None]:
    """Seed torch, numpy, `random` and the generators of a `DataLoader` for one epoch. Afterwards all are as before.

    A sampler that has `set_epoch`, such as torch's `DistributedSampler`, is told the epoch.

    A loader that draws its order from elsewhere has to give the same order by itself.
    """
    value = derived_seed(seed, epoch)
    generators = list(_generators(loader))
    tell = getattr(getattr(loader, "sampler", None), "set_epoch", None)
    if tell is not None and epoch >= 0:
        tell(epoch)
    states = [generator.get_state() for generator in generators]
    plain, array = random.getstate(), np.random.get_state()  # noqa: NPY002 (users' transforms draw from it)
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    with torch.random.fork_rng():
        try:
            torch.manual_seed(value)
            random.seed(value)
            np.random.seed(value % 2**32)  # noqa: NPY002
            for generator in generators:
                generator.manual_seed(value)
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
            yield
        finally:
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)
            random.setstate(plain)
            np.random.set_state(array)  # noqa: NPY002


def _generators(loader: Any) -> Iterator[torch.Generator]:
    generators: list[torch.Generator] = []
    sampler = getattr(loader, "batch_sampler", None)
    for owner in (loader, getattr(loader, "sampler", None), sampler, getattr(sampler, "sampler", None)):
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator) and not any(generator is other for other in generators):
            generators.append(generator)
            yield generator
