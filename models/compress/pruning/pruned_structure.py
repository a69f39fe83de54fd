"""The structure of a pruned network as JSON, and networks of that structure, to load weights into."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dynamic.models.compress.pruning.block_pruning import Branch, Zero, put
from dynamic.models.compress.pruning.weight_pruning import masked, masks
from dynamic.models.compress.report import copied
from dynamic.policies.errors import InputError

_NAMES: dict[type[nn.Module], str] = {nn.Identity: "identity", nn.ReLU: "relu", Zero: "zero"}


def structure(before: nn.Module, after: nn.Module) -> dict[str, Any]:
    """The differences between two networks, as JSON.

    They are the modules that `prune_blocks` replaced, the tensors that `prune_channels` resized, and the weights that
    `prune_weights` masked. InputError where `after` was not made from `before` by these.
    """
    modules = dict(after.named_modules())
    replaced: dict[str, str] = {}
    for name, module in before.named_modules():
        other = modules.get(name)
        if other is not None and type(other) in _NAMES and type(module) is not type(other):
            replaced[name] = _NAMES[type(other)]
    old, new = _shapes(before), _shapes(after)
    added = [name for name in new if name not in old]
    missing = [name for name in old if name not in new and not any(name.startswith(f"{r}.") for r in replaced)]
    if added or missing:
        raise InputError(
            f"{(added + missing)[:3]} are tensors of one network alone: give the network it was pruned from"
        )
    changed = {name: shape for name, shape in new.items() if shape != old[name]}
    return {"replaced": replaced, "shapes": changed, "masked": list(masks(after))}


def restructured(network: nn.Module, changes: Mapping[str, Any]) -> nn.Module:
    """A copy of `network` with the structure that `structure` returned. Tensors of other shapes are zero.

    InputError where the structure does not fit this network.
    """
    smaller = copied(network)
    try:
        for name, instead in changes["replaced"].items():
            put(smaller, Branch(name, instead))
        for name, shape in changes["shapes"].items():
            owner, _, leaf = name.rpartition(".")
            _resize(smaller.get_submodule(owner), leaf, shape)
        if not changes["masked"]:
            return smaller
        shapes = dict(smaller.named_parameters())
        return masked(smaller, {name: torch.ones_like(shapes[name], dtype=torch.bool) for name in changes["masked"]})
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"this structure is not one of a {type(network).__name__}: {error}") from error


def _resize(module: nn.Module, leaf: str, shape: list[int]) -> None:
    tensor = getattr(module, leaf)
    fresh = torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)
    if isinstance(tensor, nn.Parameter):
        setattr(module, leaf, nn.Parameter(fresh, tensor.requires_grad))
    else:
        module.register_buffer(leaf, fresh)
    if leaf != "weight":
        return
    sizes: Any = module  # a module keeps its shapes as numbers too
    if isinstance(module, nn.modules.conv._ConvNd):
        if 1 < module.groups == module.in_channels:  # depthwise
            sizes.groups = shape[0] * module.in_channels // module.out_channels
        sizes.out_channels, sizes.in_channels = shape[0], shape[1] * sizes.groups
    elif isinstance(module, nn.Linear):
        sizes.out_features, sizes.in_features = shape
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        sizes.num_features = shape[0]
    elif isinstance(module, nn.LayerNorm):
        sizes.normalized_shape = tuple(shape)


def _shapes(network: nn.Module) -> dict[str, list[int]]:
    """Shapes of all tensors, by the names they have without masks."""
    plain = {}
    for name, tensor in network.state_dict().items():
        if name.endswith(".mask") and ".parametrizations." in f".{name}":
            continue
        name = name.replace("parametrizations.", "").removesuffix(".original") if "parametrizations." in name else name
        plain[name] = list(tensor.shape)
    return plain
