"""Ways to make a sub-model, by name, and how far each must go for a target cost."""

import functools
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, Literal, cast, get_args

import numpy as np
from torch import nn

from dynamic.models.compress.report import Compressed
from dynamic.offline.batches import Batch
from dynamic.offline.option_words import check_word
from dynamic.policies.errors import DynamicError, InputError, SettingError

Amount = int | float
Cost = Literal["latency", "macs"]
MethodName = Literal["quantize", "prune_channels", "prune_blocks", "low_rank", "separate"]


@dataclass(frozen=True)
class Recipe:
    """How sub-models are made.

    Args:
        name: Of the sub-models.
        make: `make(network, example_inputs, amount)` returns a `Compressed`.
        amounts: What `amount` may be, from the least removed to the most, so that costs fall. The first that meets a
            target is taken. Empty: there is one sub-model, made with None, whatever the targets.
        tune: Whether the sub-model is fine-tuned where there is training data.
        then: A recipe without amounts that is applied afterwards. Costs are those after it.

    Raises:
        InputError: `then` has amounts.

    Example:
        >>> from dynamic.models import compress
        >>> def sparse(network, example_inputs, amount):
        ...     return compress.prune_weights(network, example_inputs, amount=amount, latency=False)
        >>> compress.Recipe("sparse", sparse, amounts=(0.5, 0.9)).tune
        True
    """

    name: str
    make: Callable[[nn.Module, Batch, Any], Compressed]
    _: KW_ONLY
    amounts: tuple[Amount, ...] = ()
    tune: bool = True
    then: "Recipe | None" = None

    def __post_init__(self) -> None:
        if self.then is not None and (self.then.amounts or self.then.then):
            raise InputError(f"{self.name}: the last step, {self.then.name!r}, has several amounts: put it first")


@dataclass(frozen=True)
class _Method:
    """A method of `compress`: the name of its amount, the amounts to try, the name of its loader, other options."""

    amount: str | None = None
    amounts: tuple[Amount, ...] = ()
    loader: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    tune: bool = True


_SHARES = tuple(step / 20 for step in range(1, 20))  # of channels, or of a full rank
# counts above the number of blocks are refused. "loss" takes many passes, "norm" takes one
_METHODS: dict[MethodName, _Method] = {
    "quantize": _Method(loader="calibration_loader", tune=False),
    "prune_channels": _Method("amount", _SHARES),
    "prune_blocks": _Method("count", tuple(range(1, 65)), "selection_loader", {"importance": "norm"}),
    "low_rank": _Method("rank", _SHARES[::-1], "calibration_loader"),
    "separate": _Method("rank", (4, 3, 2, 1)),
}


def recipe(method: str | Callable[..., Compressed] | Recipe, loader: Iterable[Any]) -> Recipe:
    """The recipe of a name, of a function `(network, example_inputs) -> Compressed`, or the recipe itself.

    "prune_channels+quantize" prunes, fine-tunes and then quantizes. Methods that need inputs read `loader`.
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
class SubModel:
    """A sub-model and the `amount` with which it was made."""

    compressed: Compressed
    amount: Amount | None


def search(
    recipe: Recipe,
    network: nn.Module,
    example_inputs: Batch,
    target: float,
    share: Callable[[nn.Module], float],
    shares: dict[Amount, float],
) -> SubModel | None:
    """The sub-model of the least amount whose `share(network)` of the cost is at most `target`. None: there is none.

    It bisects, so that few are made. `shares` holds the costs between targets. An amount that the method refuses is too
    small where a larger one is accepted, since rounding leaves nothing to remove. Else it is too large. Where none is
    accepted yet, smaller and then larger amounts are tried. Where none is accepted at all, the error is raised.
    """
    amounts = recipe.amounts
    sub_models: dict[int, SubModel] = {}
    refused: dict[int, DynamicError] = {}

    def accepts(at: int) -> bool:
        if amounts[at] not in shares and at not in refused:
            try:
                one = SubModel(recipe.make(network, example_inputs, amounts[at]), amounts[at])
                shares[amounts[at]] = share(one.compressed.network)
                if shares[amounts[at]] <= target:
                    sub_models.clear()  # memory holds one, not all
                    sub_models[at] = one
            except DynamicError as error:
                refused[at] = error
        return amounts[at] in shares

    low, high = 0, len(amounts)
    while low < high:
        middle = (low + high) // 2
        if not accepts(middle) and not shares:
            next((at for at in _further(middle, len(amounts)) if accepts(at)), None)
            if not shares:
                raise refused[middle]
        if accepts(middle):
            enough = shares[amounts[middle]] <= target
        else:
            enough = not any(amount in shares for amount in amounts[middle:])
        low, high = (low, middle) if enough else (middle + 1, high)
    best = next((at for at, amount in enumerate(amounts) if shares.get(amount, np.inf) <= target), None)
    if best is None:
        return None
    return sub_models.get(best) or SubModel(recipe.make(network, example_inputs, amounts[best]), amounts[best])


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
    """The targets from large to small, each once. SettingError where one is not in (0, 1)."""
    wrong = [t for t in targets if isinstance(t, bool) or not isinstance(t, (int, float)) or not 0 < t < 1]
    if wrong:
        raise SettingError(f"targets holds {wrong[0]!r}: give shares of the cost that may remain, between 0 and 1")
    return tuple(sorted({float(t) for t in targets}, reverse=True))


def numbered(names: Iterable[str]) -> list[str]:
    """The names. A name that repeats gets a number from the second on."""
    counts: dict[str, int] = {}
    unique = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        unique.append(name if counts[name] == 1 else f"{name}-{counts[name]}")
    return unique


def as_named(others: Mapping[str, nn.Module] | Sequence[nn.Module]) -> list[tuple[str, nn.Module]]:
    """Networks with names, their own or of their classes. InputError on what is no network."""
    if isinstance(others, nn.Module):
        raise InputError(f"others is a {type(others).__name__}: give a list of networks, or a dict by name")
    pairs = list(others.items()) if isinstance(others, Mapping) else [(class_name(n), n) for n in others]
    for name, network in pairs:
        if not isinstance(network, nn.Module):
            raise InputError(f"others[{name!r}] is a {type(network).__name__}: give torch modules")
    return pairs


def class_name(network: nn.Module) -> str:
    """The class of a network, or of its backbone where it is wrapped."""
    return type(getattr(network, "backbone", network)).__name__
