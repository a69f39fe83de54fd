"""Which batches trained or chose a network: their hashes travel with it, so that they do not certify it too.

A certificate holds for data that had no part in the cascade. A batch that trained exits, or chose them or a sub-model,
looks better than new data. A hash is of the whole batch: the same inputs in other batches are not recognized.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dynamic.policies.errors import CalibrationError

_ATTRIBUTE = "_dynamic_used_data"  # no buffer: a deep copy has it, and a state_dict does not


def batch_hash(batch: Any) -> str:
    """The SHA-256 of the inputs of a batch.

    Args:
        batch: Inputs without labels: an array, a tuple or a dict of arrays.

    Returns:
        The hash over the bytes of the arrays, in hexadecimal digits.
    """
    digest = hashlib.sha256()
    for array in _arrays(batch):
        digest.update(f"|{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def remember(network: nn.Module, hashes: Iterable[str]) -> None:
    """Add the hashes of batches to those that a network has.

    Args:
        network: What was trained or chosen.
        hashes: As `batch_hash` returns them.
    """
    object.__setattr__(network, _ATTRIBUTE, getattr(network, _ATTRIBUTE, frozenset()) | frozenset(hashes))


def hashes_of(network: nn.Module) -> frozenset[str]:
    """The hashes of all batches that trained or chose a network.

    Args:
        network: With or without hashes. Those of its parts count too.

    Returns:
        The hashes.
    """
    return frozenset().union(*(getattr(part, _ATTRIBUTE, frozenset()) for part in network.modules()))


def check_fresh(networks: Iterable[nn.Module], hashes: Iterable[str], allow_reuse: bool) -> None:
    """Check that batches had no part in any of the networks.

    Args:
        networks: Of a cascade.
        hashes: Of the batches.
        allow_reuse: Whether reuse is accepted.

    Raises:
        CalibrationError: A batch trained or chose a network.
    """
    if allow_reuse:
        return
    given = frozenset(hashes)
    for network in networks:
        reused = given & hashes_of(network)
        if reused:
            kind = type(getattr(network, "backbone", network)).__name__
            raise CalibrationError(
                f"a calibration batch trained or chose {kind}, and such data certify nothing ({len(reused)} of "
                f"{len(given)} batches compared). Give other held-out data, or allow_reuse=True where the certificate "
                "does not matter"
            )


def _arrays(batch: Any) -> list[np.ndarray[Any, Any]]:
    """The arrays of a batch, those of a dict by name."""
    if isinstance(batch, Tensor):
        tensor = batch.detach().cpu()
        return [tensor.view(torch.int16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()]
    if isinstance(batch, Mapping):
        return [array for name in sorted(batch) for array in _arrays(batch[name])]
    if isinstance(batch, tuple | list):
        return [array for part in batch for array in _arrays(part)]
    return [np.asarray(batch)]
