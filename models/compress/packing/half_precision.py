"""Cheaper storage of the numbers besides the weights: norms without statistics, and all numbers in half precision."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dynamic.models.compress.report import copied
from dynamic.policies.errors import InputError


def simple_norms(network: nn.Module) -> nn.Module:
    """A copy whose batch norms have mean 0 and variance 1. Their scale and shift do all of the work.

    It is the same function in evaluation mode, up to rounding. Packed files store such statistics in a few bytes. Train
    before, not after: batch statistics would be scaled twice. Norms without scale or statistics do not change.
    """
    simpler = copied(network)
    for norm in simpler.modules():
        if not isinstance(norm, _BatchNorm) or norm.running_mean is None or norm.running_var is None:
            continue
        if norm.weight is None or norm.bias is None:
            continue
        with torch.no_grad():
            # y = scale (x - mean) / sqrt(variance + eps) + shift: Ioffe and Szegedy 2015, algorithm 2
            factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
            norm.bias.copy_(norm.bias.double() - factor * norm.running_mean.double())
            norm.weight.copy_(factor * (1 + norm.eps) ** 0.5)
            norm.running_mean.zero_()
            norm.running_var.fill_(1.0)
    return simpler


def to_half_precision(network: nn.Module) -> nn.Module:
    """A copy with all float32 numbers rounded to float16. They remain float32 tensors. InputError above 65504."""
    rounded = copied(network)
    with torch.no_grad():
        for name, tensor in rounded.state_dict().items():
            if tensor.dtype != torch.float32:
                continue
            half = tensor.half()
            if not torch.equal(half.isfinite(), tensor.isfinite()):
                raise InputError(
                    f"{name} holds {tensor.abs().max():.3g}, and float16 ends at 65504: keep it in float32"
                )
            tensor.copy_(half)
    return rounded
