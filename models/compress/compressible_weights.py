"""The weights that compression treats: kernels of convolutions and matrices of linear layers, shared ones once."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from dynamic.policies.errors import InputError

WeightKind = Literal["conv", "linear"]
KINDS: tuple[WeightKind, ...] = get_args(WeightKind)
_KINDS: dict[WeightKind, tuple[type[nn.Module], ...]] = {
    "conv": (_ConvNd,),
    "linear": (nn.Linear, nn.MultiheadAttention),
}


@dataclass(frozen=True)
class Weight:
    """A weight by its first name. `places`: the modules it lies in, with its attribute there, several where shared."""

    name: str
    kind: WeightKind
    places: tuple[tuple[nn.Module, str], ...]

    @property
    def value(self) -> Tensor:
        """As the layer sees it."""
        module, attribute = self.places[0]
        found: Tensor = getattr(module, attribute)
        return found


def weights_of(network: nn.Module, skip: Collection[str] = ()) -> tuple[list[Weight], dict[str, str]]:
    """The weights of `network`, and those left alone with the reason. `skip`: names of weights, or of modules with
    all that they hold.

    Raises InputError where a name in `skip` is none.
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
    known = {*names.values(), *(name for name, _ in network.named_modules())}
    if unknown := [name for name in skip if name not in known]:
        raise InputError(
            f"skip={unknown} are no weights or modules of this {type(network).__name__}; see named_modules()"
        )
    found, left = [], {}
    for key, name in names.items():
        if any(name == s or name.startswith(f"{s}.") for s in skip):
            left[name] = "skipped as asked"
        elif (kind := kinds[key]) is None:
            left[name] = f"{classes[key]} is no convolution and no linear layer"
        elif not (weight := Weight(name, kind, tuple(places[key]))).value.is_floating_point():
            left[name] = f"its numbers are {weight.value.dtype}"
        else:
            found.append(weight)
    return found, left
