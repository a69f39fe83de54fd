"""A decision is a value; its reason is made into words when somebody reads them."""

import pickle
from dataclasses import FrozenInstanceError, replace

import pytest
from support.policy_cases import make_costs, make_ladder, make_point

from dynamic.policies.decision import Decision, Feedback
from dynamic.policies.frontier import Frontier
from dynamic.policies.snapshot import Snapshot

POINT = Frontier.of(make_ladder([make_point("reference", (), (1.0,))], (0,)), make_costs([[1]])).points[0]


class Counted:
    """Facts that count how often they are made into words."""

    def __init__(self) -> None:
        self.times = 0

    def __str__(self) -> str:
        self.times += 1
        return f"{self.times} time"


def test_text_is_the_reason() -> None:
    assert Decision(POINT, True, (), "because").reason == "because"
    assert Decision(point=POINT, feasible=True, violated_limits=(), reason="because").reason == "because"
    assert Decision(POINT).reason == "no reason given"


def test_words_are_made_once_and_only_for_a_reader() -> None:
    facts = Counted()
    decision = Decision(POINT, True, (), facts)
    assert facts.times == 0
    assert decision.reason == decision.reason == "1 time"
    assert "reason='1 time'" in repr(decision)
    assert facts.times == 1


def test_a_decision_does_not_change() -> None:
    decision = Decision(POINT, False, ("latency_ms",), Counted())
    with pytest.raises(FrozenInstanceError):
        decision.reason = "another"  # type: ignore[misc]
    other = replace(decision, feasible=True)
    assert (other.feasible, other.violated_limits, other.reason) == (True, ("latency_ms",), "1 time")
    assert not decision.feasible


def test_a_decision_travels() -> None:
    assert pickle.loads(pickle.dumps(Decision(POINT, True, (), "because"))).reason == "because"


def test_nothing_has_drifted_unless_a_request_says_so() -> None:
    feedback = Feedback(POINT, [0], [1], [2.0], [1.0], 1, Snapshot(0.0))
    assert feedback.drift is False
    assert replace(feedback, drift=True).drift is True
