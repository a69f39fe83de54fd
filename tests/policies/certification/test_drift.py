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

from dynamic.policies.certification.drift import BINS, Bag, Bets, DriftTest, ScoreBins, exit_bins
from dynamic.policies.certification.replay import replay
from dynamic.policies.errors import InputError, SettingError
from dynamic.policies.scores import Combiner

INF, NAN = float("inf"), float("nan")
EDGES = (0.0, 1.0, 2.0, 3.0)  # bins 0 to 4: scores that are whole numbers lie in their own
Exit = tuple[int, float]  # the stage of an exit, and the score there


def bins_of(scores: Sequence[float], edges: tuple[float, ...] = EDGES) -> ScoreBins:
    """The scores, counted."""
    counts = np.bincount(np.searchsorted(edges, scores), minlength=len(edges) + 1)
    return ScoreBins(edges, tuple(counts.tolist()))


def stages_of(exits: Sequence[Exit], stages: int = 3) -> tuple[ScoreBins, ...]:
    """The exits, counted by stage."""
    return tuple(bins_of([score for at, score in exits if at == stage]) for stage in range(stages))


def fine(scores: Sequence[float], threshold: float = -INF) -> tuple[ScoreBins, ...]:
    """Scores in [0, 1] in 64 bins of one width: those above the threshold at stage 0, the others at stage 1."""
    edges = tuple((np.arange(1, BINS) / BINS).tolist())
    exits = [score > threshold for score in scores]
    return tuple(bins_of([s for s, out in zip(scores, exits, strict=True) if out == first], edges) for first in (1, 0))


def combiner(stages: int, score: str = "max_probability") -> Combiner:
    return Combiner((1.0,) * stages, score, combine="mean", backbone=(0,) * stages)


def stream(test: DriftTest, scores: Sequence[float], threshold: float = -INF, point: int = 0) -> bool:
    """Feed scores: above the threshold an input exits at stage 0, else at stage 1 with the same score."""
    for score in scores:
        test.observe(point, int(score <= threshold), score)
    return test.alarm


# bins


def test_edges_come_from_the_search_part_and_counts_from_the_other() -> None:
    # two classes: the largest probability is that of the logit's absolute value
    logit = np.array([1, 2, 3, 4, 0.5, 2.5, 2.5, 9])
    logits = np.stack([logit, np.zeros(8)], axis=1)[:, None]
    ((bins,),) = exit_bins(make_records(logits, None, part=[0, 0, 0, 0, 1, 1, 1, 1]), combiner(1), [()])
    wanted = [1 / (1 + math.exp(-x)) for x in (1, 2, 3)]  # nothing would lie above the largest, 4
    assert bins.edges == pytest.approx(wanted, rel=1e-6)
    assert bins.counts == (1, 0, 2, 1)


def test_inputs_are_counted_at_the_stage_where_they_exit() -> None:
    """Two points of two stages: half of the inputs exit first, or none."""
    logits, label = learned(20_000, 2)
    part = np.arange(20_000) % 2
    records = make_records(logits, label, part=part)
    middle = float(np.median(replay(logits, combiner(2), thresholds=(-INF,), backbone=(0, 0)).score))
    half, none = exit_bins(records, combiner(2), [(middle,), (INF,)])
    stage = replay(logits, combiner(2), thresholds=(middle,), backbone=(0, 0)).stage[part == 1]
    assert [sum(bins.counts) for bins in half] == [(stage == 0).sum(), (stage == 1).sum()]
    assert [sum(bins.counts) for bins in none] == [0, 10_000]
    for bins in (*half, none[1]):
        expected = sum(bins.counts) / BINS
        assert len(bins.edges) == BINS - 1
        assert 0.5 * expected < min(bins.counts) <= max(bins.counts) < 1.6 * expected  # a deviation is at most 0.11
    assert min(half[0].edges) > middle  # as a score of an input that exits there is
    assert none[0] == ScoreBins((), (0,))


