"""Every number and every claim in the reason of a decision, against the decision, the snapshot and the frontier."""

import math
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.budget_cases import COSTS, FRONTIER, LADDER, POLICY, decide, feedback, name
from support.policy_cases import repeatable

from dynamic.policies.budget import PRIORITY, Budget
from dynamic.policies.control.budget_policy import BudgetPolicy, BudgetState
from dynamic.policies.control.limits import RESERVE_MB
from dynamic.policies.control.limits.candidate_filter import UPGRADE_SHARE
from dynamic.policies.control.reasons import plain
from dynamic.policies.decision import Decision
from dynamic.policies.frontier import Frontier
from dynamic.policies.snapshot import Snapshot

KINDS = {"most accurate": "accuracy", "fastest": "mean"}
CLAIM = re.compile(r"'(\w+)' is the (most accurate|fastest|safest)( at the smallest batch)? of (\d+) of (\d+) points")
METERED = Frontier.of(LADDER, replace(COSTS, energy_mj=COSTS.cpu_ms, energy_source="meter"))


def rank_of(frontier: Frontier, kind: str) -> tuple[float, ...]:
    """The figures by which a point of this kind is chosen."""
    figures: tuple[float, ...] = frontier.drop.figures if kind == "safest" else getattr(frontier, KINDS[kind]).figures
    return figures


def test_a_point_that_is_held_is_not_called_the_best() -> None:
    budget, state = Budget(latency_ms=120.0), POLICY.initial()
    loaded: dict[str, Any] = {"cpu_load": 0.9, "cpu_cores": 2.0}
    _, state = POLICY.decide(FRONTIER, budget, Snapshot(0, **loaded), state)
    found, state = POLICY.decide(FRONTIER, budget, Snapshot(1, cpu_load=0.0), state)
    assert name(found) == "middle"
    assert found.reason.startswith("'middle' continues: 'reference' is the most accurate of 3 of 3 points.")
    assert "1 of 16 so far" in found.reason
    for number in range(14):
        found, state = POLICY.decide(FRONTIER, budget, Snapshot(2 + number, cpu_load=0.0), state)
    assert "15 of 16 so far" in found.reason
    found, state = POLICY.decide(FRONTIER, budget, Snapshot(20, cpu_load=0.0), state)
    assert found.reason.startswith("'reference' is the most accurate of 3 of 3 points. No limit excludes a point")


def test_a_point_that_heat_keeps_out_is_said() -> None:
    budget, state = Budget(temperature_c=70.0), POLICY.initial()
    _, state = POLICY.decide(FRONTIER, budget, Snapshot(0, temperature_c=50.0), state)
    found, state = POLICY.decide(FRONTIER, budget, Snapshot(5, temperature_c=50.0, throttled=True), state)
    assert name(found) == "quick"
    found, state = POLICY.decide(FRONTIER, budget, Snapshot(10, temperature_c=50.0, throttled=False), state)
    assert name(found) == "quick"
    assert found.reason.startswith("'quick' continues: 'middle' is the most accurate of 2 of 3 points")
    assert "200 CPU-ms" in found.reason  # the reference is skipped
    assert "5 s ago" in found.reason
    for number in range(60):
        found, state = POLICY.decide(FRONTIER, budget, Snapshot(41 + number, throttled=False), state)
    assert found.reason.startswith("'middle' is the most accurate of 2 of 3 points")
    assert "200 CPU-ms or more" in found.reason


def test_measured_and_predicted_temperature_are_told_apart() -> None:
    budget, state = Budget(temperature_c=70.0), POLICY.initial()
    _, state = POLICY.decide(FRONTIER, budget, Snapshot(0, temperature_c=40.0), state)
    found, state = POLICY.decide(FRONTIER, budget, Snapshot(5, temperature_c=69.5), state)
    cooling = state.device.cooling
    assert cooling is not None
    assert "69.5 C are measured" in found.reason
    assert f"{cooling.ahead_c:.1f} C are predicted" in found.reason
    assert "C are predicted in 20 s, which is close to the limit of 70.0 C" in found.reason
    assert f"{cooling.temperature_c:.1f} C" not in found.reason  # an average is no reading
    found, state = POLICY.decide(FRONTIER, budget, Snapshot(10, temperature_c=69.5), state)
    assert "69.5 C are measured" in found.reason
    assert "C are predicted in 20 s, which is over the limit of 70.0 C" in found.reason
    found, state = POLICY.decide(FRONTIER, budget, Snapshot(12, temperature_c=56.0), state)
    assert "56.0 C are measured" in found.reason


def test_a_charge_is_not_rounded_to_its_floor() -> None:
    found = decide(Budget(battery_floor=0.2), battery=0.196, plugged=False)
    assert "battery 19.6% is at or below the floor 20%" in found.reason


def test_free_memory_is_what_the_sensor_says() -> None:
    found = decide(memory_available_mb=100.0)
    assert name(found) == "middle"
    assert "100 MB of memory are free, 32 MB of which are for others" in found.reason
    assert "68" not in found.reason  # a difference is no reading


