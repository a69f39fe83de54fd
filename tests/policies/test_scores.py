"""Scores and averaging against scipy, arithmetic by hand, and rows on their own."""

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.special import softmax as scipy_softmax
from scipy.stats import entropy
from support.policy_cases import repeatable

from dynamic.policies.errors import SettingError
from dynamic.policies.scores import (
    COMBINE,
    SCORES,
    Combiner,
    Running,
    margin,
    max_probability,
    negative_entropy,
    softmax,
)

NAN = float("nan")
LOGITS = arrays(np.float32, (4, 3, 5), elements=st.floats(-30, 30, width=32))  # [S, B, C]


BACKBONE = (0, 1, 1, 2)


def combiner(
    combine: str, stages: int = 3, score: str = "max_probability", backbone: tuple[int, ...] = BACKBONE
) -> Combiner:
    return Combiner((1.0,) * stages, score, combine=combine, backbone=backbone[:stages])


def run(one: Combiner, logits: Iterable[NDArray[np.float32]]) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """(answer, score) after each stage of `logits [S, B, C]`."""
    state, found = one.start(), []
    for stage, own in enumerate(logits):
        answer, score, state = one.add(state, stage, own)
        found.append((answer, score))
    return found


@repeatable
@given(LOGITS, st.floats(0.05, 20))
def test_softmax_is_scipys(logits: NDArray[np.float32], temperature: float) -> None:
    before = logits.copy()
    found = softmax(logits, temperature)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, scipy_softmax(logits.astype(float) / temperature, axis=-1), rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(logits, before, err_msg="what is given must not change")


def test_softmax_of_what_is_not_finite() -> None:
    found = softmax(np.array([[0, NAN, 1], [np.inf, 0, 0], [-np.inf, 0, 0], [-np.inf] * 3], np.float32))
    assert np.isnan(found[[0, 1, 3]]).all()
    assert found[2].tolist() == [0, 0.5, 0.5]  # an impossible class is no mistake


@pytest.mark.parametrize("score", sorted(SCORES))
def test_the_layout_in_memory_changes_no_bit(score: str) -> None:
    logits = np.random.default_rng(0).normal(size=(3, 500, 17)).astype(np.float32)
    one, other = (run(combiner("mean", 3, score), z) for z in (logits, [np.asfortranarray(z) for z in logits]))
    for (answer, sure), (same_answer, same_sure) in zip(one, other, strict=True):
        assert answer.tolist() == same_answer.tolist()
        assert sure.tolist() == same_sure.tolist()


def test_scores_by_hand() -> None:
    p = np.array([[0.5, 0.3, 0.2], [0.1, 0.45, 0.45], [0.0, 1.0, 0.0]], np.float32)
    np.testing.assert_allclose(max_probability(p), [0.5, 0.45, 1.0])
    np.testing.assert_allclose(margin(p), [0.2, 0.0, 1.0], atol=1e-7)
    np.testing.assert_allclose(negative_entropy(p), -entropy(p.astype(float), axis=1), atol=1e-6)
    assert negative_entropy(p)[2] == 0


@repeatable
@given(arrays(np.float32, (6, 5), elements=st.floats(-30, 30, width=32)))
def test_negative_entropy_is_scipys(logits: NDArray[np.float32]) -> None:
    p = softmax(logits)
    np.testing.assert_allclose(negative_entropy(p), -entropy(p.astype(float), axis=1), atol=1e-5)


def test_mean_averages_and_last_does_not() -> None:
    # probabilities 0.8 and 0.2, then even, then 0.1 and 0.9
    logits = np.log(np.array([[[0.8, 0.2]], [[0.5, 0.5]], [[0.1, 0.9]]], np.float32))
    means = [answer[0] for answer, _ in run(combiner("mean"), logits)]
    np.testing.assert_allclose(means, [[0.8, 0.2], [0.65, 0.35], [1.4 / 3, 1.6 / 3]], rtol=1e-5)
    assert [float(score[0]) for _, score in run(combiner("mean"), logits)] == pytest.approx([0.8, 0.65, 1.6 / 3])
    lasts = [answer[0] for answer, _ in run(combiner("last"), logits)]
    np.testing.assert_allclose(lasts, [[0.8, 0.2], [0.5, 0.5], [0.1, 0.9]], rtol=1e-5)


