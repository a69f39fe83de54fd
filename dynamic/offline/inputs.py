"""Batches as users' loaders give them: a tensor, a tuple (`*args`) or a dict (`**kwargs`)."""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dynamic.policies.errors import DynamicError, InputError

Batch = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]


def named_tensors(network: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The tensors of a batch by input name, in the order of `network.forward`; `input` for a single tensor.

    Raises InputError where the batch is none of tensor, tuple, dict, or a dict skips an argument.
    """
    if isinstance(batch, Tensor):
        return {"input": batch}
    # a wrapped network takes whatever its backbone takes
    parameters = [
        p.name
        for p in inspect.signature(getattr(network, "backbone", network).forward).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if isinstance(batch, Mapping):
        if parameters and set(batch) != set(parameters[: len(batch)]):
            raise InputError(
                f"inputs {sorted(batch)} are not the first arguments of {type(network).__name__}.forward, "
                f"{parameters}; give those, or put a module around it whose forward takes just these"
            )
        named = {name: batch[name] for name in parameters[: len(batch)] or batch}
    elif isinstance(batch, (tuple, list)):
        if len(parameters) < len(batch):  # forward(*args)
            parameters = [f"input_{i}" for i in range(len(batch))]
        named = dict(zip(parameters, batch, strict=False))
    else:
        raise InputError(f"inputs are a {type(batch).__name__}; give a tensor, a tuple or a dict of tensors")
    for name, value in named.items():
        if not isinstance(value, Tensor):
            raise InputError(f"input {name!r} is a {type(value).__name__}; give a tensor")
    return named


@contextmanager
def taken_by(network: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Around a run of `network` on these: where torch fails inside, InputError says on what inputs, and how."""
    try:
        yield
    except (DynamicError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        kinds = [f"{name} {str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for name, t in tensors.items()]
        raw = any(t.dtype == torch.uint8 for t in tensors.values())
        hint = ", that is, after preprocessing: a Preprocess can be called on uint8 images" if raw else ""
        kind, said = type(getattr(network, "backbone", network)).__name__, str(error).strip() or repr(error)
        raise InputError(
            f"{kind} does not run on the inputs given, {', '.join(kinds)}: {said.splitlines()[0]}; give batches as its "
            f"forward takes them{hint}"
        ) from error


def labelled_batches(loader: Iterable[Any]) -> Iterator[tuple[Batch, NDArray[np.int64] | None]]:
    """(inputs, labels or None) of each batch of a loader of `(x, y)` pairs, or of bare `x`.

    Raises InputError on labels that are not whole numbers `[B]`.
    """
    if isinstance(loader, Tensor):
        raise InputError(
            f"a tensor {list(loader.shape)} is no loader; give batches: [(inputs, labels)], or a DataLoader"
        )
    for item in loader:
        if not (isinstance(item, (tuple, list)) and len(item) == 2):
            yield item, None
            continue
        inputs, labels = item
        labels = torch.as_tensor(labels)
        if labels.ndim != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
            raise InputError(
                f"labels are {labels.dtype} of shape {list(labels.shape)}; expected class indices, integers [B]"
            )
        yield inputs, labels.cpu().numpy().astype(np.int64)
