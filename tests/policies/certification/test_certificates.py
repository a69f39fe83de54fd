"""Ladders against a plain reading of the records.

Whether bounds hold is asked of populations whose truth is known, in test_certified_truths.py.
"""

import math
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from support.policy_cases import INF, learned, make_records, repeatable

from dynamic.policies.certification.certificates import certify, shortage, wilson
from dynamic.policies.certification.ladders.settings import AUTO, MAX_DROPS
from dynamic.policies.certification.replay import cost_to, replay
from dynamic.policies.certification.risks import RISKS
from dynamic.policies.certification.temperature import fit_temperatures
from dynamic.policies.certification.threshold_search import Candidate, Search
from dynamic.policies.errors import CalibrationError, SettingError
from dynamic.policies.ladder import Certificate, Ladder, OperatingPoint
from dynamic.policies.records import Records
from dynamic.policies.scores import SCORES, Combiner
from dynamic.policies.stage_plan import plan

BACKBONE = (0, 0, 1)
fewer = settings(repeatable, max_examples=25)


def records(count: int = 1200, certifying: int | None = None, seed: int = 5) -> Records:
    """Of which every other one certifies, or the last so many."""
    logits, label = learned(count, 3, seed=seed, reach=(2.0, 3.5))
    part = np.arange(count) % 2 if certifying is None else np.arange(count) >= count - certifying
    return make_records(logits, label, BACKBONE, part, body=(1.0, 1.0, 3.0), head=(0.1,) * 3)


def combiner(ladder: Ladder) -> Combiner:
    return Combiner(ladder.temperature, ladder.score, combine=ladder.combine, backbone=ladder.backbone)


def mean_cost(ladder: Ladder, given: Records, thresholds: tuple[float, ...]) -> float:
    todo = plan(np.array(thresholds, np.float32), given.backbone)
    found = replay(given.logits, combiner(ladder), thresholds=thresholds, backbone=given.backbone)
    return float(cost_to(todo, given.macs, given.head_macs)[found.stage].mean())


def certificate_of(ladder: Ladder) -> Certificate:
    assert ladder.certificate is not None
    return ladder.certificate


def parts(given: Records) -> tuple[Records, Records]:
    return given.select(given.part == 0), given.select(given.part == 1)


def cost_within(given: Records, target: float, delta: float = 0.1, **options: Any) -> float:
    """What the cheapest point costs, where thresholds were chosen, that is bounded by its only target."""
    ladder = certify(given, (target,), delta=delta, **options)
    kept = [p for p in ladder.points if p.bound is not None and p.bound <= target] or ladder.points[:1]
    return min(mean_cost(ladder, parts(given)[0], p.thresholds) for p in kept)


def figures(point: OperatingPoint) -> tuple[Any, ...]:
    """But for rounding; of the most accurate thresholds those that tie in accuracy are the same."""
    found = [point.target or 0.0, point.risk, point.bound or 0.0, *point.accuracy]
    found += [] if point.name == "best" else [*point.thresholds, *point.shares]
    return point.name, point.n, np.round(found, 5).tolist()


def test_drops_are_measured_against_the_last_network_alone() -> None:
    given = records()
    ladder = certify(given)
    held_out = parts(given)[1]
    assert held_out.label is not None
    alone = held_out.logits[:, -1].argmax(axis=1) == held_out.label  # not averaged with anything
    assert ladder.points[0].accuracy[1] == alone.mean()
    deviating = 0
    for point in ladder.points:
        found = replay(held_out.logits, combiner(ladder), thresholds=point.thresholds, backbone=BACKBONE)
        correct = found.prediction == held_out.label
        assert point.accuracy.mid == pytest.approx(correct.mean())
        assert point.risk == pytest.approx(alone.mean() - correct.mean())
        assert point.drop == point.risk
        assert point.shares == pytest.approx([(found.stage == s).mean() for s in range(3)])
        assert point.n == 600
        deviating += point.risk != 0
    assert deviating >= 2