def test_the_order_of_the_calibration_does_not_matter() -> None:
    logits, label = learned(300, 2)
    part, order = np.arange(300) % 2, np.random.default_rng(1).permutation(300)
    given = exit_bins(make_records(logits, label, part=part), combiner(2), [(0.8,)])
    assert exit_bins(make_records(logits[order], label[order], part=part[order]), combiner(2), [(0.8,)]) == given
    # nor do labels
    assert exit_bins(make_records(logits, None, part=part), combiner(2), [(0.8,)]) == given


@pytest.mark.parametrize("only", [0, 1])
def test_one_part_alone_serves_as_both(only: int) -> None:
    logits, label = learned(300, 2)
    (point,) = exit_bins(make_records(logits, label, part=np.full(300, only)), combiner(2), [(0.8,)])
    assert sum(sum(bins.counts) for bins in point) == 300


def test_nan_scores_lie_in_the_lowest_bin() -> None:
    logits = np.zeros((8, 1, 2))
    logits[:, 0, 0] = [NAN, NAN, 1, 2, NAN, 1, 2, 3]
    ((bins,),) = exit_bins(make_records(logits, None, part=[0, 0, 0, 0, 1, 1, 1, 1]), combiner(1), [()])
    assert bins.edges == pytest.approx((-INF, 1 / (1 + math.exp(-1))))
    assert bins.counts == (1, 1, 2)
    ((bins,),) = exit_bins(make_records(np.full((4, 1, 2), NAN), None), combiner(1), [()])
    assert bins == ScoreBins((), (4,))


def test_scores_that_are_all_the_same_are_one_bin() -> None:
    (point,) = exit_bins(make_records(np.zeros((6, 2, 3)), None), combiner(2), [(INF,)])
    assert point == (ScoreBins((), (0,)), ScoreBins((), (6,)))


def test_of_a_group_one_record_is_counted() -> None:
    logits, label = learned(400, 2)
    group = np.arange(400) // 10
    alone = make_records(logits, label, part=group % 4 > 0)
    (grouped,), (single,) = (
        exit_bins(records, combiner(2), [(0.8,)]) for records in (replace(alone, group=group), alone)
    )
    assert [bins.edges for bins in grouped] == [bins.edges for bins in single]
    assert [sum(sum(bins.counts) for bins in point) for point in (grouped, single)] == [30, 300]


@pytest.mark.parametrize(
    ("edges", "counts"), [((1.0, 1.0), (1, 1, 1)), ((2.0, 1.0), (1, 1, 1)), ((1.0,), (1,)), ((1.0,), (1, -1)), ((), ())]
)
def test_bins_that_do_not_fit_are_refused(edges: tuple[float, ...], counts: tuple[int, ...]) -> None:
    with pytest.raises(InputError):
        ScoreBins(edges, counts)


# ranks


def strangeness(exit_: Exit) -> tuple[int, float]:
    """Larger for a stranger input: a later stage, then a lower score."""
    return exit_[0], -exit_[1]


def test_ranks_are_those_counted_one_by_one() -> None:
    generator = random.Random(0)

    def drawn() -> Exit:
        return generator.randrange(3), float(generator.randrange(5))

    calibration = [drawn() for _ in range(20)]
    bag, earlier = Bag(stages_of(calibration)), list(calibration)
    for _ in range(200):
        new, chance = drawn(), generator.random()
        earlier.append(new)
        usual = sum(strangeness(other) < strangeness(new) for other in earlier)
        ties = sum(other == new for other in earlier)
        p = bag.rank(*new, False, chance)
        assert p == pytest.approx((usual + chance * ties) / len(earlier), abs=1e-12)


def test_an_input_that_a_deadline_cut_is_one_of_those_that_continue() -> None:
    """Three of five exit first. It lies anywhere among the two others and itself, and its score there says nothing."""
    bag = Bag(stages_of([(0, 3.0), (0, 2.0), (0, 1.0), (1, 2.0), (2, 0.0)]))
    assert bag.rank(0, 0.5, True, 0.3) == pytest.approx((3 + 0.3 * 3) / 6)
    # it joined the first bag alone: 4 of 7 are at least as strange as one that exits last, and of those known 2 of 3
    assert bag.rank(2, 0.0, False, 0.5) == pytest.approx((3 + 4 * (1 + 2 * 0.5) / 3) / 7)


