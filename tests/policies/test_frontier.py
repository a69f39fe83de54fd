"""Costs of points against arithmetic by hand and requests drawn at random."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm
from support.policy_cases import INF, make_costs, make_ladder, make_point

from dynamic.policies.costing.latency import first_answer_ms, mean_ms, percentile_ms
from dynamic.policies.costs import Costs
from dynamic.policies.errors import InputError
from dynamic.policies.frontier import SPREADS, Frontier
from dynamic.policies.ladder import OperatingPoint
from dynamic.policies.stage_plan import plan

BATCH = (1, 2, 4, 8, 16)
BACKBONE = (0, 0, 1)
COSTS = make_costs(
    [[10, 12], [20, 24], [50, 80]],
    (1, 3),
    latency_p95_ms=((11.0, 13.0), (23.0, 28.0), (60.0, 90.0)),
    head_ms=((1.0, 1.5), (2.0, 2.5), (3.0, 3.5)),
    call_ms=(0.5, 0.7),
    cpu_ms=((15.0, 18.0), (30.0, 36.0), (90.0, 150.0)),
    energy_mj=((1.0, 2.0), (2.0, 4.0), (5.0, 10.0)),
    energy_source="meter",
    memory_mb=(40.0, 100.0),
)
REFERENCE = make_point("reference", (INF, INF), (0.0, 0.0, 1.0), backbones=(1,))
DEEP = make_point("deep", (0.9, 0.8), (0.2, 0.3, 0.5), accuracy=0.92, backbones=(0, 1))
SKIP = make_point("skip", (INF, 0.8), (0.0, 0.6, 0.4), accuracy=0.88, risk=0.02, backbones=(0, 1))
QUICK = make_point("quick", (-INF, INF), (1.0, 0.0, 0.0), target=None, accuracy=0.7, risk=0.2)


def frontier(*points: OperatingPoint, costs: Costs = COSTS) -> Frontier:
    return Frontier.of(make_ladder(points, BACKBONE), costs)


def names(found: Frontier) -> list[str]:
    return [p.name for p in found.points]


def test_one_input_by_hand() -> None:
    reference, deep, skip, quick = frontier(REFERENCE, DEEP, SKIP, QUICK).points
    assert reference.mean_ms[0] == pytest.approx(50 + 0.5)  # the first network is not run
    assert deep.mean_ms[0] == pytest.approx(10 + 0.8 * 20 + 0.5 * 50 + 0.5)
    assert skip.mean_ms[0] == pytest.approx(10 - 1 + 20 + 0.4 * 50 + 0.5)  # the first head is not run
    assert quick.mean_ms[0] == pytest.approx(10 + 0.5)
    assert [p.deep_ms[0] for p in (reference, deep, skip, quick)] == pytest.approx([50.5, 80.5, 79.5, 10.5])
    assert deep.cpu_ms[0] == pytest.approx(15 + 0.8 * 30 + 0.5 * 90)
    assert deep.energy_mj is not None
    assert deep.energy_mj[0] == pytest.approx(1 + 0.8 * 2 + 0.5 * 5)
    assert [p.memory_mb for p in (reference, deep, skip, quick)] == [100, 140, 140, 40]


def test_three_inputs_by_hand() -> None:
    # 3 rows: one gets to stage 1 with 1 - 0.2^3 and to stage 2 with 1 - 0.5^3; the tables are linear in between
    found = frontier(REFERENCE, DEEP).points[1]
    second, third = 1 - 0.2**3, 1 - 0.5**3
    rows = [3, 3 * 0.8 / second, 3 * 0.5 / third]
    stages = [10 + (rows[0] - 1) * 1, 20 + (rows[1] - 1) * 2, 50 + (rows[2] - 1) * 15]
    assert found.mean_ms[1] == pytest.approx(stages[0] + second * stages[1] + third * stages[2] + 0.7)
    assert found.deep_ms[1] == pytest.approx(12 + 24 + 80 + 0.7)


def test_percentile_of_one_path_is_that_of_a_normal() -> None:
    # variances add: the spreads of p95 are 1, 3 and 10 ms
    quick, skip = (p.operating_point for p in frontier(QUICK, SKIP).points)
    todo = plan(np.array(quick.thresholds, np.float32), BACKBONE)
    for q in (0.05, 0.5, 0.95, 0.999):
        expected = 10.5 + norm.ppf(q) / norm.ppf(0.95)
        assert percentile_ms(quick, todo, COSTS, 1, q) == pytest.approx(expected, abs=1e-3)
    deepest = replace(skip, shares=(0.0, 0.0, 1.0))
    todo = plan(np.array(skip.thresholds, np.float32), BACKBONE)
    expected = 79.5 + np.sqrt(1 + 9 + 100)
    assert percentile_ms(deepest, todo, COSTS, 1, 0.95) == pytest.approx(expected, abs=1e-3)


def requests(shares: tuple[float, ...], fixed: float, each: float, rows: int) -> tuple[NDArray[Any], Costs]:
    """Times of 200,000 requests of so many rows, each stage `fixed + each * rows` and 10% off; and their costs."""
    random, count, stages = np.random.default_rng(0), 200_000, len(shares)
    depth = random.choice(stages, p=shares, size=(count, rows))
    took = np.full(count, 0.5)
    for s in range(stages):
        there = (depth >= s).sum(axis=1)
        stage = fixed + each * there
        took += np.where(there > 0, stage * (1 + 0.1 * random.normal(size=count)), 0)
    table = [[fixed + each * b for b in BATCH]] * stages
    p95 = tuple(tuple(t * (1 + 0.1 * norm.ppf(0.95)) for t in row) for row in table)
    return took, make_costs(table, BATCH, latency_p95_ms=p95, call_ms=(0.5,) * len(BATCH))


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.9, 0.1), (0.4, 0.3, 0.2, 0.1), (0.05, 0.05, 0.9), (0.0, 0.7, 0.3)])
@pytest.mark.parametrize(("fixed", "each"), [(5.0, 1.0), (1.0, 5.0)])
@pytest.mark.parametrize("rows", [1, 4, 8])
def test_requests_drawn_at_random(shares: tuple[float, ...], fixed: float, each: float, rows: int) -> None:
    took, costs = requests(shares, fixed, each, rows)
    stages = len(shares)
    point, todo = make_point("p", (0.5,) * (stages - 1), shares), plan(np.full(stages - 1, 0.5), (0,) * stages)
    assert mean_ms(point, todo, costs, rows) == pytest.approx(took.mean(), rel=0.005)
    # exact for one row but for noise; a batch's times are a mixture of normals only nearly
    rel = 0.01 if rows == 1 else 0.05
    assert percentile_ms(point, todo, costs, rows, 0.95) == pytest.approx(np.quantile(took, 0.95), rel=rel)
    assert percentile_ms(point, todo, costs, rows, 0.99) == pytest.approx(np.quantile(took, 0.99), rel=rel)


@pytest.mark.parametrize("spread", [0.0, 0.02, 0.1, 0.3, 0.9])
@pytest.mark.parametrize("percentile", [0.05, 0.5, 0.95, 0.99])
def test_percentile_of_requests_that_scatter(spread: float, percentile: float) -> None:
    # one input of DEEP leaves after 10.5, 30.5 or 80.5 ms: a mixture of normals, its quantile by scipy's root finder
    point, todo = DEEP, plan(np.array(DEEP.thresholds, np.float32), BACKBONE)
    middle = np.array([10.5, 30.5, 80.5])
    profiled = np.sqrt(np.cumsum((np.array([1.0, 3.0, 10.0]) / norm.ppf(0.95)) ** 2))
    wide = np.maximum(profiled, spread * middle)

    def off(ms: float) -> float:
        return float(np.dot(DEEP.shares, norm.cdf(ms, middle, wide)) - percentile)

    expected = max(brentq(off, -500, 500, xtol=1e-10), 0.0)
    assert percentile_ms(point, todo, COSTS, 1, percentile, spread) == pytest.approx(expected, abs=1e-4)


def test_the_next_wider_spread_counts() -> None:
    found = frontier(REFERENCE, DEEP)
    assert found.latency_ms(0.95, 1) == found.latency_ms(0.95, 1, spread=0.0)
    for asked, counts in ((0.05, 0.1), (0.1, 0.1), (0.11, 0.2), (0.5, 0.65), (1.2, 1.3), (7.0, 1.3)):
        assert counts in SPREADS
        expected = [percentile_ms(p.operating_point, p.plan, COSTS, 1, 0.95, counts) for p in found.points]
        assert found.latency_ms(0.95, 1, spread=asked) == pytest.approx(expected)
    assert found.latency_ms(0.95, 1, spread=0.3)[0] == pytest.approx(50.5 * (1 + 0.3 * norm.ppf(0.95)), abs=1e-3)
    assert found.latency_ms(None, 1, spread=0.9) == found.latency_ms(None, 1)  # a mean is a mean


@pytest.mark.parametrize("rows", [1, 3])
def test_first_answer_by_hand(rows: int) -> None:
    found = frontier(REFERENCE, DEEP, SKIP, QUICK)
    by_hand = {1: [50.5, 10.5, 29.5, 10.5], 3: [80.7, 12.7, 12 - 1.5 + 24 + 0.7, 12.7]}
    assert found.first_answer(rows).figures == pytest.approx(by_hand[rows])
    assert [first_answer_ms(p.plan, COSTS, rows) for p in found.points] == pytest.approx(by_hand[rows])
    assert found.first_answer(rows) is found.first_answer(rows)


def test_points_by_effort_memory_drop_accuracy_and_mean() -> None:
    found = frontier(REFERENCE, DEEP, SKIP, QUICK)
    by_hand = [5, 1 + 0.8 * 2 + 0.5 * 5, 1 * 9 / 10 + 2 + 0.4 * 5, 1]  # mJ; a head that is off by the time it takes
    assert found.effort.figures == pytest.approx(by_hand)
    without = frontier(REFERENCE, DEEP, costs=replace(COSTS, energy_mj=None, energy_source=None))
    assert without.effort.figures == pytest.approx([90, 15 + 0.8 * 30 + 0.5 * 90])
    assert found.memory.figures == (100, 140, 140, 40)
    assert found.drop.figures == (0.0, 0.0, 0.02, 0.2)
    assert found.accuracy.figures == (-0.9, -0.92, -0.88, -0.7)
    assert found.mean.figures == tuple(p.mean_ms[0] for p in found.points)
    sets = (frozenset[int](), {0}, {1}, {0, 1})  # which points need no more than these backbones
    assert [found.within(frozenset(have)) for have in sets] == [0b0000, 0b1000, 0b0001, 0b1111]


def test_of_points_as_accurate_the_fastest_comes_first() -> None:
    twin = replace(DEEP, name="twin", accuracy=(0.8, 0.92, 0.95), thresholds=(-INF, INF), shares=(1.0, 0.0, 0.0))
    found = frontier(REFERENCE, DEEP, replace(twin, target=0.01, risk=0.01))
    assert found.accuracy.first(0b111) == 2
    assert found.accuracy.first(0b011) == 1


def test_path_of_one_input() -> None:
    found = frontier(REFERENCE, DEEP, SKIP)
    reference, deep, skip = found.points
    assert [found.path_ms(deep, d) for d in range(3)] == pytest.approx([10.5, 30.5, 80.5])
    assert [found.path_ms(skip, d) for d in range(3)] == pytest.approx([9.5, 29.5, 79.5])
    assert found.path_ms(reference, 2) == pytest.approx(50.5)


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_path_of_a_batch_by_its_deepest_row(rows: int) -> None:
    shares = (0.4, 0.3, 0.2, 0.1)
    costs = make_costs([[1 + 2 * b for b in BATCH]] * 4, BATCH)
    point = make_point("p", (0.5,) * 3, shares)
    found = Frontier.of(make_ladder([point], (0,) * 4), costs)
    depth = np.random.default_rng(1).choice(4, p=shares, size=(200_000, rows))
    took = sum(np.where((there := (depth >= s).sum(axis=1)) > 0, 1 + 2 * there, 0) for s in range(4))
    for deepest in range(4):
        drawn = took[depth.max(axis=1) == deepest]
        assert len(drawn) > 50
        assert found.path_ms(found.points[0], deepest, rows=rows) == pytest.approx(drawn.mean(), rel=0.02)


def test_a_depth_that_was_never_seen_still_has_a_time() -> None:
    found = frontier(REFERENCE, QUICK)
    quick = found.points[1]
    assert found.path_ms(quick, 2, rows=1) == pytest.approx(
        10 + 50 + 0.5
    )  # a row of NaN goes on. Stage 1 leads nowhere
    assert found.path_ms(quick, 2, rows=3) == pytest.approx(12 + 50 + 0.7)  # it alone does


def test_beaten_points_are_dropped() -> None:
    worse = replace(DEEP, name="worse", accuracy=(0.8, 0.91, 0.95))
    assert names(frontier(REFERENCE, DEEP, worse, QUICK)) == ["reference", "deep", "quick"]
    looser = replace(DEEP, name="looser", target=0.02)
    assert names(frontier(REFERENCE, DEEP, looser, QUICK)) == ["reference", "deep", "quick"]
    # better in one thing, or equal in all: both stay
    assert names(frontier(REFERENCE, DEEP, replace(worse, target=-0.1, risk=-0.1))) == ["reference", "deep", "worse"]
    assert names(frontier(REFERENCE, DEEP, replace(DEEP, name="twin"))) == ["reference", "deep", "twin"]


def test_the_reference_stays() -> None:
    better = make_point("better", (0.5, INF), (0.9, 0.0, 0.1), accuracy=0.95, backbones=(1,))
    dear = make_costs([[1], [1], [100]], memory_mb=(0.0, 10.0))
    assert names(frontier(REFERENCE, better, costs=dear)) == ["reference", "better"]


def test_recost_starts_from_the_ladder() -> None:
    cheap_start = make_costs([[1], [1], [100]], memory_mb=(10.0, 10.0))
    dear_start = make_costs([[100], [100], [1]], memory_mb=(10.0, 10.0))
    rival = replace(REFERENCE, name="rival", thresholds=(0.9, INF), shares=(0.5, 0.0, 0.5))
    found = frontier(REFERENCE, rival, costs=dear_start)
    assert names(found) == ["reference"]  # dearer and no better
    again = found.recost(cheap_start)
    assert names(again) == ["reference", "rival"]
    assert again.points[1].operating_point is rival
    assert again.points[1].mean_ms[0] == pytest.approx(1 + 0.5 * 100)
    assert again.costs is cheap_start


def test_cheapest_is_by_cpu_time() -> None:
    found = frontier(REFERENCE, DEEP, QUICK)
    assert found.cheapest.operating_point is QUICK
    costs = make_costs([[10], [20], [50]], cpu_ms=((90.0,), (0.0,), (10.0,)), memory_mb=(1.0, 1.0))
    assert frontier(REFERENCE, DEEP, QUICK, costs=costs).cheapest.operating_point is REFERENCE


def test_latency_by_percentile_and_rows_is_that_of_the_points() -> None:
    found = frontier(REFERENCE, DEEP, QUICK)
    assert found.latency_ms(None, 1) == pytest.approx([p.mean_ms[0] for p in found.points])
    assert found.latency_ms(0.95, 3) == pytest.approx([p.p95_ms[1] for p in found.points])
    between = make_costs([[1, 7]], (1, 4), latency_p95_ms=((2.0, 8.0),))
    alone = Frontier.of(make_ladder([make_point("reference", (), (1.0,))], (0,)), between)
    assert [alone.latency_ms(None, n)[0] for n in (1, 2, 3, 4, 6)] == pytest.approx([1, 3, 5, 7, 11])
    assert [alone.latency_ms(0.95, n)[0] for n in (1, 2, 4)] == pytest.approx([2, 4, 8], abs=1e-3)
    assert alone.latency_ms(None, 2) == alone.latency_ms(None, 2)


def test_costs_of_another_cascade() -> None:
    with pytest.raises(InputError, match="costs are of 2 stages, the ladder has 3"):
        frontier(REFERENCE, costs=make_costs([[1], [2]]))


def test_remembered_times_are_of_these_costs_alone() -> None:
    found = frontier(REFERENCE, DEEP)
    twice = replace(COSTS, latency_ms=tuple(tuple(2 * v for v in row) for row in COSTS.latency_ms))
    for each in (found, found, found.recost(twice), replace(found, costs=twice), found):
        factor = 2 if each.costs is twice else 1
        assert each.path_ms(each.points[1], 2, rows=1) == pytest.approx(factor * 80 + 0.5)
        assert each.latency_ms(None, 1)[0] == pytest.approx(factor * 50 + 0.5)
    # another frontier's point is costed here for itself
    assert found.path_ms(frontier(REFERENCE, SKIP).points[1], 2, rows=1) == pytest.approx(79.5)


def test_what_is_remembered_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynamic.policies.frontier._CACHE_SIZE", 3)
    found = frontier(REFERENCE)
    times = [(found.path_ms(found.points[0], 2, rows=rows), found.latency_ms(None, rows)) for rows in range(1, 9)]
    for rows in range(1, 9):
        found.first_answer(rows)
    assert max(len(found._path), len(found._latency), len(found._first)) <= 3
    assert times == [
        (found.path_ms(found.points[0], 2, rows=rows), found.latency_ms(None, rows)) for rows in range(1, 9)
    ]


def test_what_an_engine_is_given_of_a_point() -> None:
    skip = frontier(REFERENCE, SKIP).points[1]
    assert skip.thresholds.dtype == np.float32
    assert skip.thresholds.tolist() == pytest.approx([INF, 0.8])
    assert skip.thresholds is skip.thresholds
    with pytest.raises(ValueError, match="read-only"):
        skip.thresholds[0] = 0
    assert skip.backbones == {0, 1}
