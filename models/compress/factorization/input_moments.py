"""Mean and covariance of the inputs of layers, over batches."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynamic.models.compress.layer_replacement import input_of
from dynamic.offline.batches import labelled_batches, named_tensors, run_on
from dynamic.offline.networks.module_modes import calling_parts, evaluating
from dynamic.policies.errors import CalibrationError

_FLOOR = 1e-6  # of the largest variance: a smaller variance counts as that, so that roots have an inverse


@dataclass(frozen=True)
class Moments:
    """Of the inputs of one layer, by group: `mean [G, I]`, `covariance [G, I, I]`, float64 on the CPU."""

    mean: Tensor
    covariance: Tensor

    @property
    def root(self) -> Tensor:
        """The symmetric root of the covariance `[G, I, I]`."""
        return self._power(0.5)

    @property
    def inverse_root(self) -> Tensor:
        """The inverse of `root`."""
        return self._power(-0.5)

    def _power(self, exponent: float) -> Tensor:
        values, vectors = torch.linalg.eigh(self.covariance)
        largest = values.amax(1, keepdim=True)
        floored = torch.where(largest > 0, torch.maximum(values, _FLOOR * largest), torch.ones_like(values))
        power: Tensor = (vectors * floored.pow(exponent)[:, None, :]) @ vectors.mT
        return power


def moments(network: nn.Module, loader: Iterable[Any], layers: Sequence[nn.Module]) -> dict[nn.Module, Moments]:
    """The moments of the Linear and 1x1 Conv2d `layers` that run, in evaluation mode.

    CalibrationError where there is no batch, or where a layer gets NaN or infinity.
    """
    sums: dict[nn.Module, list[Any]] = {}  # number of rows, sum [G, I], sum of products [G, I, I]

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        x = input_of(args, kwargs).detach().double().cpu()
        groups = 1
        if isinstance(module, nn.Conv2d):
            groups = module.groups
            x = x[:, :, :: module.stride[0], :: module.stride[1]].movedim(1, -1)
        rows = x.reshape(-1, groups, x.shape[-1] // groups).transpose(0, 1)  # [G, rows, I]
        total = sums.setdefault(module, [0, 0.0, 0.0])
        total[0] += rows.shape[1]
        total[1] = total[1] + rows.sum(1)
        total[2] = total[2] + rows.mT @ rows

    hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
    try:
        with evaluating(network), calling_parts(), torch.no_grad():
            for inputs, _ in labelled_batches(loader):
                run_on(network, named_tensors(network, inputs))
    finally:
        for hook in hooks:
            hook.remove()
    if not sums and layers:
        raise CalibrationError("calibration_loader gave no batch: it is empty, or an iterator that was read before")
    names = {module: name for name, module in network.named_modules()}
    result = {}
    for module, (rows, total, products) in sums.items():
        mean = total / rows
        if not bool(products.isfinite().all()):
            raise CalibrationError(f"{names[module]} gets NaN or infinity from calibration_loader: clean the data")
        result[module] = Moments(mean, products / rows - mean[:, :, None] * mean[:, None, :])
    return result
