"""Ranks against brute force and, over all orders of a few inputs, exactly; bets by hand; alarms on streams."""

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import kstest
from support.policy_cases import learned, make_records

from dynamic.policies.certification.drift import BINS, Bag, Bets, DriftTest, ScoreBins, score_bins
from dynamic.policies.errors import InputError, SettingError
from dynamic.policies.scores import Combiner

INF, NAN = float("inf"), float("nan")
EDGES = (0.0, 1.0, 2.0, 3.0)  # bins 0 to 4: scores that are whole numbers lie in their own


def bins_of(scores: Sequence[float], edges: tuple[float, ...] = EDGES) -> ScoreBins:
    """The scores, counted."""
    counts = np.bincount(np.searchsorted(edges, scores), minlength=len(edges) + 1)
    return ScoreBins(edges, tuple(counts.tolist()))


def fine(scores: Sequence[float]) -> ScoreBins:
    """Scores in [0, 1] in 64 bins of one width."""
    return bins_of(scores, tuple((np.arange(1, BINS) / BINS).tolist()))


def combiner(stages: int, score: str = "max_probability") -> Combiner:
    return Combiner((1.0,) * stages, score, combine="mean", backbone=(0,) * stages)


def stream(test: DriftTest, scores: Sequence[float], threshold: float = -INF) -> bool:
    """Feed scores of stage 0: those at or below the threshold go on to stage 1, and score 0.5 there."""
    for score in scores:
        left = score > threshold
        test.observe(0, threshold, 0 if left else 1, score if left else 0.5)
    return test.alarm


# bins


def test_edges_come_from_the_search_part_and_counts_from_the_other() -> None:
    # two classes: the largest probability is that of the logit's absolute value
    logit = np.array([1, 2, 3, 4, 0.5, 2.5, 2.5, 9])
    logits = np.stack([logit, np.zeros(8)], axis=1)[:, None]
    (found,) = score_bins(make_records(logits, None, part=[0, 0, 0, 0, 1, 1, 1, 1]), combiner(1))
    wanted = [1 / (1 + math.exp(-x)) for x in (1, 2, 3)]  # nothing would lie above the largest, 4
    assert found.edges == pytest.approx(wanted, rel=1e-6)
    assert found.counts == (1, 0, 2, 1)


def test_as_many_bins_as_there_may_be_hold_about_as_many_inputs_each() -> None:
    logits, label = learned(20_000, 2)
    part = np.arange(20_000) % 2
    for found in score_bins(make_records(logits, label, part=part), combiner(2)):
        assert len(found.edges) == BINS - 1
        assert sum(found.counts) == 10_000
        assert 80 < min(found.counts) <= max(found.counts) < 240  # 156 each, and a standard deviation of 18


def test_each_stage_is_scored_as_the_first_to_be_evaluated() -> None:
    logits, label = learned(200, 3)
    records = make_records(logits, label, part=np.arange(200) % 2)
    alone = [score_bins(make_records(logits[:, [s]], label, part=np.arange(200) % 2), combiner(1))[0] for s in range(3)]
    assert score_bins(records, combiner(3)) == tuple(alone)


def test_the_order_of_the_calibration_does_not_matter() -> None:
    logits, label = learned(300, 2)
    part, order = np.arange(300) % 2, np.random.default_rng(1).permutation(300)
    given = score_bins(make_records(logits, label, part=part), combiner(2))
    assert score_bins(make_records(logits[order], label[order], part=part[order]), combiner(2)) == given
    # nor that of the search part, beyond its quantiles, to what comes after
    assert score_bins(make_records(logits, None, part=part), combiner(2)) == given


@pytest.mark.parametrize("only", [0, 1])
def test_one_part_alone_serves_as_both(only: int) -> None:
    logits, label = learned(300, 2)
    for found in score_bins(make_records(logits, label, part=np.full(300, only)), combiner(2)):
        assert sum(found.counts) == 300


def test_nan_scores_lie_in_the_lowest_bin() -> None:
    logits = np.zeros((8, 1, 2))
    logits[:, 0, 0] = [NAN, NAN, 1, 2, NAN, 1, 2, 3]
    (found,) = score_bins(make_records(logits, None, part=[0, 0, 0, 0, 1, 1, 1, 1]), combiner(1))
    assert found.edges == pytest.approx((-INF, 1 / (1 + math.exp(-1))))
    assert found.counts == (1, 1, 2)
    assert score_bins(make_records(np.full((4, 1, 2), NAN), None), combiner(1))[0] == ScoreBins((), (4,))