def test_an_input_that_does_not_join_changes_nothing() -> None:
    bag = Bag(stages_of([(0, 3.0), (0, 2.0), (1, 2.0)]))
    first = [bag.rank(1, 1.0, cut, 0.5, joins=False) for cut in (False, True)]
    assert [bag.rank(1, 1.0, cut, 0.5, joins=False) for cut in (False, True)] == first


@pytest.mark.parametrize(
    ("values", "calibration", "cuts"),
    [
        (((0, 1), (0, 2), (1, 1), (1, 1), (2, 0), (0, 2)), 2, (None, None, None, None)),
        (((0, 1), (1, 2), (2, 1), (2, 1), (2, 0), (1, 2), (0, 1)), 3, (0, None, None, 0)),
        (((0, 3), (1, 2), (1, 1), (2, 4), (2, 0), (0, 1), (1, 1)), 2, (None, 0, None, 1, None)),
        (((0, 3), (1, 2), (2, 1), (2, 4), (2, 0), (2, 1), (1, 1)), 2, (1, 1, None, 0, None)),
        (((2, 1), (2, 2), (2, 2), (1, 3), (1, 0), (0, 0)), 0, (None, 0, None, None, 1, None)),
        (((1, 1), (1, 1), (1, 1), (1, 1), (1, 1)), 2, (None, 0, None)),
    ],
)
def test_p_values_are_uniform_and_independent(
    values: tuple[Exit, ...], calibration: int, cuts: tuple[int | None, ...]
) -> None:
    """Exactly, also where a deadline cuts what continues behind a stage: over all orders their density is 1.

    Given the order, each p-value is uniform between what it is at chance 0 and at chance 1.
    """
    points = np.random.default_rng(0).random((100, len(cuts)))
    density = np.zeros(100)
    for order in itertools.permutations(values):
        ends = []
        for chance in (0.0, 1.0):
            bag = Bag(stages_of(order[:calibration]))
            inputs = zip(order[calibration:], cuts, strict=True)
            # one that exits before that stage, or there, exits before the deadline
            ends.append(
                [
                    bag.rank(stage, score, False, chance)
                    if cut is None or stage <= cut
                    else bag.rank(cut, 9.0, True, chance)
                    for (stage, score), cut in inputs
                ]
            )
        low, high = np.array(ends, float)
        density += np.where((points >= low) & (points < high), 1 / (high - low), 0).prod(axis=1)
    np.testing.assert_allclose(density / math.factorial(len(values)), 1, rtol=1e-9)


def test_bags_that_share_a_calibration_are_not_independent() -> None:
    """Hence bets by point: were one input ranked in one bag and the next in another, low would follow low."""
    values, points = (0, 1, 2, 3), np.array([[0.1, 0.1], [0.9, 0.1]])
    density = np.zeros(2)
    for order in itertools.permutations(values):
        ends = [[Bag([bins_of(order[:2])]).rank(0, v, False, c) for v in order[2:]] for c in (0.0, 1.0)]
        low, high = np.array(ends, float)
        density += np.where((points >= low) & (points < high), 1 / (high - low), 0).prod(axis=1)
    assert density[0] / 24 > 1.1
    assert density[1] / 24 < 0.9


def test_long_streams_with_ties_and_deadlines_give_uniform_p_values() -> None:
    generator = np.random.default_rng(3)
    scores = np.round(generator.beta(4, 1, 20_500), 2)
    bag = Bag(fine(scores[:500].tolist(), 0.8))
    cut = generator.random(20_000) < 0.3
    p = np.array(
        [
            bag.rank(0, 0.1, True, u) if c and s <= 0.8 else bag.rank(int(s <= 0.8), s, False, u)
            for c, s, u in zip(cut.tolist(), scores[500:].tolist(), generator.random(20_000).tolist(), strict=True)
        ]
    )
    assert kstest(p, "uniform").pvalue > 0.01
    assert kstest(p[cut], "uniform").pvalue > 0.01
    assert abs(np.corrcoef(p[1:], p[:-1])[0, 1]) < 3 / math.sqrt(20_000)


