"""Each limit against plain list filtering, and by hand."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.budget_cases import COSTS, FRONTIER, LADDER
from support.policy_cases import INF, make_costs, make_ladder, make_point, repeatable

from dynamic.policies.budget import PRIORITY, Budget
from dynamic.policies.control.battery import BatteryPacer, DrainModel
from dynamic.policies.control.budget_policy import BudgetPolicy
from dynamic.policies.control.device_state import DeviceState
from dynamic.policies.control.limits import LIMITS, backbones_in_memory
from dynamic.policies.control.limits.candidate_filter import CandidateFilter
from dynamic.policies.control.reasons import worded
from dynamic.policies.control.thermal import Cooling
from dynamic.policies.fast_paths import Rank, members
from dynamic.policies.frontier import Frontier
from dynamic.policies.snapshot import Snapshot

NAMES = ("reference", "middle", "quick")
METERED = Frontier.of(LADDER, replace(COSTS, energy_mj=COSTS.cpu_ms, energy_source="meter"))


def remaining(
    limit: str,
    budget: Budget,
    current: int | None = None,
    wait: bool = False,
    frontier: Frontier = FRONTIER,
    **readings: Any,
) -> tuple[list[str], list[str], str]:
    """The points that one limit allows, the violated limits, and the reason."""
    candidates = CandidateFilter(frontier, current)
    LIMITS[limit](candidates, budget, DeviceState(**readings), wait)
    return [NAMES[i] for i in members(candidates.points)], candidates.violated_limits, worded(candidates.notes)


def test_every_limit_has_its_function() -> None:
    assert tuple(LIMITS) == PRIORITY


@pytest.mark.parametrize("limit", PRIORITY)
def test_what_is_not_asked_for_limits_nothing(limit: str) -> None:
    everything: dict[str, Any] = {
        "battery": 0.01,
        "plugged": False,
        "temperature_c": 99.0,
        "cooling": Cooling(0, 99),
        "base_mb": 9e9,
        "waited_ms": 1e6,
        "queue_length": 99,
        "throttled": True,
    }
    assert remaining(limit, Budget(), wait=True, **everything) == (list(NAMES), [], "")


@repeatable
@given(
    st.lists(st.sampled_from([1.0, 2.0, 2.0, 5.0, 7.5]), min_size=3, max_size=3),
    st.sets(st.integers(0, 2), min_size=1),
    st.sampled_from([0.5, 1.0, 1.9, 2.0, 5.5, 6.0, 9.0]),
    st.none() | st.integers(0, 2),
    st.sampled_from([1.0, 0.9]),
)
def test_a_filter_is_plain_filtering(
    figures: list[float], among: set[int], most: float, current: int | None, share: float
) -> None:
    candidates, rank = CandidateFilter(FRONTIER, current), Rank(figures)
    candidates.points = sum(1 << i for i in among)
    fitted = candidates.keep("latency_ms", rank, most, ("kept",), ("missed {}",), share)
    running = math.inf if current is None else figures[current]
    fitting = [i for i in among if figures[i] <= (most if figures[i] <= running else most * share)]
    least = min(figures[i] for i in among)
    assert fitted == bool(fitting)
    assert set(members(candidates.points)) == set(fitting or [i for i in among if figures[i] == least])
    assert candidates.violated_limits == ([] if fitting else ["latency_ms"])
    said = [("kept",)] if 0 < len(fitting) < len(among) else []
    assert candidates.notes == (said if fitting else [("missed {}", least)])


def test_memory_of_this_process() -> None:
    assert remaining("memory", Budget(memory_mb=300), base_mb=100.0)[0] == list(NAMES)
    assert remaining("memory", Budget(memory_mb=299), base_mb=100.0)[0] == ["middle", "quick"]
    left, violated_limits, said = remaining("memory", Budget(memory_mb=300), base_mb=100.0, excess_mb=1.0)
    assert (left, violated_limits) == (["middle", "quick"], [])
    assert said == "memory_mb allows at most 300 MB, 101 of which are not networks'"
    left, violated_limits, said = remaining("memory", Budget(memory_mb=140), base_mb=100.0)
    assert (left, violated_limits) == (["middle", "quick"], ["memory_mb"])
    assert said == (
        "memory_mb is violated: 50 MB of networks on top of 100 MB are over 140 MB. "
        "Raise memory_mb or add a smaller network"
    )
    assert remaining("memory", Budget(memory_mb=1))[0] == list(NAMES)  # what it takes is not known


def test_memory_that_is_free() -> None:
    # 200 MB and 32 in reserve, a tenth to spare for what does not run yet
    assert remaining("memory", Budget(), memory_available_mb=232.0)[0] == list(NAMES)
    assert remaining("memory", Budget(), memory_available_mb=231.0)[0] == ["middle", "quick"]
    assert remaining("memory", Budget(), 1, memory_available_mb=254.0)[0] == ["middle", "quick"]
    assert remaining("memory", Budget(), 1, memory_available_mb=255.0)[0] == list(NAMES)
    # what is resident could be given back
    assert remaining("memory", Budget(), 0, memory_available_mb=32.0, resident=frozenset([1]))[0] == list(NAMES)
    left, violated_limits, said = remaining("memory", Budget(), memory_available_mb=10.0)
    assert (left, violated_limits) == (["middle", "quick"], ["memory_mb"])
    assert (
        "memory_mb is violated: 50 MB are needed. 10 MB of memory are free, 32 MB of which are for others. Free memory"
        in said
    )


def test_where_others_wait_for_memory_no_more_is_taken() -> None:
    readings: dict[str, Any] = {"memory_available_mb": 5000.0, "memory_pressure": 0.2}
    assert remaining("memory", Budget(), resident=frozenset([0]), **readings)[0] == ["middle", "quick"]
    assert remaining("memory", Budget(), resident=frozenset([1]), **readings)[0] == list(NAMES)
    assert remaining("memory", Budget(), memory_available_mb=5000.0, memory_pressure=0.1)[0] == list(NAMES)


def test_what_may_stay_in_memory() -> None:
    needed, both = frozenset([0]), frozenset([0, 1])
    assert backbones_in_memory(FRONTIER, Budget(), DeviceState(resident=both), needed) is None
    assert (
        backbones_in_memory(FRONTIER, Budget(), DeviceState(resident=both, memory_available_mb=31.0), needed) == needed
    )
    short = DeviceState(resident=both, memory_available_mb=9e3, memory_pressure=0.5)
    assert backbones_in_memory(FRONTIER, Budget(), short, needed) == needed
    assert (
        backbones_in_memory(FRONTIER, Budget(memory_mb=350), DeviceState(resident=both, base_mb=100.0), needed) == both
    )
    assert (
        backbones_in_memory(FRONTIER, Budget(memory_mb=349), DeviceState(resident=both, base_mb=100.0), needed)
        == needed
    )
    assert backbones_in_memory(FRONTIER, Budget(memory_mb=350), DeviceState(resident=both), needed) == needed


def test_a_deadline_is_met_by_points_that_are_not_cut() -> None:
    assert remaining("deadline", Budget(deadline_ms=101))[0] == list(NAMES)
    assert remaining("deadline", Budget(deadline_ms=99))[0] == ["middle", "quick"]
    left, violated_limits, said = remaining("deadline", Budget(deadline_ms=5))
    assert (left, violated_limits) == (["quick"], ["deadline_ms"])
    assert (
        "10 ms as profiled to a first answer, times 1, is over 5 ms. Raise deadline_ms or add an earlier exit" in said
    )


def test_a_point_that_a_deadline_cuts_runs_where_all_are_cut() -> None:
    # an answer of the first stage after 10 ms, all of it after 50: cut, but answered in time
    early = replace(LADDER.points[1], thresholds=(0.5, -math.inf), shares=(0.2, 0.8, 0.0))
    late = replace(LADDER.points[0], thresholds=(math.inf, -math.inf), shares=(0.0, 1.0, 0.0), backbones=(0,))
    frontier = Frontier.of(replace(LADDER, points=(late, early)), COSTS)
    candidates = CandidateFilter(frontier, None)
    LIMITS["deadline"](candidates, Budget(deadline_ms=30), DeviceState(), False)
    assert [frontier.points[i].operating_point for i in members(candidates.points)] == [early]
    assert candidates.violated_limits == []


def test_a_deadline_counts_from_arrival_for_the_request_that_waited() -> None:
    budget = Budget(deadline_ms=101)
    assert remaining("deadline", budget, wait=False, waited_ms=60.0)[0] == list(NAMES)
    assert remaining("deadline", budget, wait=True, waited_ms=60.0)[0] == ["quick"]


@pytest.mark.parametrize(
    ("battery", "plugged", "left"),
    [(0.21, False, NAMES), (0.2, False, NAMES[2:]), (0.05, None, NAMES[2:]), (0.05, True, NAMES), (None, None, NAMES)],
)
def test_battery_floor(battery: float | None, plugged: bool | None, left: tuple[str, ...]) -> None:
    assert remaining("battery", Budget(battery_floor=0.2), battery=battery, plugged=plugged)[0] == list(left)


def test_battery_that_must_last() -> None:
    def paced(idle: float, per_effort: float) -> BatteryPacer:
        drain = DrainModel(idle, per_effort)
        return BatteryPacer.start(10_000, 0, 0.5, 0, 0, drain).with_reading(100, 0.5, 10_000, 100, drain)

    # 0.5 / 10,200 = 4.9e-5 a second at 1 request a second
    def lasting(idle: float, per_effort: float, **more: Any) -> tuple[list[str], list[str], str]:
        return remaining(
            "battery", Budget(battery_duration_s=10_000, **more), battery=0.5, battery_pacer=paced(idle, per_effort)
        )

    assert lasting(1e-5, 1.9e-7)[0] == list(NAMES)  # up to 205
    left, violated_limits, said = lasting(1e-5, 2e-7)  # up to 195
    assert (left, violated_limits, said) == (["middle", "quick"], [], "battery 50% must last 2.78 h more")
    assert lasting(1e-5, 3.5e-7, battery_floor=0.1)[0] == ["quick"]  # 0.4 to spend: up to 83
    # the aim is 2% above: not met, but what was asked for is
    assert lasting(0.0, 0.5 / 10_100 / 20)[:2] == (["quick"], [])
    left, violated_limits, said = lasting(1e-5, 3e-6)
    assert (left, violated_limits) == (["quick"], ["battery_duration_s"])
    assert "the battery lasts 2.0 h at the cheapest point, not 2.8 h" in said
    left, violated_limits, said = lasting(1e-4, 1e-9)
    assert (left, violated_limits) == (["quick"], ["battery_duration_s"])
    assert "the battery lasts 1.4 h even without inference, not 2.8 h" in said
    plugged = remaining(
        "battery", Budget(battery_duration_s=10_000), battery=0.5, plugged=True, battery_pacer=paced(1e-4, 1e-9)
    )
    assert plugged[0] == list(NAMES)


def test_less_effort_the_closer_to_the_limit() -> None:
    # of efforts 200, 100 and 20: 100 needs a share of 0.445
    budget = Budget(temperature_c=70)

    def at(now_c: float, **readings: Any) -> tuple[list[str], list[str], str]:
        return remaining("temperature", budget, cooling=Cooling(0, now_c), **readings)

    assert [at(c)[0] for c in (66, 66.1, 68.2, 68.3, 70)] == [list(NAMES), *[["middle", "quick"]] * 2, *[["quick"]] * 2]
    words = "69.0 C are measured. 69.0 C are predicted in 20 s, which is close to the limit of 70.0 C"
    assert at(69)[1:] == ([], words)
    assert at(70.5)[1] == ["temperature_c"]
    assert "70.5 C on average is over 70.0 C" in at(70.5)[2]
    assert remaining("temperature", budget, cooling=Cooling(0, 71, -0.5))[:2] == (list(NAMES), [])  # it cools
    # dearer than what runs it must fit with a tenth to spare: a share of 0.506
    assert at(68.1, current=2)[0] == ["quick"]
    assert at(67.9, current=2)[0] == ["middle", "quick"]
    assert at(40, throttled=True) == (["quick"], [], "The hardware slows this process down at 40.0 C")
    assert remaining("temperature", budget)[0] == list(NAMES)  # no thermometer


def test_latency_from_arrival_to_answer() -> None:
    budget = Budget(latency_ms=101)
    assert remaining("latency", budget)[0] == list(NAMES)
    assert remaining("latency", budget, contention=1.1)[0] == ["middle", "quick"]
    assert remaining("latency", budget, waited_ms=60.0)[0] == list(NAMES)
    assert remaining("latency", budget, wait=True, waited_ms=60.0)[0] == ["quick"]
    left, violated_limits, said = remaining("latency", budget, wait=True, waited_ms=95.0)
    assert (left, violated_limits) == (["quick"], ["latency_ms"])
    assert said == (
        "latency_ms is violated: 10 ms as profiled, times 1, after 95 ms of queue and preprocessing, is over 101 ms. "
        "Raise latency_ms or add a faster exit"
    )


def test_those_that_wait_behind_it_count() -> None:
    budget = Budget(latency_ms=220)
    found = [remaining("latency", budget, wait=True, queue_length=n)[0] for n in (1, 2, 3, 4, 30)]
    assert found == [list(NAMES), ["middle", "quick"], ["middle", "quick"], ["quick"], ["quick"]]
    assert remaining("latency", budget, queue_length=30)[0] == list(NAMES)  # not for those after it
    _, violated_limits, said = remaining("latency", budget, wait=True, queue_length=30)
    assert (violated_limits, said) == ([], "30 wait behind it")
    # two at once: four wait for two turns
    twice = [remaining("latency", budget, wait=True, queue_length=n, servers=2)[0] for n in (2, 4, 8)]
    assert twice == found[:1] + found[1:2] + found[3:4]


def test_energy_of_an_inference() -> None:
    assert remaining("energy", Budget(energy_mj=200), frontier=METERED)[0] == list(NAMES)
    assert remaining("energy", Budget(energy_mj=199), frontier=METERED)[0] == ["middle", "quick"]
    left, violated_limits, said = remaining("energy", Budget(energy_mj=19), frontier=METERED)
    words = "energy_mj is violated: 20 mJ is over 19 mJ. Raise energy_mj or add a cheaper exit"
    assert (left, violated_limits, said) == (["quick"], ["energy_mj"], words)
    assert remaining("energy", Budget(energy_mj=19))[0] == list(NAMES)  # costs hold none: refused before it comes here


def test_accuracy() -> None:
    # promised drops are 0, 0.01 and 0.1; accuracies 0.95, 0.94 and 0.85
    assert remaining("drop", Budget(max_drop=0.1))[0] == list(NAMES)
    assert remaining("drop", Budget(max_drop=0.01))[0] == ["reference", "middle"]
    assert remaining("drop", Budget(min_accuracy=0.94))[0] == ["reference", "middle"]
    assert remaining("drop", Budget(min_accuracy=0.941))[0] == ["reference"]
    left, violated_limits, said = remaining("drop", Budget(min_accuracy=0.96))
    assert (left, violated_limits, said) == (
        ["reference"],
        ["min_accuracy"],
        'min_accuracy is violated: 0.95 is under 0.96. Lower min_accuracy or put "drop" first in priority',
    )
    left, violated_limits, _ = remaining("drop", Budget(max_drop=0.02, min_accuracy=0.96))
    assert (left, violated_limits) == (["reference"], ["min_accuracy"])


def test_drift_leaves_the_first_of_the_least_promised_drop() -> None:
    twins = replace(LADDER, points=(*LADDER.points[:1], replace(LADDER.points[1], target=0.0, risk=0.0)))
    candidates = CandidateFilter(Frontier.of(twins, COSTS), None)
    LIMITS["drop"](candidates, Budget(), DeviceState(drift=True), False)
    assert list(members(candidates.points)) == [0]
    assert remaining("drop", Budget(on_drift="report"), drift=True)[0] == list(NAMES)


def beside(accuracies: tuple[float, ...], memory_mb: tuple[float, ...], ms: tuple[float, ...]) -> Frontier:
    """One network a stage, each run alone, with these accuracies, sizes and times; the last is the reference."""
    last = len(ms) - 1
    points = [
        make_point(
            f"network {place}",
            tuple(-INF if s == place else INF for s in range(last)),
            tuple(float(s == place) for s in range(last + 1)),
            accuracy=accuracies[place],
            backbones=(place,),
            target=None,
            risk=max(accuracies) - accuracies[place],
        )
        for place in reversed(range(last + 1))
    ]
    costs = make_costs([[value] for value in ms], memory_mb=memory_mb)
    return Frontier.of(make_ladder(points, tuple(range(last + 1))), costs)


def chosen(frontier: Frontier, budget: Budget, **readings: Any) -> tuple[str, bool]:
    """The point for the first request, and whether it is feasible."""
    found, _ = BudgetPolicy().decide(frontier, budget, Snapshot(0, **readings), BudgetPolicy().initial())
    return found.point.name, found.feasible


def test_where_no_point_meets_a_limit_accuracy_weighs_against_what_is_gained() -> None:
    # 9 MB and 10 MB beside 90 that no network holds: 1 MB of 99 is not worth 59 points
    frontier = beside((0.31, 0.90), (9.0, 10.0), (5.0, 20.0))
    assert chosen(frontier, Budget(memory_mb=50), memory_process_mb=90.0) == ("network 1", False)
    assert chosen(frontier, Budget(memory_mb=50, max_drop=0.7), memory_process_mb=90.0)[1] is False
    # what the system has left: 7 MB for others' needs and none for this
    assert chosen(frontier, Budget(), memory_available_mb=33.0, memory_process_mb=90.0) == ("network 1", False)
    # half of the memory is worth 10 points
    halved = beside((0.80, 0.90), (100.0, 300.0), (5.0, 20.0))
    assert chosen(halved, Budget(memory_mb=50), memory_process_mb=60.0) == ("network 0", False)
    # one percent of a time, of an energy, is not worth 59 points either
    close = beside((0.31, 0.90), (9.0, 10.0), (19.8, 20.0))
    assert chosen(close, Budget(latency_ms=5)) == ("network 1", False)
    assert chosen(close, Budget(deadline_ms=5)) == ("network 1", False)
    energy = replace(close.costs, energy_mj=close.costs.latency_ms, energy_source="meter")
    assert chosen(close.recost(energy), Budget(energy_mj=5)) == ("network 1", False)
    # and a tenth of the time is
    quick = beside((0.80, 0.90), (9.0, 10.0), (2.0, 20.0))
    assert chosen(quick, Budget(latency_ms=1)) == ("network 0", False)


def test_an_accuracy_that_no_point_has_is_not_weighed() -> None:
    assert chosen(FRONTIER, Budget(min_accuracy=0.99)) == ("reference", False)


def test_no_slower_network_for_memory_that_a_measurement_does_not_tell_apart() -> None:
    # a faster network holds 0.4 MB more: over by 0.3 MB, or over whatever runs
    frontier = beside((0.90, 0.90), (10.4, 10.0), (5.0, 20.0))
    assert chosen(frontier, Budget(max_drop=0.01, memory_mb=100.1), memory_process_mb=90.0) == ("network 0", True)
    assert chosen(frontier, Budget(max_drop=0.01, memory_mb=50.0), memory_process_mb=90.0) == ("network 0", False)
    assert chosen(frontier, Budget(max_drop=0.01), memory_available_mb=33.0, memory_process_mb=90.0)[0] == "network 0"
    far = beside((0.90, 0.90), (30.0, 10.0), (5.0, 20.0))
    assert chosen(far, Budget(max_drop=0.01, memory_mb=110.0), memory_process_mb=90.0) == ("network 1", True)


def test_the_reason_names_what_the_point_holds_that_runs() -> None:
    frontier = beside((0.31, 0.90), (9.0, 10.0), (5.0, 20.0))
    found, _ = BudgetPolicy().decide(
        frontier, Budget(memory_mb=50), Snapshot(0, memory_process_mb=90.0), BudgetPolicy().initial()
    )
    assert "memory_mb is violated: 9 MB of networks on top of 90 MB are over 50 MB" in found.reason
    assert "Points of up to 10 remain, because a cheaper one would lose more accuracy than it saves" in found.reason
