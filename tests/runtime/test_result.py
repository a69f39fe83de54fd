"""Labels and probabilities of answer logits, worked out by hand and against float64."""

import math

import numpy as np
import pytest
from support.policy_cases import make_costs, make_ladder, make_point

from dynamic.engines.contract import Output
from dynamic.policies.decision import Decision
from dynamic.policies.frontier import Frontier
from dynamic.runtime.result import BatchResult, answers


def test_probabilities_by_hand() -> None:
    label, probability = answers(np.log(np.array([[0.2, 0.5, 0.3], [0.9, 0.05, 0.05]], np.float32)))
    assert label.tolist() == [1, 0]
    np.testing.assert_allclose(probability, [0.5, 0.9], rtol=1e-6)
    assert label.dtype == np.int64
    assert probability.dtype == np.float32


@pytest.mark.parametrize("rows", [1, 5, 64])
@pytest.mark.parametrize("moved", [0.0, -300.0, 300.0])
def test_logits_need_not_be_normalized(rows: int, moved: float) -> None:
    logits = (5 * np.random.default_rng(rows).standard_normal((rows, 7)) + moved).astype(np.float32)
    exact = np.exp(logits.astype(np.float64) - moved)
    label, probability = answers(logits)
    assert label.tolist() == exact.argmax(axis=1).tolist()
    np.testing.assert_allclose(probability, exact.max(axis=1) / exact.sum(axis=1), rtol=1e-5)


def test_rows_without_an_answer_do_not_touch_the_others() -> None:
    good = np.log(np.array([0.2, 0.5, 0.3], np.float32))
    one_nan, minus = good.copy(), good.copy()
    one_nan[2], minus[0] = np.nan, -np.inf
    label, probability = answers(np.stack([good, np.full(3, np.nan, np.float32), one_nan, minus]))
    assert label.tolist() == [1, -1, -1, -1]
    assert probability[0] == pytest.approx(0.5)
    assert [math.isnan(p) for p in probability] == [False, True, True, False]
    assert answers(one_nan[None])[0].tolist() == [-1]


def test_finite_logits_whose_sum_is_not() -> None:
    large = np.full((1, 2), 3e38, np.float32)
    with np.errstate(over="ignore"):
        label, probability = answers(large)
    assert (label.tolist(), probability.tolist()) == ([0], [0.5])


def test_a_result_is_told_in_words() -> None:
    only = Frontier.of(make_ladder([make_point("reference", (), (1.0,))], (0,)), make_costs([[1.0]])).points[0]
    count = 12
    probability = np.full((count, 3), 0.125, np.float32)
    probability[np.arange(count), [2, 0, 1] + [0] * (count - 3)] = 0.75
    logits = np.log(probability)
    logits[1] = np.nan
    output = Output(logits, np.array([0, 1, 1] + [0] * (count - 3)), np.zeros(count, np.float32))
    result = BatchResult(3, output, ("dog", "bird", "cat"), 1.5, Decision(only, reason="reference fits"), False, 0.25)
    shown = str(result).splitlines()
    assert shown[:3] == ["cat, probability 0.750, stage 0", "no finite answer", "bird, probability 0.750, stage 1"]
    assert shown[-2:] == ["... 2 more", "1.500 ms, 0.250 of them waiting, not certified. reference fits"]
    assert len(shown) == 12


def test_a_batch_gives_a_prediction_for_each_row() -> None:
    only = Frontier.of(make_ladder([make_point("reference", (), (1.0,))], (0,)), make_costs([[1.0]])).points[0]
    logits = np.log(np.array([[0.25, 0.75], [0.9, 0.1]], np.float32))
    output = Output(logits, np.array([1, 0]), np.array([0.75, 0.9], np.float32))
    batch = BatchResult(3, output, ("cat", "dog"), 1.5, Decision(only), certified=True)
    first, second = batch
    assert (first.label, first.name, first.stage, first.id) == (1, "dog", 1, 3)
    assert (second.label, second.name, second.stage) == (0, "cat", 0)
    assert (type(first.label), type(first.stage), type(first.score)) == (int, int, float)
    assert first.probability == pytest.approx(0.75)
    assert first.probabilities.tolist() == pytest.approx([0.25, 0.75])
    assert batch[-1].name == "cat"
    assert len(batch) == 2
    with pytest.raises(IndexError):
        batch[2]
