"""The same random numbers in each epoch, however often the run was interrupted before it."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def derived_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """A seed of 63 bits for an epoch of a process. Neighbouring seeds, epochs and processes share nothing."""
    text = f"{seed}/{epoch}" if rank == 0 else f"{seed}/{epoch}/{rank}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@contextmanager
def seeded(seed: int, epoch: int, loader: Any = None, rank: int = 0) -> Iterator[None]:
    """Seed torch, numpy, `random` and the generators of a `DataLoader` for one epoch. Afterwards all are as before.

    Processes of other ranks draw other numbers, so their dropout masks and augmentations do not repeat each other. A
    generator of a sampler gets the same seed in all of them, since samplers may divide one order among processes.

    A sampler with a method `set_epoch`, such as torch's `DistributedSampler`, receives the epoch. A loader that draws
    its order from elsewhere has to give the same order by itself.
    """
    value, shared = derived_seed(seed, epoch, rank), derived_seed(seed, epoch)
    generators = list(_generators(loader))
    own = getattr(loader, "generator", None)  # workers are seeded with it
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
                generator.manual_seed(value if generator is own else shared)
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
