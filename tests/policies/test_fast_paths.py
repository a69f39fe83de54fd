"""Sets of points as bits against sets of points as sets."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.policy_cases import repeatable

from dynamic.policies.fast_paths import Rank, members

figures = st.lists(st.sampled_from([-math.inf, -1.0, 0.0, 0.5, 2.0, math.inf]) | st.floats(-3, 3), min_size=1)


@repeatable
@given(figures, st.floats(-4, 4) | st.sampled_from([-math.inf, math.inf, 0.5]))
def test_at_most_is_plain_comparison(figures: list[float], most: float) -> None:
    assert list(members(Rank(figures).at_most(most))) == [i for i, f in enumerate(figures) if f <= most]


@repeatable
@given(figures, st.data())
def test_first_of_a_set_is_its_least_and_of_equals_the_first(figures: list[float], data: st.DataObject) -> None:
    ties = data.draw(st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=len(figures), max_size=len(figures)))
    among = data.draw(st.sets(st.integers(0, len(figures) - 1), min_size=1))
    left = sum(1 << i for i in among)
    assert Rank(figures).first(left) == min(among, key=lambda i: (figures[i], i))
    assert Rank(figures, ties).first(left) == min(among, key=lambda i: (figures[i], ties[i], i))


def test_by_hand() -> None:
    rank = Rank([3.0, 1.0, 2.0, 1.0])
    assert rank.figures == (3.0, 1.0, 2.0, 1.0)
    assert [rank.at_most(m) for m in (0.9, 1.0, 2.5, 3.0)] == [0b0000, 0b1010, 0b1110, 0b1111]
    assert [rank.first(left) for left in (0b1111, 0b1101, 0b0101, 0b0001)] == [1, 3, 2, 0]


def test_nothing_comes_first_in_an_empty_set() -> None:
    assert list(members(0)) == []
    with pytest.raises(ValueError, match="empty"):
        Rank([1.0]).first(0)


def test_another_order_changes_no_limit() -> None:
    rank = Rank([10.0, 10.2, 10.4, 20.0], order=[10.0, 9.9, 9.8, 20.0])
    assert [rank.first(left) for left in (0b1111, 0b1011, 0b1001)] == [2, 1, 0]
    assert [rank.least(left) for left in (0b1111, 0b1011, 0b1001)] == [0b0100, 0b0010, 0b0001]
    assert [rank.at_most(most) for most in (9.9, 10.0, 10.3, 20.0)] == [0, 0b0001, 0b0011, 0b1111]
    assert [rank.below(most) for most in (10.0, 10.4)] == [0, 0b0011]
    assert Rank([1.0, 2.0, 1.0]).least(0b111) == 0b101