def test_a_point_that_would_fit_but_for_the_room_to_spare_is_not_called_too_slow() -> None:
    budget, state = Budget(latency_ms=105.0), POLICY.initial()
    _, state = POLICY.decide(FRONTIER, budget, Snapshot(0, cpu_load=0.5, cpu_cores=2.0), state)
    found, state = POLICY.decide(FRONTIER, budget, Snapshot(1, cpu_load=0.0), state)
    assert name(found) == "middle"
    assert "latency_ms allows at most 105 ms" in found.reason
    assert "and 0.9 of that for a more expensive point than the current one" in found.reason  # 100 ms fit 105


def test_a_batch_for_which_another_point_is_faster() -> None:
    # of 64 rows the cascade takes longer than the network alone
    costs = replace(
        COSTS,
        batch=(1, 64),
        latency_ms=((10.0, 900.0), (40.0, 1000.0), (100.0, 800.0)),
        latency_p95_ms=((10.0, 900.0), (40.0, 1000.0), (100.0, 800.0)),
        head_ms=((0.0, 0.0),) * 3,
        call_ms=(0.0, 0.0),
        cpu_ms=((20.0, 20.0), (80.0, 80.0), (200.0, 200.0)),
    )
    frontier = Frontier.of(LADDER, costs)
    found, _ = POLICY.decide(frontier, Budget(max_drop=0.1), Snapshot(0, rows=64), POLICY.initial())
    assert "'quick' is the fastest at the smallest batch of 3 of 3 points" in found.reason


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1234.56, "1235"), (16000.0, "16000"), (123456.0, "123456"), (0.01234, "0.01234"), (300.0, "300")],
)
def test_numbers_have_no_exponents(value: float, text: str) -> None:
    assert plain(value) == text


def check_claims(found: Decision, frontier: Frontier, budget: Budget, snapshot: Snapshot, state: BudgetState) -> None:
    """Raises AssertionError on a claim that does not hold."""
    reason, device, points = found.reason, state.device, frontier.points
    by_name = {p.name: i for i, p in enumerate(points)}
    chosen = by_name[found.point.name]
    claim = CLAIM.search(reason)
    held = re.match(r"'(\w+)' (is|continues)", reason)
    assert held, reason
    assert held[1] == points[chosen].name, reason
    if claim:
        best, kind, smallest, left, of = claim.groups()
        assert int(of) == len(points)
        figures = rank_of(frontier, kind)
        # at most `left` points may be as good or better: those that were excluded, and the claim's own company
        better = sum(figure < figures[by_name[best]] for figure in figures)
        assert better <= len(points) - int(left), reason
        if held[2] == "is":
            assert by_name[best] == chosen, reason
        else:
            assert by_name[best] != chosen, reason
        if kind == "fastest" and not smallest and int(left) == len(points):
            mean = frontier.latency_ms(None, device.rows)
            assert mean[by_name[best]] == min(mean), reason
        if "No limit excludes a point" in reason:
            assert int(left) == len(points), reason
    if "No limit excludes a point" in reason:
        assert found.feasible, reason
    for field in found.violated_limits:
        assert field in reason or field.removesuffix("_mb").split("_")[0] in reason, (field, reason)
    predicted = re.search(r"predicted latency is ([\d.e+-]+) ms, (\d+\.\d+) times the profile", reason)
    assert predicted, reason
    latency = frontier.latency_ms(budget.percentile, device.rows, spread=device.spread)[chosen]
    assert float(predicted[1]) == pytest.approx(latency * found.slowdown, rel=6e-3), reason
    assert float(predicted[2]) == pytest.approx(found.slowdown, abs=0.006), reason
    if reading := re.search(r"battery ([\d.]+)% (?:is at|must)", reason):
        assert device.battery is not None, reason
        assert float(reading[1]) == pytest.approx(100 * device.battery, abs=0.051), reason
    if reading := re.search(r"([\d.]+) C are measured", reason):
        assert device.temperature_c is not None, reason
        assert float(reading[1]) == pytest.approx(device.temperature_c, abs=0.051), reason
    if reading := re.search(r"([\d.-]+) MB of memory are free", reason):
        assert device.memory_available_mb is not None, reason
        assert float(reading[1]) == pytest.approx(device.memory_available_mb, rel=1e-3), reason


def numbers(reason: str) -> list[float]:
    """Every number that stands in a reason, but for those inside names."""
    return [float(word) for word in re.findall(r"(?<![\w.'])-?\d+(?:\.\d+)?(?![\w']*')", reason)]


