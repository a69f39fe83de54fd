"""Batches as users' loaders give them: a tensor, a tuple (`*args`) or a dict (`**kwargs`), with or without labels.

Batches are read here and in `build_steps/loaders.py` alone. What is clear is taken: arrays, inputs of another float
type than the network's, labels inside a dict, one-hot labels. Everything else is refused in the same words by all
that read data.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dynamic.offline.build_steps.loaders import LABELS
from dynamic.offline.build_steps.loaders import check_loader as check_loader
from dynamic.offline.build_steps.loaders import labelled_batches as labelled_batches
from dynamic.offline.build_steps.loaders import read_batch as read_batch
from dynamic.offline.tracing.input_sizes import Sizes
from dynamic.policies.errors import DynamicError, InputError

Batch = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]


def named_tensors(network: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The tensors of a batch by input name, in the order of `network.forward`. A single tensor has the name `input`.

    A dict may leave out arguments that have defaults, and what it holds as None or as labels is left out too. Inputs
    in floating point get the type of the network's parameters. Raises InputError where the batch is none of tensor,
    tuple, dict, where forward takes no such argument, and on sizes that a wrapped network was not traced for.
    """
    sizes: Sizes | None = getattr(network, "traced_sizes", None)
    if isinstance(batch, (Tensor, np.ndarray)):
        named: dict[str, Any] = {"input": batch}
    elif isinstance(batch, Mapping):
        values = {str(n): v for n, v in batch.items() if v is not None and n not in LABELS}
        named = {name: values[name] for name in _in_order(network, values, sizes)}
    elif isinstance(batch, (tuple, list)):
        named = dict(zip(argument_names(network, len(batch)), batch, strict=True))
    else:
        raise InputError(f"inputs are a {type(batch).__name__}. Give a tensor, a tuple or a dict of tensors")
    if not named:
        raise InputError("a batch holds no input. Give a tensor, a tuple or a dict of tensors")
    floats = (t.dtype for t in chain(network.parameters(), network.buffers()) if t.is_floating_point())
    kind = next(floats, None)
    tensors = {name: _tensor(name, value, kind) for name, value in named.items()}
    if sizes is not None:
        sizes.check(list(tensors.values()))
    return tensors


def argument_names(network: nn.Module, count: int) -> list[str]:
    """Names of the first `count` arguments of `network.forward`."""
    names = _positional(network)
    return names[:count] if len(names) >= count else [f"input_{i}" for i in range(count)]  # forward(*args)


def run_on(network: nn.Module, tensors: Mapping[str, Tensor]) -> Any:
    """What `network` returns for named tensors (see `arguments`)."""
    args, kwargs = arguments(network, tensors)
    return network(*args, **kwargs)


def arguments(network: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """(args, kwargs) for `network`: by position where the names come first in its forward, else by keyword."""
    if by_position(network, list(tensors)):
        return tuple(tensors.values()), {}
    return (), dict(tensors)


def by_position(network: nn.Module, names: Sequence[str]) -> bool:
    """Whether tensors of these names are given to `network` in their order, rather than by keyword."""
    sizes: Sizes | None = getattr(network, "traced_sizes", None)
    if sizes is not None and tuple(names) == sizes.names:
        return True
    if hasattr(network, "onnx_input_names"):  # an ONNX file, which matches them by name
        return False
    first = _positional(network)[: len(names)]
    return first == list(names) or not set(names) & {p.name for p in _parameters(network)}


def _tensor(name: str, value: Any, kind: torch.dtype | None) -> Tensor:
    """A tensor of an input, of a `kind` where it is in floating point."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        value = torch.from_numpy(np.ascontiguousarray(value))
    if not isinstance(value, Tensor):
        raise InputError(f"input {name!r} is a {type(value).__name__}. Give a tensor")
    if value.ndim == 0:
        raise InputError(f"input {name!r} has shape [], expected [B, ...]")
    return value.to(kind) if kind is not None and value.is_floating_point() else value


def _parameters(network: nn.Module) -> list[inspect.Parameter]:
    # a wrapped network takes whatever its backbone takes
    return list(inspect.signature(getattr(network, "backbone", network).forward).parameters.values())


def _positional(network: nn.Module) -> list[str]:
    own: Sequence[str] | None = getattr(network, "onnx_input_names", None)
    if own is not None:
        return list(own)
    return [p.name for p in _parameters(network) if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _in_order(network: nn.Module, values: Mapping[str, Any], sizes: Sizes | None) -> list[str]:
    """The names of a dict in the order of forward, of which they may leave out some."""
    parameters = _parameters(network)
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if not values:
        return []
    if sizes is not None and sizes.names != ("input",):
        sizes.check_names(values)
        return list(sizes.names)
    unknown = [name for name in values if name not in names]
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        raise InputError(
            f"inputs {sorted(values)}: {type(network).__name__}.forward takes no {unknown[0]!r}, it takes {names}. "
            "Leave out the others, or put a module around it whose forward takes just these"
        )
    return [*(name for name in names if name in values), *unknown]


@contextmanager
def taken_by(network: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Around a run of `network` on these: where torch fails inside, InputError names the inputs and the reason."""
    try:
        yield
    except (DynamicError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        kinds = [f"{name} {str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for name, t in tensors.items()]
        raw = any(t.dtype == torch.uint8 for t in tensors.values())
        hint = ", that is, after preprocessing: a Preprocess can be called on uint8 images" if raw else ""
        kind = type(getattr(network, "backbone", network)).__name__
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise InputError(
            f"{kind} does not run on the inputs given, {', '.join(kinds)}: {reason}. Give batches as its "
            f"forward takes them{hint}"
        ) from error