def test_the_reference_comes_first_and_the_rest_from_dear_to_cheap() -> None:
    given = records(4000)
    ladder = certify(given)
    assert ladder.certified
    reference, *others = ladder.points
    assert (reference.name, reference.thresholds) == ("reference", (INF, INF))
    assert (reference.risk, reference.target, reference.bound, reference.backbones) == (0.0, 0.0, 0.0, (1,))
    assert reference.shares == (0.0, 0.0, 1.0)
    names = [p.name for p in others]
    assert names[-1] == "cheapest"
    assert {"best", "drop 0.02", "drop 0.05"} <= set(names)
    assert len({p.thresholds for p in ladder.points}) == len(ladder.points)
    costs = [mean_cost(ladder, parts(given)[0], p.thresholds) for p in others]
    assert costs == sorted(costs, reverse=True)
    assert ladder.points[-1].thresholds[0] == -INF
    assert ladder.points[-1].backbones == (0,)
    for point in others:
        assert point.bound is not None
        assert point.risk < point.bound, "what is measured is nearer to the truth than what is certain"
        assert point.delta == 0.1
        assert (point.target is None) == (not point.name.startswith("drop"))
        assert point.target is None or point.bound <= point.target
    assert {p.target for p in others if p.target is not None} <= set(MAX_DROPS)
    assert (ladder.fingerprint, ladder.backbone) == ("f", BACKBONE)