def test_backbones_average_the_latest_answer_of_each() -> None:
    # two exits of one network, one network alone, and two exits of a third
    own = [[0.8, 0.2], [0.6, 0.4], [0.2, 0.8], [0.5, 0.5], [0.1, 0.9]]
    logits = np.log(np.array(own, np.float32))[:, None]
    found = run(Combiner((1.0,) * 5, "max_probability", combine="backbones", backbone=(0, 0, 1, 2, 2)), logits)
    expected = [0.8, 0.6, (0.6 + 0.2) / 2, (0.6 + 0.2 + 0.5) / 3, (0.6 + 0.2 + 0.1) / 3]
    np.testing.assert_allclose([answer[0, 0] for answer, _ in found], expected, rtol=1e-5)
    assert [float(score[0]) for _, score in found] == pytest.approx([max(e, 1 - e) for e in expected], rel=1e-5)


def test_backbones_fall_back_on_the_exit_before_a_broken_one() -> None:
    own = [[0.8, 0.2], [0.6, 0.4], [0.2, 0.8], [0.1, 0.9]]
    logits = np.repeat(np.log(np.array(own, np.float32))[:, None], 2, axis=1)  # two rows
    logits[1, 0] = NAN  # the second exit of the first network, for the first row
    logits[3, 1] = NAN  # the last network, for the second row
    found = run(Combiner((1.0,) * 4, "max_probability", combine="backbones", backbone=(0, 0, 1, 2)), logits)
    answers = [answer[:, 0].tolist() for answer, _ in found]
    expected = [[0.8, 0.8], [0.8, 0.6], [(0.8 + 0.2) / 2, (0.6 + 0.2) / 2], [(0.8 + 0.2 + 0.1) / 3, (0.6 + 0.2) / 2]]
    np.testing.assert_allclose(answers, expected, rtol=1e-5)
    assert [np.isnan(score).tolist() for _, score in found] == [[False] * 2, [True, False], [False] * 2, [False, True]]


# of a row: the probability of class 0 at each stage (None: nothing finite), and its score there
PATIENCE = {
    "last": [
        ([0.8, 0.6, 0.9, 0.7], [0, 1, 2, 3]),
        ([0.8, 0.3, 0.4, 0.7], [0, 0, 1, 0]),
        ([0.8, 0.3, 0.7, 0.2], [0, 0, 0, 0]),
        ([0.5, 0.7, 0.5, 0.2], [0, 1, 2, 0]),  # of classes that are as likely the first
        ([0.2, 0.5, 0.5, 0.5], [0, 0, 1, 2]),
        ([0.8, None, 0.7, 0.6], [0, NAN, 1, 2]),  # the run goes on behind it
        ([0.8, None, 0.3, None], [0, NAN, 0, NAN]),
        ([None, 0.3, None, 0.2], [NAN, 0, NAN, 1]),
        ([None, None, 0.8, 0.7], [NAN, NAN, 0, 1]),  # what has no answer yet was not class 0
        ([None, None, None, None], [NAN, NAN, NAN, NAN]),
    ],
    "mean": [
        ([0.8, 0.3, 0.2, 0.1], [0, 1, 0, 1]),  # means 0.8, 0.55, 0.43, 0.35
        ([0.75, 0.25, 0.9, 0.0], [0, 1, 2, 0]),  # means 0.75, 0.5, 0.63, 0.475
        ([0.8, None, 0.3, 0.1], [0, NAN, 1, 0]),  # means 0.8, none, 0.55, 0.4
    ],
    "backbones": [  # 0, 1, 1, 2
        ([0.8, 0.4, 0.1, 0.7], [0, 1, 0, 0]),  # means 0.8, 0.6, 0.45 (without 0.4), 0.53
        ([0.8, 0.1, 0.4, 0.7], [0, 0, 0, 1]),  # means 0.8, 0.45, 0.6, 0.63
        ([0.8, 0.1, None, 0.3], [0, 0, NAN, 1]),  # means 0.8, 0.45, none, 0.4
    ],
}


@pytest.mark.parametrize("combine", COMBINE)
def test_patience_by_hand(combine: str) -> None:
    first = np.array([row for row, _ in PATIENCE[combine]], np.float32).T  # [S, B]
    logits = np.log(np.stack([first, 1 - first], axis=-1) + np.float32(1e-30))
    expected = np.array([score for _, score in PATIENCE[combine]]).T
    one = combiner(combine, 4, "patience")
    together = [score for _, score in run(one, logits)]
    np.testing.assert_array_equal(together, expected)
    assert {score.dtype for score in together} == {np.dtype(np.float32)}
    for row in range(first.shape[1]):
        alone = [score for _, score in run(one, logits[:, row : row + 1])]
        np.testing.assert_array_equal(alone, expected[:, row : row + 1])


