"""Layers as products of two thin layers, by singular value decomposition.

A linear layer or a 1x1 convolution becomes two of them (Denton et al. 2014, "Exploiting Linear Structure Within
Convolutional Networks"). A k x k convolution becomes a k x 1 and then a 1 x k: scheme 2 of Jaderberg et al. 2014,
"Speeding up Convolutional Neural Networks with Low Rank Expansions". Its closed form is theorem 1 of Tai et al. 2016,
"Convolutional Neural Networks with Low-rank Regularization".
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from dynamic.models.compress.factorization.input_moments import Moments, moments
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
from dynamic.offline.option_words import check_word
from dynamic.policies.errors import InputError, SettingError

Kind = Literal["linear", "pointwise", "spatial"]
KINDS: tuple[Kind, ...] = get_args(Kind)

Rank = int | float
"""A rank (int), or a share of the full one (float in (0, 1])."""


def low_rank(
    network: nn.Module,
    example_inputs: Batch,
    *,
    energy: float | None = None,
    rank: Rank | Mapping[str, Rank] | None = None,
    kinds: Collection[Kind] = KINDS,
    skip: Collection[str] = (),
    calibration_loader: Iterable[Any] | None = None,
    eval_loader: Iterable[Any] | None = None,
    latency: bool = True,
) -> Compressed:
    """A copy of a network with thin layers where they save multiply-adds.

    Give `energy` or `rank`. Weights that several modules share do not change. Fewer multiply-adds are not always less
    time.

    Args:
        network: The network. It does not change.
        example_inputs: A batch as the network takes it.
        energy: Least share in (0, 1] of the squared singular values that each layer keeps.
        rank: A rank (int), or a share of the full rank (float in (0, 1]). A dict has one for each layer by name, and
            only those layers change. In a convolution of groups each group has that rank.
        kinds: Which layers: "linear", "pointwise" (1x1 convolutions) and "spatial" (larger convolutions).
        skip: Names of modules to leave alone with all that they hold.
        calibration_loader: Inputs, with or without labels. Linear and pointwise layers then keep what matters most for
            their outputs on these inputs, not for their weights. Their biases make up for the mean of the rest (Zhang
            et al. 2015, "Accelerating Very Deep Convolutional Networks", eq. 4 to 7, without the nonlinearity).
        eval_loader: `(inputs, labels [B])` for the accuracy in the report. It chooses nothing.
        latency: Whether the report measures latency.

    Returns:
        The network and a report. `report.facts["ranks"]`: rank, full rank and energy of each layer that changed.

    Raises:
        SettingError: An energy, a rank or a kind is out of range.
        InputError: A name does not exist, inputs do not fit, or weights are not finite.
        CalibrationError: `calibration_loader` has no batch, or leads to NaN.

    Example:
        >>> from dynamic.models import compress
        >>> thin = compress.low_rank(large, torch.zeros(2, 12), rank={"2": 8}, latency=False)
        >>> thin.report.facts["ranks"]["2"]["rank"]
        8
    """
    _check(energy, rank, kinds)
    check_names(network, skip, "skip")
    smaller = copied(network)
    named = rank if isinstance(rank, Mapping) else {}
    check_names(network, named, "rank")
    names = sharing(smaller)
    replacements: dict[nn.Module, nn.Module] = {}
    reasons: dict[str, str] = {}
    facts: dict[str, Any] = {}
    layers = observe_layers(smaller, example_inputs, (nn.Linear, nn.modules.conv._ConvNd))
    thin = [layer.module for layer in layers if _thin(layer.module)]
    input_moments = None if calibration_loader is None else moments(smaller, calibration_loader, thin)
    for layer in layers:
        why = "in skip" if inside(layer.name, skip) else reason_left_alone(layer, (nn.Linear, nn.Conv2d), names)
        if why is None and _kind(layer.module) not in kinds:
            why = f"{_kind(layer.module)} layers are not in kinds"
        if why is None and isinstance(rank, Mapping) and layer.name not in rank:
            why = "rank does not name it"
        if why is not None:
            reasons[layer.name] = why
            continue
        parts = decompose(layer.module, None if input_moments is None else input_moments.get(layer.module))
        layer_rank = named.get(layer.name) if isinstance(rank, Mapping) else rank
        keep = parts.rank_of(layer.name, energy, layer_rank, layer.name in named)
        before, after = macs(layer, parts.full, keep)
        if after >= before:
            reasons[layer.name] = f"rank {keep} of {parts.full} would cost {after / before:.2f} of its multiply-adds"
            continue
        replacements[layer.module] = parts.layers(keep)
        facts[layer.name] = {"rank": keep, "full": parts.full, "energy": round(parts.energy(keep), 6)}
    unused = [name for name in named if name not in facts and name not in reasons]
    if unused:
        raise InputError(f"rank: {unused[0]!r} is no linear layer or convolution: give names of those")
    reasons |= recurrent(smaller)
    swap(smaller, replacements)
    result = report(
        "low_rank",
        network,
        smaller,
        example_inputs,
        eval_loader,
        latency=latency,
        left_alone=reasons,
        facts={"ranks": facts},
    )
    return Compressed(smaller, result)


@dataclass(frozen=True)
class Decomposition:
    """The matrices of a layer, one a group `[G]`: `left [G, M, R]`, falling `values [G, R]`, `right [G, R, N]`.

    With `moments` of the inputs of the layer the matrices are weighted by them.
    """

    module: nn.Linear | nn.Conv2d
    left: Tensor
    values: Tensor
    right: Tensor
    moments: Moments | None = None

    @property
    def full(self) -> int:
        """The full rank of each group."""
        return self.values.shape[1]

    def energy(self, rank: int) -> float:
        """Share of the squared singular values that `rank` keeps. It is 1 where all weights are 0."""
        squares = self.values.square()
        total = float(squares.sum())
        return float(squares[:, :rank].sum()) / total if total else 1.0

    def rank_of(self, name: str, energy: float | None, rank: Rank | None, exact: bool) -> int:
        """The rank to keep. SettingError where it is above the full rank and was given for this layer (`exact`)."""
        if energy is not None:
            # the full rank keeps 1, up to rounding
            return next((r for r in range(1, self.full) if self.energy(r) >= energy), self.full)
        assert rank is not None
        if isinstance(rank, float):
            return max(1, round(rank * self.full))
        if exact and rank > self.full:
            raise SettingError(f"rank={rank} for {name}, whose full rank is {self.full}: give at most that")
        return min(rank, self.full)

    def layers(self, rank: int) -> nn.Sequential:
        """Two layers whose product is the best of this rank. Both get the root of each singular value."""
        root = self.values[:, :rank].sqrt()
        first = root[:, :, None] * self.right[:, :rank]  # [G, r, N]
        second = self.left[:, :, :rank] * root[:, None, :]  # [G, M, r]
        old = self.module
        bias = None if old.bias is None else old.bias.detach().double()
        if self.moments is not None:  # W m - W' m, m the mean input
            mean_output = (second @ first) @ self.moments.mean[:, :, None]
            mean_loss = (self.left * self.values[:, None, :]) @ (
                self.right @ self.moments.mean[:, :, None]
            ) - mean_output
            bias = mean_loss.flatten() if bias is None else bias + mean_loss.flatten()
        product = _linear(old, first, second) if isinstance(old, nn.Linear) else _convolutions(old, first, second)
        last = product[1]
        if bias is not None:
            last.bias = nn.Parameter(bias)
        return placed_like(product, old)  # type: ignore[return-value]


def decompose(module: nn.Module, input_moments: Moments | None = None) -> Decomposition:
    """The singular value decomposition of a Linear or Conv2d. With `input_moments`, that of its outputs."""
    assert isinstance(module, (nn.Linear, nn.Conv2d))
    weight = module.weight.detach().double().cpu()
    if isinstance(module, nn.Linear):
        matrices = weight[None]  # [1, out, in]
    else:
        groups, high = module.groups, module.kernel_size[0]
        split = weight.reshape(groups, -1, *weight.shape[1:])  # [G, O, I, h, w]
        # Tai et al. 2016, theorem 1: rows are (output, column), columns (input, row) of the kernel
        matrices = split.permute(0, 1, 4, 2, 3).reshape(groups, -1, split.shape[2] * high)
    if input_moments is None:
        left, values, right = torch.linalg.svd(matrices, full_matrices=False)
        return Decomposition(module, left, values, right)
    # the SVD of W S, S the root of the covariance of x, minimizes E|(W - W') x|^2 for x around its mean
    left, values, right = torch.linalg.svd(matrices @ input_moments.root, full_matrices=False)
    return Decomposition(module, left, values, right @ input_moments.inverse_root, input_moments)


def macs(layer: Layer, full: int, rank: int) -> tuple[int, int]:
    """Multiply-adds of one call of a layer, as it is and as two layers of `rank`."""
    module = layer.module
    assert layer.input_shape is not None
    assert layer.output_shape is not None
    if isinstance(module, nn.Linear):
        rows = torch.Size(layer.output_shape[:-1]).numel()
        return rows * module.in_features * module.out_features, rows * rank * (module.in_features + module.out_features)
    assert isinstance(module, nn.Conv2d)
    (high, wide), ins = module.kernel_size, module.in_channels // module.groups
    batch, outs = layer.output_shape[0], module.out_channels
    pixels = batch * layer.output_shape[-2] * layer.output_shape[-1]
    # the first layer has the stride of the kernel's rows, and the whole stride where it is 1x1
    between = pixels if (high, wide) == (1, 1) else batch * layer.output_shape[-2] * layer.input_shape[-1]
    first = between * module.groups * rank * ins * high
    return pixels * outs * ins * high * wide, first + pixels * outs * rank * wide


def _linear(old: nn.Linear, first: Tensor, second: Tensor) -> nn.Sequential:
    thin = nn.Linear(old.in_features, first.shape[1], bias=False)
    wide = nn.Linear(first.shape[1], old.out_features, bias=False)
    thin.weight, wide.weight = nn.Parameter(first[0]), nn.Parameter(second[0].contiguous())
    return nn.Sequential(thin, wide)


def _convolutions(old: nn.Conv2d, first: Tensor, second: Tensor) -> nn.Sequential:
    """`first [G, r, I * h]` and `second [G, O * w, r]` as convolutions of h x 1 and 1 x w."""
    groups, rank = first.shape[:2]
    (high, wide), (down, right) = old.kernel_size, old.stride
    inner = groups * rank
    pads = (old.padding, old.padding) if isinstance(old.padding, str) else ((old.padding[0], 0), (0, old.padding[1]))
    common: dict[str, Any] = {"groups": groups, "bias": False, "padding_mode": old.padding_mode}
    strides: tuple[tuple[int, int], tuple[int, int]] = ((down, 1), (1, right))
    if (high, wide) == (1, 1):  # a 1x1 kernel gathers nothing, so stride and padding come first
        strides = ((down, right), (1, 1))
        pads = (old.padding, "valid")  # type: ignore[assignment]
    across = nn.Conv2d(old.in_channels, inner, (high, 1), strides[0], pads[0], (old.dilation[0], 1), **common)
    along = nn.Conv2d(inner, old.out_channels, (1, wide), strides[1], pads[1], (1, old.dilation[1]), **common)
    across.weight = nn.Parameter(first.reshape(inner, -1, high, 1))
    spread = second.reshape(groups, -1, wide, rank).transpose(2, 3)  # [G, O, r, w]
    along.weight = nn.Parameter(spread.reshape(old.out_channels, rank, 1, wide))
    return nn.Sequential(across, along)


def _kind(module: nn.Module) -> Kind:
    if isinstance(module, nn.Linear):
        return "linear"
    return "pointwise" if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) else "spatial"


def _thin(module: nn.Module) -> bool:
    return _kind(module) != "spatial"


def _check(energy: float | None, rank: Rank | Mapping[str, Rank] | None, kinds: Collection[Kind]) -> None:
    if (energy is None) == (rank is None):
        raise SettingError(f"energy={energy}, rank={rank}: give one of the two")
    if energy is not None and (isinstance(energy, bool) or not isinstance(energy, (int, float)) or not 0 < energy <= 1):
        raise SettingError(f"energy={energy} is not in (0, 1]: give 0.9, for example")
    for one in rank.values() if isinstance(rank, Mapping) else [rank]:
        whole = isinstance(one, int) and not isinstance(one, bool) and one >= 1
        if one is not None and not whole and not (isinstance(one, float) and 0 < one <= 1):
            raise SettingError(f"rank={one!r}: give a whole number from 1, or a share (float) in (0, 1]")
    if isinstance(kinds, str):
        raise SettingError(f"kinds={kinds!r} is one word: give a list of some of {KINDS}")
    for kind in kinds:
        check_word("kinds", kind, Kind)