def test_nan_is_the_strangest_of_its_stage_and_what_continues_is_stranger() -> None:
    bag = Bag(stages_of([(0, 1.0), (0, 2.0), (0, 3.0), (1, 4.0)]))
    ranks = [bag.rank(*exit_, False, 0.5, joins=False) for exit_ in ((0, 1.0), (0, NAN), (1, 4.0), (2, 4.0))]
    assert ranks == pytest.approx([(2 + 0.5 * 2) / 5, (3 + 0.5) / 5, (3 + 0.5 * 2) / 5, (4 + 0.5) / 5])
    assert ranks == sorted(set(ranks))


# bets


def test_two_bets_by_hand() -> None:
    bets = Bets()
    assert bets.wealth == 1
    p, q = 0.25, 1.0
    w1 = 1 - 1 / math.log2(3)
    w2 = 1 / math.log2(3) - 1 / 2
    strengths = (0.1, -0.1, 0.3, -0.3, 0.7, -0.7)
    density = [[1 + e * math.cos(j * math.pi * x) for j in (1, 2) for e in strengths] for x in (p, q)]
    # q is among the strangest, p is not
    tails = [0.95, 0.95, 0.9, 0.9], [0.95 + 0.05 / 0.01, 0.95 + 0.05 / 0.02, 0.9 + 0.1 / 0.05, 0.9 + 0.1 / 0.15]
    share = [1 / 2 / 12] * 12 + [1 / 2 / 4] * 4
    first = [w1 * m * b for m, b in zip(share, density[0] + tails[0], strict=True)]
    assert bets.bet(p) == pytest.approx(sum(first) + 1 / math.log2(3))
    second = [(s + w2 * m) * b for s, m, b in zip(first, share, density[1] + tails[1], strict=True)]
    assert bets.bet(q) == pytest.approx(sum(second) + 1 / 2)


def test_no_bet_gains_on_average() -> None:
    """Whatever came before, the mean over all p is the money there was. 200 midpoints integrate all exactly."""
    past = [0.9, 0.97, 0.5, 0.99] * 5
    after = []
    for p in (np.arange(200) + 0.5) / 200:
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
    generator, evidence = np.random.default_rng(0), []
    for seed in range(4000):
        exits = [(int(stage), float(score)) for stage, score in generator.integers(0, (2, 5), (18, 2))]
        test = DriftTest([stages_of(exits[:6])], alpha=1e-9, seed=seed)
        for (stage, score), cut in zip(exits[6:], (False, True, False) * 4, strict=True):
            test.observe(0, 0 if cut else stage, score, cut and stage > 0)
        evidence.append(2 * test.evidence)  # the first point that runs has half of the chances
    assert abs(np.mean(evidence) - 1) < 3 * np.std(evidence) / math.sqrt(4000)
    assert np.std(evidence) > 0.05


@pytest.mark.parametrize("threshold", [-INF, 0.6])
def test_few_streams_alarm_without_drift(threshold: float) -> None:
    generator = np.random.default_rng(1)
    alarms = 0
    for seed in range(200):
        scores = generator.beta(2, 1, 1050).tolist()
        alarms += stream(DriftTest([fine(scores[:50], threshold)], alpha=0.1, seed=seed), scores[50:], threshold)
    assert alarms <= 20


def test_few_streams_alarm_when_operating_points_change() -> None:
    generator = np.random.default_rng(2)
    alarms = 0
    for seed in range(100):
        scores, thresholds = generator.beta(2, 1, 1100).tolist(), (0.5, 0.9, INF)
        test = DriftTest([fine(scores[:100], threshold) for threshold in thresholds], alpha=0.1, seed=seed)
        for number, start in enumerate(range(100, 1100, 10)):
            stream(test, scores[start : start + 10], thresholds[number % 3], number % 3)
        alarms += test.alarm
    assert alarms <= 10


def test_calibration_is_not_taken_for_the_truth() -> None:
    """40 inputs are not quite like the rest: bets against them as they stand always win in the end."""
    generator = np.random.default_rng(3)
    fooled = alarms = 0
    for seed in range(10):
        calibration, scores = generator.random(40), generator.random(10_000)
        bins = fine(calibration.tolist())
        at = np.searchsorted(bins[0].edges, scores)
        above = 40 - np.cumsum(bins[0].counts)
        p = (above[at] + generator.random(10_000) * np.array(bins[0].counts)[at]) / 40
        bets = Bets()
        fooled += any(bets.bet(x) >= 200 for x in p.tolist())
        alarms += stream(DriftTest([bins], seed=seed), scores.tolist())
    assert fooled >= 9
    assert alarms == 0


