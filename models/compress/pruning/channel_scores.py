"""The importance of each channel."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynamic.offline.batches import named_tensors, run_on
from dynamic.offline.networks.feature_cache import checked_batches
from dynamic.offline.networks.module_modes import evaluating
from dynamic.offline.staged_network import primary_logits
from dynamic.policies.errors import InputError

ChannelImportance = Literal["norm", "activation", "taylor"]
_NEAR_ZERO = 0.05  # of a layer's root mean square: exact zeros of ReLU, and the flat part of GELU and its kin


@dataclass(frozen=True, eq=False)
class Part:
    """A layer of a group: its channels `own [M]` are the channels `of [M]` of the group."""

    name: str
    module: nn.Module
    of: Tensor
    own: Tensor


@dataclass(frozen=True, eq=False)
class Group:
    """`width` channels that can be removed by `remove(indices)`: the layers that make, normalize and read them."""

    name: str
    width: int
    makers: tuple[Part, ...]
    norms: tuple[Part, ...]
    readers: tuple[Part, ...]
    remove: Callable[[Sequence[int]], None]


def scores(
    network: nn.Module,
    groups: Sequence[Group],
    importance: ChannelImportance,
    loader: Iterable[Any] | None,
    named: Mapping[str, Tensor],
) -> list[Tensor]:
    """The importance of each channel `[width]` of each group. Channels of low importance go.

    InputError on an empty loader, wrong labels, or scores that are not finite.
    """
    if importance == "norm":
        importances = [_norm(group) for group in groups]
    else:
        assert loader is not None
        importances = (_activation if importance == "activation" else _taylor)(network, groups, loader)
    for group, score in zip(groups, importances, strict=True):
        if not bool(score.isfinite().all()):
            raise InputError(
                f"the importance of {group.name}'s channels is not finite: look for NaN in weights or data"
            )
    return importances


def _norm(group: Group) -> Tensor:
    """Norms of all weights of a channel, each divided by the mean of its layer: Fang et al. 2023, section 3.3."""
    total = torch.zeros(group.width)
    for part, dim in [*((p, 0) for p in (*group.makers, *group.norms)), *((p, 1) for p in group.readers)]:
        weight = part.module.weight
        if weight is None:
            continue
        assert isinstance(weight, Tensor)
        each = (
            weight.detach()
            .float()
            .cpu()
            .transpose(0, dim if weight.ndim > 1 else 0)
            .flatten(1 if weight.ndim > 1 else 0)
        )
        norm = each.norm(dim=1) if each.ndim > 1 else each.abs()
        norm = norm / norm.mean().clamp_min(1e-12)
        total.index_add_(0, part.of, norm[part.own])
    return total


def _activation(network: nn.Module, groups: Sequence[Group], loader: Iterable[Any]) -> list[Tensor]:
    """One minus the average percentage of zeros that the next layer reads: Hu et al. 2016, eq. 1."""
    far = [torch.zeros(group.width) for group in groups]
    rows = [0] * len(groups)
    handles = []
    order = {name: at for at, (name, _) in enumerate(network.named_modules())}
    for number, group in enumerate(groups):
        # the last reader: a gate (squeeze and excitation) reads features pooled over all positions
        part = max(group.readers, key=lambda p: order[p.name], default=None)
        if part is None:
            raise InputError(f"no layer reads the channels of {group.name}: use importance='norm', or name it in skip=")

        def hook(module: nn.Module, inputs: tuple[Tensor], number: int = number, part: Part = part) -> None:
            features = inputs[0].detach().float()
            near = features.abs() <= _NEAR_ZERO * features.square().mean().sqrt()
            each = near.movedim(-1 if isinstance(module, nn.Linear) else 1, 0).flatten(1)  # [D, positions]
            busy = 1 - each.float().mean(1).cpu()
            sums = torch.zeros(len(far[number])).index_add_(0, part.of, busy[part.own])
            times = torch.zeros(len(far[number])).index_add_(0, part.of, torch.ones(len(part.of)))
            far[number] += sums / times.clamp_min(1) * len(features)
            rows[number] += len(features)

        handles.append(part.module.register_forward_pre_hook(hook))
    try:
        with evaluating(network), torch.no_grad():
            for inputs, _ in checked_batches(loader, None):
                run_on(network, named_tensors(network, inputs))
    finally:
        for handle in handles:
            handle.remove()
    _check_any(any(rows))
    return [total / max(1, count) for total, count in zip(far, rows, strict=True)]


def _taylor(network: nn.Module, groups: Sequence[Group], loader: Iterable[Any]) -> list[Tensor]:
    """Squared sum of gradient times weight of the layer that scales a channel: Molchanov et al. 2019, eq. 8.

    That is its batch norm (section 3.2), or else the layer that makes it. Summed over batches, in evaluation mode.
    """
    totals = [torch.zeros(group.width) for group in groups]
    any_batch = False
    trainable = {p: p.requires_grad for p in network.parameters()}
    scaling = [[p for p in group.norms if p.module.weight is not None] or list(group.makers) for group in groups]
    try:
        for parameter in network.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        with evaluating(network), torch.enable_grad():
            for inputs, labels in checked_batches(loader, None):
                any_batch = True
                network.zero_grad(set_to_none=True)
                logits = primary_logits(run_on(network, named_tensors(network, inputs)))
                loss = F.cross_entropy(logits.float(), torch.from_numpy(labels).to(logits.device))
                loss.backward()  # type: ignore[no-untyped-call]
                for number, parts in enumerate(scaling):
                    total = torch.zeros(len(totals[number]))
                    for part in parts:
                        for parameter in part.module.parameters(recurse=False):
                            if parameter.grad is not None:
                                moved = (
                                    (parameter.grad * parameter)
                                    .detach()
                                    .float()
                                    .cpu()
                                    .flatten(1 if parameter.ndim > 1 else 0)
                                )
                                each = moved.sum(1) if moved.ndim > 1 else moved
                                total.index_add_(0, part.of, each[part.own])
                    totals[number] += total.square()
    finally:
        network.zero_grad(set_to_none=True)
        for parameter, is_trainable in trainable.items():
            parameter.requires_grad_(is_trainable)
    _check_any(any_batch)
    return totals


def _check_any(any_batch: bool) -> None:
    if not any_batch:
        raise InputError("selection_loader gave no batch: it is empty, or an iterator that was read before")
