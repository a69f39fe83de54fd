"""How far a method has to go for a target, by a method whose costs are known; and what the names mean."""

from functools import partial
from typing import Any, get_args

import pytest
import torch
from torch import nn

from dynamic.errors import InputError, SettingError, WrapError
from dynamic.models.compress.families.recipes import (
    MethodName,
    Recipe,
    as_named,
    checked_targets,
    numbered,
    recipe,
    search,
)
from dynamic.models.compress.report import Compressed, Measured, Report
from dynamic.offline.tracing.multiply_adds import count_macs

EXAMPLE = torch.zeros(2, 4)
NOTHING = Measured(1, 1, file_bytes=1, macs=1.0)


def compressed(network: nn.Module) -> Compressed:
    return Compressed(network, Report("by hand", NOTHING, after=NOTHING))


class Sized(nn.Module):
    """Costs what it was told."""

    def __init__(self, cost: float) -> None:
        super().__init__()
        self.cost = cost


class Method:
    """Leaves `1 - amount / 10` of the cost; refuses amounts above `most` and below `least`; notes what it was asked."""

    def __init__(self, most: int = 9, least: int = 1) -> None:
        self.most, self.least, self.asked = most, least, []

    def __call__(self, network: nn.Module, inputs: Any, amount: int) -> Compressed:
        self.asked.append(amount)
        if amount > self.most:
            raise SettingError(f"amount={amount} is too much")
        if amount < self.least:
            raise WrapError(f"amount={amount} takes away nothing")
        return compressed(Sized(1 - amount / 10))

    def recipe(self) -> Recipe:
        return Recipe("method", self, amounts=tuple(range(1, 10)))


def cost(network: nn.Module) -> float:
    return network.cost


@pytest.mark.parametrize(("target", "amount"), [(0.95, 1), (0.9, 1), (0.89, 2), (0.5, 5), (0.11, 9)])
def test_the_least_amount_that_gets_there_is_taken(target: float, amount: int) -> None:
    method = Method()
    found = search(method.recipe(), nn.Identity(), EXAMPLE, target, cost, {})
    assert found is not None
    assert found.amount == amount
    assert found.compressed.network.cost == pytest.approx(1 - amount / 10)
    assert len(method.asked) <= 4  # of nine, by bisection


def test_what_is_known_is_not_made_again() -> None:
    method, known = Method(), {}
    search(method.recipe(), nn.Identity(), EXAMPLE, 0.5, cost, known)
    before = len(method.asked)
    found = search(method.recipe(), nn.Identity(), EXAMPLE, 0.5, cost, known)
    assert found is not None
    assert found.amount == 5
    assert len(method.asked) == before + 1  # the one that is given


def test_amounts_that_are_refused_are_too_large() -> None:
    found = search(Method(most=6).recipe(), nn.Identity(), EXAMPLE, 0.4, cost, {})
    assert found is not None
    assert found.amount == 6
    known: dict[Any, float] = {}
    assert search(Method(most=6).recipe(), nn.Identity(), EXAMPLE, 0.3, cost, known) is None
    assert min(known.values()) == pytest.approx(0.4)


@pytest.mark.parametrize(("least", "most"), [(4, 9), (6, 9), (9, 9), (1, 2), (1, 1), (3, 6), (7, 8)])
@pytest.mark.parametrize("target", [0.95, 0.65, 0.45, 0.35, 0.15, 0.05])
def test_amounts_that_are_refused_at_either_end(least: int, most: int, target: float) -> None:
    method = Method(most, least)
    there = [amount for amount in range(least, most + 1) if 1 - amount / 10 <= target]
    found = search(method.recipe(), nn.Identity(), EXAMPLE, target, cost, {})
    assert (found and found.amount) == (there[0] if there else None)
    assert len(method.asked) <= 10


