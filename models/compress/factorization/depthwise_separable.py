"""k x k convolutions as depthwise ones followed by 1x1 ones, as in MobileNet (Howard et al. 2017).

The kernels start as the least-squares approximation of the original: W[o, i] ~ sum_r p[o, i, r] d[i, r], for each input
channel i the truncated singular value decomposition of its kernels, `[O, h * w]` (Guo et al. 2018, "Network
Decoupling", section 3: a convolution is a sum of depthwise separable ones). Then fine-tune:
`dynamic.fit(made, loader, mode="distill", teacher=network)`.
"""

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import nn

from dynamic.models.compress.layer_replacement import (
    Layer,
    check_names,
    inside,
    like,
    observed,
    recurrent,
    sharing,
    swap,
    untreatable,
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
    """A copy of `network` whose k x k convolutions are depthwise and then 1x1, where that saves multiply-adds.

    `layers`: names of modules in which convolutions are replaced (None: in all), `skip`: in which not. `rank`:
    depthwise kernels an input channel; with more, less is lost and less is saved. `data`, `latency`: for the report.
    `report.facts["kept"]`: of each replaced layer, the share of the sum of its squared weights that is kept.
    Weights that several modules share stay as they are. Fewer multiply-adds are not always less time.

    Raises SettingError on a rank below 1, InputError on a name that does not exist or holds no convolution, inputs that
    do not fit and weights that are not finite.
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise SettingError(f"rank={rank!r}: give a whole number from 1")
    check_names(network, skip, "skip")
    check_names(network, layers or (), "layers")
    made = copied(network)
    held = sharing(made)
    chosen: dict[nn.Module, nn.Module] = {}
    left: dict[str, str] = {}
    kept: dict[str, float] = {}
    found = observed(made, example_inputs, (nn.modules.conv._ConvNd,))
    for name in layers or ():
        if not any(inside(layer.name, [name]) for layer in found):
            raise InputError(f"layers: {name!r} is no convolution and holds none")
    for layer in found:
        if layers is not None and not inside(layer.name, layers):
            continue  # not asked for: not worth a line
        why = "skipped" if inside(layer.name, skip) else untreatable(layer, (nn.Conv2d,), held)
        if why is None:
            before, after = macs(layer, rank)
            if after >= before:
                why = f"depthwise and 1x1 would cost {after / before:.2f} of its multiply-adds"
        if why is not None:
            left[layer.name] = why
            continue
        assert isinstance(layer.module, nn.Conv2d)
        chosen[layer.module], kept[layer.name] = separated(layer.module, rank)
    left |= recurrent(made)
    swap(made, chosen)
    told = report(
        "separate", network, made, example_inputs, eval_loader, latency=latency, left_alone=left, facts={"kept": kept}
    )
    return Compressed(made, told)


def separated(conv: nn.Conv2d, rank: int) -> tuple[nn.Sequential, float]:
    """Depthwise and 1x1 convolutions nearest to `conv`, and the share of its squared weights that they keep.

    A rank above the full one, min(O / groups, h * w), is taken as that.
    """
    weight = conv.weight.detach().double().cpu()
    groups, ins, outs, (high, wide) = conv.groups, conv.in_channels, conv.out_channels, conv.kernel_size
    kernels = weight.reshape(groups, -1, *weight.shape[1:]).movedim(1, 2)  # [G, I, O, h, w], I and O of a group
    left, values, right = torch.linalg.svd(kernels.flatten(0, 1).flatten(2), full_matrices=False)  # of [in, O, h * w]
    rank = min(rank, values.shape[1])
    down, along = conv.stride
    pads = conv.padding if isinstance(conv.padding, str) else (conv.padding[0], conv.padding[1])
    root = values[:, :rank].sqrt()  # singular values are split evenly, so that weight decay acts evenly
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
    made = like(nn.Sequential(depthwise, pointwise), conv)
    assert isinstance(made, nn.Sequential)
    return made, float(squares[:, :rank].sum()) / total if total else 1.0


def macs(layer: Layer, rank: int) -> tuple[int, int]:
    """Multiply-adds of one call of a Conv2d, as it is and separated."""
    conv = layer.module
    assert isinstance(conv, nn.Conv2d)
    assert layer.gave is not None
    area = conv.kernel_size[0] * conv.kernel_size[1]
    rank = min(rank, conv.out_channels // conv.groups, area)
    pixels = layer.gave[0] * layer.gave[-2] * layer.gave[-1]
    mixing = conv.out_channels * conv.in_channels // conv.groups
    return pixels * area * mixing, pixels * rank * (conv.in_channels * area + mixing)
