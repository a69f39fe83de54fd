"""Which batches chose a network. What chose must not certify.

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
from torch import Tensor, fx, nn

from dynamic.offline.batches import LABELS, check_loader, read_batch
from dynamic.policies.errors import CalibrationError

_ATTRIBUTE = "_dynamic_used_data"
_beside: WeakKeyDictionary[nn.Module, frozenset[str]] = WeakKeyDictionary()


def batch_hash(batch: Any) -> str:
    """SHA-256 over the input arrays of a batch, labels aside.

    A tensor, a tuple and a dict of the same arrays have the same hash. So do 64-bit floats and the 32-bit floats that
    they are rounded to.

    Args:
        batch: The inputs as a loader gives them: an array, a tensor, a tuple or a dict of those.

    Returns:
        64 hexadecimal digits.

    Raises:
        TypeError: The batch holds something that is no array.

    Example:
        >>> x = torch.arange(6.0).reshape(2, 3)
        >>> batch_hash(x) == batch_hash((x.double(),)) == batch_hash({"input": x.numpy()})
        True
    """
    if isinstance(batch, Mapping):
        parts = [value for name, value in batch.items() if value is not None and name not in LABELS]
    else:
        parts = list(batch) if isinstance(batch, (tuple, list)) else [batch]
    return hashlib.sha256("".join(sorted(map(_array_hash, parts))).encode()).hexdigest()


def _array_hash(value: Any) -> str:
    tensor = value.detach().cpu() if isinstance(value, Tensor) else torch.from_numpy(np.ascontiguousarray(value))
    if tensor.is_floating_point():
        tensor = tensor.float()
    array = tensor.contiguous().numpy()
    digest = hashlib.sha256(f"{array.dtype}{list(array.shape)}".encode())
    digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


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
    """Note that batches chose a network. What was noted before stays.

    Args:
        network: The network that was chosen.
        loader_hashes: `batch_hash` of each batch that chose it.
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
    """The batches that chose a network, or a network inside it.

    Args:
        network: Any module. A wrapped network, a cascade and a compiled network hold the networks inside.

    Returns:
        The hashes, empty where no data chose.

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
    noted: frozenset[str] = vars(module).get(_ATTRIBUTE, frozenset())
    if isinstance(module, fx.GraphModule):
        noted |= module.meta.get(_ATTRIBUTE, frozenset())
    return noted | _beside.get(module, frozenset())


def check_fresh(networks: Iterable[nn.Module], loader_hashes: Iterable[str], *, allow_reuse: bool = False) -> None:
    """Check that no batch that chose one of the networks is among others, which certify.

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
    chosen = [(network, fresh & hashes_of(network)) for network in networks]
    same = frozenset[str]().union(*(hashes for _, hashes in chosen))
    if same:
        names = ", ".join(dict.fromkeys(type(network).__name__ for network, hashes in chosen if hashes))
        raise CalibrationError(
            f"{len(same)} of {len(fresh)} batches also chose networks ({names}), and what chose must not certify: "
            "give other images, or allow_reuse=True for a bundle whose certificates are void"
        )