def test_each_stage_has_its_own_temperature() -> None:
    one = Combiner((1.0, 2.0), "margin", combine="last")
    logits = np.array([[[3.0, 1.0]], [[3.0, 1.0]]], np.float32)
    (_, sharp), (_, flat) = run(one, logits)
    # the margin of two classes is tanh of half the scaled difference
    assert float(sharp[0]) == pytest.approx(np.tanh(1.0), rel=1e-5)
    assert float(flat[0]) == pytest.approx(np.tanh(0.5), rel=1e-5)


def test_a_stage_of_nan_gets_no_score_and_stays_out_of_the_average() -> None:
    first, last = [0.8, 0.2], [0.4, 0.6]
    logits = np.log(np.array([[first, first], [[0.5, 0.5]] * 2, [last, last]], np.float32))
    logits[1, 0, 1] = NAN
    (_, _), (middle, score), (end, _) = run(combiner("mean"), logits)
    assert np.isnan(score).tolist() == [True, False]
    np.testing.assert_allclose(middle[0], first, rtol=1e-5)  # the answer before stands
    np.testing.assert_allclose(end, [[0.6, 0.4], [1.7 / 3, 1.3 / 3]], rtol=1e-5)
    (_, _), (middle, score), (end, _) = run(combiner("last"), logits)
    assert np.isnan(score).tolist() == [True, False]
    np.testing.assert_allclose(middle[0], first, rtol=1e-5)
    np.testing.assert_allclose(end[0], last, rtol=1e-5)


@pytest.mark.parametrize("combine", COMBINE)
def test_nan_first_and_nan_for_good(combine: str) -> None:
    logits = np.log(np.array([[[0.5, 0.5]] * 2, [[0.7, 0.3]] * 2], np.float32))
    logits[0] = NAN
    logits[1, 1] = np.inf
    (answer, score), (end, end_score) = run(combiner(combine), logits)
    assert np.isnan(answer).all()
    assert np.isnan(score).all()
    np.testing.assert_allclose(end[0], [0.7, 0.3], rtol=1e-5)
    assert float(end_score[0]) == pytest.approx(0.7)
    assert np.isnan(end[1]).all()
    assert np.isnan(end_score[1])


@repeatable
@given(LOGITS, arrays(np.bool_, (4, 3)), st.sampled_from(COMBINE), st.sampled_from(sorted(SCORES)))
def test_broken_rows_do_not_touch_the_others(
    logits: NDArray[np.float32], broken: NDArray[np.bool_], combine: str, score: str
) -> None:
    logits = logits.copy()
    logits[broken] = NAN
    one = combiner(combine, 4, score)
    together = run(one, logits)
    for row in range(3):
        good = ~broken[:, row]
        backbone = tuple(b for b, g in zip(BACKBONE, good, strict=True) if g)
        alone = run(combiner(combine, int(good.sum()), score, backbone), logits[good, row : row + 1])
        for (answer, sure), stage in zip(alone, np.flatnonzero(good), strict=True):
            np.testing.assert_allclose(together[stage][0][row], answer[0], rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(together[stage][1][row], sure[0], rtol=1e-4, atol=1e-5)
        assert all(np.isnan(together[stage][1][row]) for stage in np.flatnonzero(broken[:, row]))


@pytest.mark.parametrize("score", ["max_probability", "patience"])
@pytest.mark.parametrize("combine", COMBINE)
@pytest.mark.parametrize("broken", [False, True])
def test_rows_that_stay_go_on_as_if_alone(combine: str, broken: bool, score: str) -> None:
    logits = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    if broken:
        logits[1, 2] = NAN
    one, rows = combiner(combine, score=score), np.array([0, 2])
    state = one.start()
    for stage in range(2):
        _, _, state = one.add(state, stage, logits[stage])
    answer, sure, _ = one.add(state.select(rows), 2, logits[2, rows])
    expected, expected_sure = run(one, logits[:, rows])[2]
    np.testing.assert_allclose(answer, expected, rtol=1e-6)
    np.testing.assert_allclose(sure, expected_sure, rtol=1e-6)
    assert Running().select(rows) == Running()


def test_unknown_words_are_named() -> None:
    with pytest.raises(SettingError, match=r"'certainty'.*max_probability"):
        Combiner((1.0,), "certainty", combine="mean")
    with pytest.raises(SettingError, match=r"'median'.*mean"):
        Combiner((1.0,), "margin", combine="median")
    with pytest.raises(SettingError, match=r"'backbones' needs the backbone of each of 2"):
        Combiner((1.0, 1.0), "margin", combine="backbones")
