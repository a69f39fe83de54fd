"""Ways to make a sub-model, by name, and how far each has to go for a network of a wanted cost."""

import functools
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, Literal, cast, get_args

import numpy as np
from torch import nn

from dynamic.models.compress.argument_checks import check_word
from dynamic.models.compress.report import Compressed
from dynamic.offline.batches import Batch
from dynamic.policies.errors import DynamicError, InputError, SettingError

Amount = int | float
Cost = Literal["latency", "macs"]
MethodName = Literal["quantize", "prune_channels", "prune_blocks", "low_rank", "separate"]


@dataclass(frozen=True)
class Recipe:
    """How sub-models are made: `make(network, example_inputs, amount)`.

    `amounts`: what may be given, from the least to the most taken away, so that costs fall; the first that meets a
    target is taken. Empty: there is one sub-model, made with amount None, whatever the targets. `tune`: whether it is
    fine-tuned where there is training data. `then`: done to the result after that, on the way of a recipe without
    amounts; costs are those after it. Raises InputError where `then` has amounts.
    """

    name: str
    make: Callable[[nn.Module, Batch, Any], Compressed]
    _: KW_ONLY
    amounts: tuple[Amount, ...] = ()
    tune: bool = True
    then: "Recipe | None" = None

    def __post_init__(self) -> None:
        if self.then is not None and (self.then.amounts or self.then.then):
            raise InputError(
                f"{self.name}: what comes last, {self.then.name!r}, must have one amount alone; put it first"
            )


@dataclass(frozen=True)
class _Method:
    """A method of `compress`: the name of its amount, the amounts to try, the name of its loader, other options."""

    amount: str | None = None
    amounts: tuple[Amount, ...] = ()
    loader: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    tune: bool = True


_SHARES = tuple(step / 20 for step in range(1, 20))  # of channels, or of a full rank
# counts of blocks beyond what there is are refused; what removing each costs in loss takes many passes, norms take one
_METHODS: dict[MethodName, _Method] = {
    "quantize": _Method(loader="calibration_loader", tune=False),
    "prune_channels": _Method("amount", _SHARES),
    "prune_blocks": _Method("count", tuple(range(1, 65)), "selection_loader", {"importance": "norm"}),
    "low_rank": _Method("rank", _SHARES[::-1], "calibration_loader"),
    "separate": _Method("rank", (4, 3, 2, 1)),
}


def recipe(method: str | Callable[..., Compressed] | Recipe, loader: Iterable[Any]) -> Recipe:
    """The recipe of a name, of a `(network, example_inputs) -> Compressed`, or the one given.

    "prune_channels+quantize" prunes, fine-tunes and then quantizes. `loader`: batches for methods that look at inputs.
    Raises InputError on what is none of these.
    """
    if isinstance(method, Recipe):
        return method
    if isinstance(method, str):
        first, *rest = method.split("+")
        whole = _named(first, loader)
        for name in rest:
            whole = replace(whole, name=method, then=_named(name, loader))
        if len(rest) > 1:
            raise InputError(f"methods holds {method!r}, which has {len(rest) + 1} steps: give two at most")
        return whole
    if not callable(method):
        names = ", ".join(get_args(MethodName))
        raise InputError(f"methods holds a {type(method).__name__}: give functions, recipes or names ({names})")
    function = method
    return Recipe(_name_of(function), lambda network, inputs, _: function(network, inputs))


def _named(name: str, loader: Iterable[Any]) -> Recipe:
    check_word("methods", name, MethodName)
    method = _METHODS[cast(MethodName, name)]

    def make(network: nn.Module, inputs: Batch, amount: Amount | None) -> Compressed:
        # by name when used: the package imports this file
        function = getattr(importlib.import_module("dynamic.models.compress"), name)
        amounts = {} if method.amount is None else {method.amount: amount}
        loaders = {} if method.loader is None else {method.loader: loader}
        compressed: Compressed = function(network, inputs, latency=False, **amounts, **loaders, **method.options)
        return compressed

    return Recipe(name, make, amounts=method.amounts, tune=method.tune)


