"""Single weights removed, by size (Han et al. 2015, "Learning both Weights and Connections").

The network stays as large and as fast. Zeros make its file smaller once packed, and show how much is redundant. For
speed use `prune_channels` and `prune_blocks`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dynamic.models.compress.argument_checks import check_share
from dynamic.models.compress.layer_replacement import recurrent
from dynamic.models.compress.report import Compressed, copied, report
from dynamic.offline.batches import Batch
from dynamic.offline.option_words import check_word
from dynamic.policies.errors import InputError, WrapError

_PRUNED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
Scope = Literal["global", "layer"]


class Mask(nn.Module):
    """A weight times 0 or 1. A weight of 0 stays 0 in training, in any precision and memory order."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with zeros where the mask is False, of its own shape."""
        return weight * self.mask


def prune_weights(
    network: nn.Module,
    example_inputs: Batch,
    *,
    amount: float,
    scope: Scope = "global",
    skip: Sequence[str] = (),
    eval_loader: Iterable[Any] | None = None,
    latency: bool = True,
) -> Compressed:
    """A copy of a network in which a share of the weights of convolutions and linear layers is zero, the smallest.

    The zeros are masks (`masks`) that hold while the network is trained (`dynamic.fit`). `baked` makes them plain
    zeros, as the report measures them. Weights that are masked already count in `amount`: prune again with more.
    Shared weights are masked once. Weights shared with other kinds of layers, or not of floats, do not change.

    Args:
        network: The network. It does not change.
        example_inputs: A batch as the network takes it.
        amount: Share in (0, 1) of the weights that is zero.
        scope: "global" compares all weights. "layer" takes the share of each layer.
        skip: Names of modules to leave alone.
        eval_loader: `(inputs, labels [B])` for the accuracy in the report. It chooses nothing.
        latency: Whether the report measures latency.

    Returns:
        The network and a report. `report.facts`: the sparsity of each weight, and the layers that lost all.

    Raises:
        SettingError: `amount` or `scope` is out of range.
        InputError: Weights are not finite, or a name in `skip` does not exist.
        WrapError: There is nothing to prune.

    Example:
        >>> from dynamic.models import compress
        >>> sparse = compress.prune_weights(large, torch.zeros(2, 12), amount=0.75, latency=False)
        >>> int(sum(mask.sum() for mask in compress.masks(sparse.network).values()))
        1280
    """
    check_share("amount", amount, "0.5 removes half of the weights")
    check_word("scope", scope, Scope)
    names = {name for name, _ in network.named_modules()}
    if unknown := [name for name in skip if name not in names]:
        raise InputError(f"skip={unknown}: no such modules, see network.named_modules()")
    left_alone: dict[str, str] = {}
    weights = _prunable(network, skip, left_alone)
    if not weights:
        raise WrapError(
            f"{type(network).__name__} has no convolution or linear weights to prune: {left_alone or 'no such layers'}"
        )
    sizes = {name: weight.abs().flatten() for name, weight in weights.items()}
    for name, size in sizes.items():
        if not bool(size.isfinite().all()):
            raise InputError(f"{name} holds NaN or infinity: load the weights again")
    if scope == "global":
        mask = _largest(torch.cat([size.cpu() for size in sizes.values()]), amount)
        parts = torch.split(mask, [len(size) for size in sizes.values()])
    else:
        parts = tuple(_largest(size.cpu(), amount) for size in sizes.values())
    new_masks = {
        name: part.reshape(weights[name].shape).to(weights[name].device)
        for name, part in zip(sizes, parts, strict=True)
    }
    smaller = masked(network, new_masks)
    sparsity = {name: 1 - float(mask.float().mean()) for name, mask in new_masks.items()}
    return Compressed(
        smaller,
        report(
            f"weights pruned by size: {amount:.0%}, {scope}",
            baked(network),
            baked(smaller),
            example_inputs,
            eval_loader,
            latency=latency,
            left_alone=left_alone,
            facts={"sparsity": sparsity, "emptied": [name for name, share in sparsity.items() if share == 1]},
            notes=("zeros save no time, since engines multiply by them: the file is smaller once packed",),
            same_work=True,
        ),
    )


def masks(network: nn.Module) -> dict[str, Tensor]:
    """The masks of a network.

    Args:
        network: The network.

    Returns:
        By the name that the weight has without masks, its mask. True: the weight is kept. A shared weight is under its
        first name.

    Raises:
        AttributeError: `network` is no module.

    Example:
        >>> from dynamic.models import compress
        >>> compress.masks(large)
        {}
    """
    named: dict[int, tuple[str, Tensor]] = {}
    for path, _, name, mask in _mask_modules(network):
        named.setdefault(id(mask), (f"{path}.{name}".lstrip("."), mask.mask))
    return dict(named.values())


