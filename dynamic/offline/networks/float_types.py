"""The float types of networks: engines take float32, training takes all but float16 on the CPU."""

import torch
from torch import nn

from dynamic.policies.errors import InputError


def check_float32(network: nn.Module) -> None:
    """Raises InputError on a network with parameters in another floating-point type, which engines do not take."""
    other = other_floats(network)
    if other is not None:
        raise InputError(
            f"{other} in {type(getattr(network, 'backbone', network)).__name__}, and engines take networks in float32: "
            "call network.float() on it, or on a copy (an engine may compute in bf16 by itself: precision='bf16')"
        )


def check_halves(network: nn.Module) -> None:
    """Raises InputError on a network in float16 on the CPU, where batch norm does not run in it."""
    for name, parameter in network.named_parameters():
        if parameter.dtype == torch.float16 and parameter.device.type == "cpu":
            raise InputError(
                f"{name} is float16, in which batch norm does not run on the CPU: call network.float(), or "
                "network.bfloat16()"
            )


def other_floats(network: nn.Module) -> str | None:
    """The first parameter in floating point that is not float32, in words. None: there is none."""
    for name, parameter in network.named_parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            return f"{name} is {str(parameter.dtype).removeprefix('torch.')}"
    return None
