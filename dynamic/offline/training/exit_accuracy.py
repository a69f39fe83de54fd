"""How often each exit is right on data that it did not learn from."""

from collections.abc import Iterable
from itertools import chain, islice
from typing import Any

import numpy as np
import torch

from dynamic.offline.batches import check_loader, named_tensors
from dynamic.offline.networks.feature_cache import checked_batches
from dynamic.offline.networks.module_modes import evaluating
from dynamic.offline.staged_network import StagedNetwork
from dynamic.policies.certification.floor import Level
from dynamic.policies.errors import InputError


def checked_loader(network: StagedNetwork, loader: Iterable[Any]) -> Iterable[Any]:
    """The loader, once its first batch has gone through the network: training must not end in an error.

    Args:
        network: As for `held_out_levels`.
        loader: As for `held_out_levels`.

    Returns:
        What gives every batch, also where the loader is an iterator.

    Raises:
        InputError: Where it is no loader, gives no batch, or its first batch does not fit the network.
    """
    check_loader(loader)
    batches = iter(loader)
    first = list(islice(batches, 1))
    held_out_levels(network, first)
    return chain(first, batches) if batches is loader else loader


def held_out_levels(network: StagedNetwork, loader: Iterable[Any]) -> tuple[Level, ...]:
    """The accuracy of every exit on held-out data, beside that of the commonest class.

    Args:
        network: With exits, on any device. Its modes come back.
        loader: Of `(inputs, labels [B])` that the exits did not learn from.

    Returns:
        A level for each exit, the network's own last.

    Raises:
        InputError: Where the loader gives no batch.
    """
    names = [stage.name for stage in network.exit_stages]
    right, all_labels = np.zeros(len(names), np.int64), list[np.ndarray[Any, np.dtype[np.int64]]]()
    first = next(network.parameters(), None)
    with evaluating(network), torch.no_grad():
        for inputs, labels in checked_batches(loader, None):
            tensors = named_tensors(network, inputs).values()
            answers = network(*(t if first is None else t.to(first.device) for t in tensors))
            right += [int((logits.argmax(1).numpy(force=True) == labels).sum()) for logits in answers]
            all_labels.append(labels)
    if not all_labels:
        raise InputError("eval_loader gave no batch. It is empty, or an iterator that was already used up")
    every = np.concatenate(all_labels)
    chance = float(np.bincount(every).max()) / len(every)
    return tuple(Level(name, int(n) / len(every), chance, len(every)) for name, n in zip(names, right, strict=True))