@pytest.mark.parametrize("threshold", [-INF, 0.5, 0.8])
def test_a_shift_is_noticed(threshold: float) -> None:
    generator = np.random.default_rng(4)
    test = DriftTest([fine(generator.beta(4, 1, 2000).tolist(), threshold)])
    assert not stream(test, generator.beta(4, 1, 1000).tolist(), threshold)
    assert stream(test, generator.beta(2, 1, 400).tolist(), threshold)
    assert 1000 < test.inputs <= 1400


def test_a_shift_is_noticed_where_deadlines_cut_all_that_continue() -> None:
    generator = np.random.default_rng(4)
    test = DriftTest([fine(generator.beta(4, 1, 2000).tolist(), 0.8)])
    for a, count in ((4, 1000), (2, 400)):
        assert not test.alarm
        for score in generator.beta(a, 1, count).tolist():
            test.observe(0, 0, score, score <= 0.8)
    assert test.alarm


def test_few_strangers_among_many_usual_inputs_are_noticed() -> None:
    """One input of ten is of another kind, and scores as the least confident twentieth of the usual ones do."""
    generator = np.random.default_rng(7)
    usual = np.sort(generator.beta(4, 1, 2000))
    test = DriftTest([fine(usual.tolist(), 0.8)])
    stranger = generator.random(400) < 0.1
    scores = np.where(stranger, generator.choice(usual[:100], 400), generator.beta(4, 1, 400))
    assert stream(test, scores.tolist(), 0.8)


def test_scores_behind_the_first_exit_show_a_shift() -> None:
    """As many inputs exit first as before, as confident as before. What continues is less confident at the end."""
    generator = np.random.default_rng(9)

    def exits(count: int, a: float) -> list[Exit]:
        first, score = generator.random(count) < 0.7, generator.beta(4, 1, count)
        later = generator.beta(a, 1, count)
        return [(0, s) if out else (1, t) for out, s, t in zip(first, score, later, strict=True)]

    edges = tuple((np.arange(1, BINS) / BINS).tolist())
    calibration = exits(2000, 4)
    test = DriftTest([[bins_of([s for at, s in calibration if at == stage], edges) for stage in (0, 1)]])
    for a, count in ((4, 1000), (1, 400)):
        assert not test.alarm
        for stage, score in exits(count, a):
            test.observe(0, stage, score)
    assert test.alarm


def test_more_confident_inputs_are_a_shift_too() -> None:
    generator = np.random.default_rng(5)
    test = DriftTest([fine(generator.beta(4, 1, 2000).tolist(), 0.8)])
    assert stream(test, generator.beta(12, 1, 400).tolist(), 0.8)


def test_a_long_quiet_stretch_delays_the_alarm_little() -> None:
    generator = np.random.default_rng(6)
    delays = []
    for quiet in (300, 30_000):
        test = DriftTest([fine(generator.beta(4, 1, 2000).tolist(), 0.8)])
        assert not stream(test, generator.beta(4, 1, quiet).tolist(), 0.8)
        assert stream(test, generator.beta(2, 1, 1000).tolist(), 0.8)
        delays.append(test.inputs - quiet)
    assert delays[1] < 2 * delays[0] + 50


def test_a_shift_shows_at_points_that_take_turns() -> None:
    """Two points are chosen by chance for each input. Each has half of the inputs."""
    generator = np.random.default_rng(7)
    calibration, thresholds = generator.beta(4, 1, 2000).tolist(), (0.97, 0.3)
    test = DriftTest([fine(calibration, threshold) for threshold in thresholds])
    for a, count in ((4, 2000), (2, 1000)):
        assert not test.alarm
        for score in generator.beta(a, 1, count).tolist():
            point = int(generator.integers(2))
            stream(test, [score], thresholds[point], point)
    assert test.alarm


