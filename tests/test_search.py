"""The threshold search against trying everything."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from policy_cases import INF, learned, make_records
from trying_everything import TEMPERATURE, Everything

from dynamic.policies.errors import CalibrationError
from dynamic.policies.plan import plan
from dynamic.policies.records import Records
from dynamic.policies.replay import cost_to, replay
from dynamic.policies.scores import COMBINE, Combiner
from dynamic.policies.search import Candidate, Search, midpoints

DROPS = (0.0, 0.005, 0.01, 0.02, 0.05)
BODY, HEAD = (1.0, 2.0, 3.0, 1.5), (0.2, 0.1, 0.3, 0.05)


def combiner(stages: int, combine: str = "mean", backbone: tuple[int, ...] | None = None) -> Combiner:
    return Combiner(TEMPERATURE[:stages], "max_probability", combine, backbone)


def check_truthful(everything: Everything, candidate: Candidate) -> None:
    found = everything.outcome(candidate.thresholds)
    assert (candidate.cost, candidate.drop, candidate.drop_se) == pytest.approx(
        (found.cost, found.drop, found.drop_se), abs=1e-9
    )


def check_not_worse(records: Records, combine: str, quantiles: int = 16) -> None:
    """At every drop and margin: feasible, truthful, and no dearer than the best of the grid."""
    everything = Everything(records, combine)
    tried = everything.grid(quantiles)
    search = Search(records, combiner(records.stages, combine, records.backbone))
    for drop, margin in itertools.product((*DROPS, 0.2), (0.0, 0.5, 2.0)):
        found = search.cheapest(drop, margin)
        assert found is not None
        assert found.drop + margin * found.drop_se <= drop + 1e-12
        assert found.cost <= min(t.cost for t in tried if t.meets(drop, margin)) + 1e-9
        check_truthful(everything, found)
    best = search.most_accurate()
    assert best.drop <= min(t.drop for t in tried) + 1e-12
    assert best.cost <= min((t.cost for t in tried if t.drop <= best.drop + 1e-12), default=INF) + 1e-9
    check_truthful(everything, best)
    least = search.least_cost()
    assert least.cost == pytest.approx(min(t.cost for t in tried))
    check_truthful(everything, least)


@pytest.mark.parametrize("combine", COMBINE)
@pytest.mark.parametrize("backbone", [(0, 0), (0, 1), (0, 0, 0), (0, 1, 1), (0, 1, 2), (0, 0, 0, 0), (0, 0, 1, 1)])
def test_not_worse_than_trying_everything(combine: str, backbone: tuple[int, ...]) -> None:
    stages = len(backbone)
    logits, label = learned(240, stages, seed=stages)
    check_not_worse(make_records(logits, label, backbone, body=BODY[:stages], head=HEAD[:stages]), combine)


@pytest.mark.parametrize("combine", COMBINE)
def test_ties_leave_together(combine: str) -> None:
    logits, label = learned(200, 3, classes=2)
    records = make_records(np.round(logits), label, body=BODY[:3], head=HEAD[:3])
    assert len(np.unique(records.logits[:, 0], axis=0)) < 100
    check_not_worse(records, combine)


@pytest.mark.parametrize("combine", COMBINE)
def test_stages_of_nan(combine: str) -> None:
    logits, label = learned(200, 3)
    logits[::3, 0, 1] = np.nan
    logits[::4, 1, 0] = np.inf
    logits[::10, 2] = np.nan
    check_not_worse(make_records(logits, label, body=BODY[:3], head=HEAD[:3]), combine)
    logits[:, 0] = np.nan  # a stage that never says anything
    check_not_worse(make_records(logits, label, body=BODY[:3], head=HEAD[:3]), combine)


@pytest.mark.parametrize("score", ["max_probability", "margin", "negative_entropy"])
def test_what_is_found_is_what_replay_does(score: str) -> None:
    # the same few logits in other places: scores that are equal but for rounding must round as they will when it runs
    random = np.random.default_rng(0)
    logits = random.permuted(np.tile(np.linspace(-1, 2, 12, dtype=np.float32), (300, 3, 1)), axis=2)
    logits[:, 0] *= random.choice([0.5, 1, 1.5], size=(300, 1)).astype(np.float32)
    label = logits[:, 2].argmax(axis=1)
    records = make_records(logits, np.where(random.random(300) < 0.1, 0, label), body=BODY[:3], head=HEAD[:3])
    one = Combiner(TEMPERATURE[:3], score, "mean")
    search = Search(records, one)
    reference = replay(logits, one, (INF, INF), (0, 0, 0)).prediction == records.label
    for drop in (0.0, 0.02, 0.05, 0.1, 0.2, 0.5):
        found = search.cheapest(drop)
        assert found is not None
        again = replay(logits, one, found.thresholds, (0, 0, 0))
        cost = cost_to(plan(np.array(found.thresholds, np.float32), (0, 0, 0)), BODY[:3], HEAD[:3])
        assert found.cost == pytest.approx(cost[again.stage].mean(), abs=1e-12)
        assert found.drop == pytest.approx(reference.mean() - (again.prediction == records.label).mean(), abs=1e-12)


def test_one_exit_is_set_at_full_resolution() -> None:
    logits, label = learned(300, 2)
    records = make_records(logits, label, body=(1.0, 4.0))
    everything = Everything(records, "mean")
    scores, _ = everything.answers([0, 1])
    tried = [everything.outcome((float(np.float32(t)),)) for t in [-INF, *scores[0], INF]]
    search = Search(records, combiner(2))
    for drop, margin in itertools.product(DROPS, (0.0, 0.5)):
        found = search.cheapest(drop, margin)
        assert found is not None
        assert found.cost == pytest.approx(min(t.cost for t in tried if t.meets(drop, margin)))


def test_no_single_threshold_is_left_to_move() -> None:
    logits, label = learned(150, 4)
    records = make_records(logits, label, body=BODY, head=HEAD)
    everything, search = Everything(records, "mean"), Search(records, combiner(4))
    moved = 0
    for drop, margin in itertools.product(DROPS, (0.0, 0.5)):
        found = search.cheapest(drop, margin)
        assert found is not None
        on = [s for s in range(3) if found.thresholds[s] != INF]
        for score, s in zip(everything.answers([*on, 3])[0], on, strict=False):
            for t in [-INF, *score.tolist()]:
                other = everything.outcome((*found.thresholds[:s], float(np.float32(t)), *found.thresholds[s + 1 :]))
                moved += other.cost < found.cost
                assert not (other.meets(drop, margin) and other.cost < found.cost - 1e-9)
    assert moved > 0, "some are cheaper: they lose too much"


def test_costs_given_replace_multiply_adds() -> None:
    logits, label = learned(200, 3)
    as_records = make_records(logits, label, body=BODY[:3], head=HEAD[:3])
    given = Search(make_records(logits, label), combiner(3), BODY[:3], HEAD[:3])
    assert given.cheapest(0.02) == Search(as_records, combiner(3)).cheapest(0.02)
    assert given.cheapest(0.02) != Search(make_records(logits, label), combiner(3)).cheapest(0.02)


def test_a_drop_that_nothing_meets() -> None:
    logits, label = learned(200, 2)
    search = Search(make_records(logits, label), combiner(2))
    assert search.cheapest(search.most_accurate().drop) is not None
    assert search.cheapest(search.most_accurate().drop - 0.001) is None


def test_one_stage_has_nothing_to_choose() -> None:
    logits, label = learned(50, 1)
    search = Search(make_records(logits, label, body=(3.0,), head=(0.5,)), combiner(1))
    expected = Candidate((), 3.5, 0.0, 0.0)
    assert (search.cheapest(0.0), search.most_accurate(), search.least_cost()) == (expected,) * 3


@pytest.mark.parametrize("stages", [8, 12])
def test_many_stages(stages: int) -> None:
    logits, label = learned(120, stages)
    records = make_records(logits, label, head=(0.1,) * stages)
    everything, search = Everything(records, "mean"), Search(records, combiner(stages))
    # single exits are always among what is tried
    single = [
        everything.outcome((*[INF] * s, t, *[INF] * (stages - 2 - s))) for s in range(stages - 1) for t in (0.7, 0.9)
    ]
    for drop in DROPS:
        found = search.cheapest(drop)
        assert found is not None
        assert found.drop <= drop + 1e-12
        assert found.cost <= min((t.cost for t in single if t.meets(drop, 0)), default=INF) + 1e-9
        check_truthful(everything, found)
    assert search.least_cost().thresholds == (-INF, *[INF] * (stages - 2))


def test_degenerate_records() -> None:
    logits, label = learned(40, 3)
    one = make_records(logits[:1], label[:1])
    same = make_records(np.repeat(logits[:1], 30, axis=0), np.repeat(label[:1], 30))
    wrong = make_records(-logits, logits[:, 2].argmax(axis=1))  # the reference is never right
    right = make_records(20 * np.eye(4)[label][:, None].repeat(3, axis=1), label)
    for records in (one, same, wrong, right):
        check_not_worse(records, "mean")
    first = Search(right, combiner(3)).cheapest(0.0, 2.0)
    assert first is not None
    assert first.cost == 1.0  # everybody leaves at once
    assert Search(wrong, combiner(3)).reference_accuracy == 0


def test_records_without_labels_or_without_records() -> None:
    logits, label = learned(10, 2)
    records = make_records(logits, label)
    with pytest.raises(CalibrationError, match="labels"):
        Search(replace(records, label=None), combiner(2))
    with pytest.raises(CalibrationError, match="no records"):
        Search(records.select(np.zeros(10, bool)), combiner(2))


def test_midpoints_part_neighbours_in_float32() -> None:
    low = np.array([0.5, 0.99999994, -INF, -3.0], np.float32)
    high = np.array([0.75, 1.0, 0.5, np.nextafter(np.float32(-3), np.float32(0))], np.float32)
    middle = midpoints(low, high)
    assert middle.dtype == np.float32
    assert (low <= middle).all()
    assert (middle < high).all()
    assert middle[0] == 0.625
