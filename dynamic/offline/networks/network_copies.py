"""Copies of networks whose weights are computed: weight norm, spectral norm, masks, and tensors held between calls."""

import copy
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


def deep_copy(network: nn.Module) -> nn.Module:
    """A deep copy: shared weights are shared in the copy too, nothing is shared with the original.

    A tensor that was computed from parameters is copied as a value, since torch refuses to copy it. Examples are a
    weight under `weight_norm` and a feature of the last call.
    """
    memo: dict[int, Any] = {id(t): t.detach().clone() for t in _computed(network)}
    duplicate: nn.Module = copy.deepcopy(network, memo)
    for module in duplicate.modules():
        if parametrize.is_parametrized(module):  # torch copies share a class, and lose its property all at once
            old = type(module)
            module.__class__ = type(old.__name__, old.__bases__, {**vars(old)})
    return duplicate


def plain(network: nn.Module) -> nn.Module:
    """`network`, in place, with computed weights as ordinary parameters of their value in evaluation mode.

    Undone are parametrizations, `weight_norm`, `spectral_norm` and the masks of `torch.nn.utils.prune`.
    """
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore", FutureWarning)  # the older norms are deprecated, and still in use
            for module in list(network.modules()):
                if parametrize.is_parametrized(module):
                    for name in list(module.parametrizations):  # type: ignore[arg-type]
                        _unparametrized(module, name)
                for hook in list(module._forward_pre_hooks.values()):
                    if isinstance(hook, WeightNorm):
                        remove_weight_norm(module, hook.name)
                    elif isinstance(hook, SpectralNorm):
                        remove_spectral_norm(module, hook.name)
                    elif isinstance(hook, prune.BasePruningMethod):
                        prune.remove(module, hook._tensor_name)  # type: ignore[no-untyped-call]
    finally:
        for module, training in modes:
            module.training = training
    return network


def _unparametrized(module: nn.Module, name: str) -> None:
    originals = list(module.parametrizations[name].parameters())  # type: ignore[index, union-attr]
    parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    if originals and name not in module._parameters:  # torch makes a buffer of what was several parameters
        value = getattr(module, name).detach()
        delattr(module, name)
        module.register_parameter(name, nn.Parameter(value, requires_grad=any(p.requires_grad for p in originals)))


def _computed(network: nn.Module) -> Iterator[Tensor]:
    """Tensors among the attributes that are the result of a computation with gradients."""
    for module in network.modules():
        yield from _tensors(vars(module), set())


def _tensors(value: Any, visited: set[int]) -> Iterator[Tensor]:
    if id(value) in visited:
        return
    visited.add(id(value))
    if isinstance(value, Tensor):
        if not value.is_leaf:
            yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _tensors(inner, visited)
    elif isinstance(value, (list, tuple, set)):
        for inner in value:
            yield from _tensors(inner, visited)
