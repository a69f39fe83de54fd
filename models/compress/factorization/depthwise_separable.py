"""k x k convolutions as depthwise ones followed by 1x1 ones, as in MobileNet (Howard et al. 2017).

The kernels start as the least-squares approximation of the original: W[o, i] ~ sum_r p[o, i, r] d[i, r]. For each input
channel i it is the truncated singular value decomposition of its kernels `[O, h * w]` (Guo et al. 2018, "Network
Decoupling", section 3). Then fine-tune: `mode="distill"` of `dynamic.fit`.
"""

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import nn

from dynamic.models.compress.layer_replacement import (
    Layer,
    check_names,
    inside,
    observe_layers,
    placed_like,
    reason_left_alone,
    recurrent,
    sharing,
    swap,
)
from dynamic.models.compress.report import Compressed, copied, report
from dynamic.offline.batches import Batch
from dynamic.policies.errors import InputError, SettingError


def separate(
    network: nn.Module,
    example_inputs: Batch,
    *,
    layers: Collection[str] | None = None,
    skip: Collection[str] = (),
    rank: int = 1,
    eval_loader: Iterable[Any] | None = None,
    latency: bool = True,
) -> Compressed:
    """A copy of a network whose k x k convolutions are depthwise and then 1x1, where that saves multiply-adds.

    Weights that several modules share do not change. Fewer multiply-adds are not always less time.

    Args:
        network: The network. It does not change.
        example_inputs: A batch as the network takes it.
        layers: Names of modules in which convolutions are replaced. None: in all.
        skip: Names of modules in which no convolution is replaced.
        rank: Depthwise kernels of an input channel. More of them lose less and save less.
        eval_loader: `(inputs, labels [B])` for the accuracy in the report. It chooses nothing.
        latency: Whether the report measures latency.

    Returns:
        The network and a report. `report.facts["kept"]`: of each replaced layer, the share of its squared weights that
        remains.

    Raises:
        SettingError: `rank` is below 1.
        InputError: A name does not exist or holds no convolution, inputs do not fit, or weights are not finite.

    Example:
        >>> from dynamic.models import compress
        >>> network = nn.Sequential(nn.Conv2d(8, 16, 3), nn.Flatten(), nn.Linear(64, 4))
        >>> smaller = compress.separate(network, torch.zeros(2, 8, 4, 4), latency=False)
        >>> [tuple(conv.weight.shape) for conv in smaller.network[0]]
        [(8, 1, 3, 3), (16, 8, 1, 1)]
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise SettingError(f"rank={rank!r}: give a whole number from 1")
    check_names(network, skip, "skip")
    check_names(network, layers or (), "layers")
    smaller = copied(network)
    names = sharing(smaller)
    replacements: dict[nn.Module, nn.Module] = {}
    reasons: dict[str, str] = {}
    shares: dict[str, float] = {}
    convolutions = observe_layers(smaller, example_inputs, (nn.modules.conv._ConvNd,))
    for name in layers or ():
        if not any(inside(layer.name, [name]) for layer in convolutions):
            raise InputError(f"layers: {name!r} is no convolution and holds none")
    for layer in convolutions:
        if layers is not None and not inside(layer.name, layers):
            continue  # not named, so it needs no line in the report
        why = "in skip" if inside(layer.name, skip) else reason_left_alone(layer, (nn.Conv2d,), names)
        if why is None:
            before, after = macs(layer, rank)
            if after >= before:
                why = f"depthwise and 1x1 would cost {after / before:.2f} of its multiply-adds"
        if why is not None:
            reasons[layer.name] = why
            continue
        assert isinstance(layer.module, nn.Conv2d)
        replacements[layer.module], shares[layer.name] = separate_convolution(layer.module, rank)
    reasons |= recurrent(smaller)
    swap(smaller, replacements)
    result = report(
        "separate",
        network,
        smaller,
        example_inputs,
        eval_loader,
        latency=latency,
        left_alone=reasons,
        facts={"kept": shares},
    )
    return Compressed(smaller, result)


def separate_convolution(conv: nn.Conv2d, rank: int) -> tuple[nn.Sequential, float]:
    """The nearest depthwise and 1x1 convolutions, and the share of the squared weights of `conv` that they keep."""
    weight = conv.weight.detach().double().cpu()
    groups, ins, outs, (high, wide) = conv.groups, conv.in_channels, conv.out_channels, conv.kernel_size
    kernels = weight.reshape(groups, -1, *weight.shape[1:]).movedim(1, 2)  # [G, I, O, h, w], I and O of a group
    left, values, right = torch.linalg.svd(kernels.flatten(0, 1).flatten(2), full_matrices=False)  # of [in, O, h * w]
    rank = min(rank, values.shape[1])
    down, along = conv.stride
    pads = conv.padding if isinstance(conv.padding, str) else (conv.padding[0], conv.padding[1])
    root = values[:, :rank].sqrt()  # both layers get the root, so that weight decay acts evenly
    depthwise = nn.Conv2d(
        ins,
        ins * rank,
        (high, wide),
        (down, along),
        pads,
        (conv.dilation[0], conv.dilation[1]),
        groups=ins,
        bias=False,
        padding_mode=conv.padding_mode,
    )
    depthwise.weight = nn.Parameter((root[:, :, None] * right[:, :rank]).reshape(ins * rank, 1, high, wide))
    mixed = (left[:, :, :rank] * root[:, None, :]).reshape(groups, ins // groups, -1, rank)  # [G, I, O, r]
    pointwise = nn.Conv2d(ins * rank, outs, 1, groups=groups, bias=False)
    pointwise.weight = nn.Parameter(mixed.transpose(1, 2).reshape(outs, -1, 1, 1))
    if conv.bias is not None:
        pointwise.bias = nn.Parameter(conv.bias.detach().clone())
    squares = values.square()
    total = float(squares.sum())
    product = placed_like(nn.Sequential(depthwise, pointwise), conv)
    assert isinstance(product, nn.Sequential)
    return product, float(squares[:, :rank].sum()) / total if total else 1.0


def macs(layer: Layer, rank: int) -> tuple[int, int]:
    """Multiply-adds of one call of a Conv2d, as it is and separated."""
    conv = layer.module
    assert isinstance(conv, nn.Conv2d)
    assert layer.output_shape is not None
    area = conv.kernel_size[0] * conv.kernel_size[1]
    rank = min(rank, conv.out_channels // conv.groups, area)
    pixels = layer.output_shape[0] * layer.output_shape[-2] * layer.output_shape[-1]
    mixing = conv.out_channels * conv.in_channels // conv.groups
    return pixels * area * mixing, pixels * rank * (conv.in_channels * area + mixing)
