"""p-values against scipy, brute force, and every outcome of small samples with its probability: nothing is drawn."""

import itertools
import math
import tracemalloc
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom, binomtest, hypergeom, multinomial
from support.policy_cases import repeatable

from dynamic.policies.certification.bounds import (
    batch_p,
    betting_p,
    binomial_p,
    hypergeometric_p,
    largest_share,
    signed_p,
    upper_bound,
)

TINY = 1e-18  # what is left out of a p-value
LEVELS = (0.02, 0.1, 0.3)
shares = st.floats(0, 1) | st.floats(0, 0.01)


def at_most(p: float, other: float) -> bool:
    """But for rounding."""
    return p <= other * (1 + 1e-8) + TINY


def tail(total: int, count: int, share: float, mean: float) -> float:
    """P(losses sum to at most `total`), of which a `share` is not 0: first how many are not 0, then how many are 1."""
    k = np.arange(count + 1)
    plus = min((share + mean) / (2 * share), 1.0) if share else 0.0
    return float(binom.pmf(k, count, share) @ binom.cdf((total + k) // 2, k, plus))


def splits(count: int) -> list[tuple[int, int]]:
    """Every (lost, gained)."""
    return [(lost, gained) for lost in range(count + 1) for gained in range(count + 1 - lost)]


@cache
def chances(count: int, plus: float, minus: float) -> NDArray[Any]:
    """The probability of each of `splits(count)`."""
    lost, gained = np.array(splits(count)).T
    of_others = minus / (1 - plus) if plus < 1 else 0.0
    return np.asarray(binom.pmf(lost, count, plus) * binom.pmf(gained, count - lost, min(of_others, 1.0)))


# one binomial


@pytest.mark.parametrize("count", [1, 2, 7, 100, 3000, 50_000, 1_000_000, 30_000_000])
def test_binomial_p_is_the_cumulative_distribution(count: int) -> None:
    seen = []
    for target in (1e-9, 1e-5, 0.003, 0.1, 0.5, 0.77, 0.999, 1 - 1e-9):
        spread = math.sqrt(count * target * (1 - target))
        around = {round(count * target + z * spread) for z in (-40, -7, -3, -1.3, -0.5, 0, 0.5, 2, 7, 40)}
        for events in {0, 1, count - 1, count} | {e for e in around if 0 <= e <= count}:
            p, expected = binomial_p(events, count, target), float(binom.cdf(events, count, target))
            assert p == pytest.approx(expected, rel=3e-9, abs=TINY)
            assert p >= expected * (1 - 1e-12), "rounded up, never down"
            seen.append(expected)
    assert min(seen) < 1e-3
    assert max(seen) > 0.9


@pytest.mark.parametrize(("events", "count", "target"), [(0, 1, 0.3), (3, 20, 0.4), (17, 20, 0.6), (431, 50_000, 0.01)])
def test_binomial_p_is_the_exact_test(events: int, count: int, target: float) -> None:
    expected = binomtest(events, count, target, alternative="less").pvalue
    assert binomial_p(events, count, target) == pytest.approx(expected, rel=1e-8)


def test_binomial_p_by_hand() -> None:
    assert binomial_p(0, 2, 0.1) == pytest.approx(0.81)
    assert binomial_p(1, 2, 0.1) == pytest.approx(0.99)
    assert [binomial_p(events, 5, 0.0) for events in (0, 5)] == [1, 1]
    assert [binomial_p(events, 5, 1.0) for events in (0, 4, 5)] == [0, 0, 1]
    assert [binomial_p(5, 5, target) for target in (0.0, 0.2, 1.0)] == [1, 1, 1]
    assert binomial_p(0, 0, 0.3) == 1  # nothing is known
    assert binomial_p(1, 4, 1 - 2**-53) < 1e-17  # the largest below 1


# a share


@pytest.mark.parametrize("count", [1, 10, 333, 50_000])
@pytest.mark.parametrize("level", [1e-4, 0.025, 0.3])
def test_largest_share_is_clopper_and_pearsons(count: int, level: float) -> None:
    for events in sorted({0, 1, count // 3, count - 1, count}):
        found = largest_share(events, count, level)
        # two-sided intervals leave the level out on either side
        expected = binomtest(events, count).proportion_ci(1 - 2 * level, method="exact").high
        assert expected - 1e-12 <= found <= expected + 1.1e-7


@pytest.mark.parametrize(
    ("events", "count", "high"), [(81, 263, 0.3676), (15, 148, 0.1617), (0, 20, 0.1684), (1, 29, 0.1776)]
)
def test_largest_share_as_published(events: int, count: int, high: float) -> None:
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 5, 95%
    assert largest_share(events, count, 0.025) == pytest.approx(high, abs=5e-5)


@pytest.mark.parametrize("count", [1, 20, 300, 10_000])
def test_none_of_many(count: int) -> None:
    """The rule of three: (1 - share)^count = 0.05, about 3 / count."""
    found = largest_share(0, count, 0.05)
    assert found == pytest.approx(1 - 0.05 ** (1 / count), abs=1.1e-7)
    if count >= 300:
        assert found == pytest.approx(3 / count, rel=0.01)


# signed losses


@pytest.mark.parametrize(("count", "plus", "minus"), [(1, 0.2, 0.1), (6, 0.25, 0.25), (9, 0.6, 0.3), (12, 0.1, 0.0)])
def test_the_reference_used_below_is_the_trinomial(count: int, plus: float, minus: float) -> None:
    outcomes = np.array(splits(count))
    table = np.column_stack([outcomes, count - outcomes.sum(axis=1)])
    expected = multinomial.pmf(table, count, [plus, minus, 1 - plus - minus])
    np.testing.assert_allclose(chances(count, plus, minus), expected, atol=1e-14)
    for total in range(-count, count + 1):
        direct = expected[outcomes[:, 0] - outcomes[:, 1] <= total].sum()
        assert tail(total, count, plus + minus, plus - minus) == pytest.approx(direct, abs=1e-12)


def some_counts() -> list[tuple[int, int, int, float, float]]:
    """(lost, gained, count, target, spare), few and many losses of either sign."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(400):
        count = int(np.exp(random.uniform(0, 6.5)))
        share = random.uniform() ** 2
        lost = int(random.binomial(count, share / 2))
        gained = int(random.binomial(count - lost, share / 2))
        target = float(random.choice([0.0, random.uniform(0, 0.1), random.uniform(0, 1)]))
        found.append((lost, gained, count, target, float(random.choice([0.0025, 1e-5, 0.05]))))
    return found


def test_signed_p_is_the_largest_that_the_nuisance_allows() -> None:
    exact = above = 0
    for lost, gained, count, target, spare in some_counts():
        p = signed_p(lost, gained, count, target, spare)
        most = largest_share(lost + gained, count, spare)
        if most < target:
            assert p == spare
            continue
        by_share = [tail(lost - gained, count, share, target) for share in np.linspace(target, most, 20)]
        largest = max(by_share) + spare
        assert p >= min(1.0, largest * (1 - 1e-12))
        if p < 1 and most <= (1 + target**2) / 2:
            assert p == pytest.approx(largest, rel=1e-8)
            assert by_share[-1] == max(by_share)
            exact += 1
        above += p > largest * 1.01  # the exponential bound, or the total too close to what is tested
    assert exact > 30
    assert above > 50


@pytest.mark.parametrize("count", [2, 3, 5, 20, 77])
@pytest.mark.parametrize("target", [0.0, 0.013, 0.3, 0.8])
def test_more_losses_that_are_not_zero_make_a_low_total_likelier(count: int, target: float) -> None:
    """What `signed_p` claims of the nuisance, at its very edges; and that it is not so without the edges."""
    limit = math.floor((count - 1) * target - 2)
    grid = np.linspace(target, (1 + target**2) / 2, 40)
    for total in range(max(-count, limit - 12), limit + 1):
        assert (np.diff([tail(total, count, share, target) for share in grid]) >= -1e-13).all()
    high = [tail(math.ceil(count * target), count, share, target) for share in grid]
    assert (np.diff(high) < 0).any()


def test_what_the_total_of_signed_losses_is_the_difference_of() -> None:
    """Darroch's condition: for shares of at most (1 + target^2) / 2 the roots of the generating function are real."""
    for target, over in itertools.product((0.0, 0.1, 0.5, 0.9), (-1e-6, 1e-6)):
        share = (1 + target**2) / 2 + over
        roots = np.roots([(share + target) / 2, 1 - share, (share - target) / 2])
        assert np.isreal(roots).all() == (over < 0)


def test_signed_p_without_gains_and_without_zeros() -> None:
    # all are gained: the largest of ((1 + q) / 2)^n ... is that of q = 1
    assert signed_p(0, 8, 8, 0.0, 0.01) >= 0.5**8 + 0.01
    assert signed_p(8, 0, 8, 0.9, 0.01) == 1
    assert signed_p(4, 4, 8, 0.9, 0.01) >= tail(0, 8, 1.0, 0.9) + 0.01
    assert signed_p(0, 0, 0, 0.3, 0.01) == 1  # nothing is known
    assert signed_p(0, 0, 1, 0.0, 0.01) == 1
    assert signed_p(1, 2, 5, 0.0, 0.01) == 1  # too close
    assert signed_p(1, 3, 5, 0.0, 0.01) < 1
    # nothing lost of 1000: the nuisance is at most 1 - 0.01^(1/1000), below the target
    assert signed_p(0, 0, 1000, 0.1, 0.01) == 0.01
    assert signed_p(70, 60, 3000, 0.3, 1e-12) == pytest.approx(1e-12, abs=1e-17)
    # where only the exponential bound is left, it is not much above: half of all lost, half gained
    assert tail(0, 400, 1.0, 0.2) < signed_p(200, 200, 400, 0.2, 1e-9) < 40 * tail(0, 400, 1.0, 0.2)


def test_a_spare_too_small_to_mean_anything_is_still_valid() -> None:
    assert largest_share(3, 100, 1e-300) == 1.0
    assert signed_p(3, 0, 100, 0.4, 1e-300) >= tail(3, 100, 1.0, 0.4)
    assert largest_share(3, 100, 1e-15) < 0.5


def test_many_records_take_little_memory_and_keep_their_digits() -> None:
    count = 40_000_000
    tracemalloc.start()
    p = signed_p(400_000, 396_000, count, 2e-4, 1e-4)
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert used < 50e6
    most = largest_share(796_000, count, 1e-4)
    # a total of as many is normal; the correction for continuity is half a unit
    z = (4_000.5 - count * 2e-4) / math.sqrt(count * (most - 4e-8))
    assert p == pytest.approx(0.5 * math.erfc(-z / math.sqrt(2)) + 1e-4, rel=1e-3)


# validity, exactly


@pytest.mark.parametrize("count", [1, 12, 25, 40])
def test_binomial_p_errs_no_more_than_the_level(count: int) -> None:
    closest = 0.0
    for target, over in itertools.product((0.01, 0.1, 0.35, 0.8), (0.0, 0.05)):
        p = np.array([binomial_p(events, count, target) for events in range(count + 1)])
        chance = binom.pmf(np.arange(count + 1), count, target + over)
        for level in (*LEVELS, *p[p < 1]):
            wrong = chance[p <= level].sum()
            assert at_most(wrong, level)
            closest = max(closest, wrong / level)
    assert closest > 0.95


@pytest.mark.parametrize("count", [12, 25, 40])
@pytest.mark.parametrize("level", LEVELS)
def test_signed_p_errs_no_more_than_the_level(count: int, level: float) -> None:
    largest = 0.0
    for target in (0.0, 0.03, 0.2, 0.6):
        p = np.array([signed_p(lost, gained, count, target, 0.025 * level) for lost, gained in splits(count)])
        for over, share in itertools.product((0.0, 0.04), (0.0, 0.02, 0.1, 0.25, 0.5, 0.7, 1.0)):
            mean = target + over
            share = mean + share * (1 - mean)  # from the least that such a mean needs to all
            wrong = chances(count, (share + mean) / 2, (share - mean) / 2)[p <= level].sum()
            assert at_most(wrong, level)
            largest = max(largest, wrong / level)
    assert largest > (0.2 if count > 12 else 0.1), "it does reject"


@pytest.mark.parametrize("count", [1, 5, 12])
def test_betting_p_errs_no_more_than_the_level(count: int) -> None:
    fractions = 0.5 ** np.arange(10)
    for target in (0.0, 0.03, 0.2, 0.6):
        stakes = fractions / (1 - target)
        p, wealth = [], []
        for lost, gained in splits(count):
            losses = np.repeat([1.0, -1.0, 0.0], [lost, gained, count - lost - gained])
            p.append(betting_p(losses, target))
            wealth.append(np.mean([np.prod(1 + stake * (target - losses)) for stake in stakes]))
        assert np.allclose(p, np.minimum(1, 1 / np.array(wealth)), rtol=1e-9)
        for over, share in itertools.product((0.0, 0.04), (0.0, 0.1, 0.5, 1.0)):
            mean = target + over
            share = mean + share * (1 - mean)
            chance = chances(count, (share + mean) / 2, (share - mean) / 2)
            expected = chance @ wealth
            assert expected <= 1 + 1e-9, "nobody can expect to win a fair game"
            assert over or expected >= 1 - 1e-9
            for level in (*LEVELS, *p):
                assert level == 1 or at_most(chance[np.array(p) <= level].sum(), level)


# what all have in common


@repeatable
@given(st.integers(0, 200), st.integers(0, 200), shares, shares)
@example(0, 0, 0.0, 1.0)
def test_binomial_p_falls_as_the_target_rises(events: int, more: int, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert at_most(binomial_p(events, events + more, high), binomial_p(events, events + more, low))


@repeatable
@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 2000), shares, shares, st.sampled_from([1e-6, 0.003]))
@example(30, 30, 60, 0.0, 0.5, 0.003)  # from the exponential bound to the exact one
@example(0, 0, 500, 0.001, 0.1, 0.003)  # to where the nuisance alone forbids it
def test_signed_p_falls_as_the_target_rises(
    lost: int, gained: int, zeros: int, one: float, other: float, spare: float
) -> None:
    low, high = sorted((min(one, 0.999), min(other, 0.999)))
    count = lost + gained + zeros
    assert at_most(signed_p(lost, gained, count, high, spare), signed_p(lost, gained, count, low, spare))


@repeatable
@given(st.lists(st.floats(-1, 1), max_size=40), shares, shares)
def test_betting_p_falls_as_the_target_rises(losses: list[float], one: float, other: float) -> None:
    low, high = sorted((min(one, 0.999), min(other, 0.999)))
    assert at_most(betting_p(np.array(losses), high), betting_p(np.array(losses), low))


@repeatable
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=40), shares, st.randoms(use_true_random=False))
def test_betting_p_does_not_see_the_order(losses: list[float], target: float, random: Any) -> None:
    shuffled = list(losses)
    random.shuffle(shuffled)
    target = min(target, 0.999)
    assert betting_p(np.array(shuffled), target) == pytest.approx(betting_p(np.array(losses), target), rel=1e-9)


def test_betting_p_by_hand() -> None:
    # nothing lost in one: each bet wins its stake, fractions of 1 / (1 - 0.5) of which the mean is (2 - 2^-9) / 10
    assert betting_p(np.zeros(1), 0.5) == pytest.approx(1 / (1 + (2 - 2**-9) / 10))
    assert betting_p(np.zeros(0), 0.5) == 1
    assert betting_p(np.ones(3), 0.5) == 1
    assert betting_p(np.ones(400_000), 0.1) == 1  # the wealth is not a number that can be inverted
    assert betting_p(np.full(400_000, -1.0), 0.1) == 0


def test_betting_p_of_what_was_seen_more_often() -> None:
    losses = np.array([0.3, -0.2, 0.0, 0.1])
    for times in (1, 2, 30):
        assert betting_p(losses, 0.4, times) == pytest.approx(betting_p(np.repeat(losses, times), 0.4), rel=1e-9)
    assert betting_p(losses, 0.4, 30) < betting_p(losses, 0.4, 29.5) < betting_p(losses, 0.4)


TESTS = {
    "binomial": lambda target, level: binomial_p(12, 900, target),
    "none": lambda target, level: binomial_p(0, 900, target),
    "signed": lambda target, level: signed_p(20, 12, 900, target, 0.025 * level),
    "signed, exponential": lambda target, level: signed_p(20, 12, 36, target, 0.025 * level),
    "betting": lambda target, level: betting_p(np.repeat([0.5, 0.1, -0.3], [6, 20, 9]), target),
}


@pytest.mark.parametrize("name", TESTS)
def test_upper_bound_is_where_the_test_turns(name: str) -> None:
    found = []
    for level in (1e-4, 0.01, 0.1, 0.4):
        bound = upper_bound(lambda target, level=level: TESTS[name](target, level), level)
        assert TESTS[name](bound, level) <= level
        assert TESTS[name](bound - 1e-4, level) > level
        found.append(bound)
    assert found == sorted(found, reverse=True), "the surer, the higher"
    assert len(set(found)) == 4


def test_upper_bound_where_there_is_none() -> None:
    assert upper_bound(lambda target: 1.0, 0.1) == 1
    assert upper_bound(lambda target: 1.0, 0.1, low=0.2, high=0.7) == 0.7
    assert upper_bound(lambda target: 0.0, 0.1, low=0.2) == pytest.approx(0.2, abs=1.1e-7)
    assert upper_bound(lambda target: float(target < 0.3), 0.1) == pytest.approx(0.3, abs=1.1e-7)


def test_signed_p_is_close_and_betting_is_not() -> None:
    """Why single images are not bet on: in standard errors, the normal quantile at 0.1 is 1.28."""
    losses = np.repeat([1.0, -1.0, 0.0], [70, 60, 2870])
    error = losses.std() / math.sqrt(3000)
    signed = upper_bound(lambda target: signed_p(70, 60, 3000, target, 0.0025), 0.1)
    betting = upper_bound(lambda target: betting_p(losses, target), 0.1, high=0.5)
    assert 1.28 < (signed - losses.mean()) / error < 1.6
    assert (betting - losses.mean()) / error > 2


# a finite batch


@pytest.mark.parametrize(("total", "losing"), [(3, 1), (7, 3), (60, 12), (2000, 37), (10_000, 200), (50_000, 4000)])
def test_hypergeometric_p_is_the_cumulative_distribution(total: int, losing: int) -> None:
    for drawn in {1, 2, total // 7, total // 2, total - 1, total} - {0}:
        middle, spread = drawn * losing / total, math.sqrt(drawn * losing) / math.sqrt(total) + 1
        for events in {0, 1, *(int(middle + z * spread) for z in (-5, -2, -1, 0, 1, 2, 5))}:
            if not 0 <= events <= drawn:
                continue
            expected = float(hypergeom.cdf(events, total, losing, drawn))
            p = hypergeometric_p(events, drawn, total, losing)
            assert p == pytest.approx(expected, rel=1e-7, abs=1e-15)


def test_hypergeometric_p_by_hand() -> None:
    # 2 of 5 inputs lose. None of the 3 drawn does in 1 of 10 draws, at most one in 7 of 10
    assert hypergeometric_p(0, 3, 5, 2) == pytest.approx(0.1)
    assert hypergeometric_p(1, 3, 5, 2) == pytest.approx(0.7)
    assert hypergeometric_p(2, 3, 5, 2) == 1.0
    assert hypergeometric_p(0, 3, 5, 6) == 0.0  # there are no 6 losing inputs
    assert hypergeometric_p(0, 4, 5, 2) == 0.0  # 4 of 5 always hold one


@pytest.mark.parametrize(("total", "drawn"), [(6, 2), (7, 3), (8, 5)])
def test_a_batch_of_every_kind_and_every_draw(total: int, drawn: int) -> None:
    """Nested exits stop before the losing input that is one too many. Every batch and every draw are counted."""
    draws = [set(some) for some in itertools.combinations(range(total), drawn)]
    for allowed, events in itertools.product(range(3), range(drawn)):
        worst = 0.0
        for losing in itertools.product((False, True), repeat=total):  # in the order in which inputs exit
            wrong = 0
            for some in draws:
                loses = [i for i in range(total) if losing[i] and i in some]
                end = loses[events] if len(loses) > events else total
                wrong += sum(losing[i] and i not in some for i in range(end)) > allowed
            worst = max(worst, wrong / len(draws))
        assert worst == pytest.approx(batch_p(events, drawn, total, allowed), rel=1e-8), "and it is reached"
