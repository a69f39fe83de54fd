"""Seeded epochs: the same inside, nothing left behind outside."""

import contextlib
import random

import numpy as np
import torch
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from dynamic.offline.training.epoch_seeds import derived_seed, seeded


def drawn() -> tuple[float, float, float]:
    return torch.rand(1).item(), float(np.random.rand()), random.random()  # noqa: NPY002


def test_the_same_numbers_in_the_same_epoch() -> None:
    found = []
    for seed, epoch in ((0, 1), (0, 1), (0, 2), (1, 1)):
        drawn()
        with seeded(seed, epoch):
            found.append(drawn())
    assert found[0] == found[1]
    assert len({*found}) == 3


def test_global_generators_come_back() -> None:
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)
    expected = drawn()
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)
    with contextlib.suppress(KeyError), seeded(0, 0):
        drawn()
        raise KeyError
    assert drawn() == expected


def test_a_loader_shuffles_alike() -> None:
    data = TensorDataset(torch.arange(20))
    for generator in (None, torch.Generator().manual_seed(8)):
        loader = DataLoader(data, batch_size=4, shuffle=True, generator=generator)
        orders = []
        for epoch in (0, 1, 0):
            with seeded(7, epoch, loader):
                orders.append(torch.cat([x for (x,) in loader]).tolist())
        assert orders[0] == orders[2] != orders[1]
        assert sorted(orders[0]) == list(range(20))


def test_a_loaders_own_generator_comes_back() -> None:
    generator = torch.Generator().manual_seed(8)
    before = generator.get_state()
    loader = DataLoader(TensorDataset(torch.arange(4)), shuffle=True, generator=generator)
    with seeded(0, 0, loader):
        list(loader)
    assert torch.equal(before, generator.get_state())


def test_processes_draw_other_numbers_from_one_order() -> None:
    """The sampler's own generator has one seed in all ranks. The loader's, which seeds workers, has not."""
    order, own = torch.Generator(), torch.Generator()
    data = TensorDataset(torch.arange(20))
    loader = DataLoader(data, sampler=RandomSampler(data, generator=order), generator=own)
    numbers = []
    for rank in (0, 1, 2):
        with seeded(0, 1, loader, rank):
            numbers.append((*drawn(), torch.rand(1, generator=own).item(), torch.rand(1, generator=order).item()))
    with seeded(0, 1):
        assert numbers[0][:3] == drawn(), "rank 0 draws as one process"
    *others, orders = zip(*numbers, strict=True)
    assert [len({*draws}) for draws in others] == [3, 3, 3, 3]
    assert len({*orders}) == 1


def test_seeds_of_neighbours_differ() -> None:
    seeds = {derived_seed(seed, epoch, rank) for seed in range(20) for epoch in range(-1, 20) for rank in range(3)}
    assert len(seeds) == 20 * 21 * 3
    assert all(0 <= seed < 2**63 for seed in seeds)
