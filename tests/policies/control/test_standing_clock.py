"""A clock that stands switches no limit off: what is broken now rules now, and only easing needs time."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.budget_cases import FRONTIER, POLICY, name
from support.runtime_cases import faked, shared_blobs

import dynamic
from dynamic.policies.budget import Budget
from dynamic.policies.decision import Decision
from dynamic.policies.snapshot import Snapshot

FIRST, CHEAPEST = (
    name(POLICY.decide(FRONTIER, Budget(), Snapshot(0), POLICY.initial())[0]),
    min(FRONTIER.points, key=lambda p: p.cpu_ms[0]).name,
)


class Stream:
    """Decisions one after the other, on one state."""

    def __init__(self, **readings: Any) -> None:
        self.snapshot, self.state = Snapshot(0.0, **readings), POLICY.initial()

    def __call__(self, budget: Budget, **changes: Any) -> Decision:
        if changes:
            self.snapshot = replace(self.snapshot, **changes)
        decision, self.state = POLICY.decide(FRONTIER, budget, self.snapshot, self.state)
        return decision


def test_a_temperature_over_its_limit_rules_at_once() -> None:
    stream, budget = Stream(temperature_c=50.0), Budget(temperature_c=70)
    assert name(stream(budget)) == FIRST
    hot = stream(budget, temperature_c=75.0)
    assert name(hot) == CHEAPEST
    assert hot.violated_limits == ("temperature_c",)
    assert "75.0 C are measured, which is over the limit of 70.0 C" in hot.reason
    assert "75.0 C on average is over 70.0 C" in hot.reason


def test_a_limit_that_is_set_later_is_about_the_temperature_of_now() -> None:
    stream = Stream(temperature_c=75.0)
    assert name(stream(Budget())) == FIRST
    hot = stream(Budget(temperature_c=70))  # the same snapshot
    assert name(hot) == CHEAPEST
    assert "No limit excludes a point" not in hot.reason
    # and what was seen under an earlier limit is no longer what counts
    again = Stream(temperature_c=30.0)
    again(Budget(temperature_c=70)), again(Budget()), again(Budget(), temperature_c=69.5)
    assert name(again(Budget(temperature_c=70))) != FIRST


@pytest.mark.parametrize("to_c", [68.0, 69.0, 70.0])
def test_close_to_the_limit_it_takes_less_at_once(to_c: float) -> None:
    stream, budget = Stream(temperature_c=50.0), Budget(temperature_c=70)
    stream(budget)
    there = Stream(temperature_c=to_c)
    assert name(stream(budget, temperature_c=to_c)) == name(there(budget)) != FIRST


def test_only_easing_needs_time() -> None:
    stream, budget = Stream(temperature_c=75.0), Budget(temperature_c=70)
    for _ in range(100):
        hot = stream(budget, temperature_c=75.0)
    for _ in range(100):
        cool = stream(budget, temperature_c=40.0)
    assert name(hot) == name(cool) == CHEAPEST
    decisions = [name(stream(budget, temperature_c=40.0, time_s=60.0 * minute)) for minute in range(1, 60)]
    assert decisions[-1] == FIRST


def test_a_clock_that_is_set_back_keeps_to_the_limit() -> None:
    stream, budget = Stream(temperature_c=50.0), Budget(temperature_c=70)
    stream(budget, time_s=1000.0)
    assert name(stream(budget, temperature_c=75.0, time_s=10.0)) == CHEAPEST


def test_a_reading_soon_after_the_last_one_keeps_to_the_limit() -> None:
    stream, budget = Stream(temperature_c=50.0), Budget(temperature_c=70)
    stream(budget)
    assert name(stream(budget, temperature_c=75.0, time_s=0.1)) == CHEAPEST


def test_requests_of_one_snapshot_are_no_new_readings() -> None:
    """A snapshot that differs in its rows alone leaves the mean of the temperature where it was."""
    budget = Budget(temperature_c=70)
    one, several = Stream(temperature_c=60.0), Stream(temperature_c=60.0)
    for second in range(1, 5):
        one(budget, time_s=float(second), temperature_c=60.0 + second)
        several(budget, time_s=float(second), temperature_c=60.0 + second, rows=1)
        for rows in (4, 2, 1):
            several(budget, rows=rows)
    assert one.state.device.cooling == several.state.device.cooling


def test_a_battery_that_must_last_another_time() -> None:
    stream = Stream(battery=0.5, battery_mwh=1000.0, plugged=False)
    stream(Budget(battery_duration_s=3600))
    stream(Budget(battery_duration_s=36_000))  # the same snapshot
    pace = stream.state.device.battery_pacer
    assert pace is not None
    assert (pace.battery_duration_s, pace.start_s) == (36_000, 0.0)


def test_a_charge_that_falls_is_followed() -> None:
    budget = Budget(battery_duration_s=36_000, battery_floor=0.1)
    stream = Stream(battery=0.9, battery_mwh=1000.0, plugged=False)
    stream(budget)
    stream(budget, battery=0.3)
    pace = stream.state.device.battery_pacer
    assert pace is not None
    assert pace.edge == 0.3
    assert pace.drain.weight == 0, "nothing is learned of the drain where no time has passed"
    assert name(stream(budget, battery=0.1)) == CHEAPEST


def test_memory_that_is_over_its_limit_rules_at_once() -> None:
    """What others of this process hold leaves less for networks, whether or not the clock moves."""
    memory_mb = sorted({p.memory_mb for p in FRONTIER.points})
    budget = Budget(memory_mb=100.0 + memory_mb[-1] + 1)
    stream = Stream(memory_process_mb=100.0)
    assert name(stream(budget)) == FIRST
    held = sum(FRONTIER.costs.memory_mb)
    less = stream(budget, memory_process_mb=100.0 + held + memory_mb[-1])
    assert less.violated_limits == ("memory_mb",) or less.point.memory_mb < memory_mb[-1]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> dynamic.Bundle:
    return shared_blobs(tmp_path_factory)


def test_trying_budgets_on_a_fixed_monitor(bundle: dynamic.Bundle) -> None:
    watch = dynamic.FixedMonitor(Snapshot(0.0, temperature_c=50.0, battery=0.9, plugged=False))
    x = np.zeros((1, 12), np.float32)
    run = faked(bundle, monitor=watch, budget=Budget(temperature_c=70))

    def now() -> str:
        return run(x).decision.point.name

    assert now() == "reference"
    watch.set(temperature_c=75.0)
    assert now() == "small"
    run.budget = Budget()
    assert now() == "reference"
    run.budget = Budget(temperature_c=70)
    assert now() == "small"
    run.budget = Budget(battery_floor=0.5)
    assert now() == "reference"
    watch.set(battery=0.4)
    assert now() == "small"
    run.close()
