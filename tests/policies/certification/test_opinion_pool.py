"""Pooled beliefs against a general optimizer, and by hand."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize
from support.policy_cases import learned

from dynamic.policies.certification.opinion_pool import belief
from dynamic.policies.scores import softmax


def loss(weight: NDArray[np.float64], logs: NDArray[np.float64], label: NDArray[np.int64]) -> float:
    pooled = logs @ weight
    likelihood = pooled[np.arange(len(label)), label] - np.log(np.exp(pooled).sum(axis=1))
    return float(-likelihood.mean() + 0.0005 * np.sum((weight - 1 / len(weight)) ** 2))


@pytest.mark.parametrize(("count", "stages", "classes"), [(60, 2, 3), (400, 5, 4), (900, 3, 20)])
def test_weights_are_those_of_the_greatest_likelihood(count: int, stages: int, classes: int) -> None:
    logits, label = learned(count, stages, classes, seed=2)
    probability = [softmax(logits[:, s]) for s in range(stages)]
    logs = np.stack([np.log(p) for p in probability], axis=-1).astype(np.float64)  # [N, C, S]
    found = minimize(loss, np.full(stages, 1 / stages), args=(logs, label), tol=1e-12)
    expected = np.exp(logs @ found.x)
    expected /= expected.sum(axis=1, keepdims=True)
    assert belief(probability, label) == pytest.approx(expected, abs=2e-3)


def test_a_stage_that_knows_nothing_and_one_that_is_wrong_are_not_believed() -> None:
    random = np.random.default_rng(0)
    logits, label = learned(2000, 1, 4, seed=1)
    own = softmax(logits[:, 0])
    noise = softmax(3 * random.normal(size=own.shape).astype(np.float32))
    alone, beside_noise = belief([own], label), belief([noise, own], label)
    assert np.abs(beside_noise - alone).mean() < 0.02
    average = (own + noise) / 2
    rows = np.arange(len(label))

    def likelihood(p: NDArray[np.float32]) -> float:
        return float(np.log(p[rows, label]).mean())

    assert likelihood(beside_noise) > likelihood(average) + 0.1


def test_stages_without_finite_probabilities_say_nothing() -> None:
    logits, label = learned(300, 2, 3)
    probability = [softmax(logits[:, s]) for s in range(2)]
    probability[0][:10] = np.nan
    probability[1][5:10] = np.nan
    found = belief(probability, label)
    assert np.isfinite(found).all()
    assert found.sum(axis=1) == pytest.approx(np.ones(300), abs=1e-5)
    assert found[5:10] == pytest.approx(np.full((5, 3), 1 / 3))
    assert found[:5].argmax(axis=1).tolist() == probability[1][:5].argmax(axis=1).tolist()


def test_certainty_that_is_wrong_does_not_end_it() -> None:
    # both stages rule the label of the first record out for good
    certain = np.zeros((40, 3), np.float32)
    certain[np.arange(40), np.arange(40) % 3] = 1
    label = np.arange(40) % 3
    label[0] = 1
    found = belief([certain, certain], label)
    assert np.isfinite(found).all()
    assert found[1:].argmax(axis=1).tolist() == label[1:].tolist()
    assert 0 < found[0, 1] < 0.1


def thousand_classes(count: int, stages: int) -> tuple[list[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    """Probabilities `[S][N, 1000]` of stages that know the label more and more often, and the labels."""
    random = np.random.default_rng(0)
    label = random.integers(0, 1000, count)
    logits = random.normal(0, 1.5, (stages, count, 1000)).astype(np.float32)
    logits[:, np.arange(count), label] += random.normal(4 + np.arange(stages)[:, None], 2, (stages, count))
    return list(softmax(logits)), label


def test_records_that_are_repeated_change_nothing_with_many_classes() -> None:
    probability, label = thousand_classes(40, 6)  # one block of values
    once = belief(probability, label)
    several = belief([np.tile(p, (8, 1)) for p in probability], np.tile(label, 8))  # two blocks
    np.testing.assert_allclose(several, np.tile(once, (8, 1)), rtol=1e-4, atol=1e-7)


def test_memory_with_many_classes() -> None:
    probability, label = thousand_classes(1000, 6)
    tracemalloc.start()
    belief(probability, label)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # logarithms and their stack are as large as the probabilities. With doubles of all of them it was 9 times
    assert peak < 6 * sum(p.nbytes for p in probability)
