"""What layers are given: mean and covariance of their inputs over batches."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynamic.offline.batches import labelled_batches, named_tensors, run_on
from dynamic.offline.networks.module_modes import evaluating
from dynamic.policies.errors import CalibrationError

_FLOOR = 1e-6  # of the largest variance: directions with less are taken to have that much, so that roots invert


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
        """Its inverse."""
        return self._power(-0.5)

    def _power(self, exponent: float) -> Tensor:
        values, vectors = torch.linalg.eigh(self.covariance)
        largest = values.amax(1, keepdim=True)
        floored = torch.where(largest > 0, torch.maximum(values, _FLOOR * largest), torch.ones_like(values))
        power: Tensor = (vectors * floored.pow(exponent)[:, None, :]) @ vectors.mT
        return power


def moments(network: nn.Module, batches: Iterable[Any], layers: Sequence[nn.Module]) -> dict[nn.Module, Moments]:
    """Of the Linear and 1x1 Conv2d `layers` that run, in evaluation mode; `batches` with labels or without.

    Raises CalibrationError where there is no batch, or a layer is given NaN or infinity.
    """
    sums: dict[nn.Module, list[Any]] = {}  # rows, sum [G, I], sum of products [G, I, I]

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0].detach().double().cpu()
        groups = 1
        if isinstance(module, nn.Conv2d):
            groups = module.groups
            x = x[:, :, :: module.stride[0], :: module.stride[1]].movedim(1, -1)
        rows = x.reshape(-1, groups, x.shape[-1] // groups).transpose(0, 1)  # [G, rows, I]
        found = sums.setdefault(module, [0, 0.0, 0.0])
        found[0] += rows.shape[1]
        found[1] = found[1] + rows.sum(1)
        found[2] = found[2] + rows.mT @ rows

    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        with evaluating(network), torch.no_grad():
            for inputs, _ in labelled_batches(batches):
                run_on(network, named_tensors(network, inputs))
    finally:
        for hook in hooks:
            hook.remove()
    if not sums and layers:
        raise CalibrationError("calibration gave no batch; it is empty, or an iterator that was already used up")
    names = {module: name for name, module in network.named_modules()}
    made = {}
    for module, (rows, total, products) in sums.items():
        mean = total / rows
        if not bool(products.isfinite().all()):
            raise CalibrationError(f"{names[module]} is given NaN or infinity by the calibration batches; clean them")
        made[module] = Moments(mean, products / rows - mean[:, :, None] * mean[:, None, :])
    return made
