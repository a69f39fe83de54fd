"""Weights as int8 codes whose sums are the same on every processor.

x86 processors without VNNI multiply an unsigned activation code by a signed weight code and add two such products in
16 bits (`vpmaddubsw`). A sum outside -32768 to 32767 is cut off there. With VNNI or AMX, and on ARM, sums have 32 bits.
Which products meet in a pair depends on the engine, its memory layout and its kernel. So a channel is safe only if no
two of its weights can saturate. Activation codes reach 255. So the sum of its two largest positive codes must be at
most 128 (255 * 128 = 32640), and that of its two least negative codes at least -128.
"""

from typing import Literal

import torch
from torch import Tensor

WeightRange = Literal["portable", "seven_bits", "full"]

_LARGEST_PAIR = 128  # 32767 // 255: of two weight codes of one sign
_MOST_BIAS = 2**30  # in steps of the 32-bit accumulator
_SMALLEST_SCALE = 1e-12  # a channel of zeros gets it


def weight_scales(weight: Tensor, weight_range: WeightRange) -> Tensor:
    """The scale of each output channel.

    Args:
        weight: `[K, ...]`, K output channels.
        weight_range: "full": the largest weight gets code 127. "seven_bits": it gets 63. "portable": the smallest
            scale at which no two codes of a channel can saturate. It lies between the other two: a channel with one
            large weight among small ones keeps all 8 bits.

    Returns:
        `[K]`, positive.
    """
    rows = weight.detach().flatten(1)  # [K, D]
    largest = rows.abs().amax(1)
    if weight_range == "portable":
        scales = torch.maximum(largest / 127, _largest_pair(rows) / _LARGEST_PAIR)
    else:
        scales = largest / (127 if weight_range == "full" else 63)
    return scales.clamp(min=_SMALLEST_SCALE)


def bias_floor(bias: Tensor, input_scale: float) -> Tensor:
    """The least scale of each channel `[K]` at which its bias fits the accumulator, where its weights are tiny too."""
    return bias.abs() / (input_scale * _MOST_BIAS)


def weight_codes(weight: Tensor, scales: Tensor, weight_range: WeightRange) -> Tensor:
    """The codes of a weight `[K, ...]` on `scales [K]`, int8 of the same shape."""
    limit = 63 if weight_range == "seven_bits" else 127
    codes = (weight.detach().flatten(1) / scales[:, None]).round().clamp(-limit, limit)
    if weight_range == "portable":
        for sign in (1, -1):  # two weights of half a step each may round up to 129
            values, places = (sign * codes).topk(min(2, codes.shape[1]), dim=1)
            excess = (values.clamp(min=0).sum(1) - _LARGEST_PAIR).clamp(min=0)
            codes.scatter_add_(1, places[:, :1], -sign * excess[:, None])
    return codes.to(torch.int8).reshape(weight.shape)


def saturating_channels(codes: Tensor) -> int:
    """Of codes `[K, ...]`, the number of channels whose sums can saturate on a processor without VNNI."""
    rows = codes.flatten(1).to(torch.int32)
    return int((_largest_pair(rows) > _LARGEST_PAIR).sum())


def _largest_pair(rows: Tensor) -> Tensor:
    """Of `rows [K, D]`, the largest sum of two entries of one sign, as a magnitude `[K]`."""
    count = min(2, rows.shape[1])
    positive, negative = (r.clamp(min=0).topk(count, dim=1).values.sum(1) for r in (rows, -rows))
    return torch.maximum(positive, negative)