def test_scores_that_are_all_the_same_are_one_bin() -> None:
    assert score_bins(make_records(np.zeros((6, 2, 3)), None), combiner(2)) == (ScoreBins((), (6,)),) * 2


@pytest.mark.parametrize(
    ("edges", "counts"), [((1.0, 1.0), (1, 1, 1)), ((2.0, 1.0), (1, 1, 1)), ((1.0,), (1,)), ((1.0,), (1, -1)), ((), ())]
)
def test_bins_that_do_not_fit_are_refused(edges: tuple[float, ...], counts: tuple[int, ...]) -> None:
    with pytest.raises(InputError):
        ScoreBins(edges, counts)


# ranks


def brute_force(bag: list[float], value: float, chance: float) -> float:
    """The p-value of the newcomer, by counting; it is in the bag already."""
    return (sum(b > value for b in bag) + chance * sum(b == value for b in bag)) / len(bag)


@pytest.mark.parametrize("threshold", [-INF, -1.0, 0.0, 1.0, 1.5, 3.0])
def test_ranks_are_those_counted_one_by_one(threshold: float) -> None:
    """Under one threshold: what lies in its bin or lower is all alike."""
    random_ = random.Random(0)
    calibration = [float(random_.randrange(5)) for _ in range(20)]
    bag, seen = Bag(bins_of(calibration)), list(calibration)
    for _ in range(200):
        score, chance = float(random_.randrange(5)), random_.random()
        lowest = max(math.ceil(threshold), 0) if threshold > -INF else 0
        seen.append(score)
        lumped = [max(s, lowest) for s in seen]
        left = score > threshold
        found = bag.rank(threshold, left, score if left else NAN, chance)
        assert found == pytest.approx(brute_force(lumped, lumped[-1], chance), abs=1e-12)


def test_a_cut_between_loses_nothing() -> None:
    """Where every input is known down to the lowest cut, further cuts above it change no rank."""
    random_ = random.Random(0)
    calibration = [float(random_.randrange(5)) for _ in range(20)]
    plain, cut = Bag(bins_of(calibration)), Bag(bins_of(calibration))
    cut.rank(0.0, True, 2.0, 0.5)
    plain.rank(0.0, True, 2.0, 0.5)
    cut._divide(1, 2)
    cut._divide(1, 1)
    for _ in range(200):
        score, chance = float(random_.randrange(5)), random_.random()
        given = (0.0, score > 0, score, chance)
        assert cut.rank(*given) == pytest.approx(plain.rank(*given), abs=1e-12)


@pytest.mark.parametrize(
    ("values", "calibration", "cuts"),
    [
        ((0, 1, 2, 3, 4, 2), 2, (-INF, -INF, -INF, -INF)),
        ((3, 3, 0, 2, 4, 3, 1), 3, (2, 1, 3, 0)),
        ((4, 1, 2, 1, 0, 4, 2), 2, (1, 0, 3, 0, 3)),
        ((2, 3, 4, 0, 2, 3, 2), 3, (3, 2, 2, 1)),
        ((0, 4, 0, 0, 3, 3), 0, (3, 2, 1, 0, 3, 1)),
        ((1, 1, 1, 1, 1), 2, (0, 1, 2)),
    ],
)
def test_p_values_are_uniform_and_independent(
    values: tuple[int, ...], calibration: int, cuts: tuple[float, ...]
) -> None:
    """Exactly, whatever the cuts: over all orders of the inputs, the density of the p-values is 1 everywhere.

    Given the order, each p-value is uniform between what it is at chance 0 and at chance 1.
    """
    points = np.random.default_rng(0).random((100, len(cuts)))
    density = np.zeros(100)
    for order in itertools.permutations(values):
        ends = []
        for chance in (0.0, 1.0):
            bag = Bag(bins_of(order[:calibration]))
            stream_ = zip(order[calibration:], cuts, strict=True)
            ends.append([bag.rank(cut, value > cut, value if value > cut else NAN, chance) for value, cut in stream_])
        low, high = np.array(ends, float)
        density += np.where((points >= low) & (points < high), 1 / (high - low), 0).prod(axis=1)
    np.testing.assert_allclose(density / math.factorial(len(values)), 1, rtol=1e-9)


