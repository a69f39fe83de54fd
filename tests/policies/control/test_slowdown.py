"""The filter against Kalman's formulas by hand."""

import math

import numpy as np
import pytest

from dynamic.policies.control.slowdown import Slowdown


def test_two_steps_by_hand() -> None:
    # variance 0.09 + 0.001 before, noise 0.09: gain 91/181
    first = Slowdown().observe([20], [10])
    assert first.mean == pytest.approx(91 / 181 * math.log(2))
    assert first.variance == pytest.approx(90 / 181 * 0.091)
    before = 90 / 181 * 0.091 + 0.001
    gain = before / (before + 0.09)
    second = first.observe([10], [10])
    assert second.mean == pytest.approx((1 - gain) * first.mean)
    assert second.variance == pytest.approx((1 - gain) * before)
    assert second.ratio == pytest.approx(math.exp(second.mean))


def test_nothing_seen_is_no_slowdown() -> None:
    assert Slowdown().ratio == 1.0


def test_settles_on_the_truth_and_follows_it() -> None:
    random = np.random.default_rng(0)
    state = Slowdown()
    for truth in (3.0, 0.5):
        for noise in random.normal(0, 0.2, 60):
            state = state.observe([truth * 10 * math.exp(noise)], [10])
        assert state.ratio == pytest.approx(truth, rel=0.2)
    # where the variance settles where requests hardly scatter: v = (v + q) r / (v + q + r)
    for _ in range(200):
        state = state.observe([5], [10])
    q, r = 0.001, 0.09
    assert state.variance == pytest.approx((-q + math.sqrt(q * q + 4 * q * r)) / 2, rel=1e-3)


def test_twice_as_fast_undoes_twice_as_slow() -> None:
    slow, fast = Slowdown().observe([20], [10]), Slowdown().observe([5], [10])
    assert slow.ratio * fast.ratio == pytest.approx(1)


def test_one_stall_counts_as_two_standard_deviations_at_most() -> None:
    most = 2 * math.sqrt(0.09 + 0.001 + 0.09)
    assert Slowdown().observe([1e9], [1]).mean == pytest.approx(91 / 181 * most)
    assert Slowdown().observe([1], [1e9]).mean == pytest.approx(-91 / 181 * most)
    settled = Slowdown()
    for _ in range(50):
        settled = settled.observe([10], [10])
    assert settled.observe([500], [10]).ratio < 1.25


def test_a_step_is_followed_within_ten_requests() -> None:
    state = Slowdown()
    for _ in range(50):
        state = state.observe([10], [10])
    for _ in range(10):
        state = state.observe([40], [10])
    assert state.ratio > 3.2


@pytest.mark.parametrize(
    ("observed", "expected"),
    [(0, 10), (10, 0), (-1, 10), (math.nan, 10), (10, math.nan), (10, math.inf), (math.inf, 10)],
)
def test_what_cannot_be_compared_changes_nothing(observed: float, expected: float) -> None:
    before = Slowdown(0.3, 0.05)
    assert before.observe([observed], [expected]) is before


def test_several_requests_at_once_are_the_same_requests_in_a_row() -> None:
    observed, expected = [12.0, 40.0, 9.0, 0.0, 41.0, 44.0, 39.0, 45.0, math.nan, 10.0], [10.0] * 9 + [0.0]
    one_by_one = Slowdown()
    for ms, predicted in zip(observed, expected, strict=True):
        one_by_one = one_by_one.observe([ms], [predicted])
    assert Slowdown().observe(observed, expected) == one_by_one
    assert one_by_one.observe([], []) is one_by_one


def test_scatter_by_hand() -> None:
    # a 32nd of the squared distance from the mean that was expected, at most 2 of log
    first = Slowdown().observe([20], [10])
    assert first.scatter == pytest.approx(math.log(2) ** 2 / 32)
    off = math.log(0.5) - first.mean
    assert first.observe([5], [10]).scatter == pytest.approx(first.scatter * 31 / 32 + off**2 / 32)
    assert Slowdown().observe([1e6], [1]).scatter == Slowdown().observe([1], [1e6]).scatter == pytest.approx(4 / 32)
    assert Slowdown(scatter=0.09).spread == pytest.approx(0.3)


@pytest.mark.parametrize("truth", [0.1, 0.3, 0.6])
def test_spread_is_that_of_the_requests(truth: float) -> None:
    random, state, found = np.random.default_rng(0), Slowdown(), []
    for noise in random.normal(0, truth, 2000):
        state = state.observe([30 * math.exp(noise)], [10])
        found.append(state.scatter)
    # around a mean that follows them, so somewhat more than their own; the variance of the mean is none of it
    assert truth < math.sqrt(np.mean(found[200:])) < 1.25 * truth


def test_scatter_is_forgotten() -> None:
    state = Slowdown().observe([1e6], [1])
    for _ in range(200):
        state = state.observe([10], [10])
    assert state.spread < 0.1


def test_what_cannot_be_compared_leaves_the_scatter() -> None:
    before = Slowdown(0.3, 0.05, 0.2)
    assert before.observe([0], [10]) is before


def test_four_in_a_row_to_one_side_are_a_change_and_are_followed_at_once() -> None:
    state = Slowdown()
    for _ in range(300):
        state = state.observe([10], [10])
    for count, uncertain in ((1, False), (2, False), (3, False), (4, True)):
        state = state.observe([40], [10])
        assert state.run == count
        assert (state.variance > 0.02) == uncertain
    # one to the other side, or one within the noise, starts anew
    assert state.observe([1], [10]).run == -1
    assert state.observe([10 * state.ratio], [10]).run == 0
