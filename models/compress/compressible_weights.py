"""The weights that compression treats: of convolutions and linear layers. Shared weights count once."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from dynamic.models.compress.argument_checks import is_skipped
from dynamic.policies.errors import InputError

WeightKind = Literal["conv", "linear"]
KINDS: tuple[WeightKind, ...] = get_args(WeightKind)
_KINDS: dict[WeightKind, tuple[type[nn.Module], ...]] = {
    "conv": (_ConvNd,),
    "linear": (nn.Linear, nn.MultiheadAttention),
}


@dataclass(frozen=True)
class Weight:
    """A weight under its first name. `places`: the modules that hold it, with its attribute there."""

    name: str
    kind: WeightKind
    places: tuple[tuple[nn.Module, str], ...]

    @property
    def value(self) -> Tensor:
        """The weight as the layer uses it."""
        module, attribute = self.places[0]
        value: Tensor = getattr(module, attribute)
        return value


def weights_of(network: nn.Module, skip: Collection[str] = ()) -> tuple[list[Weight], dict[str, str]]:
    """The weights of a network that can be compressed, and the others with the reason.

    Args:
        network: The network.
        skip: Names of weights to leave alone, or of modules with all that they hold.

    Returns:
        The weights, and for each weight left alone why.

    Raises:
        InputError: A name in `skip` does not exist.
    """
    kinds: dict[int, WeightKind | None] = {}
    classes: dict[int, str] = {}
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    names: dict[int, str] = {}
    for prefix, module in network.named_modules():
        for attribute, weight in module.named_parameters(recurse=False):
            if weight.ndim < 2 or attribute in ("bias_k", "bias_v"):
                continue
            names.setdefault(id(weight), f"{prefix}.{attribute}" if prefix else attribute)
            places.setdefault(id(weight), []).append((module, attribute))
            kinds.setdefault(
                id(weight), next((kind for kind, types in _KINDS.items() if isinstance(module, types)), None)
            )
            classes.setdefault(id(weight), type(module).__name__)
    valid = {*names.values(), *(name for name, _ in network.named_modules())}
    if unknown := [name for name in skip if name not in valid]:
        raise InputError(
            f"skip={unknown} are no weights or modules of this {type(network).__name__}: see named_modules()"
        )
    weights, left_alone = [], {}
    for key, name in names.items():
        if is_skipped(name, skip):
            left_alone[name] = "in skip"
        elif (kind := kinds[key]) is None:
            left_alone[name] = f"{classes[key]} is neither a convolution nor a linear layer"
        elif not (weight := Weight(name, kind, tuple(places[key]))).value.is_floating_point():
            left_alone[name] = f"its numbers are {weight.value.dtype}"
        else:
            weights.append(weight)
    return weights, left_alone
