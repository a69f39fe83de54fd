"""Which batches trained or chose a network. They must not certify it.

A method that chooses by data writes the hashes of its batches on the networks that it returns. `build` compares them
with the batches that it calibrates and certifies with. A hash is of one whole batch: the same inputs in other batches
have other hashes, and weights that were saved and loaded again carry none.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from dynamic.offline.batches import check_loader, read_batch
from dynamic.policies.errors import CalibrationError

_ATTRIBUTE = "_dynamic_used_data"
_beside: WeakKeyDictionary[nn.Module, frozenset[str]] = WeakKeyDictionary()


def batch_hash(batch: Any) -> str:
    """SHA-256 over the bytes, types and shapes of the input arrays of a batch.

    Args:
        batch: Inputs without labels: an array, a tensor, a tuple or a dict of those. A dict counts in the order of its
            names.

    Returns:
        64 hexadecimal digits.

    Raises:
        TypeError: The batch holds something that is no array.

    Example:
        >>> x = torch.arange(6.0).reshape(2, 3)
        >>> batch_hash(x) == batch_hash((x,)) == batch_hash({"input": x.numpy()})
        True
    """
    digest = hashlib.sha256()
    for array in _arrays(batch):
        digest.update(f"|{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _arrays(batch: Any) -> Iterator[NDArray[Any]]:
    if isinstance(batch, Tensor):
        tensor = batch.detach().cpu()
        yield (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    elif isinstance(batch, Mapping):
        for name in sorted(batch):
            yield from _arrays(batch[name])
    elif isinstance(batch, (tuple, list)):
        for part in batch:
            yield from _arrays(part)
    elif batch is not None:
        array = np.asarray(batch)
        if array.dtype.hasobject:
            raise TypeError(f"a batch holds a {type(batch).__name__}: give arrays or tensors")
        yield array


class RecordedLoader:
    """A loader that notes the hash of each batch that is read from it.

    Args:
        loader: What gives the batches.

    Example:
        >>> loader = RecordedLoader([(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))])
        >>> for inputs, labels in loader:
        ...     pass
        >>> loader.hashes == {batch_hash(torch.zeros(2, 3))}
        True
    """

    def __init__(self, loader: Iterable[Any]) -> None:
        self.hashes: set[str] = set()
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        check_loader(self._loader)
        for item in self._loader:
            with suppress(TypeError):  # whoever reads it says what is wrong
                self.hashes.add(batch_hash(read_batch(item)[0]))
            yield item


def remember(network: nn.Module, loader_hashes: Iterable[str], *, on_network: bool = True) -> None:
    """Note that batches trained or chose a network. Earlier notes remain.

    Args:
        network: What was trained or chosen.
        loader_hashes: `batch_hash` of each of these batches.
        on_network: Whether the note is an attribute of the network, which its copies keep. False for a network of the
            user, which is not changed. The note then lies beside it for as long as the network exists.

    Raises:
        TypeError: `network` is no module.

    Example:
        >>> network = nn.Linear(3, 2)
        >>> remember(network, [batch_hash(torch.zeros(2, 3))])
        >>> len(hashes_of(network))
        1
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"network is a {type(network).__name__}: give a torch module")
    hashes = _own(network) | frozenset(loader_hashes)
    if not hashes:
        return
    if not on_network:
        _beside[network] = hashes
    elif isinstance(network, fx.GraphModule):
        network.meta[_ATTRIBUTE] = hashes  # torch copies the meta of a graph module and drops its other attributes
    else:
        object.__setattr__(network, _ATTRIBUTE, hashes)


def hashes_of(network: nn.Module) -> frozenset[str]:
    """The batches that trained or chose a network, or a network inside it.

    Args:
        network: Any module. A wrapped network, a cascade and a compiled network hold the networks inside.

    Returns:
        The hashes, empty where there are none.

    Raises:
        AttributeError: `network` is no module.

    Example:
        >>> chosen = nn.Linear(3, 2)
        >>> remember(chosen, ["a"])
        >>> sorted(hashes_of(nn.Sequential(chosen, nn.ReLU())))
        ['a']
    """
    return frozenset[str]().union(*map(_own, network.modules()))


def _own(module: nn.Module) -> frozenset[str]:
    hashes: frozenset[str] = vars(module).get(_ATTRIBUTE, frozenset())
    if isinstance(module, fx.GraphModule):
        hashes |= module.meta.get(_ATTRIBUTE, frozenset())
    return hashes | _beside.get(module, frozenset())


def check_fresh(networks: Iterable[nn.Module], loader_hashes: Iterable[str], allow_reuse: bool = False) -> None:
    """Check that no batch that trained or chose one of the networks is among others, which certify.

    Args:
        networks: The networks of a cascade.
        loader_hashes: `batch_hash` of each batch that is to certify.
        allow_reuse: Whether batches may be the same. Certificates are then void.

    Raises:
        CalibrationError: Some batches are the same, and `allow_reuse` is False.

    Example:
        >>> network = nn.Linear(3, 2)
        >>> remember(network, ["a"])
        >>> check_fresh([network], ["b"])
        >>> check_fresh([network], ["a", "b"], allow_reuse=True)
    """
    if allow_reuse:
        return
    fresh = frozenset(loader_hashes)
    reused = [(network, fresh & hashes_of(network)) for network in networks]
    same = frozenset[str]().union(*(hashes for _, hashes in reused))
    if same:
        kinds = [type(getattr(network, "backbone", network)).__name__ for network, hashes in reused if hashes]
        raise CalibrationError(
            f"a calibration batch trained or chose {', '.join(dict.fromkeys(kinds))}, and such data certify nothing "
            f"({len(same)} of {len(fresh)} batches are the same): give other images, or allow_reuse=True where the "
            "certificate does not matter"
        )
