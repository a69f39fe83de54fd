"""Single weights removed, by size (Han et al. 2015, "Learning both Weights and Connections").

The network stays as large and as fast: zeros make files smaller once packed, and show how much is redundant. What makes
it faster is `prune_channels` and `prune_blocks`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dynamic.models.compress.argument_checks import check_share, check_word
from dynamic.models.compress.layer_replacement import recurrent
from dynamic.models.compress.report import Compressed, copied, report
from dynamic.offline.batches import Batch
from dynamic.policies.errors import InputError, WrapError

_PRUNED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
Scope = Literal["global", "layer"]


class Mask(nn.Module):
    """A weight times 0 or 1: what is 0 stays so in training, in whatever precision and memory order."""

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
    """`network` with the share `amount` of its convolutions' and linear layers' weights at zero, the smallest.

    `scope`: "global" compares all weights, "layer" takes the share of each layer. `skip`: modules that are left alone.
    The zeros are masks (`masks`) that hold while the network is trained (`dynamic.fit`); `baked` makes them plain
    zeros, as the report measures them. On a network with masks `amount` counts those as well: prune again with more.
    `data` is for the report's accuracy and chooses nothing.

    Shared weights are masked once; left alone are weights shared with other kinds of layers, or not of floats. A
    layer that lost all is listed in `facts`. Raises SettingError on settings out of range, InputError on weights that
    are not finite and names in `skip` of no module, WrapError where there is nothing to prune.
    """
    check_share("amount", amount, "0.5 removes half of the weights")
    check_word("scope", scope, Scope)
    known = {name for name, _ in network.named_modules()}
    if unknown := [name for name in skip if name not in known]:
        raise InputError(f"skip={unknown}: no such modules; see network.named_modules()")
    left: dict[str, str] = {}
    weights = _prunable(network, skip, left)
    if not weights:
        raise WrapError(
            f"{type(network).__name__} has no convolution or linear weights to prune: {left or 'no such layers'}"
        )
    sizes = {name: weight.abs().flatten() for name, weight in weights.items()}
    for name, size in sizes.items():
        if not bool(size.isfinite().all()):
            raise InputError(f"{name} holds NaN or infinity; load the weights again")
    if scope == "global":
        kept = _largest(torch.cat([size.cpu() for size in sizes.values()]), amount)
        parts = torch.split(kept, [len(size) for size in sizes.values()])
    else:
        parts = tuple(_largest(size.cpu(), amount) for size in sizes.values())
    found = {
        name: part.reshape(weights[name].shape).to(weights[name].device)
        for name, part in zip(sizes, parts, strict=True)
    }
    smaller = masked(network, found)
    sparsity = {name: 1 - float(mask.float().mean()) for name, mask in found.items()}
    return Compressed(
        smaller,
        report(
            f"weights pruned by size: {amount:.0%}, {scope}",
            baked(network),
            baked(smaller),
            example_inputs,
            eval_loader,
            latency=latency,
            left_alone=left,
            facts={"sparsity": sparsity, "emptied": [name for name, share in sparsity.items() if share == 1]},
            notes=("zeros save no time here, since engines multiply by them: the file gets smaller once packed",),
            same_work=True,
        ),
    )


def masks(network: nn.Module) -> dict[str, Tensor]:
    """The masks that are on, bool, by the name that the weight has without them: True is kept."""
    found: dict[int, tuple[str, Tensor]] = {}
    for path, _, name, mask in _held(network):
        found.setdefault(id(mask), (f"{path}.{name}".lstrip("."), mask.mask))  # of a shared weight the first name
    return dict(found.values())


def masked(network: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """A copy of `network` with these masks on, in place of any it has; layers that share a weight share its mask.

    The weights behind a mask are set to zero and stay there: their gradients are zero. The names in `state_dict` become
    `<module>.parametrizations.<weight>.original` and `.0.mask`. Raises InputError on names or shapes that do not fit.
    """
    made = baked(network)
    owners = {
        f"{path}.{name}".lstrip("."): (module, name, parameter)
        for path, module in made.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
    }
    for name, mask in masks.items():
        if name not in owners:
            raise InputError(f"the mask {name!r} is for no parameter of this {type(network).__name__}")
        _, _, parameter = owners[name]
        if mask.shape != parameter.shape or mask.dtype != torch.bool:
            raise InputError(
                f"the mask {name!r} is {mask.dtype} {list(mask.shape)}; expected torch.bool {list(parameter.shape)}"
            )
    every = [
        (path, module, name, parameter)
        for path, module in made.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
    ]
    done: dict[int, str] = {}
    for name, mask in masks.items():
        _, _, weight = owners[name]
        if id(weight) in done:
            raise InputError(f"the mask {name!r} is for a weight that {done[id(weight)]!r} masks already; give one")
        done[id(weight)] = name
        holder = Mask(mask.detach().clone().to(weight.device))
        with torch.no_grad():
            weight.masked_fill_(~holder.mask, 0.0)  # times 0 would leave -0.0, which packs badly
        for _, module, leaf, parameter in every:
            if parameter is weight:
                parametrize.register_parametrization(module, leaf, holder)
    return made


def baked(network: nn.Module) -> nn.Module:
    """A copy with the masks as plain zeros in the weights: for measuring, export and storing."""
    made = copied(network)
    for _, module, name, mask in list(_held(made)):
        lists = module.parametrizations
        assert isinstance(lists, nn.ModuleDict)
        with torch.no_grad():
            original = lists[name].original
            assert isinstance(original, Tensor)
            original.masked_fill_(~mask.mask, 0.0)
    for module in list(made.modules()):
        if parametrize.is_parametrized(module):
            lists = module.parametrizations
            assert isinstance(lists, nn.ModuleDict)
            for name in list(lists):
                if any(isinstance(part, Mask) for part in _parts(lists[name])):
                    original = lists[name].original
                    _own_class(module)
                    parametrize.remove_parametrizations(module, name, leave_parametrized=False)
                    setattr(module, name, original)  # itself, so that shared weights stay shared
    return made


def _own_class(module: nn.Module) -> None:
    """Parametrized modules have a class each, which their copies share: taking a parametrization off would take it off
    the original as well."""
    kind = type(module)
    held = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
    module.__class__ = type(kind.__name__, kind.__bases__, held)


def _parts(found: nn.Module) -> Iterator[nn.Module]:
    yield from (part for name, part in found.named_children())


def _held(network: nn.Module) -> Iterator[tuple[str, nn.Module, str, Mask]]:
    for path, module in network.named_modules():
        if parametrize.is_parametrized(module):
            lists = module.parametrizations
            assert isinstance(lists, nn.ModuleDict)
            for name, found in lists.items():
                yield from ((path, module, name, part) for part in _parts(found) if isinstance(part, Mask))


def _prunable(network: nn.Module, skip: Sequence[str], left: dict[str, str]) -> dict[str, Tensor]:
    """The weights to prune as they act, by name, shared ones once."""
    users: dict[int, list[nn.Module]] = {}
    held = {id(module): module for _, module, _, _ in _held(network)}
    for module in network.modules():
        if isinstance(module, parametrize.ParametrizationList):
            continue  # counts as its module
        for parameter in module.parameters(recurse=False):
            users.setdefault(id(parameter), []).append(module)
        if id(module) in held:
            lists = module.parametrizations
            assert isinstance(lists, nn.ModuleDict)
            for found in lists.values():
                users.setdefault(id(found.original), []).append(module)
    left |= recurrent(network)
    chosen: dict[str, Tensor] = {}
    seen: set[int] = set()
    for path, module in network.named_modules():
        if not isinstance(module, _PRUNED):
            continue
        weight = module.weight
        key = weight
        if id(module) in held:
            lists = module.parametrizations
            assert isinstance(lists, nn.ModuleDict)
            key = lists["weight"].original if "weight" in lists else weight  # type: ignore[assignment]
        elif parametrize.is_parametrized(module, "weight"):
            left[path] = "its weight is computed from others (a parametrization)"
            continue
        if any(not part or path == part or path.startswith(f"{part}.") for part in skip):
            left[path] = "skipped, as asked"
        elif not weight.is_floating_point():
            left[path] = f"its weight is {weight.dtype}"
        elif any(not isinstance(user, _PRUNED) for user in users.get(id(key), [])):
            left[path] = "its weight is shared with a layer of another kind"
        elif id(key) not in seen:
            seen.add(id(key))
            chosen[f"{path}.weight".lstrip(".")] = weight.detach()
    return chosen


def _largest(sizes: Tensor, amount: float) -> Tensor:
    """Bool `[N]`: all but the share `amount` that is smallest, of equals the first."""
    gone = round(amount * len(sizes))
    kept = torch.ones(len(sizes), dtype=torch.bool)
    kept[sizes.argsort(stable=True)[:gone]] = False
    return kept