def _name_of(function: Callable[..., Any]) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__).replace("<lambda>", "sub-model")


@dataclass(frozen=True)
class Made:
    """A sub-model and the `amount` it was made with."""

    compressed: Compressed
    amount: Amount | None


def search(
    recipe: Recipe,
    network: nn.Module,
    example_inputs: Batch,
    target: float,
    share: Callable[[nn.Module], float],
    known: dict[Amount, float],
) -> Made | None:
    """The sub-model of the least amount whose `share(network)` of the cost is at most `target`; None where none is.

    By bisection, so that few are made; `known` keeps shares between targets. An amount that the method refuses is too
    small where a larger one is accepted (rounding leaves nothing to take away), or else too large; where none is
    accepted yet, ever smaller ones and then ever larger ones are tried. Raises what it raises where it accepts none.
    """
    amounts = recipe.amounts
    made: dict[int, Made] = {}
    refused: dict[int, DynamicError] = {}

    def accepts(at: int) -> bool:
        if amounts[at] not in known and at not in refused:
            try:
                one = Made(recipe.make(network, example_inputs, amounts[at]), amounts[at])
                known[amounts[at]] = share(one.compressed.network)
                if known[amounts[at]] <= target:
                    made.clear()  # one is held, not all
                    made[at] = one
            except DynamicError as error:
                refused[at] = error
        return amounts[at] in known

    low, high = 0, len(amounts)
    while low < high:
        middle = (low + high) // 2
        if not accepts(middle) and not known:
            next((at for at in _further(middle, len(amounts)) if accepts(at)), None)
            if not known:
                raise refused[middle]
        if accepts(middle):
            enough = known[amounts[middle]] <= target
        else:
            enough = not any(amount in known for amount in amounts[middle:])
        low, high = (low, middle) if enough else (middle + 1, high)
    best = next((at for at, amount in enumerate(amounts) if known.get(amount, np.inf) <= target), None)
    if best is None:
        return None
    return made.get(best) or Made(recipe.make(network, example_inputs, amounts[best]), amounts[best])


def _further(middle: int, count: int) -> list[int]:
    """From `middle` by halves to the first, then by halves to the last."""
    down, up = [], []
    at = middle
    while at > 0:
        at //= 2
        down.append(at)
    at = middle
    while at < count - 1:
        at = (at + count) // 2
        up.append(at)
    return [*down, *up]


def checked_targets(targets: Sequence[float]) -> tuple[float, ...]:
    """The targets from large to small, each once; raises SettingError on one that is not in (0, 1)."""
    wrong = [t for t in targets if isinstance(t, bool) or not isinstance(t, (int, float)) or not 0 < t < 1]
    if wrong:
        raise SettingError(f"targets holds {wrong[0]!r}; each is the share of the cost that may stay, between 0 and 1")
    return tuple(sorted({float(t) for t in targets}, reverse=True))


def numbered(names: Iterable[str]) -> list[str]:
    """The names, those that repeat numbered from the second on."""
    seen: dict[str, int] = {}
    made = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        made.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return made


def as_named(others: Mapping[str, nn.Module] | Sequence[nn.Module]) -> list[tuple[str, nn.Module]]:
    """Networks with names: those given, or of their classes. Raises InputError on what is no network."""
    if isinstance(others, nn.Module):
        raise InputError(f"others is a {type(others).__name__}; give a list of networks, or a dict by name")
    pairs = list(others.items()) if isinstance(others, Mapping) else [(class_name(n), n) for n in others]
    for name, network in pairs:
        if not isinstance(network, nn.Module):
            raise InputError(f"others[{name!r}] is a {type(network).__name__}; give torch modules")
    return pairs


def class_name(network: nn.Module) -> str:
    """The class of a network, or of its backbone where it is wrapped."""
    return type(getattr(network, "backbone", network)).__name__
