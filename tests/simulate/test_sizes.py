"""Requests of several sizes in the simulator, by hand."""

from dataclasses import replace
from typing import Any

import pytest
from support.simulation_cases import COSTS, LADDER, PLAIN, RECORDS

import dynamic
from dynamic.policies.control.fixed_policy import FixedPolicy
from dynamic.policies.costing.size_costs import SizeCosts
from dynamic.policies.errors import InputError
from dynamic.policies.frontier import Frontier
from dynamic.simulate import Constant, simulate

# stages take 20 and 40 ms for the example's 10 tokens, 60 and 200 ms for 50
LONG = SizeCosts(50, ((60.0,), (200.0,)), ((60.0,), (200.0,)), ((0.0,), (0.0,)), ((60.0,), (200.0,)), (0.0,))
FRONTIER = Frontier.of(LADDER, replace(COSTS, size=10, sizes=(LONG,)))
SIZES = [10, 50, 30, 10]  # of the records: 120 ms at 30, halfway


def run(policy: Any, budget: Any = None, sizes: Any = SIZES, device: Any = PLAIN, rate_hz: float = 1.0) -> Any:
    return simulate(
        FRONTIER,
        RECORDS,
        device=device,
        workload=Constant(rate_hz, 4 / rate_hz),
        policy=policy,
        budget=budget or dynamic.Budget(),
        sizes=sizes,
    )


def test_each_request_takes_the_time_of_its_size() -> None:
    assert sorted(run(FixedPolicy("last")).latency_ms) == pytest.approx([40, 40, 120, 200])
    assert sorted(run(FixedPolicy("first")).latency_ms) == pytest.approx([20, 20, 40, 60])
    assert sorted(run(FixedPolicy("last"), sizes=None).latency_ms) == pytest.approx([40] * 4)


def test_a_slower_device_takes_longer_at_every_size() -> None:
    slow = replace(PLAIN, relative_speed=0.5)
    assert sorted(run(FixedPolicy("last"), device=slow).latency_ms) == pytest.approx([80, 80, 240, 400])


def test_the_policy_sees_the_size_and_chooses_for_it() -> None:
    """At most 130 ms: the last network takes 200 for the longest text, which the first one gets for itself alone."""
    budget = dynamic.Budget(latency_ms=130, percentile=None)
    report = run(dynamic.BudgetPolicy(), budget)
    assert max(report.latency_ms) <= 130
    assert sorted(report.latency_ms)[-1] == pytest.approx(120)
    assert len(report.changes) <= 1  # what runs for the others stays what it was


def test_the_feedback_of_long_requests_is_no_slowdown() -> None:
    seen: list[Any] = []

    class Watching(FixedPolicy):
        def observe(self, state: Any, feedback: Any) -> Any:
            seen.append(feedback)
            return super().observe(state, feedback)

    run(Watching("last"))
    assert [ms for f in seen for ms in f.latency_ms] == pytest.approx([ms for f in seen for ms in f.expected_ms])
    assert sorted(ms for f in seen for ms in f.expected_ms) == pytest.approx([40, 40, 120, 200])
    assert sorted(f.snapshot.size for f in seen) == [10, 10, 30, 50]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [([10, 20], r"int64 \[2\]: give a whole number from 1"), ([0, 1, 2, 3], "from 1"), ([1.5] * 4, "float64")],
)
def test_sizes_that_are_none_are_refused(sizes: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(FixedPolicy("last"), sizes=sizes)


def test_sizes_need_costs_by_size() -> None:
    fixed = Frontier.of(LADDER, COSTS)
    with pytest.raises(InputError, match="the costs are of one size alone"):
        simulate(
            fixed,
            RECORDS,
            device=PLAIN,
            workload=Constant(1, 4),
            policy=FixedPolicy("last"),
            budget=dynamic.Budget(),
            sizes=SIZES,
        )