def test_bags_that_share_a_calibration_are_not_independent() -> None:
    """Hence bets by stage: were one input ranked in one bag and the next in another, low would follow low."""
    values, points = (0, 1, 2, 3), np.array([[0.1, 0.1], [0.9, 0.1]])
    density = np.zeros(2)
    for order in itertools.permutations(values):
        ends = [[Bag(bins_of(order[:2])).rank(-INF, True, v, c) for v in order[2:]] for c in (0.0, 1.0)]
        low, high = np.array(ends, float)
        density += np.where((points >= low) & (points < high), 1 / (high - low), 0).prod(axis=1)
    assert density[0] / 24 > 1.1
    assert density[1] / 24 < 0.9


def test_long_streams_with_ties_and_changing_thresholds_give_uniform_p_values() -> None:
    random_ = np.random.default_rng(3)
    scores = np.round(random_.beta(4, 1, 20_500), 2)
    bag = Bag(fine(scores[:500].tolist()))
    thresholds = random_.choice([-INF, 0.3, 0.7, 0.9], 20_000)
    found = np.array(
        [
            bag.rank(t, s > t, s, u)
            for t, s, u in zip(thresholds.tolist(), scores[500:].tolist(), random_.random(20_000).tolist(), strict=True)
        ]
    )
    assert kstest(found, "uniform").pvalue > 0.01
    assert kstest(found[thresholds == 0.3], "uniform").pvalue > 0.01
    assert abs(np.corrcoef(found[1:], found[:-1])[0, 1]) < 3 / math.sqrt(20_000)


def test_nan_is_the_least_sure() -> None:
    calibration = [1.0, 2.0, 3.0]
    assert Bag(bins_of(calibration)).rank(-INF, True, NAN, 0.5) == pytest.approx((3 + 0.5) / 4)
    # one that not even -inf lets go
    assert Bag(bins_of(calibration)).rank(-INF, False, 3.0, 0.5) == pytest.approx((3 + 0.5) / 4)


def test_an_answer_cut_short_is_known_no_better_than_one_that_went_on() -> None:
    """Past a deadline an input may be answered by an exit whose threshold it did not pass."""
    left, went_on = Bag(bins_of([0, 1, 2, 3])), Bag(bins_of([0, 1, 2, 3]))
    assert left.rank(2.0, True, 0.5, 0.3) == went_on.rank(2.0, False, NAN, 0.3)


@pytest.mark.parametrize("threshold", [3.5, INF])
def test_nothing_is_told_where_hardly_anybody_leaves(threshold: float) -> None:
    bag = Bag(bins_of([0, 1, 2, 3]))
    assert bag.rank(threshold, True, 4.0, 0.5) is None
    assert bag.rank(2.0, True, 3.0, 0.5) == pytest.approx((0 + 0.5 * 2) / 5)  # nor did it join


# bets


def test_two_bets_by_hand() -> None:
    bets = Bets()
    assert bets.wealth == 1
    p, q = 0.25, 1.0
    w1 = 1 - 1 / math.log2(3)
    w2 = 1 / math.log2(3) - 1 / 2
    strengths = (0.1, -0.1, 0.3, -0.3, 0.7, -0.7)
    density = [[1 + e * math.cos(j * math.pi * x) for j in (1, 2) for e in strengths] for x in (p, q)]
    tails = [0.9, 0.7, 0.9], [0.9 + 0.1 / 0.05, 0.7 + 0.3 / 0.05, 0.9 + 0.1 / 0.15]  # q is among the lowest, p is not
    share = [1 / 2 / 12] * 12 + [1 / 2 / 3] * 3
    first = [w1 * m * b for m, b in zip(share, density[0] + tails[0], strict=True)]
    assert bets.bet(p) == pytest.approx(sum(first) + 1 / math.log2(3))
    second = [(s + w2 * m) * b for s, m, b in zip(first, share, density[1] + tails[1], strict=True)]
    assert bets.bet(q) == pytest.approx(sum(second) + 1 / 2)


def test_no_bet_gains_on_average() -> None:
    """Whatever came before, the mean over all p is the money there was. 40 midpoints integrate all exactly."""
    past = [0.9, 0.97, 0.5, 0.99] * 5
    after = []
    for p in (np.arange(40) + 0.5) / 40:
        bets = Bets()
        before = [bets.bet(q) for q in past][-1]
        after.append(bets.bet(float(p)))
    assert np.mean(after) == pytest.approx(before, rel=1e-12)
    assert before > 1.1


@pytest.mark.parametrize("p", [0.0, 1.0, 0.5])
def test_money_stays_positive_and_finite(p: float) -> None:
    bets = Bets()
    for _ in range(150):
        assert 0 < bets.bet(p) < INF


# the test


