"""The runtime follows budget, device and input; several threads at once."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from support.runtime_cases import monitor, shared_blobs

import dynamic
from dynamic.errors import InputError, SettingError
from dynamic.policies import BudgetPolicy, Feedback
from dynamic.policies.control.budget_policy import BudgetState


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> dynamic.Bundle:
    return shared_blobs(tmp_path_factory)


X = np.random.default_rng(0).standard_normal((16, 12)).astype(np.float32)


def test_without_limits_the_most_accurate_point_runs(bundle: dynamic.Bundle) -> None:
    with bundle.runtime(monitor=monitor()) as run:
        decision = run(X[0]).decision
    best = max(p.accuracy.mid for p in bundle.frontier.points)
    assert decision.point.accuracy.mid == best
    assert decision.feasible
    assert "most accurate" in decision.reason


def test_the_budget_changes_at_any_time(bundle: dynamic.Bundle) -> None:
    points = bundle.frontier.points
    assert len(points) > 1
    with bundle.runtime(dynamic.Budget(max_drop=0), monitor=monitor()) as run:  # the reference
        dear = run(X[0]).decision
        run.budget = dynamic.Budget(latency_ms=min(p.p95_ms[0] for p in points) * 1.5)
        cheap = run(X[0]).decision
        run.budget = dynamic.Budget(latency_ms=1e-6)
        nothing = run(X[0]).decision
        run.budget = dynamic.Budget(max_drop=0)
        back = run(X[0]).decision
    assert cheap.point.mean_ms[0] < dear.point.mean_ms[0]
    assert not nothing.feasible
    assert nothing.violated_limits == ("latency_ms",)
    assert "is violated" in nothing.reason
    assert back.point is dear.point
    assert run.stats().decision_changes >= 2


def test_a_low_battery_runs_the_cheapest_and_mains_do_not(bundle: dynamic.Bundle) -> None:
    budget = dynamic.Budget(battery_floor=0.2)
    cheapest = min(bundle.frontier.points, key=lambda p: p.cpu_ms[0])
    for battery, plugged, low in ((0.9, False, False), (0.1, False, True), (0.1, True, False)):
        with bundle.runtime(budget, monitor=monitor(battery=battery, plugged=plugged)) as run:
            assert (
                run(X[0]).decision.point is cheapest
                or run(X[0]).decision.point.operating_point == cheapest.operating_point
            ) == low


def test_memory_decides_what_is_loaded(bundle: dynamic.Bundle) -> None:
    large = bundle.costs.memory_mb[1] if bundle.costs else 0.0
    assert large > 10
    with bundle.runtime(dynamic.Budget(), monitor=monitor(memory_process_mb=100.0)) as run:
        run(X[0])
        run(X)
        assert run.engine.graph is not None
        assert run.engine.graph.ready(1) or 1 in run.engine.loaded()
        run.budget = dynamic.Budget(memory_mb=100.0 + large / 2)
        decision = run(X[0]).decision
        assert decision.point.operating_point.backbones == (0,)
        assert run.engine.loaded() == {0}
        assert not run.engine.graph.ready(1)
        assert not run.engine.graph.ready(16)
        assert "memory_mb" in decision.reason


def test_results_speak_of_every_row(bundle: dynamic.Bundle) -> None:
    with bundle.runtime(monitor=monitor()) as run:
        batch = run(X)
        single = run(X[3])
    assert batch.label.shape == batch.stage.shape == batch.score.shape == (16,)
    assert batch.log_probs.shape == (16, 4)
    assert batch.name == tuple("abcd"[i] for i in batch.label)
    np.testing.assert_allclose(batch.probability, np.exp(batch.log_probs).max(1), rtol=1e-4)
    assert single.label == batch.label[3]
    assert single.id == batch.id + 1
    assert batch.latency_ms > 0
    point = batch.decision.point.operating_point
    assert bundle.ladder.certified, "or the next line says little"
    assert batch.certified == (point.bound is not None)


def test_map_keeps_order_and_counts(bundle: dynamic.Bundle) -> None:
    with bundle.runtime(monitor=monitor(), drift_alpha=None) as run:  # these inputs are none of the blobs
        labels = [r.label for r in run.map(X, progress=False)]
        batch = run(X)
        assert labels == batch.label.tolist()
        stats = run.stats()
    assert stats.requests == 17
    assert stats.inputs == 32
    assert sum(stats.stage_shares) == pytest.approx(1)
    assert sum(stats.point_shares.values()) == pytest.approx(1)
    assert stats.certified_share == float(batch.certified)
    assert stats.feedback is None


def test_threads_and_changing_budgets(bundle: dynamic.Bundle) -> None:
    budgets = [dynamic.Budget(), dynamic.Budget(latency_ms=1e-6), dynamic.Budget(max_drop=0.5)]
    with bundle.runtime(monitor=monitor(), threads=1, drift_alpha=None) as run:  # these inputs are none of the blobs
        expected = {}
        for budget in budgets:
            run.budget = budget
            result = run(X)
            expected[result.decision.point.name] = result.label.tolist()

        def request(number: int) -> bool:
            run.budget = budgets[number % 3]
            result = run(X)
            return result.label.tolist() == expected[result.decision.point.name]

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(request, range(120)))
        assert run.stats().requests == 123
        assert len({r.id for r in [run(X) for _ in range(3)]}) == 3


def test_closing_leaves_no_thread(bundle: dynamic.Bundle) -> None:
    before = threading.active_count()
    with bundle.runtime() as run:
        run(X[0])
    assert threading.active_count() == before


def test_a_monitor_that_was_given_goes_on(bundle: dynamic.Bundle) -> None:
    class Watched(dynamic.FixedMonitor):
        closed = 0

        def close(self) -> None:
            self.closed += 1

    watch = Watched()
    with bundle.runtime(monitor=watch) as run, bundle.runtime(monitor=watch) as other:
        other.close()
        run(X[0])
    with pytest.raises(SettingError):
        bundle.runtime(dynamic.Budget(energy_mj=5), monitor=watch)
    assert watch.closed == 0


def test_a_request_that_loads_says_nothing_about_the_device(bundle: dynamic.Bundle) -> None:
    seen: list[float] = []

    class Watched(BudgetPolicy):
        def observe(self, state: BudgetState, feedback: Feedback) -> BudgetState:
            seen.extend(feedback.latency_ms)
            return super().observe(state, feedback)

    with bundle.runtime(monitor=monitor(memory_process_mb=100.0), policy=Watched()) as run:
        run(X[0])
        assert seen == []
        assert run(X[0]).latency_ms > seen[0]
        run.budget = dynamic.Budget(memory_mb=101.0)  # the large network goes
        run(X[0])
        assert len(seen) == 1
        assert run(X[0]).latency_ms > seen[1]


@pytest.mark.parametrize(
    "x", [np.zeros((12,), np.float64), np.zeros((3, 11), np.float32), np.zeros((1, 1, 12), np.float32), "image"]
)
def test_wrong_inputs(bundle: dynamic.Bundle, x: Any) -> None:
    with bundle.runtime(monitor=monitor()) as run, pytest.raises(InputError):
        run(x)


@pytest.mark.parametrize("field", ["latency_ms", "memory_mb", "battery_floor", "max_drop", "percentile"])
@pytest.mark.parametrize("value", [-1, float("nan"), "fast", 1e9])
def test_wrong_budgets(field: str, value: Any) -> None:
    if value == 1e9 and field in ("latency_ms", "memory_mb"):
        assert getattr(dynamic.Budget(**{field: value}), field) == 1e9
        return
    with pytest.raises(SettingError, match=field):
        dynamic.Budget(**{field: value})


def test_the_policy_sees_the_newest_reading_and_the_rows_asked(bundle: dynamic.Bundle) -> None:
    seen: list[dynamic.Snapshot] = []

    class Watched(BudgetPolicy):
        def observe(self, state: BudgetState, feedback: Feedback) -> BudgetState:
            seen.extend([feedback.snapshot] * len(feedback.stages))
            return super().observe(state, feedback)

    watch = monitor(battery=0.9)
    with bundle.runtime(monitor=watch, policy=Watched()) as run:
        run(X[0]), run(X), seen.clear()  # loads
        run(X[0]), run(X[0])
        watch.set(battery=0.5)
        run(X[0]), run(X)
    assert seen[0] is seen[1]  # nothing changed
    assert [(s.battery, s.rows) for s in seen] == [(0.9, 1), (0.9, 1), (0.5, 1), (0.5, 16)]
    assert watch.latest.rows is None
