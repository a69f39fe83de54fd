"""int8 linear layers inside a network that torch.fx cannot trace, such as an encoder of `transformers`.

The layers are replaced where they stand and nothing is traced. So modules keep their names, exits can be put on them,
and the network takes every length that it took before.
"""

from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from dynamic.models.compress.argument_checks import is_skipped
from dynamic.models.compress.layer_replacement import call_in_encoders, input_of
from dynamic.models.compress.quantization.activation_ranges import Observer, RangeMethod, grids
from dynamic.models.compress.quantization.int8_arithmetic import Grid, RoundedLinear
from dynamic.models.compress.quantization.weight_codes import (
    WeightRange,
    bias_floor,
    saturating_channels,
    weight_codes,
    weight_scales,
)
from dynamic.offline.batches import labelled_batches, named_tensors, run_on, taken_by
from dynamic.offline.networks.module_modes import calling_parts


class LinearLayers:
    """The linear layers of a network by name, and why parts with weights of their own are left alone.

    Args:
        network: A copy in evaluation mode, whose layers will be replaced.
        skip: Names of modules that remain float, with all that they hold.
    """

    def __init__(self, network: nn.Module, skip: Collection[str]) -> None:
        self._network = network
        self.left_alone: dict[str, str] = {}
        self.layers: dict[str, nn.Linear] = {}
        for name, module in network.named_modules():
            if is_skipped(name, skip):
                reason = "in skip"
            elif type(module) is nn.Linear:
                self.layers[name] = module
                continue
            else:
                reason = f"a {type(module).__name__} has no int8 form where torch.fx cannot trace the network"
            if any(p.ndim > 1 for p in module.parameters(recurse=False)):
                self.left_alone[name] = reason

    def grids(self, loader: Iterable[Any], ranges: RangeMethod) -> Mapping[str, Grid]:
        """The grid of the input of each layer that runs. Others are left alone. See `activation_ranges.grids`."""

        def show(observer: Observer) -> int:
            count = 0
            with ExitStack() as hooks:
                for name, layer in self.layers.items():
                    handle = layer.register_forward_pre_hook(
                        lambda _, args, kwargs, name=name: observer(name, input_of(args, kwargs)), with_kwargs=True
                    )
                    hooks.callback(handle.remove)
                for inputs, _ in labelled_batches(loader):
                    named = named_tensors(self._network, inputs)
                    count += len(next(iter(named.values())))
                    with taken_by(self._network, named):
                        run_on(self._network, named)
            return count

        with torch.no_grad(), calling_parts():
            layer_grids = grids(show, ranges, lambda name: f"the input of {name}")
        for name in [name for name in self.layers if name not in layer_grids]:
            del self.layers[name]
            self.left_alone[name] = "the network does not call it, or uses its weight without calling it"
        return layer_grids

    def replace(self, layer_grids: Mapping[str, Grid], weight_range: WeightRange) -> dict[str, int]:
        """Put int8 layers in their places. Returns the channels whose sums can saturate, by name."""
        saturating: dict[str, int] = {}
        fresh: dict[int, RoundedLinear] = {}
        for name, layer in self.layers.items():
            grid, bias = layer_grids[name], None if layer.bias is None else layer.bias.detach()
            scales = weight_scales(layer.weight, weight_range)
            if bias is not None:
                scales = torch.maximum(scales, bias_floor(bias, grid.scale))
            codes = weight_codes(layer.weight, scales, weight_range)
            if count := saturating_channels(codes):
                saturating[name] = count
            fresh[id(layer)] = RoundedLinear(grid, nn.Parameter(codes, requires_grad=False), scales, bias)
        for name, module in list(self._network.named_modules(remove_duplicate=False)):
            if id(module) in fresh:  # a layer that has several places has one int8 form
                self._network.set_submodule(name, fresh[id(module)].eval())
        call_in_encoders(self._network, fresh.values())
        return saturating
