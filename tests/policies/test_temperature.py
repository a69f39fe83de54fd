"""Temperatures against scipy's minimizer."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from support.policy_cases import learned, make_records

from dynamic.policies.certification.temperature import HIGHEST, LOWEST, fit_temperature, fit_temperatures


def loss(temperature: float, logits: NDArray[Any], label: NDArray[Any]) -> float:
    """Negative log likelihood."""
    return float(-log_softmax(logits.astype(float) / temperature, axis=1)[np.arange(len(label)), label].mean())


@pytest.mark.parametrize("scale", [0.2, 1.0, 4.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_as_scipy_finds_it(scale: float, seed: int) -> None:
    logits, label = learned(400, 1, classes=6, seed=seed)
    own = logits[:, 0] * np.float32(scale)
    bounds, exact = (LOWEST, HIGHEST), {"xatol": 1e-7}
    best = minimize_scalar(loss, args=(own, label), bounds=bounds, method="bounded", options=exact)
    assert fit_temperature(own, label) == pytest.approx(best.x, rel=1e-3)
    assert loss(fit_temperature(own, label), own, label) <= best.fun + 1e-9


def test_finds_the_temperature_that_labels_were_drawn_with() -> None:
    random = np.random.default_rng(0)
    logits = (3 * random.normal(size=(40_000, 4))).astype(np.float32)
    p = softmax(logits.astype(float) / 2.5, axis=1)
    label = (p.cumsum(axis=1) < random.random((len(p), 1))).sum(axis=1)
    assert fit_temperature(logits, label) == pytest.approx(2.5, rel=0.03)


def test_stays_in_its_range() -> None:
    logits = np.eye(3, dtype=np.float32)
    assert fit_temperature(logits, np.array([0, 1, 2])) == LOWEST  # always right: the surer the better
    assert fit_temperature(logits, np.array([1, 2, 0])) == HIGHEST  # always wrong: the less sure the better


def test_rows_that_are_not_finite_are_left_out() -> None:
    logits, label = learned(200, 1)
    own = logits[:, 0]
    broken = own.copy()
    broken[::3, 1], broken[1::9, 0] = np.nan, np.inf
    good = np.isfinite(broken).all(axis=1)
    assert 0 < good.sum() < 200
    assert fit_temperature(broken, label) == fit_temperature(own[good], label[good])
    assert fit_temperature(np.full((3, 2), np.nan, np.float32), np.array([0, 1, 0])) == 1.0


def test_large_logits_do_not_overflow() -> None:
    logits, label = learned(200, 1)
    far = logits[:, 0] * 8 + np.float32(10_000)
    assert fit_temperature(far, label) == pytest.approx(8 * fit_temperature(logits[:, 0], label), rel=0.01)


def test_one_for_each_stage_from_the_search_part_alone() -> None:
    logits, label = learned(300, 3)
    part = np.arange(300) % 2
    records = make_records(logits, label, part=part)
    found = fit_temperatures(records)
    assert found == tuple(fit_temperature(logits[part == 0, s], label[part == 0]) for s in range(3))
    other = logits.copy()
    other[part == 1] *= -5
    assert fit_temperatures(make_records(other, label, part=part)) == found
    assert fit_temperatures(replace(records, label=None)) == (1.0, 1.0, 1.0)