def known_numbers(
    found: Decision, frontier: Frontier, budget: Budget, snapshot: Snapshot, state: BudgetState
) -> list[float]:
    """What a reason may speak of: snapshot, budget, frontier, and what the policy's state holds."""
    device, delay, cooldown = state.device, state.switch_delay, state.cooldown
    given: list[Any] = [*vars(snapshot).values(), *vars(budget).values(), found.slowdown, len(frontier.points)]
    given += [*range(len(frontier.points) + 1), RESERVE_MB, UPGRADE_SHARE, 20.0, 30.0]
    for ranked in (
        frontier.memory,
        frontier.effort,
        frontier.drop,
        frontier.accuracy,
        frontier.first_answer(device.rows),
    ):
        given += [abs(figure) for figure in ranked.figures]
    for percentile in (None, budget.percentile):
        latency = frontier.latency_ms(percentile, device.rows, spread=device.spread)
        given += [*latency, *(figure * found.slowdown for figure in latency)]
    given += [delay.better, delay.needed, cooldown.length_s, cooldown.effort]
    given += [device.time_s - cooldown.start_s, device.excess_mb]
    given += [
        device.temperature_c,
        device.battery,
        device.memory_available_mb,
        (device.base_mb or 0.0) + device.excess_mb,
    ]
    given.append(sum(frontier.costs.memory_mb[b] for b in device.resident))
    given += [sum(frontier.costs.memory_mb[b] for b in some) for some in ((0,), (1,), (0, 1))]
    if device.cooling is not None:
        given += [device.cooling.temperature_c, device.cooling.ahead_c]
    if device.battery_pacer is not None:
        left_s = device.battery_pacer.start_s + device.battery_pacer.battery_duration_s - device.time_s
        given += [left_s / 3600]
        passed_s = device.time_s - device.battery_pacer.edge_s
        efforts = [0.0, *frontier.effort.figures]
        given += [(device.battery_pacer.lasts_s(budget.battery_floor or 0.0, e) - passed_s) / 3600 for e in efforts]
    found_numbers = [float(v) for v in given if isinstance(v, (int, float)) and math.isfinite(v)]
    return [*found_numbers, *(100 * v for v in found_numbers)]


BUDGETS = st.builds(
    Budget,
    latency_ms=st.none() | st.sampled_from([5.0, 20.0, 60.0, 105.0, 120.0]),
    percentile=st.sampled_from([0.95, None]),
    deadline_ms=st.none() | st.sampled_from([8.0, 60.0, 110.0]),
    memory_mb=st.none() | st.sampled_from([40.0, 160.3, 300.0]),
    battery_floor=st.none() | st.just(0.2),
    battery_duration_s=st.none() | st.sampled_from([3600.0, 20_000.0]),
    temperature_c=st.none() | st.just(70.0),
    max_drop=st.none() | st.sampled_from([0.0, 0.01, 0.5]),
    min_accuracy=st.none() | st.sampled_from([0.9, 0.97]),
    energy_mj=st.none() | st.sampled_from([10.0, 150.0]),
    on_drift=st.sampled_from(["safest", "report"]),
    priority=st.sampled_from([PRIORITY, ("drop", "latency"), ("temperature", "battery")]),
)
STEPS = st.tuples(
    st.sampled_from([0.2, 1.0, 5.0, 20.0, 40.0]),
    st.fixed_dictionaries(
        {
            "cpu_load": st.none() | st.sampled_from([0.0, 0.5, 1.0]),
            "cpu_cores": st.just(2.0),
            "memory_available_mb": st.none() | st.sampled_from([10.0, 100.0, 16000.0]),
            "memory_process_mb": st.none() | st.sampled_from([100.0, 130.0, 330.5]),
            "memory_pressure": st.none() | st.sampled_from([0.0, 0.3]),
            "battery": st.none() | st.sampled_from([0.9, 0.213, 0.184]),
            "plugged": st.none() | st.booleans(),
            "temperature_c": st.none() | st.sampled_from([40.0, 56.0, 67.3, 69.5, 74.0]),
            "throttled": st.none() | st.booleans(),
            "rows": st.sampled_from([None, 1, 8]),
            "waited_ms": st.none() | st.sampled_from([15.5, 80.0]),
            "queue_length": st.none() | st.sampled_from([1, 7]),
        }
    ),
    st.none() | BUDGETS,
    st.booleans(),
)


@repeatable
@given(BUDGETS, st.lists(STEPS, min_size=4, max_size=24))
def test_every_number_and_every_claim_holds(budget: Budget, steps: list[Any]) -> None:
    policy, state, time_s = BudgetPolicy(), POLICY.initial(), 0.0
    for passed_s, readings, changed, drift in steps:
        time_s += passed_s
        budget = changed or budget
        snapshot = Snapshot(time_s, **readings)
        found, state = policy.decide(METERED, budget, snapshot, state)
        check_claims(found, METERED, budget, snapshot, state)
        known = known_numbers(found, METERED, budget, snapshot, state)
        for number in numbers(found.reason):
            assert any(math.isclose(number, one, rel_tol=6e-3, abs_tol=0.051) for one in known), (number, found.reason)
        state = policy.observe(state, feedback(130.0, 100.0, drift=drift, point=found.point))
