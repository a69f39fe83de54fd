"""One free threshold: every step is tested, all records certify, and no bound is wrong more often than it may be."""

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given as examples
from hypothesis import strategies as st
from scipy.stats import binom
from support.policy_cases import INF, learned, make_records, repeatable

from dynamic.policies.certification.answers import Answers
from dynamic.policies.certification.certificates import certify
from dynamic.policies.certification.ladders.counted_steps import CountedSteps, LossTest
from dynamic.policies.certification.risks import RISKS
from dynamic.policies.records import Records
from dynamic.policies.scores import Combiner

LAST = Combiner((1.0, 1.0), "max_probability", combine="last")


def cascade(score: Any, wrong: Any) -> Records:
    """Records of an exit with these scores (logits of class 1) that answers otherwise than the reference where `wrong`.

    The label is the answer of the reference.
    """
    score, wrong = np.asarray(score, float), np.asarray(wrong, bool)
    logits = np.zeros((len(score), 2, 3))
    logits[:, 0, 1] = score
    logits[np.arange(len(score)), 1, np.where(wrong, 2, 1)] = 5.0
    return make_records(logits, np.where(wrong, 2, 1), (0, 1), np.ones(len(score)), body=(1.0, 3.0))


def steps_of(records: Records, risk: str = "harm", combiner: Combiner = LAST, **options: Any) -> CountedSteps:
    measure = RISKS[risk]
    exits = Answers(records, combiner, measure).exits((0,))
    return CountedSteps.of(exits, LossTest(measure, len(records), **options))


def test_steps_by_hand() -> None:
    # scores rise with the logit: 5, 4, 4, 2, 1. Equal scores exit together
    steps = steps_of(cascade([4, 1, 5, 2, 4], [True, False, False, False, True]))
    assert steps.lost.tolist() == [0, 0, 2, 2, 2]
    assert steps.gained.tolist() == [0] * 5
    assert steps.thresholds[-1] == -INF
    answers = Answers(cascade([4, 1, 5, 2, 4], [True, False, False, False, True]), LAST, RISKS["harm"])
    exits = [int((answers.exits_under((float(t),))[0] == 0).sum()) for t in steps.thresholds]
    assert exits == [0, 1, 3, 4, 5]


@repeatable
@examples(
    st.integers(2, 60), st.sampled_from(["last", "backbones"]), st.sampled_from(sorted(RISKS)), st.integers(0, 99)
)
def test_steps_are_what_thresholds_give(count: int, combine: Any, risk: str, seed: int) -> None:
    logits, label = learned(count, 2, seed=seed)
    records = make_records(np.round(logits, 1), label, (0, 1))  # rounded, so that scores tie
    combiner = Combiner((1.0, 1.0), "max_probability", combine=combine, backbone=(0, 1))
    steps, answers = steps_of(records, risk, combiner), Answers(records, combiner, RISKS[risk])
    for threshold, lost, gained in zip(steps.thresholds, steps.lost, steps.gained, strict=True):
        loss = answers.exits_under((float(threshold),))[1]
        assert ((loss > 0).sum(), (loss < 0).sum()) == (lost, gained)
    assert len(steps) == 1 + len(np.unique(answers.exits((0,)).stages[0].score))


def test_scores_that_are_all_equal_make_one_step() -> None:
    steps = steps_of(cascade([2] * 40, [True] + [False] * 39))
    assert steps.lost.tolist() == [0, 1]
    assert steps.first_failure(0.1, 0.1) == 2  # one loss in 40
    assert steps.first_failure(0.06, 0.1) == 1


def test_a_score_that_is_not_finite_never_exits() -> None:
    records = cascade([3, np.nan, 1], [False, False, False])
    steps = steps_of(records)
    assert len(steps) == 3
    assert steps.thresholds[-1] > -INF or np.isnan(records.logits[1, 0]).any()


@pytest.mark.parametrize("target", [0.02, 0.1])
def test_the_first_failure_is_the_first_loss_too_many(target: float) -> None:
    random = np.random.default_rng(0)
    wrong = random.random(200) < 0.2
    steps = steps_of(cascade(random.random(200), wrong), nested=True)
    most = max(lost for lost in range(201) if binom.cdf(lost, 200, target) <= 0.1)
    assert steps.test.most_lost(target, 0.1) == most
    assert steps.first_failure(target, 0.1) == int(np.argmax(steps.lost > most))