def test_a_certificate_says_what_it_rests_on() -> None:
    before = datetime.now(UTC).date()
    ladder = certify(records(900, certifying=600), (0.0, 0.1), delta=0.2)
    found = certificate_of(ladder)
    assert before <= date.fromisoformat(found.date) <= datetime.now(UTC).date()
    (missing,) = found.missing
    assert missing.target == 0.0
    assert replace(found, date="", missing=()) == Certificate(
        "drop", 0.2, "exact, nuisance bounded (Berger and Boos 1994)", 600, None, 300, ""
    )
    harm = certificate_of(certify(records(), risk="harm"))
    assert (harm.risk, harm.test) == ("harm", "exact binomial")
    assert [m.target for m in harm.missing] == sorted(set(MAX_DROPS[1:]) & {m.target for m in harm.missing})
    grouped = certificate_of(certify(replace(records(900, certifying=600), group=np.arange(900) // 10)))
    assert (grouped.images, grouped.groups) == (600, 60)
    assert "betting" in grouped.test


def test_what_is_chosen_sees_part_0_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    paths: list[list[Candidate]] = []
    plain = Search.path

    def kept(self: Search, *given: Any) -> list[Candidate]:
        paths.append(plain(self, *given))
        return paths[-1]

    monkeypatch.setattr(Search, "path", kept)
    given = records()
    random = np.random.default_rng(1)
    logits, label = given.logits.copy(), np.array(given.label)
    other = given.part == 1
    logits[other] = 9 * random.normal(size=logits[other].shape)
    label[other] = random.integers(4, size=other.sum())
    altered = replace(given, logits=logits, label=label)
    ladders = [certify(x, (0.02, 0.05, 0.1, 0.3)) for x in (given, altered)]
    assert ladders[0].temperature == ladders[1].temperature
    assert paths[0] == paths[1]
    assert [p.name for p in ladders[0].points] != [p.name for p in ladders[1].points], "the other part says how far"
    offered = {c.thresholds for c in paths[0]}
    assert {p.thresholds for p in ladders[0].points if p.target} <= offered
    assert certify(given, score=AUTO).score == certify(altered, score=AUTO).score
    logits = given.logits.copy()
    logits[~other] *= 2
    assert certify(replace(given, logits=logits)).temperature != ladders[0].temperature


def uncertified(**options: Any) -> Ladder:
    """Too few certify."""
    return certify(records(620, certifying=20), **options)


def test_too_few_to_certify_leave_what_the_search_found() -> None:
    given = records(620, certifying=20)
    ladder = certify(given, margin=0.5)
    assert not ladder.certified
    assert {(p.bound, p.delta, p.n) for p in ladder.points} == {(None, None, 20)}
    plain = Combiner(fit_temperatures(given), "max_probability", combine="backbones", backbone=BACKBONE)
    search = Search(parts(given)[0], plain)
    for point in ladder.points:
        if point.name.startswith("drop"):
            assert point.target is not None
            found = search.cheapest(point.target, 0.5)
            assert found is not None
            assert point.thresholds == found.thresholds
            assert found.risk + 0.5 * found.risk_se <= point.target + 1e-9
    names = [p.name for p in ladder.points]
    assert (names[0], names[-1]) == ("reference", "cheapest")
    assert {"drop 0.01", "drop 0.02", "drop 0.05"} <= set(names)
    targets = [p.target for p in ladder.points if p.name.startswith("drop")]
    assert targets == sorted(targets), "what may lose more is cheaper"
    missing = certificate_of(ladder).missing
    assert [m.target for m in missing] == list(MAX_DROPS)
    assert all(m.needed is None or m.needed > 20 for m in missing)


def test_a_margin_costs_compute() -> None:
    chose = parts(records(620, certifying=20))[0]
    careful, bold = (uncertified(max_drops=(0.02,), margin=m) for m in (2.0, 0.0))
    cost = [mean_cost(x, chose, next(p for p in x.points if p.name == "drop 0.02").thresholds) for x in (careful, bold)]
    assert cost[0] > cost[1]


def test_without_a_second_part_the_first_measures() -> None:
    ladder = certify(replace(records(), part=np.zeros(1200, np.int8)))
    assert {p.n for p in ladder.points} == {1200}
    assert not ladder.certified
    found = certificate_of(ladder)
    assert (found.images, found.search_images) == (0, 1200)
    assert {(m.risk, m.needed) for m in found.missing} == {(None, None)}
    assert shortage(found) == (
        "1200 inputs were given, 0 of them certify. drop 0, 0.005, 0.01, 0.02, 0.05: no inputs are left to measure on"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_drops": 0.01}, r"max_drops=0.01 must be a sequence"),
        ({"max_drops": ("a",)}, "max_drops holds 'a'"),
        ({"max_drops": ()}, "max_drops is empty"),
        ({"delta": "0.1"}, "delta='0.1'"),
        ({"risk": ["drop"]}, r"risk=\['drop'\] is unknown"),
        ({"body_cost": (1.0,)}, "body_cost has 1 entries for 3 stages"),
        ({"head_cost": (1.0, math.nan, 1.0)}, "head_cost is"),
        ({"head_cost": (1.0, -1.0, 1.0)}, "head_cost is"),
    ],
)
def test_settings_that_make_no_sense(arguments: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        certify(records(), **arguments)


def test_parts_that_there_are_not() -> None:
    with pytest.raises(CalibrationError, match=r"part holds \[0, 1, 2\]"):
        certify(replace(records(), part=(np.arange(len(records())) % 3).astype(np.int8)))


def test_strict_raises_with_numbers_and_remedy() -> None:
    with pytest.raises(CalibrationError, match=r"20 of them certify. drop 0.05: measured .*Give more held-out inputs"):
        uncertified(max_drops=(0.05,), strict=True)
    grouped = replace(records(400, certifying=200), group=np.repeat(np.arange(8), 50))
    with pytest.raises(CalibrationError, match=r"4 groups certify. drop 0.2: .* about \d+ certifying groups give"):
        certify(grouped, (0.2,), strict=True)
    strict, usual = (certify(records(), (0.05,), strict=way) for way in (True, False))
    assert strict.points == usual.points


@pytest.mark.parametrize("risk", sorted(RISKS))
def test_labels_are_needed_by_all_risks_but_one(risk: str) -> None:
    given = replace(records(), label=None)
    if risk != "disagreement":
        with pytest.raises(CalibrationError, match=r"needs labels.*risk='disagreement'"):
            certify(given, risk=risk)
        return
    ladder = certify(given, (0.1, 0.2), risk=risk)
    assert ladder.certified
    held_out = parts(given)[1]
    reference = held_out.logits[:, -1].argmax(axis=1)
    for point in ladder.points:
        agree = (
            replay(held_out.logits, combiner(ladder), thresholds=point.thresholds, backbone=BACKBONE).prediction
            == reference
        )
        assert point.drop is None
        assert point.kind == "disagreement"
        assert point.accuracy.mid == pytest.approx(agree.mean())
        assert point.risk == pytest.approx(1 - agree.mean())
    assert ladder.temperature == (1.0,) * 3


def test_every_group_counts_the_same() -> None:
    given = records(1200)
    group = np.sort(np.random.default_rng(0).integers(150, size=1200) ** 2 // 150)
    given = replace(given, group=group, part=(group % 2).astype(np.int8))
    ladder = certify(given, (0.2,), risk="error")
    held_out = parts(given)[1]
    assert held_out.group is not None
    for point in ladder.points:
        wrong = (
            replay(held_out.logits, combiner(ladder), thresholds=point.thresholds, backbone=BACKBONE).prediction
            != held_out.label
        )
        means = [wrong[held_out.group == g].mean() for g in np.unique(held_out.group)]
        assert point.risk == pytest.approx(np.mean(means))
        low, share, high = point.accuracy
        assert share == pytest.approx(1 - point.risk)
        assert low < share < high
    assert abs(wrong.mean() - np.mean(means)) > 1e-4


@fewer
@examples(st.integers(0, 9), st.integers(0, 99), st.sampled_from(sorted(RISKS)))
def test_the_order_of_records_does_not_matter(seed: int, order: int, risk: str) -> None:
    given = records(500, seed=seed)
    shuffled = given.select(np.random.default_rng(order).permutation(500))
    one, other = (certify(x, (0.05, 0.15, 0.3), risk=risk) for x in (given, shuffled))
    assert list(map(figures, one.points)) == list(map(figures, other.points))


@fewer
@examples(st.integers(0, 99), st.sampled_from(sorted(RISKS)), st.sampled_from(SCORES))
def test_the_same_records_give_the_same_ladder(seed: int, risk: str, score: str) -> None:
    first, again = (certify(records(300, seed=seed), (0.1, 0.2), risk=risk, score=score) for _ in range(2))
    undated = [replace(x, certificate=replace(certificate_of(x), date="")) for x in (first, again)]
    assert undated[0] == undated[1]


@repeatable
@examples(
    st.integers(0, 99),
    st.sampled_from(sorted(RISKS)),
    st.lists(st.floats(0.005, 0.4), min_size=2, max_size=2),
    st.lists(st.floats(0.01, 0.5), min_size=2, max_size=2),
)
def test_who_allows_more_never_pays_more(seed: int, risk: str, targets: list[float], deltas: list[float]) -> None:
    given = records(400, seed=seed)
    strict, loose = ((min(targets), min(deltas)), (max(targets), max(deltas)))
    assert cost_within(given, *loose, risk=risk) <= cost_within(given, *strict, risk=risk) + 1e-12


@fewer
@examples(st.integers(0, 99), st.integers(0, 1), st.floats(0.02, 0.3))
def test_an_exit_that_comes_twice_costs_nothing(seed: int, stage: int, target: float) -> None:
    logits, label = learned(500, 3, seed=seed, reach=(2.0, 3.5))
    part, body = np.arange(500) % 2, [1.0, 1.0, 3.0]
    at = sorted([0, 1, 2, stage])
    again = [0.0 if s and at[s] == at[s - 1] else body[at[s]] for s in range(4)]
    once = cost_within(make_records(logits, label, part=part, body=body), target)
    twice = cost_within(make_records(logits[:, at], label, part=part, body=again), target)
    assert twice <= once * (1 + 1e-6)


def test_costs_given_decide_what_is_cheap() -> None:
    # the second network at a tenth of the first: nobody should leave before it
    ladder = certify(records(), body_cost=(10.0, 10.0, 1.0), head_cost=(0.0, 0.0, 0.0))
    assert [p.name for p in ladder.points if p.target is None or p.risk > 0.01] == []
    assert ladder.points[0].backbones == (1,)


@pytest.mark.parametrize("score", ["margin", "negative_entropy", "patience"])
@pytest.mark.parametrize("combine", ["mean", "last", "backbones"])
def test_other_scores_and_no_averaging(score: str, combine: str) -> None:
    ladder = certify(records(400), (0.1, 0.2), score=score, combine=combine)
    assert (ladder.score, ladder.combine) == (score, combine)
    assert len(ladder.points) >= 2
    if combine == "last":
        held_out = parts(records(400))[1]
        exits = [held_out.logits[:, s].argmax(axis=1) == held_out.label for s in range(3)]
        cheapest = ladder.points[-1]
        assert cheapest.accuracy.mid == pytest.approx(exits[0].mean())


def test_auto_takes_the_score_that_tells_most() -> None:
    random = np.random.default_rng(0)
    label = random.integers(4, size=1500)
    right = random.random((1500, 4)) < np.array([0.8, 0.8, 0.8, 0.95])
    answer = np.where(right, label[:, None], (label[:, None] + random.integers(1, 4, right.shape)) % 4)
    logits = random.uniform(1, 4, right.shape)[..., None] * np.eye(4)[answer]  # sureness says nothing, agreement much
    given = make_records(logits, label, part=np.arange(1500) % 2, body=(1.0, 1.0, 1.0, 9.0))
    target = 0.05
    ladder = certify(given, (target,), score=AUTO)
    assert ladder.score == "patience"
    assert replace(ladder, certificate=None) == replace(certify(given, (target,), score="patience"), certificate=None)
    cost = {score: cost_within(given, target, score=score) for score in SCORES}
    assert min(cost, key=lambda score: cost[score]) == "patience"
    assert certify(records(), score=AUTO).score != "patience"


def test_one_stage_has_the_reference_alone() -> None:
    logits, label = learned(40, 1)
    ladder = certify(make_records(logits, label, part=np.arange(40) % 2))
    (only,) = ladder.points
    assert (only.name, only.thresholds, only.shares) == ("reference", (), (1.0,))
    assert not ladder.certified
    assert {m.risk for m in certificate_of(ladder).missing} == {None}


@pytest.mark.parametrize("drops", [(-0.01,), (1.0,), (0.0, math.nan), (5,)])
@pytest.mark.parametrize("risk", sorted(RISKS))
def test_drops_out_of_range(drops: tuple[float, ...], risk: str) -> None:
    with pytest.raises(SettingError, match="max_drops"):
        certify(records(40), drops, risk=risk)


def test_what_can_never_be_shown_is_refused() -> None:
    for risk in ("harm", "disagreement", "error"):
        with pytest.raises(SettingError, match=f"no data can show that '{risk}' never happens"):
            certify(records(40), (0, 0.1), risk=risk)
        assert 0 not in [m.target for m in certificate_of(certify(records(40), risk=risk)).missing]
    for wrong in ({"risk": "loss"}, {"score": "luck"}, {"combine": "vote"}):
        with pytest.raises(SettingError, match=next(iter(wrong.values()))):
            certify(records(40), **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.1, math.nan])
def test_delta_out_of_range(delta: float) -> None:
    with pytest.raises(SettingError, match="delta"):
        certify(records(40), delta=delta)


def test_records_that_teach_nothing() -> None:
    given = records(40)
    with pytest.raises(CalibrationError, match="empty"):
        certify(given.select(np.zeros(40, bool)))
    with pytest.raises(CalibrationError, match="class 2"):
        certify(replace(given, label=np.full(40, 2)))
    with pytest.raises(CalibrationError, match=r"one class.*a larger search_share"):
        certify(replace(given, label=np.arange(40) % 2))
    with pytest.raises(CalibrationError, match="search_share"):
        certify(replace(given, part=np.ones(40, np.int8)))


@pytest.mark.parametrize("risk", sorted(RISKS))
@pytest.mark.parametrize("part", [0, 1, None])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_answers_of_nan(stage: int, part: int | None, risk: str) -> None:
    given = records()
    logits = given.logits.copy()
    broken = (np.arange(1200) % 10 < 2) & ((given.part == part) | (part is None))
    logits[broken, stage, 1] = np.nan
    ladder = certify(replace(given, logits=logits), (0.1, 0.3), risk=risk)
    held_out = parts(replace(given, logits=logits))[1]
    for point in ladder.points:
        left = replay(held_out.logits, combiner(ladder), thresholds=point.thresholds, backbone=BACKBONE).stage
        assert not (left[broken[given.part == 1]] == stage).any() or stage == 2
        assert np.isfinite([point.risk, *point.accuracy, *(b for b in [point.bound] if b is not None)]).all()


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_stage_that_never_answers_is_named(stage: int, value: float) -> None:
    logits = records().logits.copy()
    logits[:, stage, 2] = value
    with pytest.raises(
        CalibrationError, match=f"'stage{stage}',? gives NaN or infinity for all 1200 records.*check its weights"
    ):
        certify(replace(records(), logits=logits))


@pytest.mark.parametrize(("right", "count"), [(0, 5), (5, 5), (1, 1), (45, 50), (9_412, 10_000)])
def test_intervals_are_scipys(right: int, count: int) -> None:
    expected = binomtest(right, count).proportion_ci(0.95, method="wilson")
    low, share, high = wilson(right, count)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert share == right / count


def test_points_have_the_exits_of_their_own_inputs() -> None:
    """Counted on the same records as shares are."""
    ladder = certify(records())
    assert len({point.shares for point in ladder.points}) > 2
    for point in ladder.points:
        counts = np.array([sum(bins.counts) for bins in point.exits])
        assert counts.sum() == point.n
        np.testing.assert_allclose(counts / point.n, point.shares)
