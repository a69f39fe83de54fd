"""Losses by hand, means over groups by hand, and evidence against the tests it is made of."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom
from support.policy_cases import learned, make_records, repeatable

from dynamic.policies.certification.bounds import betting_p, signed_p
from dynamic.policies.certification.risks import RISKS, Evidence, Sample, risk_named
from dynamic.policies.certification.risks import test_name as name_of_test
from dynamic.policies.errors import CalibrationError, SettingError

RIGHT = np.array([True, True, False, False])
REFERENCE_RIGHT = np.array([True, False, True, False])
BY_HAND = {
    "drop": [0, -1, 1, 0],
    "harm": [0, 0, 1, 0],
    "disagreement": [0, 0, 1, 1],
    "error": [0, 0, 1, 1],
}


def losses(lost: int, gained: int, count: int) -> NDArray[Any]:
    return np.repeat(np.array([1, -1, 0], np.int8), [lost, gained, count - lost - gained])


@pytest.mark.parametrize("name", RISKS)
def test_losses_by_hand(name: str) -> None:
    found = RISKS[name].loss(RIGHT, REFERENCE_RIGHT)
    assert found.dtype == np.int8
    assert found.tolist() == BY_HAND[name]


def test_what_is_told_of_each_risk_is_so() -> None:
    assert set(RISKS) == set(BY_HAND)
    for name, risk in RISKS.items():
        assert risk_named(name) is risk
        assert risk.name == name
        assert risk.signed == (min(BY_HAND[name]) < 0)
        # the reference beside itself, right and wrong; without labels its own answer is always the one wanted
        own = risk.loss(np.array([True, False]), np.array([True, False]))[: 2 if risk.needs_labels else 1]
        assert risk.of_reference == own.any()
    assert [name for name, risk in RISKS.items() if not risk.needs_labels] == ["disagreement"]


def test_an_unknown_risk_is_named() -> None:
    with pytest.raises(SettingError, match=r"risk='loss' is unknown: use one of \['disagreement', 'drop'"):
        risk_named("loss")


def test_the_answer_wanted() -> None:
    logits, label = learned(6, 2)
    records, reference = make_records(logits, label), np.array([3, 2, 1, 0, -1, 0])
    for name, risk in RISKS.items():
        wanted = risk.correct_answers(records, reference)
        assert wanted.tolist() == (reference if name == "disagreement" else label).tolist()
    assert RISKS["disagreement"].correct_answers(replace(records, label=None), reference).tolist() == reference.tolist()


@pytest.mark.parametrize("name", ["drop", "harm", "error"])
def test_missing_labels_are_named_with_what_to_do(name: str) -> None:
    logits, label = learned(6, 2)
    without = replace(make_records(logits, label), label=None)
    with pytest.raises(CalibrationError, match=rf"risk='{name}' needs labels.*\(inputs, labels\).*'disagreement'"):
        RISKS[name].correct_answers(without, np.zeros(6, np.int64))


# who counts


def test_without_groups_every_record_counts_the_same() -> None:
    sample = Sample(4)
    assert sample.units == 4
    values = np.array([1, -1, 1, 0], np.int8)
    assert sample.unit_means(values).tolist() == [1, -1, 1, 0]
    assert sample.unit_means(values).dtype == np.float64
    assert sample.mean(values) == 0.25


@pytest.mark.parametrize(
    "group",
    [
        np.array([7, 2, 7, 7, 2, 40, 7]),
        np.array(["patient 10", "patient 1", "patient 10", "patient 10", "patient 1", "patient 2", "patient 10"]),
    ],
)
def test_groups_by_hand(group: NDArray[Any]) -> None:
    sample = Sample(7, group)
    # groups in order are records 1 and 4, then (numbers: 0, 2, 3, 6, then 5; words: the other way round)
    values = np.array([1, 1, 0, -1, 0, -1, 1], np.int8)
    assert sample.units == 3
    assert sorted(sample.unit_means(values).tolist()) == [-1.0, 0.25, 0.5]
    assert sample.unit_means(values)[0] == 0.5
    assert sample.mean(values) == pytest.approx(-0.25 / 3)  # not 1 / 7
    assert sample.unit_means(np.array([0.5, 1, 0, 0, 0, 0, 1], np.float32)).sum() == 0.5 + 1.5 / 4


def test_of_one_record_a_group_is_a_record() -> None:
    values = losses(2, 1, 9)
    assert Sample(9, np.arange(9)[::-1]).mean(values) == Sample(9).mean(values) == pytest.approx(1 / 9)


# evidence


@pytest.mark.parametrize("target", [0.0, 0.03, 0.2])
def test_the_test_is_that_of_the_risk(target: float) -> None:
    sample, level = Sample(200), 0.1
    signed = Evidence(RISKS["drop"], sample, losses(6, 5, 200))
    assert signed.mean == pytest.approx(0.005)
    assert signed.p_value(target, level) == signed_p(6, 5, 200, target, 0.025 * level)
    for name in ("harm", "disagreement", "error"):
        found = Evidence(RISKS[name], sample, losses(6, 0, 200))
        assert found.mean == pytest.approx(0.03)
        assert found.p_value(target, level) == pytest.approx(binom.cdf(6, 200, target), rel=1e-8)
    # of the same counts the exact binomial pays for no nuisance
    alike = Evidence(RISKS["drop"], sample, losses(6, 0, 200)).p_value(0.1, level)
    assert Evidence(RISKS["harm"], sample, losses(6, 0, 200)).p_value(0.1, level) < alike


@pytest.mark.parametrize("name", ["drop", "error"])
def test_groups_are_bet_on(name: str) -> None:
    group = np.arange(200) % 20
    seen = losses(6, 5 if name == "drop" else 0, 200)
    found = Evidence(RISKS[name], Sample(200, group), seen)
    means = np.array([seen[group == g].mean() for g in range(20)])
    assert found.mean == pytest.approx(means.mean())
    assert found.p_value(0.2, 0.1) == pytest.approx(betting_p(means, 0.2))
    assert found.p_value(0.2, 0.1, 3) == pytest.approx(betting_p(np.tile(means, 3), 0.2))


def test_as_if_seen_more_often() -> None:
    for risk, gained in ((RISKS["drop"], 5), (RISKS["harm"], 0)):
        once, thrice = (Evidence(risk, Sample(n * 200), losses(n * 6, n * gained, n * 200)) for n in (1, 3))
        assert once.p_value(0.05, 0.1, 3) == thrice.p_value(0.05, 0.1)
        assert once.p_value(0.05, 0.1) > thrice.p_value(0.05, 0.1)


@pytest.mark.parametrize("level", [0.002, 0.1])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(
    ("name", "lost", "gained", "target"),
    [
        ("drop", 4, 1, 0.02),
        ("drop", 4, 6, 0.0),
        ("drop", 60, 58, 0.02),
        ("error", 11, 0, 0.03),
        ("error", 0, 0, 0.001),
    ],
)
def test_so_many_would_do(name: str, lost: int, gained: int, target: float, grouped: bool, level: float) -> None:
    random = np.random.default_rng(0)
    sample = Sample(400, random.permutation(np.arange(400) // 8)) if grouped else Sample(400)
    found = Evidence(RISKS[name], sample, random.permutation(losses(lost, gained, 400)))
    needed = found.needed(target, level)
    assert needed is not None
    times = needed / sample.units
    assert found.p_value(target, level, times) <= level
    # counts are rounded, so that a few per cent fewer may do by chance
    assert found.p_value(target, level, 0.9 * times) > level
    assert (needed > sample.units) == (found.p_value(target, level) > level)


def test_where_there_is_more_than_enough_no_more_is_asked_for() -> None:
    found = Evidence(RISKS["drop"], Sample(400), losses(10, 4, 400))
    needed = found.needed(0.3, 0.1)
    assert needed is not None
    assert needed <= 400
    assert found.p_value(0.3, 0.1, needed / 400) <= 0.1


def test_none_of_so_many_by_hand() -> None:
    # (1 - 0.01)^n <= 0.05 from n = 299 on
    assert 0.99**299 <= 0.05 < 0.99**298
    needed = Evidence(RISKS["error"], Sample(100), losses(0, 0, 100)).needed(0.01, 0.05)
    assert needed == pytest.approx(299, abs=1)
    assert needed is not None
    assert needed >= 299


@pytest.mark.parametrize("group", [None, np.arange(400) // 8])
def test_no_number_would_do(group: NDArray[Any] | None) -> None:
    signed = Evidence(RISKS["drop"], Sample(400, group), losses(4, 4, 400))
    assert signed.needed(0.0, 0.1) is None  # exactly at the target
    assert signed.needed(0.01, 0.1) is not None
    above = Evidence(RISKS["error"], Sample(400, group), losses(8, 0, 400))
    assert above.needed(0.019, 0.1) is None
    assert above.needed(0.02, 0.1) is None
    assert above.needed(0.02 + 1e-9, 0.1) is None  # more than anybody has
    nothing = Evidence(RISKS["error"], Sample(0, None if group is None else group[:0]), losses(0, 0, 0))
    assert nothing.needed(0.5, 0.1) is None


def test_tests_have_names() -> None:
    assert name_of_test(RISKS["drop"], True) == name_of_test(RISKS["error"], True)
    assert len({name_of_test(RISKS[name], False) for name in RISKS}) == 2
    assert "binomial" in name_of_test(RISKS["harm"], False)
    assert "Berger and Boos" in name_of_test(RISKS["drop"], False)


@repeatable
@given(st.integers(20, 3000), st.floats(0, 0.4), st.floats(0, 0.4), st.floats(0.001, 0.3), st.floats(0.001, 0.2))
def test_what_is_rejected_at_a_level_is_at_every_larger_one(
    count: int, lost: float, gained: float, target: float, level: float
) -> None:
    # the spare of signed losses follows the level: handing levels on needs this
    seen = Evidence(RISKS["drop"], Sample(count), losses(int(lost * count), int(gained * count), count))
    larger = [level * times for times in (1.01, 1.5, 2, 4)]
    if seen.p_value(target, level) <= level:
        assert all(seen.p_value(target, more) <= more for more in larger)
