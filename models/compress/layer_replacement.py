"""Finds the layers of a network in one run, and replaces them."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dynamic.offline.batches import Batch, named_tensors, run_on
from dynamic.offline.networks.module_modes import calling_parts, evaluating
from dynamic.policies.errors import InputError


@dataclass(frozen=True)
class Layer:
    """A layer with the shapes of its first call. Both shapes are None where it never ran."""

    name: str
    module: nn.Module
    input_shape: tuple[int, ...] | None
    output_shape: tuple[int, ...] | None


def observe_layers(network: nn.Module, example_inputs: Batch, kinds: tuple[type[nn.Module], ...]) -> list[Layer]:
    """Every module of some kinds, subclasses included, in the order of registration.

    A layer that never ran as a module has no shapes: nothing uses it, or another module reads its weights, as attention
    does. InputError where the network does not take the inputs.
    """
    shapes: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> None:
        shapes.setdefault(id(module), (tuple(input_of(args, kwargs).shape), tuple(output.shape)))

    layers = [(name, module) for name, module in network.named_modules() if isinstance(module, kinds)]
    hooks = [module.register_forward_hook(note, with_kwargs=True) for _, module in layers]
    try:
        with calling_parts():
            run(network, example_inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return [Layer(name, module, *shapes.get(id(module), (None, None))) for name, module in layers]


def input_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The input of a layer of torch.nn, as a hook gets it. Networks may call `layer(input=x)`."""
    value: Tensor = args[0] if args else kwargs["input"]
    return value


def recurrent(network: nn.Module) -> dict[str, str]:
    """The recurrent layers of a network, which every method leaves alone, and why."""
    return {
        name: f"a recurrent layer ({type(module).__name__}): its weights do not change"
        for name, module in network.named_modules()
        if isinstance(module, nn.RNNBase)
    }


def run(network: nn.Module, example_inputs: Batch) -> object:
    """The output of the network in evaluation mode. InputError where it does not take the inputs."""
    named = named_tensors(network, example_inputs)
    try:
        with evaluating(network), torch.no_grad():
            return run_on(network, named)
    except (RuntimeError, TypeError) as error:
        shapes = {name: list(tensor.shape) for name, tensor in named.items()}
        raise InputError(f"{type(network).__name__} does not take example inputs {shapes}: {error}") from error


def swap(network: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Replace modules by others wherever they stand in `network`, where encoder layers will call them."""
    for parent in list(network.modules()):
        for name, child in parent._modules.items():  # named_children skips modules that stand twice
            if child is not None and child in replacements:
                parent._modules[name] = replacements[child]
    call_in_encoders(network, replacements.values())


def call_in_encoders(network: nn.Module, replaced: Iterable[nn.Module]) -> None:
    """Let the encoders of torch.nn that hold modules of `replaced` call them.

    In evaluation mode they run one fused operator, which reads `linear1.weight` of a layer and never calls it. An
    exported graph calls it. Both attributes have no other use.
    """
    fresh = set(replaced)
    for part in network.modules():
        if isinstance(part, nn.TransformerEncoderLayer) and not fresh.isdisjoint(part.modules()):
            part.activation_relu_or_gelu = 0
        elif isinstance(part, nn.TransformerEncoder) and not fresh.isdisjoint(part.modules()):
            part.use_nested_tensor = False  # only fused operators take nested tensors


def placed_like(fresh: nn.Module, old: nn.Module) -> nn.Module:
    """`fresh` on the device, in the type, in the mode, and frozen or not, as `old` is."""
    weight = next(old.parameters())
    return fresh.to(weight.device, weight.dtype).requires_grad_(weight.requires_grad).train(old.training)


def sharing(network: nn.Module) -> dict[int, list[str]]:
    """For each parameter, by id, the names under which modules hold it."""
    names: dict[int, list[str]] = {}
    for name, module in network.named_modules():
        for own, parameter in module.named_parameters(name, recurse=False):
            names.setdefault(id(parameter), []).append(own)
    return names


def reason_left_alone(layer: Layer, plain: Collection[type[nn.Module]], names: Mapping[int, list[str]]) -> str | None:
    """Why no method can replace this layer. None: it can be replaced. InputError where its weights are not finite."""
    module = layer.module
    if type(module) not in plain:
        return f"a {type(module).__name__}, which is none of {sorted(kind.__name__ for kind in plain)}: bake it first"
    if layer.input_shape is None:
        return "never called as a module: unused, or another module reads its weights"
    weight = module.weight
    assert isinstance(weight, Tensor)
    if not weight.is_floating_point():
        return f"its weights are {weight.dtype}"
    if module._forward_hooks or module._forward_pre_hooks:
        return "it has hooks, which would be lost"
    others = [n for p in module.parameters() for n in names[id(p)] if not n.startswith(f"{layer.name}.")]
    if others:
        return f"its weights are also {others[0]}'s"
    if not bool(weight.isfinite().all()):
        raise InputError(f"the weights of {layer.name} hold NaN or infinity: load or train them again")
    return None


def check_names(network: nn.Module, names: Collection[str], what: str) -> None:
    """InputError where a name is no module of the network."""
    modules = dict(network.named_modules(remove_duplicate=False))
    if isinstance(names, str):
        raise InputError(f"{what}={names!r} is a string: give a list of module names")
    for name in names:
        if name not in modules or not name:
            raise InputError(
                f"{what}: {name!r} is no module of this {type(network).__name__}: take names from named_modules()"
            )


def inside(name: str, names: Collection[str]) -> bool:
    """Whether the module is one of these, or is inside one of them."""
    return any(name == outer or name.startswith(f"{outer}.") for outer in names)
