"""Scenarios bind where they say they do, on every device that comes along."""

from dataclasses import replace
from typing import Any

import pytest
from support.simulation_cases import FRONTIER, PLAIN, RECORDS

from dynamic.policies.budget import Budget
from dynamic.policies.control.budget_policy import BudgetPolicy
from dynamic.policies.control.fixed_policy import FixedPolicy
from dynamic.policies.errors import SettingError
from dynamic.simulate import SCENARIOS, Scenario, device, devices, scenario, scenarios

PHONE = device("mid-range-phone")


def run(what: Scenario, point: str, **options: Any) -> Any:
    return what.run(FRONTIER, RECORDS, device=PHONE, policy=FixedPolicy(point), **options)


def test_every_device_has_those_that_it_can_be_in() -> None:
    for name, one in devices().items():
        found = scenarios(one, FRONTIER, duration_s=20)
        assert list(found) == [s for s in SCENARIOS if s in found]
        assert {"steady", "contention", "memory"} <= set(found)
        assert ("all" in found) == (name != "cloud-vm")
        for what in found.values():
            report = what.run(FRONTIER, RECORDS, device=one, policy=BudgetPolicy())
            assert report.answered > 0
            assert what.about
            assert what.workload.duration_s == pytest.approx(20)
    with pytest.raises(SettingError, match="lacks what it needs"):
        scenario("battery", device("cloud-vm"), frontier=FRONTIER)
    with pytest.raises(SettingError, match="'storm'"):
        scenario("storm", PHONE, frontier=FRONTIER)


def test_steady_is_easy_for_the_reference() -> None:
    report = run(scenario("steady", PHONE, frontier=FRONTIER), "last")
    assert report.late_share < 0.05
    busy = report.inference_mj / PHONE.active_mw / report.hours / 3600
    assert busy == pytest.approx(0.4, rel=0.1)


def test_contention_is_too_much_for_the_reference_alone() -> None:
    what = scenario("contention", PHONE, frontier=FRONTIER)
    assert run(what, "last").late_share > 0.1 > 2 * run(what, "first").late_share
    other = scenario("contention", PHONE, frontier=FRONTIER, seed=1)
    assert run(other, "last").late_share != run(what, "last").late_share


def test_the_battery_lasts_with_the_fastest_alone() -> None:
    what = scenario("battery", PHONE, frontier=FRONTIER)
    assert isinstance(what.budget, Budget)
    assert what.budget.battery_floor == pytest.approx(0.1)
    dear, cheap = run(what, "last"), run(what, "first")
    assert dear.battery_left < 0.1 < cheap.battery_left
    # halfway between them: as far below as above
    assert dear.battery_left + cheap.battery_left == pytest.approx(0.2, abs=0.01)
    short = scenario("battery", PHONE, frontier=FRONTIER, duration_s=300)
    assert run(short, "last").battery_left < short.budget.battery_floor < run(short, "first").battery_left  # type: ignore[union-attr]


def test_heat_throttles_the_reference_alone() -> None:
    for duration_s in (None, 600.0):
        what = scenario("heat", PHONE, frontier=FRONTIER, duration_s=duration_s)
        assert run(what, "last").throttled_share > 0.1
        assert run(what, "first").throttled_share == 0


def test_memory_is_short_in_the_middle_third() -> None:
    what = scenario("memory", PHONE, frontier=FRONTIER)
    assert run(what, "both").memory_over_share == pytest.approx(1 / 3, abs=0.01)
    assert run(what, "first").memory_over_share == 0


def test_options_and_budgets_are_replaced() -> None:
    what = scenario("steady", PHONE, frontier=FRONTIER, duration_s=30)
    report = run(what, "last", budget=Budget(latency_ms=1), battery=0.5)
    assert report.late_share == 1
    assert report.battery_left < 0.5


def test_a_device_of_one_s_own() -> None:
    assert set(scenarios(PLAIN, FRONTIER, duration_s=5)) == {"steady", "contention", "memory", "battery"}
    plain = replace(PLAIN, battery_mwh=None)
    assert set(scenarios(plain, FRONTIER, duration_s=5)) == {"steady", "contention", "memory"}
