"""Batch norms whose statistics are those of the rows of all processes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from dynamic.offline.training.parallel.processes import Processes


@contextmanager
def shared_norms(network: nn.Module, processes: Processes) -> Iterator[bool]:
    """Let the batch norms of a network see the rows of all processes while it trains. Afterwards they are as before.

    torch's own `SyncBatchNorm` runs on GPUs alone. Norms inside a network that torch.export captured are operators and
    no modules, and see the rows of their own process.

    Args:
        network: The network.
        processes: All of them run each of its steps.

    Yields:
        Whether there are such norms.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    shared = norms if processes.count > 1 else []
    for norm in shared:
        norm.forward = partial(_forward, norm, norm.forward)  # type: ignore[method-assign]
    try:
        yield bool(shared)
    finally:
        for norm in shared:
            del norm.forward


def _forward(norm: _BatchNorm, alone: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Ioffe and Szegedy 2015, algorithm 1, over the rows of all processes."""
    if not norm.training:
        return alone(x)
    dims = [dim for dim in range(x.ndim) if dim != 1]
    shape = [-1 if dim == 1 else 1 for dim in range(x.ndim)]
    wide = x if x.dtype == torch.float64 else x.float()
    count = _summed(wide.new_tensor(float(x.numel() // x.shape[1])))
    mean = _summed(wide.sum(dims)) / count
    centered = wide - mean.reshape(shape)
    variance = _summed((centered * centered).sum(dims)) / count
    _remember(norm, mean.detach(), variance.detach() * (count / (count - 1).clamp(min=1)))
    y: Tensor = centered * torch.rsqrt(variance + norm.eps).reshape(shape)
    if norm.weight is not None:
        y = y * norm.weight.reshape(shape) + norm.bias.reshape(shape)
    return y.to(x.dtype)


def _summed(own: Tensor) -> Tensor:
    """The sum over all processes, through which gradients flow back to all of them."""
    whole: Tensor = functional.all_reduce(own)  # type: ignore[no-untyped-call]
    return whole


def _remember(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics towards those of a step."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    with torch.no_grad():
        norm.num_batches_tracked.add_(1)
        weight = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), weight)
        norm.running_var.lerp_(variance.to(norm.running_var.dtype), weight)