def test_amounts_too_small_for_a_narrow_layer_are_no_end() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4)
    )
    x = torch.zeros(2, 3, 8, 8)
    whole = count_macs(net, (x[:1],)).total
    found = search(recipe("prune_channels", []), net, x, 0.5, lambda n: count_macs(n, (x[:1],)).total / whole, {})
    assert found is not None
    assert found.compressed.network[0].out_channels == 16  # 24 of 32 round up: 0.25 and less are refused
    assert count_macs(found.compressed.network, (x[:1],)).total < 0.3 * whole


def test_a_target_beyond_all_amounts_is_not_reached() -> None:
    assert search(Method().recipe(), nn.Identity(), EXAMPLE, 0.05, cost, {}) is None


def test_a_method_that_accepts_nothing_says_why() -> None:
    with pytest.raises(SettingError, match="too much"):
        search(Method(most=0).recipe(), nn.Identity(), EXAMPLE, 0.5, cost, {})


def test_functions_are_recipes_of_one_sub_model() -> None:
    def halve(network: nn.Module, inputs: Any) -> Compressed:
        return compressed(Sized(0.5))

    made = recipe(halve, [])
    assert (made.name, made.amounts) == ("halve", ())
    assert made.make(nn.Identity(), EXAMPLE, None).network.cost == 0.5
    assert recipe(partial(partial(halve)), []).name == "halve"
    assert recipe(lambda network, inputs: halve(network, inputs), []).name == "sub-model"
    assert recipe(made, []) is made


def test_two_steps_are_one_recipe() -> None:
    made = recipe("low_rank+quantize", [])
    assert made.name == "low_rank+quantize"
    assert made.amounts == recipe("low_rank", []).amounts
    assert made.tune
    assert made.then is not None
    assert (made.then.name, made.then.tune) == ("quantize", False)
    with pytest.raises(InputError, match="put it first"):
        recipe("quantize+low_rank", [])
    with pytest.raises(InputError, match="has 3 steps: give two at most"):
        recipe("low_rank+quantize+quantize", [])


def test_named_amounts_take_away_more_and_more() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 40))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x)

    made, x = recipe("low_rank", [(torch.randn(60, 40), torch.zeros(60, dtype=torch.int64))]), torch.randn(2, 40)
    small, large = (made.make(Two(), x, made.amounts[at]).report.after.macs for at in (-1, -6))
    assert small < large < 3200
    assert set(get_args(MethodName)) >= {"prune_channels", "prune_blocks", "low_rank", "separate", "quantize"}


def test_what_is_no_recipe_is_named() -> None:
    with pytest.raises(SettingError, match=r"methods='squeeze' is not known. Use one of .*low_rank"):
        recipe("squeeze", [])
    with pytest.raises(InputError, match="holds a int"):
        recipe(3, [])  # type: ignore[arg-type]


def test_targets_are_shares() -> None:
    assert checked_targets((0.25, 0.5, 0.25)) == (0.5, 0.25)
    for wrong in (0.0, 1.0, 1.5, -0.1, float("nan"), True, "half"):
        with pytest.raises(SettingError, match="targets holds"):
            checked_targets((0.5, wrong))  # type: ignore[arg-type]


def test_names() -> None:
    assert numbered(["a", "b", "a", "a"]) == ["a", "b", "a-2", "a-3"]
    assert [name for name, _ in as_named([nn.Linear(1, 1), nn.ReLU()])] == ["Linear", "ReLU"]
    assert [name for name, _ in as_named({"small": nn.ReLU()})] == ["small"]
    with pytest.raises(InputError, match="give a list"):
        as_named(nn.ReLU())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="is a int"):
        as_named({"small": 3})  # type: ignore[dict-item]


def test_errors_of_a_share_count_as_refused() -> None:
    def share(network: nn.Module) -> float:
        raise WrapError("cannot be measured")

    with pytest.raises(WrapError, match="cannot be measured"):
        search(Method().recipe(), nn.Identity(), EXAMPLE, 0.5, share, {})
