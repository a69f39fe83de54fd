"""The queue, deadlines, contention, noise and memory of the simulator, worked out by hand."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.simulation_cases import COSTS, FRONTIER, LADDER, PLAIN, RECORDS, WARM, serve

from dynamic.policies.budget import Budget
from dynamic.policies.control.fixed_policy import FixedPolicy
from dynamic.policies.decision import Decision, Policy
from dynamic.policies.errors import SettingError
from dynamic.policies.frontier import Frontier
from dynamic.simulate import Constant, Line, Poisson, Stalls, Steps, simulate

ENDLESS = replace(PLAIN, battery_mwh=None)


class Watching(Policy):
    """Chooses by a function of how many decisions there were, and keeps what it saw."""

    def __init__(self, choose: Callable[[int], str], **fields: Any) -> None:
        self.choose, self.fields = choose, fields
        self.snapshots: list[Any] = []
        self.feedback: list[Any] = []

    def decide(self, frontier: Any, budget: Any, snapshot: Any, state: Any) -> tuple[Decision, Any]:
        name = self.choose(len(self.snapshots))
        self.snapshots.append(snapshot)
        point = next(p for p in frontier.points if p.name == name)
        fields = {k: v(point) if callable(v) else v for k, v in self.fields.items()}
        return Decision(point, reason="told to", **fields), state

    def observe(self, state: Any, feedback: Any) -> Any:
        self.feedback.append(feedback)
        return state


def watched(workload: Any, policy: Watching, budget: Any = None, device: Any = PLAIN, **options: Any) -> Any:
    return simulate(
        FRONTIER, RECORDS, device=device, workload=workload, policy=policy, budget=budget or Budget(), **options
    )


def test_the_wait_is_that_of_pollaczek_and_khinchine() -> None:
    # 15 a second, 40 ms each: busy 0.6 of the time, mean wait 0.6 x 40 / (2 x 0.4) = 30 ms
    report = serve(Poisson(15, 4000), device=ENDLESS)
    assert report.mean_wait_ms == pytest.approx(30, rel=0.05)
    assert report.mean_latency_ms == pytest.approx(70, rel=0.03)
    busy = report.inference_mj / (report.hours * 3600 * 1000)
    assert busy == pytest.approx(0.6, rel=0.02)


def test_a_full_queue_sends_the_oldest_away() -> None:
    # one each 10 ms, 40 ms of work: at 40 ms 1 to 4 wait and 3, 4 stay; at 80 ms 4 to 8 wait and 7, 8 stay
    report = serve(Constant(100, 0.1), queue_limit=2)
    assert report.latency_ms.tolist() == pytest.approx([40, 50, 50, 80, 110])
    assert (report.requests, report.answered, report.shed, report.queue_longest) == (10, 5, 5, 1)
    assert "shed 5" in str(report)
    assert serve(Constant(10, 1), queue_limit=1).shed == 0


def test_a_deadline_ends_a_request_with_the_answer_there_is() -> None:
    # 20 ms, then 40 more would end at 60: records 2 and 3 answer with the first network's class 0, and 3 is right
    report = serve(Constant(5, 0.8), "quick", Budget(deadline_ms=50))
    assert report.latency_ms.tolist() == pytest.approx([20] * 4)
    assert (report.accuracy, report.cut_share, report.deadline_miss_share) == (0.5, 0.5, 0.0)
    assert report.stage_shares == (1.0, 0.0)
    assert report.inference_mj == pytest.approx(4 * 20)
    assert serve(Constant(5, 0.8), "quick", Budget(deadline_ms=60)).cut_share == 0
    # nothing has answered before the last stage: it is not cut, and late
    report = serve(Constant(5, 0.8), "last", Budget(deadline_ms=10))
    assert (report.cut_share, report.deadline_miss_share, report.useful_share) == (0.0, 1.0, 0.0)


def test_the_wait_counts_for_the_deadline() -> None:
    # four at once: by when the second begins, 20 or 60 ms are gone
    report = serve(Constant(1e6, 4e-6), "quick", Budget(deadline_ms=65))
    assert report.latency_ms.max() <= 120
    assert report.cut_share > 0


def test_a_cut_follows_what_the_decision_expects() -> None:
    policy = Watching(lambda n: "quick", slowdown=2.0)
    report = watched(Constant(5, 0.8), policy, Budget(deadline_ms=90))
    assert report.cut_share == 0.5  # 20 + 2 x 40 is over 90
    assert sorted((*f.stages, *f.latency_ms, *f.expected_ms) for f in policy.feedback) == [(0, 20, 20)] * 4


def test_a_cut_goes_by_95th_percentiles_as_engines_do() -> None:
    # 20 ms are gone, and 40 more would do; but 52 are expected of the next answer, as by ahead_ms
    wide = Frontier.of(LADDER, replace(COSTS, latency_p95_ms=((26.0,), (52.0,))))

    def play(deadline_ms: float, **options: Any) -> Any:
        policy, budget = FixedPolicy("quick"), Budget(deadline_ms=deadline_ms)
        return simulate(
            wide, RECORDS, device=PLAIN, workload=Constant(5, 0.8), policy=policy, budget=budget, noise=0, **options
        )

    assert play(65).latency_ms.tolist() == pytest.approx([20] * 4)
    assert play(65).cut_share == play(71.9).cut_share == 0.5
    assert play(72.1).cut_share == 0
    assert sorted(play(72.1).latency_ms.tolist()) == pytest.approx([20, 20, 60, 60])


def test_a_cut_between_two_answers_has_taken_the_time_till_there() -> None:
    # three stages of 20 ms, the second without an exit; others take as much again, and the decision does not know
    record = [[[0.1, 0.0], [0.0, 0.0], [0.0, 9.0]]]
    records = replace(
        RECORDS,
        logits=np.array(record, np.float32),
        label=np.array([1]),
        part=np.ones(1, np.int8),
        backbone=(0, 1, 1),
        macs=(1.0, 1.0, 2.0),
        head_macs=(0.0, 0.0, 0.0),
        stage_names=("a", "b", "c"),
    )
    quick = LADDER.points[2]
    point = replace(quick, thresholds=(0.8, float("inf")), shares=(0.0, 0.0, 1.0))
    ladder = replace(
        LADDER, temperature=(1.0,) * 3, backbone=(0, 1, 1), stage_names=records.stage_names, points=(point,)
    )
    same = ((20.0,),) * 3
    costs = replace(COSTS, latency_ms=same, latency_p95_ms=same, head_ms=((0.0,),) * 3, cpu_ms=same)

    def play(deadline_ms: float) -> tuple[float, float, float]:
        policy = Watching(lambda n: "quick")
        budget, load = Budget(deadline_ms=deadline_ms), 1.5
        frontier = Frontier.of(ladder, costs)
        report = simulate(
            frontier, records, device=PLAIN, workload=Constant(1, 1), policy=policy, budget=budget, background_load=load
        )
        (told,) = policy.feedback
        return report.latency_ms[0], told.stages[0], told.expected_ms[0]

    # the first answer comes at 40, and two more stages are expected at 80; at 80 the last is expected at 100
    assert play(79) == (pytest.approx(40), 0, 20)
    assert play(95) == (pytest.approx(80), 0, 20)
    assert play(110) == (pytest.approx(120), 2, 60)


def test_others_slow_it_down_and_it_works_no_longer() -> None:
    # 7 busy processes and one thread on 2 cores
    report = serve(Constant(5, 1.0), background_load=3.5)
    assert report.latency_ms.tolist() == pytest.approx([160] * 5)
    assert report.inference_mj == pytest.approx(5 * 40)
    # load is that of the start, however rarely the monitor looks
    report = serve(Constant(5, 1.0), background_load=Steps((0.0, 0.41), (0.0, 1.5)), monitor_hz=0.5)
    assert report.latency_ms.tolist() == pytest.approx([40, 40, 40, 80, 80])


def test_noise_is_as_wide_as_profiled() -> None:
    noisy = replace(COSTS, latency_p95_ms=((26.0,), (52.0,)))
    frontier = Frontier.of(LADDER, noisy)
    report = simulate(
        frontier, RECORDS, device=ENDLESS, workload=Constant(5, 4000), policy=FixedPolicy("last"), budget=Budget()
    )
    assert report.median_latency_ms == pytest.approx(40, rel=0.01)
    assert report.p95_latency_ms == pytest.approx(52, rel=0.01)
    still = simulate(
        frontier, RECORDS, device=ENDLESS, workload=Constant(5, 4), policy=FixedPolicy("last"), budget=Budget(), noise=0
    )
    assert still.latency_ms.tolist() == pytest.approx([40] * 20)
    # a sum of independent times spreads less than its parts: sd 20 r and 40 r, together 44.7 r instead of 60 r
    both = simulate(
        frontier, RECORDS, device=ENDLESS, workload=Constant(5, 4000), policy=FixedPolicy("both"), budget=Budget()
    ).latency_ms
    assert both.std() / both.mean() == pytest.approx(0.161 * np.hypot(20, 40) / 60, rel=0.05)


def test_stalls_come_as_often_as_the_load_says() -> None:
    whole = serve(Constant(2, 4000), device=ENDLESS, background_load=1.0, stalls=Stalls(0.5, 30))
    half = serve(Constant(2, 4000), device=ENDLESS, background_load=0.5, stalls=Stalls(0.5, 30))
    none = serve(Constant(2, 40), device=ENDLESS, stalls=Stalls(0.5, 30))
    assert np.mean(whole.latency_ms > 60.001) == pytest.approx(0.5, abs=0.03)
    assert np.mean(half.latency_ms > 40.001) == pytest.approx(0.25, abs=0.03)
    assert whole.mean_latency_ms == pytest.approx(60 + 15, rel=0.05)
    assert none.latency_ms.max() == pytest.approx(40)
    assert whole.inference_mj == pytest.approx(8000 * 40)
    with pytest.raises(SettingError):
        Stalls(2.0, 1.0)


def test_a_network_that_is_not_there_takes_time_to_load() -> None:
    device = replace(PLAIN, load_ms_per_mb=1.0)
    policy = Watching(lambda n: ("last", "first")[n % 2], keep_loaded=lambda point: point.backbones)
    report = watched(Constant(5, 0.8), policy, device=device, monitor_hz=None)
    # the first one's is there; then 20 + 50, 40 + 80, 20 + 50
    assert report.latency_ms.tolist() == pytest.approx([40, 70, 120, 70])
    assert [ms for f in policy.feedback for ms in f.expected_ms] == [40, 0, 0, 0]
    assert [s.memory_process_mb for s in policy.snapshots] == [60, 140, 110, 140]
    assert report.loads == 3
    keeping = Watching(lambda n: ("last", "first")[n % 2])
    report = watched(Constant(5, 0.8), keeping, device=device)
    assert report.latency_ms.tolist() == pytest.approx([40, 70, 40, 20])


def test_the_single_graph_holds_every_network() -> None:
    graph = Frontier.of(LADDER, replace(COSTS, batch=(1,), route=("graph",)))
    device = replace(PLAIN, load_ms_per_mb=1.0)

    def play(policy: Watching, budget: Budget | None = None, frontier: Frontier = graph, **options: Any) -> Any:
        options = {"monitor_hz": None} | options
        report = simulate(
            frontier,
            RECORDS,
            device=device,
            workload=Constant(5, 0.8),
            policy=policy,
            budget=budget or Budget(),
            **options,
        )
        return report, [s.memory_process_mb for s in policy.snapshots]

    report, held = play(Watching(lambda n: ("last", "first")[n % 2]))
    assert held == [60, 190, 190, 190]
    assert report.latency_ms.tolist() == pytest.approx([40, 20, 40, 20])
    assert report.loads == 0
    # stage by stage: where that is faster, under a deadline, under a limit on memory, and where too little is free
    stages = Frontier.of(LADDER, replace(COSTS, batch=(1,), route=("stages",)))
    assert play(Watching(lambda n: "last"), frontier=stages)[1] == [60, 140, 140, 140]
    assert play(Watching(lambda n: "last"), Budget(deadline_ms=100))[1] == [60, 140, 140, 140]
    assert play(Watching(lambda n: "last", keep_loaded=lambda point: point.backbones))[1] == [60, 140, 140, 140]
    assert play(Watching(lambda n: "last"), memory_mb=180)[1] == [60, 140, 140, 140]
    # once there is room for what the graph needs, the other 50 MB are loaded, though nothing else changes
    report, held = play(Watching(lambda n: "last"), memory_mb=Steps((0.0, 0.3), (180, 1000)))
    assert held == [60, 140, 140, 190]
    assert report.latency_ms.tolist() == pytest.approx([40, 40, 90, 40])


def test_decisions_at_the_monitor_s_rate() -> None:
    every, rarely = (Watching(lambda n: "last") for _ in range(2))
    watched(Constant(20, 2), every)
    watched(Constant(20, 2), rarely, decide="monitor")
    assert (len(every.snapshots), len(rarely.snapshots)) == (40, 10)
    assert sum(len(feedback.stages) for feedback in rarely.feedback) == 40
    assert sorted({s.time_s for s in every.snapshots}) == [n / 5 for n in range(10)]
    with pytest.raises(SettingError, match="decide"):
        watched(Constant(20, 2), every, decide="never")


def test_the_request_says_how_long_it_has_waited() -> None:
    policy = Watching(lambda n: "last")
    watched(Constant(100, 0.03), policy)
    assert [(s.waited_ms, s.queue_length, s.rows) for s in policy.snapshots] == [
        (0.0, 0, 1),
        (pytest.approx(30), 1, 1),
        (pytest.approx(60), 0, 1),
    ]


def test_a_budget_that_changes() -> None:
    policy = Watching(lambda n: "last")
    report = watched(Constant(10, 2), policy, lambda t: Budget(latency_ms=30 if t < 1 else 50))
    assert report.late_share == 0.5


def test_mains_that_are_lost() -> None:
    device = replace(PLAIN, charging_mw=100)
    report = serve(Constant(10, 2), device=device, battery=0.5, plugged=Steps((0.0, 1.0), (1.0, 0.0)))
    # a second of charging, then a second at 100 mW and 10 requests of 40 mJ
    assert report.battery_left == pytest.approx(0.5 + (100 - 100 - 400) / 3600)
    assert report.hours_per_charge == pytest.approx(1 / 500)


def test_heat_slows_it_down() -> None:
    cool = serve(Constant(25, 200), device=WARM)
    assert cool.temperature_max_c == pytest.approx(55, abs=0.01)
    assert cool.throttled_share == 0
    hot = serve(Constant(20, 200), device=replace(WARM, frequency_steps=(1.0, 0.5), throttle_c=45.0))
    # at half the clock 80 ms each: more than come, and at a quarter of the power 25 + 10 x 1.5 = 40 C
    assert hot.temperature_max_c == pytest.approx(45, abs=0.6)
    assert 0.2 < hot.throttled_share < 1
    assert hot.p95_latency_ms > 80
    wave = serve(Constant(1, 400), device=WARM, ambient_c=Line((100.0, 200.0), (25.0, 40.0)))
    # mean power 1 W + 0.08 W
    assert wave.temperature_max_c == pytest.approx(40 + 10.8, abs=0.8)


def test_memory_that_another_takes() -> None:
    report = serve(Constant(10, 9), device=ENDLESS, memory_mb=Steps((0.0, 3.0, 6.0), (1000, 100, 1000)))
    assert report.memory_over_share == pytest.approx(1 / 3, abs=0.02)  # 60 + 80 MB do not fit into 100
    assert serve(Constant(10, 2), budget=Budget(memory_mb=200)).memory_over_share == 0


def test_the_series_add_up() -> None:
    report = serve(Poisson(10, 60), device=ENDLESS, samples=30)
    assert len(report.series["time_s"]) == 31  # both ends
    assert sum(n or 0 for n in report.series["answered"]) == report.answered
    assert sum(n or 0 for n in report.series["arrived"]) == report.requests
    assert {len(values) for values in report.series.values()} == {31}
    assert "series" not in report.to_json()
    assert report.to_json(series=True)["series"]["battery"] == [None] * 31
    assert report.energy_mj == pytest.approx(report.idle_mj + report.screen_mj + report.inference_mj)


def test_other_policies_meet_the_same_luck() -> None:
    noisy = Frontier.of(LADDER, replace(COSTS, latency_p95_ms=((30.0,), (60.0,))))
    first, again = (
        simulate(
            noisy,
            RECORDS,
            device=ENDLESS,
            workload=Poisson(3, 200),
            policy=FixedPolicy("last"),
            budget=Budget(),
            seed=3,
        )
        for _ in range(2)
    )
    assert first.to_json(series=True) == again.to_json(series=True)
    other = simulate(
        noisy, RECORDS, device=ENDLESS, workload=Poisson(3, 200), policy=FixedPolicy("first"), budget=Budget(), seed=3
    )
    assert other.requests == first.requests
    assert other.series["arrived"] == first.series["arrived"]


def test_settings_are_checked() -> None:
    for options in ({"queue_limit": 0}, {"noise": -1.0}, {"monitor_hz": 0}, {"battery": 1.1}):
        with pytest.raises(SettingError, match=next(iter(options))):
            serve(Constant(1, 1), **options)


def test_what_is_certified_is_what_the_budget_asks_for() -> None:
    points = tuple(replace(p, bound=bound) for p, bound in zip(LADDER.points, (0.0, 0.05, 0.3, None), strict=True))
    ladders = {certified: replace(LADDER, points=points, certified=certified) for certified in (True, False)}

    def uncertified(name: str, budget: Any, certified: bool = True) -> float | None:
        frontier = Frontier.of(ladders[certified], COSTS)
        workload = Constant(rate_hz=5, duration_s=2)
        return simulate(
            frontier, RECORDS, device=PLAIN, workload=workload, policy=FixedPolicy(name), budget=budget
        ).uncertified_share

    assert uncertified("both", Budget()) == 0
    assert uncertified("both", Budget(max_drop=0.05)) == 0
    assert uncertified("both", Budget(max_drop=0.049)) == 1
    assert uncertified("first", Budget()) == 1, "it has no bound"
    assert uncertified("last", Budget(max_drop=0)) == 0
    assert uncertified("last", Budget(max_drop=0), certified=False) == 1
    halves = uncertified("both", lambda time_s: Budget(max_drop=0.01 if time_s < 1 else 0.5))
    assert halves == pytest.approx(0.5, abs=0.15)
