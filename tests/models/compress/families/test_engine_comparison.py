"""Answers and sizes of networks whose truth is known, on an engine; chances against the beta distribution."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from dynamic.errors import EngineError, InputError
from dynamic.models.compress.families.engine_comparison import (
    in_turns_ms,
    no_less_accurate,
    open_on_engine,
    right_answers,
    tensors_mb,
)

X = torch.eye(3)[[0, 1, 2, 0]]
DATA = [(X[:3], torch.tensor([0, 1, 2])), (X[3:], torch.tensor([0]))]


class Table(nn.Module):
    """Answers input i with class `answers[i]`; a class below 0 is no answer, NaN."""

    def __init__(self, answers: list[int]) -> None:
        super().__init__()
        wanted = [torch.eye(3)[a] if a >= 0 else torch.full((3,), torch.nan) for a in answers]
        self.wanted = nn.Parameter(torch.stack(wanted))

    def forward(self, x: Tensor) -> Tensor:
        return self.wanted[x.argmax(1)]


@pytest.mark.parametrize("engine", ["onnxruntime", "torch"])
def test_right_answers_are_those_of_the_engine(engine: str) -> None:
    with (
        open_on_engine(Table([0, 1, 1]), X, engine, "f32") as a,
        open_on_engine(Table([0, -1, 2]), X, engine, "f32") as b,
    ):
        found = right_answers([a, b], iter(DATA), progress=False)
        turns = in_turns_ms([a, b])
    np.testing.assert_array_equal(found, [[True, True, False, True], [True, False, True, True]])
    assert turns.shape[0] == 2
    assert (turns > 0).all()


def test_data_that_do_not_fit_are_named() -> None:
    with open_on_engine(Table([0, 1, 2]), X, "torch", "f32") as a:
        with pytest.raises(InputError, match="without labels"):
            right_answers([a], [X])
        with pytest.raises(InputError, match="The network has 3 classes"):
            right_answers([a], [(X, torch.tensor([0, 1, 3, 0]))])
        with pytest.raises(InputError, match="gave no batch"):
            right_answers([a], [])
    with pytest.raises(EngineError, match="not known"), open_on_engine(Table([0, 1, 2]), X, "abacus", "f32"):
        pass


def test_modes_come_back() -> None:
    network = nn.Sequential(Table([0, 1, 2]), nn.Dropout(0.5)).train()
    with open_on_engine(network, X, "torch", "f32") as a:
        assert right_answers([a], DATA).all()  # dropout is off
    assert network.training
    assert network[1].training


class Big(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, width), nn.Linear(width, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_memory_is_that_of_a_process_of_its_own() -> None:
    found = []
    for width in (10, 2500):
        with open_on_engine(Big(width), X, "onnxruntime", "f32") as entrant:
            found.append(entrant.memory_mb())
    assert found[1] - found[0] > 2500**2 * 4 / 1e6 * 0.9  # 25 MB of weights


def test_memory_on_torch_is_that_of_tensors_once() -> None:
    first, second = Big(10), Big(10)
    second.layers[2] = first.layers[2]
    with open_on_engine(first, X, "torch", "f32") as entrant:
        assert entrant.memory_mb() == pytest.approx((40 + 110 + 33) * 4 / 1e6)
    assert tensors_mb([first, second]) == pytest.approx((2 * (40 + 33) + 110) * 4 / 1e6)
    part = nn.Linear(10, 5, bias=False)
    part.weight = nn.Parameter(first.layers[2].weight[:5])  # a slice of the other's memory
    assert tensors_mb([first, part]) == tensors_mb([first])


@pytest.mark.parametrize(("only_first", "only_second", "both"), [(0, 0, 9), (5, 0, 3), (7, 12, 0), (300, 280, 50)])
def test_the_chance_is_the_beta_distributions(only_first: int, only_second: int, both: int) -> None:
    first = np.array([True] * only_first + [False] * only_second + [True] * both)
    second = np.array([False] * only_first + [True] * only_second + [True] * both)
    expected = stats.beta(only_first + 1, only_second + 1).sf(0.5)
    assert no_less_accurate(first, second) == pytest.approx(expected)
