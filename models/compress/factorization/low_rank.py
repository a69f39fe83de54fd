"""Layers as products of two thin ones, by singular value decomposition.

A linear layer or a 1x1 convolution becomes two of them (Denton et al. 2014, "Exploiting Linear Structure Within
Convolutional Networks"); a k x k convolution becomes a k x 1 and then a 1 x k (Jaderberg et al. 2014, "Speeding up
Convolutional Neural Networks with Low Rank Expansions", scheme 2; in closed form Tai et al. 2016, "Convolutional Neural
Networks with Low-rank Regularization", theorem 1).
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from dynamic.models.compress.argument_checks import check_word
from dynamic.models.compress.factorization.input_moments import Moments, moments
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
    """A copy of `network` with thin layers where they save multiply-adds.

    Give one of `energy`, the share in (0, 1] of the squared singular values that each layer keeps at least, and
    `rank`: for all layers, or by layer name, and then the layers not named stay. In a convolution of groups each group
    has that rank. `kinds`: what is treated, "linear" layers, "pointwise" (1x1) and "spatial" (larger) convolutions;
    `skip`: names of modules left alone with all in them. `calibration_data`: batches of inputs, labelled or not; linear
    and pointwise layers then keep what matters most for their outputs on these, not for their weights, and biases make
    up for the mean of the rest (Zhang et al. 2015, "Accelerating Very Deep Convolutional Networks", eq. 4 to 7, without
    the nonlinearity). `data`, `latency`: for the report. `report.facts["ranks"]`: rank, full rank and kept energy of
    each layer. Weights that several modules share stay as they are. Fewer multiply-adds are not always less time.

    Raises SettingError on an energy, rank or kind out of range, InputError on a name that does not exist, inputs that
    do not fit and weights that are not finite, CalibrationError on calibration data without batches or with NaN.
    """
    _check(energy, rank, kinds)
    check_names(network, skip, "skip")
    made = copied(network)
    named = rank if isinstance(rank, Mapping) else {}
    check_names(network, named, "rank")
    held = sharing(made)
    chosen: dict[nn.Module, nn.Module] = {}
    left: dict[str, str] = {}
    facts: dict[str, Any] = {}
    layers = observed(made, example_inputs, (nn.Linear, nn.modules.conv._ConvNd))
    thin = [layer.module for layer in layers if _thin(layer.module)]
    seen = None if calibration_loader is None else moments(made, calibration_loader, thin)
    for layer in layers:
        why = "skipped" if inside(layer.name, skip) else untreatable(layer, (nn.Linear, nn.Conv2d), held)
        if why is None and _kind(layer.module) not in kinds:
            why = f"{_kind(layer.module)} layers were not asked for"
        if why is None and isinstance(rank, Mapping) and layer.name not in rank:
            why = "no rank was given for it"
        if why is not None:
            left[layer.name] = why
            continue
        found = decompose(layer.module, None if seen is None else seen.get(layer.module))
        asked = named.get(layer.name) if isinstance(rank, Mapping) else rank
        keep = found.rank_of(layer.name, energy, asked, layer.name in named)
        before, after = macs(layer, found.full, keep)
        if after >= before:
            left[layer.name] = f"rank {keep} of {found.full} would cost {after / before:.2f} of its multiply-adds"
            continue
        chosen[layer.module] = found.layers(keep)
        facts[layer.name] = {"rank": keep, "full": found.full, "energy": round(found.energy(keep), 6)}
    unused = [name for name in named if name not in facts and name not in left]
    if unused:
        raise InputError(f"rank: {unused[0]!r} is no linear layer or convolution; give names of those")
    left |= recurrent(made)
    swap(made, chosen)
    told = report(
        "low_rank", network, made, example_inputs, eval_loader, latency=latency, left_alone=left, facts={"ranks": facts}
    )
    return Compressed(made, told)


@dataclass(frozen=True)
class Decomposition:
    """A layer's matrices, one a group `[G]`: `left [G, M, R]`, `values [G, R]` falling, `right [G, R, N]`.

    `moments`: of its inputs, where they are known; the matrices are then weighted by them.
    """

    module: nn.Linear | nn.Conv2d
    left: Tensor
    values: Tensor
    right: Tensor
    moments: Moments | None = None

    @property
    def full(self) -> int:
        """The largest rank, of each group."""
        return self.values.shape[1]

    def energy(self, rank: int) -> float:
        """Share of the squared singular values that `rank` keeps; of weights that are all 0, all."""
        squares = self.values.square()
        total = float(squares.sum())
        return float(squares[:, :rank].sum()) / total if total else 1.0

    def rank_of(self, name: str, energy: float | None, rank: Rank | None, exact: bool) -> int:
        """The rank to keep; SettingError on one above the full, where it was given for this layer (`exact`)."""
        if energy is not None:
            # the full rank keeps 1 up to rounding
            return next((r for r in range(1, self.full) if self.energy(r) >= energy), self.full)
        assert rank is not None
        if isinstance(rank, float):
            return max(1, round(rank * self.full))
        if exact and rank > self.full:
            raise SettingError(f"rank={rank} for {name}, whose full rank is {self.full}; give at most that")
        return min(rank, self.full)

    def layers(self, rank: int) -> nn.Sequential:
        """Two layers whose product is the best of this rank; singular values are split evenly between them."""
        root = self.values[:, :rank].sqrt()
        first = root[:, :, None] * self.right[:, :rank]  # [G, r, N]
        second = self.left[:, :, :rank] * root[:, None, :]  # [G, M, r]
        old = self.module
        bias = None if old.bias is None else old.bias.detach().double()
        if self.moments is not None:  # W m - W' m, m the mean input
            kept = (second @ first) @ self.moments.mean[:, :, None]
            lost = (self.left * self.values[:, None, :]) @ (self.right @ self.moments.mean[:, :, None]) - kept
            bias = lost.flatten() if bias is None else bias + lost.flatten()
        made = _linear(old, first, second) if isinstance(old, nn.Linear) else _convolutions(old, first, second)
        last = made[1]
        if bias is not None:
            last.bias = nn.Parameter(bias)
        return like(made, old)  # type: ignore[return-value]


def decompose(module: nn.Module, seen: Moments | None = None) -> Decomposition:
    """The singular value decomposition of a Linear or Conv2d; with `seen`, of its outputs on those inputs."""
    assert isinstance(module, (nn.Linear, nn.Conv2d))
    weight = module.weight.detach().double().cpu()
    if isinstance(module, nn.Linear):
        matrices = weight[None]  # [1, out, in]
    else:
        groups, high = module.groups, module.kernel_size[0]
        split = weight.reshape(groups, -1, *weight.shape[1:])  # [G, O, I, h, w]
        # Tai et al. 2016, theorem 1: rows are (output, column), columns (input, row) of the kernel
        matrices = split.permute(0, 1, 4, 2, 3).reshape(groups, -1, split.shape[2] * high)
    if seen is None:
        left, values, right = torch.linalg.svd(matrices, full_matrices=False)
        return Decomposition(module, left, values, right)
    # minimizes E|(W - W') x|^2 over x around its mean: the SVD of W S, S the root of the covariance of x
    left, values, right = torch.linalg.svd(matrices @ seen.root, full_matrices=False)
    return Decomposition(module, left, values, right @ seen.inverse_root, seen)


def macs(layer: Layer, full: int, rank: int) -> tuple[int, int]:
    """Multiply-adds of one call of a layer, as it is and as two of `rank`."""
    module = layer.module
    assert layer.given is not None
    assert layer.gave is not None
    if isinstance(module, nn.Linear):
        rows = torch.Size(layer.gave[:-1]).numel()
        return rows * module.in_features * module.out_features, rows * rank * (module.in_features + module.out_features)
    assert isinstance(module, nn.Conv2d)
    (high, wide), ins = module.kernel_size, module.in_channels // module.groups
    batch, outs = layer.gave[0], module.out_channels
    pixels = batch * layer.gave[-2] * layer.gave[-1]
    # the first has its stride already, across the kernel's rows alone unless it is 1x1
    between = pixels if (high, wide) == (1, 1) else batch * layer.gave[-2] * layer.given[-1]
    first = between * module.groups * rank * ins * high
    return pixels * outs * ins * high * wide, first + pixels * outs * rank * wide


def _linear(old: nn.Linear, first: Tensor, second: Tensor) -> nn.Sequential:
    thin = nn.Linear(old.in_features, first.shape[1], bias=False)
    wide = nn.Linear(first.shape[1], old.out_features, bias=False)
    thin.weight, wide.weight = nn.Parameter(first[0]), nn.Parameter(second[0].contiguous())
    return nn.Sequential(thin, wide)


def _convolutions(old: nn.Conv2d, first: Tensor, second: Tensor) -> nn.Sequential:
    """`first [G, r, I * h]`, `second [G, O * w, r]` as convolutions of h x 1 and 1 x w."""
    groups, rank = first.shape[:2]
    (high, wide), (down, right) = old.kernel_size, old.stride
    inner = groups * rank
    pads = (old.padding, old.padding) if isinstance(old.padding, str) else ((old.padding[0], 0), (0, old.padding[1]))
    common: dict[str, Any] = {"groups": groups, "bias": False, "padding_mode": old.padding_mode}
    strides: tuple[tuple[int, int], tuple[int, int]] = ((down, 1), (1, right))
    if (high, wide) == (1, 1):  # nothing is gathered, so all of the stride comes first, and all of the padding
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
        raise SettingError(f"energy={energy}, rank={rank}: give one of them")
    if energy is not None and (isinstance(energy, bool) or not isinstance(energy, (int, float)) or not 0 < energy <= 1):
        raise SettingError(f"energy={energy} is not in (0, 1]")
    for one in rank.values() if isinstance(rank, Mapping) else [rank]:
        whole = isinstance(one, int) and not isinstance(one, bool) and one >= 1
        if one is not None and not whole and not (isinstance(one, float) and 0 < one <= 1):
            raise SettingError(f"rank={one!r}: give a whole number from 1, or a share (float) in (0, 1]")
    if isinstance(kinds, str):
        raise SettingError(f"kinds={kinds!r} is one word: give a list of some of {KINDS}")
    for kind in kinds:
        check_word("kinds", kind, Kind)
