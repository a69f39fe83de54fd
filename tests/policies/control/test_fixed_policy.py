"""The policy that never changes its mind."""

import pytest
from support.budget_cases import FRONTIER, feedback

from dynamic.policies.budget import Budget
from dynamic.policies.control.fixed_policy import FixedPolicy
from dynamic.policies.errors import SettingError
from dynamic.policies.snapshot import Snapshot


@pytest.mark.parametrize("name", ["reference", "middle", "quick"])
def test_always_the_point_of_that_name(name: str) -> None:
    policy = FixedPolicy(name)
    state = policy.initial()
    for budget in (Budget(), Budget(latency_ms=1), Budget(max_drop=0.5), Budget(battery_floor=0.9)):
        decision, state = policy.decide(FRONTIER, budget, Snapshot(0, battery=0.1, plugged=False), state)
        assert decision.point.name == name
        assert (decision.feasible, decision.violated_limits, decision.keep_loaded) == (True, (), None)
        assert name in decision.reason
        state = policy.observe(state, feedback(1000, 10, drift=True))
    assert state is None


def test_a_name_that_is_not_there() -> None:
    policy = FixedPolicy("fast")
    with pytest.raises(SettingError, match=r"'fast'.*'reference', 'middle', 'quick'"):
        policy.decide(FRONTIER, Budget(), Snapshot(0), policy.initial())
