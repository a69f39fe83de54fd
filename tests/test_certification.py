"""Ladders against a plain reading of the records."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from policy_cases import INF, learned, make_records
from scipy.stats import binomtest

from dynamic.policies.certification import MAX_DROPS, certify, wilson
from dynamic.policies.errors import BudgetError, CalibrationError
from dynamic.policies.ladder import Ladder
from dynamic.policies.plan import plan
from dynamic.policies.records import Records
from dynamic.policies.replay import cost_to, replay
from dynamic.policies.scores import Combiner

BACKBONE = (0, 0, 1)


def records(count: int = 1200, **fields: Any) -> Records:
    logits, label = learned(count, 3, seed=5, reach=(2.0, 3.5))
    return make_records(logits, label, BACKBONE, np.arange(count) % 2, body=(1.0, 1.0, 3.0), head=(0.1,) * 3, **fields)


def combiner(ladder: Ladder) -> Combiner:
    return Combiner(ladder.temperature, ladder.score, ladder.combine, ladder.backbone)


def mean_cost(ladder: Ladder, given: Records, thresholds: tuple[float, ...]) -> float:
    todo = plan(np.array(thresholds, np.float32), given.backbone)
    found = replay(given.logits, combiner(ladder), thresholds, given.backbone)
    return float(cost_to(todo, given.macs, given.head_macs)[found.stage].mean())


def test_drops_are_measured_against_the_last_network_alone() -> None:
    given = records()
    ladder = certify(given)
    held_out = given.select(given.part == 1)
    assert held_out.label is not None
    alone = held_out.logits[:, -1].argmax(axis=1) == held_out.label  # not averaged with anything
    assert ladder.points[0].accuracy[1] == alone.mean()
    deviating = 0
    for point in ladder.points:
        found = replay(held_out.logits, combiner(ladder), point.thresholds, BACKBONE)
        correct = found.prediction == held_out.label
        assert point.accuracy[1] == pytest.approx(correct.mean())
        assert point.risk == pytest.approx(alone.mean() - correct.mean())
        assert point.shares == pytest.approx([(found.stage == s).mean() for s in range(3)])
        assert point.n == 600
        deviating += point.risk != 0
    assert deviating >= 3


def test_the_reference_comes_first_and_the_rest_from_dear_to_cheap() -> None:
    given = records()
    ladder = certify(given)
    reference, *others = ladder.points
    assert (reference.name, reference.thresholds) == ("reference", (INF, INF))
    assert (reference.risk, reference.target, reference.backbones) == (0.0, 0.0, (1,))
    assert reference.shares == (0.0, 0.0, 1.0)
    names = [p.name for p in others]
    assert names[-1] == "cheapest"
    assert {"best", "drop 0.01", "drop 0.05"} <= set(names)
    assert len({p.thresholds for p in ladder.points}) == len(ladder.points)
    chose = given.select(given.part == 0)
    costs = [mean_cost(ladder, chose, p.thresholds) for p in others]
    assert costs == sorted(costs, reverse=True)
    assert ladder.points[-1].thresholds[0] == -INF
    assert ladder.points[-1].backbones == (0,)


def test_targets_are_met_where_thresholds_were_chosen() -> None:
    given = records()
    ladder = certify(given, margin=0.5)
    chose = given.select(given.part == 0)
    reference = chose.logits[:, -1].argmax(axis=1) == chose.label
    targets = []
    for point in ladder.points[1:-1]:
        correct = replay(chose.logits, combiner(ladder), point.thresholds, BACKBONE).prediction == chose.label
        lost = reference.astype(float) - correct
        assert point.target is not None
        assert lost.mean() + 0.5 * lost.std() / math.sqrt(len(lost)) <= point.target + 1e-9
        targets.append(point.target)
    assert set(targets) <= set(MAX_DROPS)
    assert targets == sorted(targets), "what may lose more is cheaper"


def test_a_margin_costs_compute() -> None:
    given = records()
    chose = given.select(given.part == 0)
    careful, bold = (certify(given, (0.02,), margin=m) for m in (2.0, 0.0))
    cost = [mean_cost(x, chose, next(p for p in x.points if p.name == "drop 0.02").thresholds) for x in (careful, bold)]
    assert cost[0] > cost[1]


def test_what_is_chosen_sees_part_0_alone() -> None:
    given = records()
    ladder = certify(given)
    random = np.random.default_rng(1)
    logits, label = given.logits.copy(), np.array(given.label)
    other = given.part == 1
    logits[other] = 9 * random.normal(size=logits[other].shape)
    label[other] = random.integers(4, size=other.sum())
    altered = certify(replace(given, logits=logits, label=label))
    assert altered.temperature == ladder.temperature
    assert [(p.name, p.thresholds, p.target) for p in altered.points] == [
        (p.name, p.thresholds, p.target) for p in ladder.points
    ]
    assert [p.accuracy for p in altered.points] != [p.accuracy for p in ladder.points]  # measured on part 1
    logits = given.logits.copy()
    logits[~other] *= 2
    assert certify(replace(given, logits=logits)).temperature != ladder.temperature


def test_without_a_second_part_the_first_measures() -> None:
    ladder = certify(replace(records(), part=np.zeros(1200, np.int8)))
    assert {p.n for p in ladder.points} == {1200}


def test_nothing_is_certified_yet() -> None:
    ladder = certify(records(200))
    assert ladder.certified is False
    assert {(p.bound, p.delta) for p in ladder.points} == {(None, None)}
    assert (ladder.fingerprint, ladder.backbone) == ("f", BACKBONE)


def test_costs_given_decide_what_is_cheap() -> None:
    # the second network at a tenth of the first: nobody should leave before it
    ladder = certify(records(), body_cost=(10.0, 10.0, 1.0), head_cost=(0.0, 0.0, 0.0))
    assert [p.name for p in ladder.points if p.target is None or p.risk > 0.01] == []
    assert ladder.points[0].backbones == (1,)


@pytest.mark.parametrize("score", ["margin", "negative_entropy"])
@pytest.mark.parametrize("combine", ["mean", "last", "backbones"])
def test_other_scores_and_no_averaging(score: str, combine: str) -> None:
    ladder = certify(records(400), score=score, combine=combine)
    assert (ladder.score, ladder.combine) == (score, combine)
    assert len(ladder.points) > 2
    if combine == "last":
        held_out = records(400).select(records(400).part == 1)
        exits = [held_out.logits[:, s].argmax(axis=1) == held_out.label for s in range(3)]
        cheapest = ladder.points[-1]
        assert cheapest.accuracy[1] == pytest.approx(exits[0].mean())


def test_one_stage_has_the_reference_alone() -> None:
    logits, label = learned(40, 1)
    (only,) = certify(make_records(logits, label, part=np.arange(40) % 2)).points
    assert (only.name, only.thresholds, only.shares) == ("reference", (), (1.0,))


@pytest.mark.parametrize("drops", [(-0.01,), (1.0,), (0.0, math.nan), (5,)])
def test_drops_out_of_range(drops: tuple[float, ...]) -> None:
    with pytest.raises(BudgetError, match="max_drops"):
        certify(records(40), drops)


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.1, math.nan])
def test_delta_out_of_range(delta: float) -> None:
    with pytest.raises(BudgetError, match="delta"):
        certify(records(40), delta=delta)


def test_records_that_teach_nothing() -> None:
    given = records(40)
    with pytest.raises(CalibrationError, match="empty"):
        certify(given.select(np.zeros(40, bool)))
    with pytest.raises(CalibrationError, match="class 2"):
        certify(replace(given, label=np.full(40, 2)))
    with pytest.raises(CalibrationError, match="labels"):
        certify(replace(given, label=None))
    with pytest.raises(CalibrationError, match="search_share"):
        certify(replace(given, part=np.ones(40, np.int8)))


@pytest.mark.parametrize(("right", "count"), [(0, 5), (5, 5), (1, 1), (45, 50), (9_412, 10_000)])
def test_intervals_are_scipys(right: int, count: int) -> None:
    expected = binomtest(right, count).proportion_ci(0.95, method="wilson")
    low, share, high = wilson(right, count)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert share == right / count