def test_evidence_of_exchangeable_inputs_is_1_on_average() -> None:
    """Over 4,000 short streams, each with a small calibration set of its own."""
    random_, found = np.random.default_rng(0), []
    for seed in range(4000):
        scores = random_.integers(0, 5, 18).astype(float).tolist()
        test = DriftTest([bins_of(scores[:6])], alpha=1e-9, seed=seed)
        for score, threshold in zip(scores[6:], (-INF, 1.0, 2.0, 0.0) * 3, strict=True):
            test.observe(0, threshold, int(score <= threshold), score)
        found.append(2 * test.evidence)  # the first stage to come up has half of the chances
    assert abs(np.mean(found) - 1) < 3 * np.std(found) / math.sqrt(4000)
    assert np.std(found) > 0.05


@pytest.mark.parametrize("threshold", [-INF, 0.6])
def test_few_streams_alarm_without_drift(threshold: float) -> None:
    random_ = np.random.default_rng(1)
    alarms = 0
    for seed in range(200):
        scores = random_.beta(2, 1, 1050).tolist()
        alarms += stream(DriftTest([fine(scores[:50])], alpha=0.1, seed=seed), scores[50:], threshold)
    assert alarms <= 20


def test_few_streams_alarm_when_operating_points_change() -> None:
    random_ = np.random.default_rng(2)
    alarms = 0
    for seed in range(100):
        # stage 1 scores what stage 0 did, and noise
        easy = random_.beta(2, 1, (1100, 1))
        scores = np.clip(easy + random_.normal(0, [[0, 0.1]], (1100, 2)), 0, 1)
        test = DriftTest([fine(scores[:100, s].tolist()) for s in range(2)], alpha=0.1, seed=seed)
        for i, (a, b) in enumerate(scores[100:].tolist()):
            if i % 300 < 100:
                test.observe(1, -INF, 1, b)
            else:
                threshold = (0.5, 0.9)[i // 10 % 2]
                test.observe(0, threshold, int(a <= threshold), a)
        alarms += test.alarm
    assert alarms <= 10


def test_calibration_is_not_taken_for_the_truth() -> None:
    """40 inputs are not quite like the rest: bets against them as they stand always win in the end."""
    random_ = np.random.default_rng(3)
    fooled = alarms = 0
    for seed in range(10):
        calibration, scores = random_.random(40), random_.random(10_000)
        bins = fine(calibration.tolist())
        at = np.searchsorted(bins.edges, scores)
        above = 40 - np.cumsum(bins.counts)
        p = (above[at] + random_.random(10_000) * np.array(bins.counts)[at]) / 40
        bets = Bets()
        fooled += any(bets.bet(x) >= 200 for x in p.tolist())
        alarms += stream(DriftTest([bins], seed=seed), scores.tolist())
    assert fooled >= 9
    assert alarms == 0


@pytest.mark.parametrize("threshold", [-INF, 0.5, 0.8])
def test_a_shift_is_noticed(threshold: float) -> None:
    random_ = np.random.default_rng(4)
    test = DriftTest([fine(random_.beta(4, 1, 2000).tolist())])
    assert not stream(test, random_.beta(4, 1, 1000).tolist(), threshold)
    assert stream(test, random_.beta(2, 1, 400).tolist(), threshold)
    assert 1000 < test.inputs <= 1400


def test_few_strangers_among_many_usual_inputs_are_noticed() -> None:
    """One input of ten is of another kind, and scores as the least sure twentieth of the usual ones do."""
    random_ = np.random.default_rng(7)
    usual = np.sort(random_.beta(4, 1, 2000))
    test = DriftTest([fine(usual.tolist())])
    stranger = random_.random(400) < 0.1
    scores = np.where(stranger, random_.choice(usual[:100], 400), random_.beta(4, 1, 400))
    assert stream(test, scores.tolist())


def test_surer_inputs_are_a_shift_too() -> None:
    random_ = np.random.default_rng(5)
    test = DriftTest([fine(random_.beta(4, 1, 2000).tolist())])
    assert stream(test, random_.beta(12, 1, 400).tolist(), 0.8)


def test_a_long_quiet_stretch_delays_the_alarm_little() -> None:
    random_ = np.random.default_rng(6)
    delays = []
    for quiet in (300, 30_000):
        test = DriftTest([fine(random_.beta(4, 1, 2000).tolist())])
        assert not stream(test, random_.beta(4, 1, quiet).tolist(), 0.8)
        assert stream(test, random_.beta(2, 1, 1000).tolist(), 0.8)
        delays.append(test.inputs - quiet)
    assert delays[1] < 2 * delays[0] + 50


def test_a_shift_shows_through_thresholds_that_change() -> None:
    """A threshold that hardly anybody passes, used now and then, does not blind the test at others."""
    random_ = np.random.default_rng(7)
    test = DriftTest([fine(random_.beta(4, 1, 2000).tolist())])
    for score in random_.beta(4, 1, 2000).tolist():
        threshold = float(random_.choice([0.97, 0.3]))
        test.observe(0, threshold, int(score <= threshold), score)
    assert not test.alarm
    # half of those that leave leave less sure: all of it happens between the two
    shifted = np.where(random_.random(1000) < 0.5, random_.uniform(0.3, 0.9, 1000), random_.beta(4, 1, 1000))
    assert stream(test, shifted.tolist(), 0.3)


def test_nothing_is_done_after_an_alarm_until_a_restart() -> None:
    random_ = np.random.default_rng(8)
    test = DriftTest([fine(random_.beta(4, 1, 2000).tolist())])
    assert stream(test, random_.beta(1, 1, 500).tolist(), 0.5)
    alarmed_at, evidence = test.inputs, test.evidence
    assert evidence >= 100
    assert test.observe(0, 0.5, 0, 0.9)
    assert (test.inputs, test.evidence) == (alarmed_at, evidence)
    test.restart()
    assert (test.alarm, test.inputs, test.evidence) == (False, 0, 0.5)
    assert not stream(test, random_.beta(4, 1, 1000).tolist(), 0.5)  # as it was
    assert test.inputs == 1000
    assert stream(test, random_.beta(1, 1, 500).tolist(), 0.5)


def test_the_same_seed_gives_the_same() -> None:
    scores = np.random.default_rng(9).random(300).tolist()
    found = []
    for seed in (0, 0, 1):
        test = DriftTest([fine(scores[:100])], seed=seed)
        stream(test, scores[100:], 0.5)
        found.append(test.evidence)
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("others", [1, 2])
def test_each_stage_that_comes_up_needs_more(others: int) -> None:
    """Shares of 1/2, 1/6, 1/12 and so on: the chances of a false alarm add up to alpha."""
    bins = fine(np.linspace(0, 1, 100).tolist())
    found = []
    for threshold in (-INF, INF):  # at +inf nothing can be told, and nothing is staked
        test = DriftTest([bins] * 3, alpha=1e-9)
        for stage in range(others):
            test.observe(1 + stage, threshold, 2 if threshold == INF else 1 + stage, 0.5)
        stream(test, [0.1] * 40)
        found.append(test.evidence)
    k = others + 1
    assert found[0] * k * (k + 1) == pytest.approx(2 * found[1])
    assert found[0] > 1


def test_the_alarm_comes_when_evidence_reaches_it() -> None:
    test = DriftTest([fine(np.linspace(0, 1, 100).tolist())], alpha=0.01)
    before = 0.0
    while not test.observe(0, -INF, 0, 0.1):
        before = test.evidence
    assert before < 100 <= test.evidence


def test_unknown_scores_are_not_watched() -> None:
    test = DriftTest(())
    assert not test.watching
    assert not stream(test, [0.1] * 500)
    assert (test.inputs, test.evidence) == (0, 0.5)
    assert DriftTest([fine([0.5])]).watching


def test_one_bin_says_nothing() -> None:
    test = DriftTest([ScoreBins((), (100,))])
    assert not test.watching
    beside = DriftTest([ScoreBins((), (100,)), fine([0.5])])
    assert beside.watching
    for one in (test, beside):
        assert not stream(one, [0.1] * 500, -INF)
        assert not stream(one, [0.9] * 500, 0.5)
        assert one.evidence == 0.5


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 1.5, NAN, INF, True, "0.1", None])
def test_alpha_is_a_fraction(alpha: object) -> None:
    with pytest.raises(SettingError, match="alpha="):
        DriftTest((), alpha=alpha)  # type: ignore[arg-type]


def test_of_a_group_one_record_is_counted() -> None:
    logits, label = learned(400, 2)
    group = np.arange(400) // 10
    alone = make_records(logits, label, part=group % 4 > 0)
    given = replace(alone, group=group)
    for grouped, single in zip(score_bins(given, combiner(2)), score_bins(alone, combiner(2)), strict=True):
        assert grouped.edges == single.edges
        assert (sum(grouped.counts), sum(single.counts)) == (30, 300)
