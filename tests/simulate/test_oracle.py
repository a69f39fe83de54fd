"""The oracle's two steps against brute force, and its schedule in the simulator."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from support.simulation_cases import COSTS, FRONTIER, LADDER, PLAIN, RECORDS, WARM

from dynamic.policies.budget import Budget
from dynamic.policies.control.fixed_policy import FixedPolicy
from dynamic.policies.errors import InputError
from dynamic.policies.frontier import Frontier
from dynamic.simulate import Constant, Poisson, Steps, oracle, simulate
from dynamic.simulate.requests.oracle_search import plan_slots, walk
from dynamic.simulate.requests.queue_times import best_points
from dynamic.simulate.requests.slots import Heat, Service, Slots

ENDLESS = replace(PLAIN, battery_mwh=None)


def made_up(arrivals: list[float], seed: int = 0) -> tuple[Service, Slots]:
    random, count = np.random.default_rng(seed), len(arrivals)
    energy_mj = np.array([100.0, 60.0, 20.0])
    service = Service(np.array([[0.1], [0.06], [0.02]]), np.ones((3, 1)), energy_mj, np.array([0.9, 0.85, 0.6]))
    allowed = random.uniform(size=(count, 3)) < 0.8
    allowed[:, 2] = True
    return service, Slots(1.0, np.array(arrivals), np.full(count, 25.0), allowed, np.ones(count, bool))


def every_plan(service: Service, slots: Slots) -> list[tuple[float, float, tuple[int, ...]]]:
    """(wrong, energy, points) of all there are."""
    found = []
    for points in product(range(3), repeat=len(slots.arrivals)):
        chosen = np.array(points)
        if slots.allowed[np.arange(len(points)), chosen].all():
            wrong = (slots.arrivals * (1 - service.accuracy[chosen])).sum()
            found.append((float(wrong), float((slots.arrivals * service.energy_mj[chosen]).sum()), points))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_energy_is_shared_out_nearly_as_well_as_it_can_be(seed: int) -> None:
    arrivals = np.random.default_rng(seed).integers(1, 10, size=7).astype(float).tolist()
    service, slots = made_up(arrivals, seed)
    plans = every_plan(service, slots)
    for most_mj in np.linspace(min(e for _, e, _ in plans), max(e for _, e, _ in plans), 9):
        best = min(wrong for wrong, energy, _ in plans if energy <= most_mj + 1e-9)
        found = plan_slots(service, slots, float(most_mj) + 1e-9, None)
        assert found.energy_mj <= most_mj + 1e-6
        # a slot is never split, and one is all that may be lost
        assert best - 1e-9 <= found.wrong <= best + 0.3 * max(arrivals)


def test_at_a_price_the_plan_is_the_best_there_is() -> None:
    service, slots = made_up([3, 1, 4, 1, 5])
    for price in (0.0, 1e-4, 1e-3, 5e-3, 1e-2, 1.0):
        best = min(wrong + price * energy for wrong, energy, _ in every_plan(service, slots))
        found = walk(price, service, slots)
        assert found.wrong + price * found.energy_mj == pytest.approx(best)


def test_where_nothing_is_sparing_enough_the_most_sparing_runs() -> None:
    service, slots = made_up([3, 1, 4])
    assert plan_slots(service, slots, 0.0, None).points == (2, 2, 2)


def test_it_never_gets_too_warm() -> None:
    service, slots = made_up([20.0] * 40)
    slots = replace(slots, allowed=np.ones((40, 3), bool), ambient_c=np.linspace(20, 50, 40))
    # 10 C/W: a tenth of a second at 1 W for each of 20 a second ends 20 degrees higher, the smallest 4
    heat = Heat(20.0, 0.0, 56.0, 10.0, 0.5)
    plan, now_c, seen = plan_slots(service, slots, np.inf, heat), 20.0, []
    for ambient_c, point in zip(slots.ambient_c, plan.points, strict=True):
        end_c = ambient_c + 10 * 20 * service.energy_mj[point] / 1e3
        now_c = end_c + (now_c - end_c) * np.exp(-1 / 5)
        seen.append(now_c)
    assert max(seen) <= 56 + 1e-9
    assert max(seen) > 55
    assert plan.points[0] == 0
    assert 2 in plan.points


def test_the_queue_is_served_as_well_as_it_can_be() -> None:
    # four requests, two points that take 40 ms or 10 ms for sure: all 16 ways to serve them
    service = Service(np.array([[0.04], [0.01]]), np.ones((2, 1)), np.zeros(2), np.array([0.9, 0.5]))
    arrival_s, contention = np.array([0.0, 0.01, 0.02, 0.2]), np.array([1.0, 2.0, 1.0, 1.0])
    limit_s, penalty = np.full(4, 0.06), 3.0
    grid_s = np.arange(0, 400) / 1000  # all that happens happens at whole milliseconds
    allowed = np.ones((4, 2), bool)
    allowed[3, 0] = False

    def cost(points: tuple[int, ...]) -> float:
        free_s = total = 0.0
        for i, point in enumerate(points):
            free_s = max(free_s, arrival_s[i]) + service.times_s[point, 0] * contention[i]
            late = free_s - arrival_s[i] > limit_s[i] + 1e-9
            total += 1 - service.accuracy[point] + penalty * late + (0 if allowed[i, point] else np.inf)
        return total

    table = best_points(service, arrival_s, contention, limit_s + 1e-9, allowed, penalty, grid_s)
    chosen, free_s = [], 0.0
    for i in range(4):
        start_s = max(free_s, arrival_s[i])
        point = int(table[i, round((start_s - arrival_s[i]) * 1000)])
        chosen.append(point)
        free_s = start_s + service.times_s[point, 0] * contention[i]
    assert cost(tuple(chosen)) == pytest.approx(min(cost(points) for points in product((0, 1), repeat=4)))


def test_a_ladder_may_have_more_points_than_a_byte_counts() -> None:
    points = tuple(
        replace(LADDER.points[1], name=str(i), accuracy=(0.9 - i / 1e3,) * 3, shares=(i / 300, 1 - i / 300))
        for i in range(200)
    )
    frontier = Frontier.of(replace(LADDER, points=points), COSTS)
    assert len(frontier.points) == 200
    for budget in (Budget(energy_mj=1.0), Budget(energy_mj=1.0, latency_ms=100)):
        policy = oracle(frontier, RECORDS, device=ENDLESS, workload=Constant(1, 4), budget=budget)
        assert (policy.points == 199).all()
        report = simulate(frontier, RECORDS, device=ENDLESS, workload=Constant(1, 4), policy=policy, budget=budget)
        assert report.point_shares == {"199": 1.0}


def run(budget: Budget, workload: Any, device: Any = ENDLESS, point: str | None = None, **options: Any) -> Any:
    policy: Any = FixedPolicy(point) if point else None
    if policy is None:
        policy = oracle(FRONTIER, RECORDS, device=device, workload=workload, budget=budget, **options)
    return simulate(FRONTIER, RECORDS, device=device, workload=workload, policy=policy, budget=budget, **options)


def test_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="sizes are given: an oracle plans with inputs of the example's size"):
        run(Budget(), Constant(1, 4), sizes=np.full(len(RECORDS), 20))
    run(Budget(), Constant(1, 4), sizes=None)


def test_it_knows_what_is_to_come() -> None:
    # "both" takes 60 ms, 120 while others are busy, and "last" 40 or 80; only "first" with 20 and 40 is then in time
    load = Steps((0.0, 10.0, 20.0), (0.0, 1.5, 0.0))
    report = run(Budget(latency_ms=65), Constant(5, 30), background_load=load)
    assert report.late_share == 0
    assert report.point_shares == {"both": pytest.approx(2 / 3), "first": pytest.approx(1 / 3)}
    always = run(Budget(latency_ms=65), Constant(5, 30), point="last", background_load=load)
    assert always.late_share == pytest.approx(1 / 3)


def test_no_fixed_point_is_of_more_use() -> None:
    workload, budget = Poisson(18, 100), Budget(latency_ms=80)
    best = run(budget, workload)
    # more come at once than any point serves in time
    assert best.late_share < run(budget, workload, point="first").late_share + 0.01
    for name in ("last", "both", "first"):
        assert best.useful_share >= run(budget, workload, point=name).useful_share - 0.01


def test_the_battery_lasts_and_no_more_is_left_than_has_to_be() -> None:
    # 36 mWh are 129,600 mJ; of 68,000, 10,000 go for 100 s of idle, 10% kept are 12,960: some 30 mJ a request are left
    device = replace(PLAIN, battery_mwh=36)
    budget = Budget(battery_floor=0.1, battery_duration_s=100.0)
    options: dict[str, Any] = {"device": device, "battery": 68_000 / 129_600}
    assert run(budget, Poisson(15, 100), point="last", **options).battery_left == 0
    report = run(budget, Poisson(15, 100), **options)
    assert report.answered == report.requests
    assert report.battery_left == pytest.approx(0.1, abs=0.004)
    energy = Budget(energy_mj=30.0)
    report = run(energy, Poisson(5, 100))
    assert report.inference_mj_each == pytest.approx(30, rel=0.03)
    assert report.point_shares["last"] == pytest.approx(0.5, abs=0.05)


def test_heat_and_memory_are_kept_to() -> None:
    report = run(Budget(temperature_c=48), Poisson(15, 100), device=WARM)
    assert 46 < report.temperature_max_c < 48.5
    # "both" takes 60 + 130 MB, "last" 140, "first" 110
    report = run(Budget(), Constant(5, 30), memory_mb=Steps((0.0, 10.0, 20.0), (1000, 120, 1000)))
    assert report.memory_over_share < 0.02
    assert report.point_shares["first"] == pytest.approx(1 / 3, abs=0.02)
    report = run(Budget(min_accuracy=0.7, latency_ms=10), Constant(5, 10))
    assert set(report.point_shares) <= {"last", "both"}


@pytest.mark.parametrize(
    ("budget", "point"),
    [
        (Budget(cpu_ms=37), "quick"),  # points take 40, 60, 36 and 20
        (Budget(cpu_ms=36), "quick"),
        (Budget(cpu_ms=45), "last"),
        (Budget(cpu_ms=45, min_accuracy=0.76), "last"),
        (Budget(cpu_ms=10), "both"),  # none is so cheap: the limit gives way
    ],
)
def test_processor_time_is_kept_to(budget: Budget, point: str) -> None:
    assert run(budget, Constant(1, 10)).point_shares[point] == 1
