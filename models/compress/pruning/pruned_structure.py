"""What pruning did to a network's structure, as JSON, and the same done to the network as it was: to load weights."""

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
    """JSON: which modules of `before` were replaced in `after` (by `prune_blocks`), which tensors have other shapes
    (by `prune_channels`), and which weights are masked (by `prune_weights`).

    Raises InputError where `after` did not come from `before` that way.
    """
    modules = dict(after.named_modules())
    replaced: dict[str, str] = {}
    for name, module in before.named_modules():
        other = modules.get(name)
        if other is not None and type(other) in _NAMES and type(module) is not type(other):
            replaced[name] = _NAMES[type(other)]
    old, new, held = _shapes(before), _shapes(after), list(masks(after))
    strange = [name for name in new if name not in old]
    lost = [name for name in old if name not in new and not any(name.startswith(f"{r}.") for r in replaced)]
    if strange or lost:
        raise InputError(f"{(strange + lost)[:3]}: tensors of one network alone; give the network it was pruned from")
    changed = {name: shape for name, shape in new.items() if shape != old[name]}
    return {"replaced": replaced, "shapes": changed, "masked": held}


def restructured(network: nn.Module, found: Mapping[str, Any]) -> nn.Module:
    """A copy of `network` with the structure that `structure` told; load weights into it: those of resized layers are
    zero. Raises InputError where it does not fit this network.
    """
    made = copied(network)
    try:
        for name, instead in found["replaced"].items():
            put(made, Branch(name, instead))
        for name, shape in found["shapes"].items():
            owner, _, leaf = name.rpartition(".")
            _resize(made.get_submodule(owner), leaf, shape)
        if not found["masked"]:
            return made
        shapes = dict(made.named_parameters())
        return masked(made, {name: torch.ones_like(shapes[name], dtype=torch.bool) for name in found["masked"]})
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
    known: Any = module  # the numbers that modules keep of their shapes
    if isinstance(module, nn.modules.conv._ConvNd):
        if 1 < module.groups == module.in_channels:  # depthwise
            known.groups = shape[0] * module.in_channels // module.out_channels
        known.out_channels, known.in_channels = shape[0], shape[1] * known.groups
    elif isinstance(module, nn.Linear):
        known.out_features, known.in_features = shape
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        known.num_features = shape[0]
    elif isinstance(module, nn.LayerNorm):
        known.normalized_shape = tuple(shape)


def _shapes(network: nn.Module) -> dict[str, list[int]]:
    """Shapes of all tensors, by the names they have without masks."""
    plain = {}
    for name, tensor in network.state_dict().items():
        if name.endswith(".mask") and ".parametrizations." in f".{name}":
            continue
        name = name.replace("parametrizations.", "").removesuffix(".original") if "parametrizations." in name else name
        plain[name] = list(tensor.shape)
    return plain
