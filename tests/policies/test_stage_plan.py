"""Plans by hand: which heads and bodies a threshold vector asks for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.policy_cases import INF, repeatable

from dynamic.policies.errors import SettingError
from dynamic.policies.stage_plan import check_thresholds, plan


@pytest.mark.parametrize(
    ("thresholds", "backbone", "on", "run", "deepest"),
    [
        # one network: what lies before an exit that is on is run, head or not
        ((0.5, 0.5), (0, 0, 0), "111", "111", 2),
        ((INF, 0.5), (0, 0, 0), "011", "111", 2),
        ((INF, INF), (0, 0, 0), "001", "111", 2),
        ((0.5, -INF), (0, 0, 0), "111", "111", 1),
        # two networks with one exit each: a network that is off is not run
        ((0.5, INF, 0.5), (0, 0, 1, 1), "1011", "1011", 3),
        ((INF, 0.5, INF), (0, 0, 1, 1), "0101", "1111", 3),
        ((INF, INF, 0.5), (0, 0, 1, 1), "0011", "0011", 3),
        ((INF, INF, INF), (0, 0, 1, 1), "0001", "0011", 3),
        # three networks: everybody has left at the first -inf
        ((-INF, -INF), (0, 1, 2), "111", "111", 0),
        ((INF, -INF), (0, 1, 2), "011", "011", 1),
        ((), (0,), "1", "1", 0),
    ],
)
def test_by_hand(thresholds: tuple[float, ...], backbone: tuple[int, ...], on: str, run: str, deepest: int) -> None:
    found = plan(np.array(thresholds, np.float32), backbone)
    assert found.on == tuple(c == "1" for c in on)
    assert found.run == tuple(c == "1" for c in run)
    assert found.deepest == deepest


@repeatable
@given(st.data())
def test_a_body_runs_where_a_later_head_of_its_network_does(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    backbone = tuple(b for b, size in enumerate(sizes) for _ in range(size))
    stages = len(backbone)
    limits = data.draw(st.lists(st.sampled_from([-INF, 0.5, INF]), min_size=stages - 1, max_size=stages - 1))
    found = plan(np.array(limits, np.float32), backbone)
    assert found.on[-1]
    assert found.run[-1]
    for b in range(len(sizes)):
        mine = [s for s in range(stages) if backbone[s] == b]
        last_on = max((s for s in mine if found.on[s]), default=-1)
        assert [found.run[s] for s in mine] == [s <= last_on for s in mine]


def test_wrong_thresholds_are_named() -> None:
    with pytest.raises(SettingError, match=r"\(1,\), 3 stages need \(2,\)"):
        plan(np.array([0.5], np.float32), (0, 0, 0))
    with pytest.raises(SettingError, match="NaN: use \\+inf"):
        plan(np.array([0.5, np.nan], np.float32), (0, 0, 0))
    with pytest.raises(SettingError, match="shape"):
        check_thresholds(np.zeros((2, 1), np.float32), 3)


def test_thresholds_become_float32() -> None:
    found = check_thresholds(np.array([0.1]), 2)  # type: ignore[arg-type]
    assert found.dtype == np.float32