def test_few_expected_losses_bound_the_drop_by_the_harm() -> None:
    few, many = (LossTest(RISKS["drop"], count, nested=True) for count in (150, 600))
    assert few.is_one_sided(0.02)
    assert not many.is_one_sided(0.02)
    assert few.p_value(0, 5, 0.02, 0.1) == pytest.approx(0.98**150, rel=1e-6)
    assert not LossTest(RISKS["drop"], 150).is_one_sided(0.02), "inputs that continue may lose"


@pytest.mark.parametrize("risk", ["harm", "error"])
@pytest.mark.parametrize(("count", "target", "level"), [(4, 0.34, 0.3), (5, 0.4, 0.1), (6, 0.25, 0.2)])
def test_every_draw_of_a_small_population(count: int, target: float, level: float, risk: str) -> None:
    """Three inputs of equal probability, every kind of them, every order of draws: the exact chance of a wrong step."""
    for wrong in itertools.product((False, True), repeat=3):
        truth = np.cumsum(wrong) / 3  # the risk under the threshold below each of the scores 3, 2, 1
        failures = 0.0
        for drawn in itertools.product(range(3), repeat=count):
            steps = steps_of(cascade([3 - i for i in drawn], [wrong[i] for i in drawn]), risk)
            last = steps.first_failure(target, level) - 1
            if last < 0:
                continue
            lowest = min(drawn) if last == 0 else sorted(set(drawn))[last - 1]
            below = max([i for i in range(3) if i <= lowest]) if last else -1
            failures += below >= 0 and truth[below] > target
        assert failures / 3**count <= level + 1e-12


@pytest.mark.parametrize("risk", ["drop", "harm"])
@pytest.mark.parametrize(("count", "target", "level"), [(12, 0.3, 0.1), (10, 0.3, 0.3)])
def test_every_draw_of_a_small_population_with_gains(count: int, target: float, level: float, risk: str) -> None:
    """As above, where an exit may also be right and the reference wrong. The drop counts both."""
    highest = 0.0
    for kinds in itertools.product((-1, 0, 1), repeat=3):
        truth = np.cumsum(kinds if risk == "drop" else np.maximum(kinds, 0)) / 3
        failures = 0.0
        for drawn in itertools.combinations_with_replacement(range(3), count):
            records = cascade([3 - i for i in drawn], [kinds[i] != 0 for i in drawn])
            gained = np.array([kinds[i] < 0 for i in drawn])
            label = np.where(gained, 1, np.asarray(records.label))  # of the exit's answer
            steps = steps_of(replace(records, label=label), risk)
            last = steps.first_failure(target, level) - 1
            present = sorted(set(drawn))
            if last > 0 and truth[present[last - 1]] > target:
                times = np.bincount(drawn, minlength=3).tolist()
                failures += math.factorial(count) / math.prod(map(math.factorial, times)) / 3**count
        highest = max(highest, failures)
    assert 0 < highest <= level + 1e-12


EDGE_DRAWS = 1000


@pytest.mark.parametrize("combine", ["last", "backbones"])
@pytest.mark.parametrize("risk", ["drop", "harm", "disagreement", "error"])
def test_where_every_threshold_violates_by_a_hair(risk: Any, combine: Any) -> None:
    """All that is lost is lost by the most confident inputs, so every certified threshold is a violation."""
    size, share = 2000, 0.05
    random = np.random.default_rng(1)
    score = np.where(np.arange(size) < share * size, 9.0, random.uniform(1, 8, size))
    population = cascade(score, np.arange(size) < share * size)
    certified = 0
    for _ in range(EDGE_DRAWS):
        taken = population.select(random.integers(size, size=120))
        if len(np.unique(np.asarray(taken.label)[:30])) < 2:
            continue
        given = replace(taken, part=(np.arange(120) >= 30).astype(np.int8))
        ladder = certify(given, (share - 1e-9,), delta=0.1, risk=risk, combine=combine, floor=0)
        certified += any(point.target == share - 1e-9 and point.bound is not None for point in ladder.points)
    assert certified <= binom.ppf(0.999, EDGE_DRAWS, 0.1)
    if risk != "error" and combine == "last":
        assert certified >= 0.01 * EDGE_DRAWS, "the level is used"
