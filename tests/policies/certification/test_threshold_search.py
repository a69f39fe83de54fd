"""The threshold search against trying everything."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.policies.trying_everything import TEMPERATURE, Everything
from support.policy_cases import INF, learned, make_records, repeatable

from dynamic.policies.certification.answers import Answers
from dynamic.policies.certification.replay import cost_to, replay
from dynamic.policies.certification.risks import RISKS
from dynamic.policies.certification.threshold_search import Candidate, Search
from dynamic.policies.certification.thresholds.grids import midpoints
from dynamic.policies.errors import CalibrationError
from dynamic.policies.records import Records
from dynamic.policies.scores import COMBINE, Combiner
from dynamic.policies.stage_plan import plan

DROPS = (0.0, 0.005, 0.01, 0.02, 0.05)
BODY, HEAD = (1.0, 2.0, 3.0, 1.5), (0.2, 0.1, 0.3, 0.05)


def combiner(stages: int, combine: str = "mean", backbone: tuple[int, ...] | None = None) -> Combiner:
    return Combiner(TEMPERATURE[:stages], "max_probability", combine=combine, backbone=backbone)


def check_truthful(everything: Everything, candidate: Candidate) -> None:
    found = everything.outcome(candidate.thresholds)
    assert (candidate.cost, candidate.risk, candidate.risk_se) == pytest.approx(
        (found.cost, found.risk, found.risk_se), abs=1e-9
    )


def check_not_worse(records: Records, combine: str, risk: str = "drop", quantiles: int = 16) -> None:
    """At every target and margin: feasible, truthful, and no dearer than the best of the grid."""
    everything = Everything(records, combine, risk)
    tried = everything.grid(quantiles)
    search = Search(records, combiner(records.stages, combine, records.backbone), risk=RISKS[risk])
    for target, margin in itertools.product((*DROPS, 0.2, 0.5), (0.0, 0.5, 2.0)):
        found = search.cheapest(target, margin)
        if found is None:
            assert not any(t.meets(target, margin) for t in tried)
            continue
        assert found.risk + margin * found.risk_se <= target + 1e-12
        assert found.cost <= min((t.cost for t in tried if t.meets(target, margin)), default=INF) + 1e-9
        check_truthful(everything, found)
    check_truthful(everything, search.reference)
    assert set(search.reference.thresholds) <= {INF}
    best = search.most_accurate()
    assert best.risk <= min(t.risk for t in tried) + 1e-12
    assert best.cost <= min((t.cost for t in tried if t.risk <= best.risk + 1e-12), default=INF) + 1e-9
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


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("combine", COMBINE)
@pytest.mark.parametrize(
    ("risk", "labelled"), [("harm", True), ("disagreement", True), ("disagreement", False), ("error", True)]
)
def test_other_risks_are_not_worse_either(risk: str, combine: str, broken: bool, labelled: bool) -> None:
    logits, label = learned(200, 3, seed=1)
    if broken:
        logits[::5, 0, 1] = np.nan
        logits[::8, 2] = np.inf
    records = make_records(logits, label if labelled else None, (0, 0, 1), body=BODY[:3], head=HEAD[:3])
    check_not_worse(records, combine, risk)
    reference = Search(records, combiner(3, combine, records.backbone), risk=RISKS[risk]).reference
    assert (reference.risk > 0) == RISKS[risk].of_reference


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
    one = Combiner(TEMPERATURE[:3], score, combine="mean")
    search = Search(records, one)
    reference = replay(logits, one, thresholds=(INF, INF), backbone=(0, 0, 0)).prediction == records.label
    for drop in (0.0, 0.02, 0.05, 0.1, 0.2, 0.5):
        found = search.cheapest(drop)
        assert found is not None
        again = replay(logits, one, thresholds=found.thresholds, backbone=(0, 0, 0))
        cost = cost_to(plan(np.array(found.thresholds, np.float32), (0, 0, 0)), BODY[:3], HEAD[:3])
        assert found.cost == pytest.approx(cost[again.stage].mean(), abs=1e-12)
        assert found.risk == pytest.approx(reference.mean() - (again.prediction == records.label).mean(), abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_one_exit_is_set_at_full_resolution(ties: bool) -> None:
    logits, label = learned(300, 2, classes=2 if ties else 4)
    logits = np.round(logits, 1) if ties else logits
    logits[::6, 0] = np.nan
    records = make_records(logits, label, body=(1.0, 4.0))
    everything = Everything(records, "mean")
    scores, _ = everything.answers([0, 1])
    tried = [everything.outcome((float(np.float32(t)),)) for t in [-INF, *scores[0], INF]]
    search = Search(records, combiner(2))
    for drop, margin in itertools.product(DROPS, (0.0, 0.5)):
        found = search.cheapest(drop, margin)
        assert found is not None
        assert found.cost == pytest.approx(min(t.cost for t in tried if t.meets(drop, margin)))


@pytest.mark.parametrize("ties", [False, True])
def test_no_single_threshold_is_left_to_move(ties: bool) -> None:
    logits, label = learned(150, 4, classes=2 if ties else 4)
    records = make_records(np.round(logits, 1) if ties else logits, label, body=BODY, head=HEAD)
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
    given = Search(make_records(logits, label), combiner(3), body=BODY[:3], head=HEAD[:3])
    assert given.cheapest(0.02) == Search(as_records, combiner(3)).cheapest(0.02)
    assert given.cheapest(0.02) != Search(make_records(logits, label), combiner(3)).cheapest(0.02)


def test_a_target_that_nothing_meets() -> None:
    logits, label = learned(200, 2)
    search = Search(make_records(logits, label), combiner(2))
    assert search.cheapest(search.most_accurate().risk) is not None
    assert search.cheapest(search.most_accurate().risk - 0.001) is None


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
        assert found.risk <= drop + 1e-12
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
    assert Search(wrong, combiner(3), risk=RISKS["error"]).reference == Candidate((INF, INF), 3.0, 1.0, 0.0)


def test_records_without_labels_or_without_records() -> None:
    logits, label = learned(10, 2)
    records = make_records(logits, label)
    with pytest.raises(CalibrationError, match="risk='drop' needs labels"):
        Search(replace(records, label=None), combiner(2))
    assert Search(replace(records, label=None), combiner(2), risk=RISKS["disagreement"]).cheapest(0.0) is not None
    with pytest.raises(CalibrationError, match="no records"):
        Search(records.select(np.zeros(10, bool)), combiner(2))


# the path


@pytest.mark.parametrize("step", [0.01, 0.1])
@pytest.mark.parametrize("margin", [0.0, 1.5])
@pytest.mark.parametrize("combine", COMBINE)
@pytest.mark.parametrize("risk", ["drop", "harm", "error"])
def test_the_path_goes_from_the_safest_to_the_cheapest(risk: str, combine: str, margin: float, step: float) -> None:
    logits, label = learned(240, 3, seed=2)
    records = make_records(logits, label, (0, 0, 1), body=BODY[:3], head=HEAD[:3])
    everything = Everything(records, combine, risk)
    tried = everything.grid()
    search = Search(records, combiner(3, combine, records.backbone), risk=RISKS[risk])
    path = search.path(margin, step)
    assert len(path) > 5
    for candidate in path:
        check_truthful(everything, candidate)
        again = replay(
            logits, combiner(3, combine, records.backbone), thresholds=candidate.thresholds, backbone=records.backbone
        )
        limits = np.array(candidate.thresholds, np.float32)
        cost = cost_to(plan(limits, records.backbone), records.macs, records.head_macs)
        assert candidate.cost == pytest.approx(cost[again.stage].mean(), abs=1e-12)
    bounds = [c.risk + margin * c.risk_se for c in path]
    assert bounds == sorted(bounds)
    for one, following in itertools.pairwise(path):
        assert following.cost <= one.cost * (1 - step) + 1e-12
    # risks this close together are taken for one
    width = (max(t.bound(margin) for t in tried) - min(t.bound(margin) for t in tried)) / 4000 + 1e-9
    assert bounds[0] <= min(t.bound(margin) for t in tried) + width
    cheapest = search.least_cost().cost
    assert cheapest <= path[-1].cost <= cheapest / (1 - step) + 1e-12
    # whatever was tried, the path has something about as cheap and no riskier
    for t in tried:
        if t.bound(margin) <= bounds[-1]:
            known = [c.cost for c, bound in zip(path, bounds, strict=True) if bound <= t.bound(margin) + width]
            assert min(known) <= t.cost / (1 - step) + 1e-9


def test_the_path_of_one_stage_and_of_records_that_are_all_alike() -> None:
    logits, label = learned(30, 1)
    search = Search(make_records(logits, label, body=(3.0,)), combiner(1))
    assert search.path(1.0) == [search.reference]
    right = make_records(20 * np.eye(4)[label][:, None].repeat(3, axis=1), label)
    assert [(c.cost, c.risk) for c in Search(right, combiner(3)).path(1.0)] == [(1.0, 0.0)]


def test_small_steps_make_a_path_that_holds_the_larger_ones() -> None:
    logits, label = learned(240, 3)
    search = Search(make_records(logits, label, body=BODY[:3]), combiner(3))
    fine, coarse = search.path(1.0, 0.001), search.path(1.0, 0.1)
    assert len(coarse) < len(fine) / 2
    assert set(coarse) <= set(fine)


# expected losses


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("risk", RISKS)
def test_expected_losses_choose_thresholds_that_are_what_they_say(risk: str, broken: bool) -> None:
    logits, label = learned(300, 3)
    if broken:
        logits[::5, 0, 1] = np.nan
        logits[::8, 2] = np.inf
    records, one = make_records(logits, label, body=BODY[:3], head=HEAD[:3]), combiner(3)
    search = Search(records, one, risk=RISKS[risk], expected=True)
    answers = Answers(records, one, RISKS[risk], expected=True)
    everything = Everything(records, "mean", risk)
    chosen = []
    for target in (0.02, 0.05, 0.1, 0.2, 0.4):
        found = search.cheapest(target, 0.5)
        if found is not None:
            assert found.risk + 0.5 * found.risk_se <= target + 1e-9
            chosen.append(found)
    assert chosen
    path = search.path(0.5)
    for candidate in (*chosen, *path, search.most_accurate(0.5), search.least_cost(), search.reference):
        assert candidate.cost == pytest.approx(everything.outcome(candidate.thresholds).cost, abs=1e-9)
        loss = answers.exits_under(candidate.thresholds)[1].astype(float)
        assert candidate.risk == pytest.approx(loss.mean(), abs=1e-6)
        # not less than of what is expected: what is not known adds to it
        assert candidate.risk_se >= loss.std() / np.sqrt(300) - 1e-6
    assert len(path) > 5
    assert all(following.cost <= one.cost * 0.99 + 1e-12 for one, following in itertools.pairwise(path))
    bounds = [c.risk + 0.5 * c.risk_se for c in path]
    assert (np.diff(bounds) > -1e-4).all()
    assert bounds[-1] > bounds[0] + 0.1


def test_expected_losses_tell_apart_what_labels_do_not() -> None:
    logits, label = learned(60, 3)
    records = make_records(logits, label)
    by_label, expected = (Search(records, combiner(3), expected=known).path(0.0, 0.001) for known in (False, True))
    assert len({c.risk for c in expected}) > len({c.risk for c in by_label})
    assert all(abs(60 * c.risk - round(60 * c.risk)) < 1e-9 for c in by_label), "whole records"


# properties


@settings(repeatable, max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from(COMBINE), st.sampled_from(sorted(RISKS)), st.booleans())
def test_the_order_of_records_does_not_matter(seed: int, combine: str, risk: str, expected: bool) -> None:
    logits, label = learned(80, 3, seed=seed)
    logits[::9, 1] = np.nan
    records = make_records(np.round(logits, 1), label, (0, 0, 1), body=BODY[:3], head=HEAD[:3])
    order = np.random.default_rng(seed).permutation(80)
    one, other = (
        Search(r, combiner(3, combine, r.backbone), risk=RISKS[risk], expected=expected)
        for r in (records, records.select(order))
    )
    asked = [lambda s: s.most_accurate(1.0), lambda s: s.least_cost(), lambda s: s.reference]
    for ask in (*asked, *(lambda s, t=t: s.cheapest(t, 0.5) for t in DROPS)):
        if expected and RISKS[risk].needs_labels:  # sums of fractions are rounded
            found = [(c.cost, c.risk) if (c := ask(search)) is not None else (0.0, 0.0) for search in (one, other)]
            assert found[0] == pytest.approx(found[1], rel=1e-3, abs=1e-4)
        else:
            assert ask(one) == ask(other)


@settings(repeatable, max_examples=40)
@given(st.integers(0, 10_000), st.integers(0, 2), st.sampled_from(COMBINE), st.sampled_from(sorted(RISKS)))
def test_a_stage_twice_makes_nothing_dearer(seed: int, twice: int, combine: str, risk: str) -> None:
    """The same once more costs nothing, so whatever was found is still there to be found."""
    logits, label = learned(100, 3, seed=seed)
    kept = sorted([0, 1, 2, twice])
    backbone = (0, 1, 1)
    once = make_records(logits, label, backbone, body=BODY[:3], head=HEAD[:3])
    free = [i > 0 and kept[i - 1] == s for i, s in enumerate(kept)]
    doubled = make_records(
        logits[:, kept],
        label,
        tuple(backbone[s] for s in kept),
        body=[0.0 if f else BODY[s] for s, f in zip(kept, free, strict=True)],
        head=[0.0 if f else HEAD[s] for s, f in zip(kept, free, strict=True)],
    )
    searches = [
        Search(
            r,
            Combiner(tuple(TEMPERATURE[s] for s in stages), "margin", combine=combine, backbone=r.backbone),
            risk=RISKS[risk],
        )
        for r, stages in ((once, [0, 1, 2]), (doubled, kept))
    ]
    for target, margin in itertools.product((*DROPS, 0.3), (0.0, 1.0)):
        before, after = (search.cheapest(target, margin) for search in searches)
        if before is not None:
            assert after is not None
            assert after.cost <= before.cost + 1e-9
    assert searches[1].least_cost().cost <= searches[0].least_cost().cost + 1e-9


def test_midpoints_part_neighbours_in_float32() -> None:
    low = np.array([0.5, 0.99999994, -INF, -3.0], np.float32)
    high = np.array([0.75, 1.0, 0.5, np.nextafter(np.float32(-3), np.float32(0))], np.float32)
    middle = midpoints(low, high)
    assert middle.dtype == np.float32
    assert (low <= middle).all()
    assert (middle < high).all()
    assert middle[0] == 0.625