def masked(network: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a network with these masks, in place of any that it has. Layers that share a weight share its mask.

    The weights behind a mask are zero and stay zero, since their gradients are zero. The names in `state_dict` become
    `<module>.parametrizations.<weight>.original` and `.0.mask`. InputError on names or shapes that do not fit.
    """
    plain = baked(network)
    owners = {
        f"{path}.{name}".lstrip("."): (module, name, parameter)
        for path, module in plain.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
    }
    for name, mask in masks.items():
        if name not in owners:
            raise InputError(f"the mask {name!r} is for no parameter of this {type(network).__name__}")
        _, _, parameter = owners[name]
        if mask.shape != parameter.shape or mask.dtype != torch.bool:
            raise InputError(
                f"the mask {name!r} is {mask.dtype} {list(mask.shape)}: give torch.bool {list(parameter.shape)}"
            )
    every = [
        (path, module, name, parameter)
        for path, module in plain.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
    ]
    names_by_weight: dict[int, str] = {}
    for name, mask in masks.items():
        _, _, weight = owners[name]
        if id(weight) in names_by_weight:
            raise InputError(
                f"the mask {name!r} is for a weight that {names_by_weight[id(weight)]!r} masks already: give one"
            )
        names_by_weight[id(weight)] = name
        holder = Mask(mask.detach().clone().to(weight.device))
        with torch.no_grad():
            weight.masked_fill_(~holder.mask, 0.0)  # times 0 gives -0.0 too, which packs badly
        for _, module, leaf, parameter in every:
            if parameter is weight:
                parametrize.register_parametrization(module, leaf, holder)
    return plain


def baked(network: nn.Module) -> nn.Module:
    """A copy with the masks as plain zeros in the weights, for measuring, export and storing.

    Args:
        network: A network with or without masks. It does not change.

    Returns:
        The copy. Shared weights are still shared.

    Raises:
        AttributeError: `network` is no module.

    Example:
        >>> from dynamic.models import compress
        >>> sparse = compress.prune_weights(large, torch.zeros(2, 12), amount=0.75, latency=False).network
        >>> int((compress.baked(sparse)[2].weight == 0).sum()) > 0
        True
    """
    plain = copied(network)
    for _, module, name, mask in list(_mask_modules(plain)):
        lists = module.parametrizations
        assert isinstance(lists, nn.ModuleDict)
        with torch.no_grad():
            original = lists[name].original
            assert isinstance(original, Tensor)
            original.masked_fill_(~mask.mask, 0.0)
    for module in list(plain.modules()):
        if parametrize.is_parametrized(module):
            lists = module.parametrizations
            assert isinstance(lists, nn.ModuleDict)
            for name in list(lists):
                if any(isinstance(part, Mask) for part in _parts(lists[name])):
                    original = lists[name].original
                    _own_class(module)
                    parametrize.remove_parametrizations(module, name, leave_parametrized=False)
                    setattr(module, name, original)  # the parameter itself, so that shared weights stay shared
    return plain


def _own_class(module: nn.Module) -> None:
    """Give a parametrized module a class of its own. Copies share one, and would lose its property together."""
    kind = type(module)
    members = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
    module.__class__ = type(kind.__name__, kind.__bases__, members)


def _parts(parametrizations: nn.Module) -> Iterator[nn.Module]:
    yield from (part for name, part in parametrizations.named_children())


def _mask_modules(network: nn.Module) -> Iterator[tuple[str, nn.Module, str, Mask]]:
    for path, module in network.named_modules():
        if parametrize.is_parametrized(module):
            lists = module.parametrizations
            assert isinstance(lists, nn.ModuleDict)
            for name, parts in lists.items():
                yield from ((path, module, name, part) for part in _parts(parts) if isinstance(part, Mask))


def _prunable(network: nn.Module, skip: Sequence[str], left_alone: dict[str, str]) -> dict[str, Tensor]:
    """The weights to prune, with masks applied, by name. Shared ones count once."""
    users: dict[int, list[nn.Module]] = {}
    with_masks = {id(module) for _, module, _, _ in _mask_modules(network)}
    for module in network.modules():
        if isinstance(module, parametrize.ParametrizationList):
            continue  # counts as its module
        for parameter in module.parameters(recurse=False):
            users.setdefault(id(parameter), []).append(module)
        if id(module) in with_masks:
            lists = module.parametrizations
            assert isinstance(lists, nn.ModuleDict)
            for parts in lists.values():
                users.setdefault(id(parts.original), []).append(module)
    left_alone |= recurrent(network)
    prunable: dict[str, Tensor] = {}
    visited: set[int] = set()
    for path, module in network.named_modules():
        if not isinstance(module, _PRUNED):
            continue
        weight = module.weight
        key = weight
        if id(module) in with_masks:
            lists = module.parametrizations
            assert isinstance(lists, nn.ModuleDict)
            key = lists["weight"].original if "weight" in lists else weight  # type: ignore[assignment]
        elif parametrize.is_parametrized(module, "weight"):
            left_alone[path] = "its weight is computed from others (a parametrization)"
            continue
        if any(not part or path == part or path.startswith(f"{part}.") for part in skip):
            left_alone[path] = "in skip"
        elif not weight.is_floating_point():
            left_alone[path] = f"its weight is {weight.dtype}"
        elif any(not isinstance(user, _PRUNED) for user in users.get(id(key), [])):
            left_alone[path] = "its weight is shared with a layer of another kind"
        elif id(key) not in visited:
            visited.add(id(key))
            prunable[f"{path}.weight".lstrip(".")] = weight.detach()
    return prunable


def _largest(sizes: Tensor, amount: float) -> Tensor:
    """Bool `[N]`: all but the share `amount` that is smallest. Of equals the first go."""
    count = round(amount * len(sizes))
    mask = torch.ones(len(sizes), dtype=torch.bool)
    mask[sizes.argsort(stable=True)[:count]] = False
    return mask