def test_nothing_is_done_after_an_alarm_until_a_restart() -> None:
    generator = np.random.default_rng(8)
    test = DriftTest([fine(generator.beta(4, 1, 2000).tolist(), 0.5)])
    assert stream(test, generator.beta(1, 1, 500).tolist(), 0.5)
    alarmed_at, evidence = test.inputs, test.evidence
    assert evidence >= 100
    assert test.observe(0, 0, 0.9)
    assert (test.inputs, test.evidence) == (alarmed_at, evidence)
    test.restart()
    assert (test.alarm, test.inputs, test.evidence) == (False, 0, 0.5)
    assert not stream(test, generator.beta(4, 1, 1000).tolist(), 0.5)  # as it was
    assert test.inputs == 1000
    assert stream(test, generator.beta(1, 1, 500).tolist(), 0.5)


def test_the_same_seed_gives_the_same() -> None:
    scores = np.random.default_rng(9).random(300).tolist()
    evidence = []
    for seed in (0, 0, 1):
        test = DriftTest([fine(scores[:100], 0.5)], seed=seed)
        stream(test, scores[100:], 0.5)
        evidence.append(test.evidence)
    assert evidence[0] == evidence[1] != evidence[2]


@pytest.mark.parametrize("others", [1, 2])
def test_each_point_that_runs_needs_more(others: int) -> None:
    """Shares of 1/2, 1/6, 1/12 and so on: the chances of a false alarm add up to alpha."""
    bins, alike = fine(np.linspace(0, 1, 100).tolist()), (ScoreBins((), (100,)), ScoreBins((), (0,)))
    evidence = []
    for before in (bins, alike):  # where all exit alike, nothing is staked
        test = DriftTest([bins, *[before] * others], alpha=1e-9)
        for point in range(others):
            stream(test, [0.5], point=1 + point)
        stream(test, [0.1] * 40)
        evidence.append(test.evidence)
    k = others + 1
    assert evidence[0] * k * (k + 1) == pytest.approx(2 * evidence[1], rel=0.2)  # other random numbers break ties
    assert evidence[0] > 1


def test_a_point_keeps_its_share_in_a_restart() -> None:
    """The second point that ran is no first one after a restart: both know one calibration set."""
    bins = fine(np.linspace(0, 1, 100).tolist())
    evidence = []
    for first in (0, 1):
        test = DriftTest([bins, bins], alpha=1e-9)
        stream(test, [0.5], point=first)
        test.restart()
        stream(test, [0.1] * 40, point=1)
        evidence.append(test.evidence)
    assert evidence[0] * 6 == pytest.approx(evidence[1] * 2, rel=0.3)  # other random numbers break ties


def test_the_alarm_comes_when_evidence_reaches_it() -> None:
    test = DriftTest([fine(np.linspace(0, 1, 100).tolist())], alpha=0.01)
    before = 0.0
    while not test.observe(0, 0, 0.1):
        before = test.evidence
    assert before < 100 <= test.evidence


def test_unknown_scores_are_not_watched() -> None:
    test = DriftTest(())
    assert not test.watching
    assert not stream(test, [0.1] * 500)
    assert (test.inputs, test.evidence) == (0, 0.5)
    assert DriftTest([fine([0.5, 0.7])]).watching


def test_exits_that_are_all_alike_say_nothing() -> None:
    alike = (ScoreBins((), (100,)), ScoreBins((), (0,)))
    assert not DriftTest([alike]).watching
    test = DriftTest([alike, fine([0.5, 0.7])])
    assert test.watching
    assert not stream(test, [0.1] * 500, -INF)
    assert not stream(test, [0.9] * 500, 0.95)
    assert test.evidence == 0.5


def test_stages_alone_are_two_ways_to_exit() -> None:
    """As under patience 1: all scores of a stage are alike, and how many inputs exit there is not."""
    test = DriftTest([(ScoreBins((), (500,)), ScoreBins((), (500,)))])
    assert test.watching
    for _ in range(300):
        test.observe(0, 1, 0.0)
    assert test.alarm


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 1.5, NAN, INF, True, "0.1", None])
def test_alpha_is_a_fraction(alpha: object) -> None:
    with pytest.raises(SettingError, match="alpha="):
        DriftTest((), alpha=alpha)  # type: ignore[arg-type]
