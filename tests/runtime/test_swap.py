"""Another bundle in the place of one at work, and a runtime in a forked child."""

import os
import shutil
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.child_process import in_child
from support.policy_cases import INF, make_costs, make_point
from support.runtime_cases import (
    QUICK,
    REFERENCE,
    Clock,
    Fake,
    Takes,
    X,
    broken,
    faked,
    monitor,
    shared_blobs,
    with_ladder,
)

import dynamic
from dynamic.errors import BundleError, EngineError, SettingError
from dynamic.policies import Decision, Policy
from dynamic.runtime.decisions.decision_log import Change
from dynamic.runtime.requests.pauses import LONGEST_S, PAUSES, Spacing

LIMIT_S = 120


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> dynamic.Bundle:
    return shared_blobs(tmp_path_factory)


class Opens:
    """Opens a fake engine for every bundle."""

    def __init__(self) -> None:
        self.engines: list[Fake] = []

    def __call__(self, bundle: dynamic.Bundle) -> Any:
        self.engines.append(Fake())
        return bundle, self.engines[-1], ()


def three_stages(bundle: dynamic.Bundle) -> dynamic.Bundle:
    """The bundle as if there were a third stage."""
    spec = replace(bundle.spec, stages=(*bundle.spec.stages, bundle.spec.stages[1]))
    point = make_point("reference", (INF, INF), (0.0, 0.0, 1.0), bound=0.0, drop=0.0, backbones=(1,))
    ladder = replace(
        bundle.ladder,
        points=(point,),
        backbone=(0, 1, 1),
        temperature=(1.0,) * 3,
        stage_names=("a", "b", "c"),
        certified=False,
    )
    return replace(bundle, spec=spec, ladder=ladder, costs=make_costs([[1], [10], [5]], memory_mb=(5.0, 50.0)))


def test_the_next_request_runs_on_the_new_bundle(bundle: dynamic.Bundle) -> None:
    opens, engine, found = Opens(), Fake(), list[Change]()
    run = faked(bundle, engine, opener=opens, policy=Takes("reference"), on_change=found.append)
    first = run(X)
    other = replace(with_ladder(bundle), ladder=replace(with_ladder(bundle).ladder, points=(REFERENCE, QUICK)))
    run.swap(other)
    assert engine.closed == 1, "nobody was on it"
    second = run(X)
    assert (run.bundle.ladder, len(run.frontier.points)) == (other.ladder, 2)
    assert second.decision.point is run.frontier.points[0]
    assert second.id == first.id + 1
    assert len(opens.engines[0].calls) == 1
    run.feedback(first.id, 0), run.feedback(second.id, 1)  # labels of results before it are still taken
    stats = run.stats()
    assert (stats.requests, stats.inputs, stats.stage_shares) == (2, 2, (0.0, 1.0))
    assert [c.before and c.before.name for c in found] == [None, "reference"]
    assert stats.feedback is not None
    assert stats.feedback.count == 2
    run.swap(three_stages(bundle))
    assert run.stats().stage_shares == (0.0, 0.0, 0.0)
    run(X)
    assert run.stats().stage_shares == (0.0, 1.0, 0.0)  # where the fake says that it left
    assert run.stats().inputs == 3
    run.close()
    assert [e.closed for e in opens.engines] == [1, 1]


def test_requests_in_flight_end_on_the_old_one(bundle: dynamic.Bundle) -> None:
    began, gate = threading.Semaphore(0), threading.Semaphore(0)

    def pause(_: Any, backbones: Any, stagewise: bool) -> None:
        if backbones is None:
            began.release()
            assert gate.acquire(timeout=LIMIT_S)

    class Last(Policy):
        """The first stage of the old bundle; of the new one the only point, which goes on."""

        def decide(self, frontier: Any, budget: Any, snapshot: Any, state: Any) -> Any:
            return Decision(frontier.points[-1]), state

    opens, engine = Opens(), Fake(pause)
    run = faked(bundle, engine, opener=opens, policy=Last())
    with ThreadPoolExecutor(2) as pool:
        flying: list[Future[dynamic.BatchResult]] = [pool.submit(run, X) for _ in range(2)]
        for _ in range(2):
            assert began.acquire(timeout=LIMIT_S)
        run.swap(three_stages(bundle))
        run(X)
        assert not engine.closed
        gate.release()
        while not any(f.done() for f in flying):
            threading.Event().wait(0.001)
        assert not engine.closed, "one is left"
        gate.release()
        assert {f.result(LIMIT_S).label[0] for f in flying} == {0}
    assert engine.closed == 1
    stats = run.stats()
    assert stats.requests == 3
    assert stats.stage_shares == (0.0, 1.0, 0.0), "those of two stages are not counted among three"
    run.close()


def test_the_state_begins_anew_with_the_memory_of_before(bundle: dynamic.Bundle) -> None:
    seen: list[tuple[float | None, Any]] = []

    class First(Policy):
        """Its state is the first reading of memory that it sees."""

        def decide(self, frontier: Any, budget: Any, snapshot: Any, state: Any) -> Any:
            seen.append((snapshot.memory_process_mb, state))
            return Decision(frontier.points[0]), snapshot.memory_process_mb if state is None else state

    watch = monitor(memory_process_mb=100.0)
    run = faked(bundle, opener=Opens(), policy=First(), monitor=watch)
    run(X)
    watch.set(memory_process_mb=160.0)  # the networks are there
    run(X)
    run.swap(with_ladder(bundle))
    run(X)
    assert seen == [(100.0, None), (160.0, 100.0), (100.0, None), (160.0, 100.0)]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda b: replace(b, classes=tuple("abce")), "classes"),
        (lambda b: replace(b, spec=replace(b.spec, classes=5)), "number of classes"),
        (lambda b: replace(b, spec=replace(b.spec, inputs=(replace(b.spec.inputs[0], shape=(13,)),))), "inputs"),
        (lambda b: replace(b, preprocess=dynamic.Preprocess.of()), "preprocessing"),
    ],
)
def test_a_bundle_that_does_not_fit_is_refused(bundle: dynamic.Bundle, change: Any, what: str) -> None:
    opens, engine = Opens(), Fake()
    run = faked(bundle, engine, opener=opens)
    with pytest.raises(BundleError, match=f"cannot be swapped in: its {what} "):
        run.swap(change(with_ladder(bundle)))
    assert not opens.engines
    assert run(X).id == 0
    assert not engine.closed


def test_a_budget_is_swapped_with_its_bundle(bundle: dynamic.Bundle) -> None:
    """Each budget fits its own bundle alone."""
    opens, energy = Opens(), dynamic.Budget(energy_mj=5.0)
    run = faked(bundle, Fake(), opener=opens)
    costs = make_costs([[1], [10]], memory_mb=(5.0, 50.0), energy_mj=((1.0,), (2.0,)), energy_source="RAPL")
    metered, plain = replace(with_ladder(bundle), costs=costs), with_ladder(bundle)
    with pytest.raises(SettingError, match="energy_mj=5 cannot be kept"):
        run.swap(plain, energy)
    assert (run.budget, opens.engines[0].closed) == (dynamic.Budget(), 1)
    run.swap(metered, energy)
    assert (run.budget, run.bundle) == (energy, metered)
    assert run(X).decision.point.name == "reference"
    run.swap(plain, dynamic.Budget(latency_ms=2.0))
    assert run.bundle is plain
    assert run(X).decision.point.name == "small"
    with pytest.raises(SettingError, match=r"budget=5 must be a dynamic\.Budget"):
        run.swap(plain, 5)  # type: ignore[arg-type]


def test_the_old_one_goes_on_where_the_new_one_cannot(bundle: dynamic.Bundle) -> None:
    opens, engine = Opens(), Fake()
    run = faked(bundle, engine, opener=opens)
    costs = make_costs([[1], [10]], memory_mb=(5.0, 50.0), energy_mj=((1.0,), (2.0,)), energy_source="RAPL")
    run.swap(replace(with_ladder(bundle), costs=costs))
    run.budget = dynamic.Budget(energy_mj=5.0)
    with pytest.raises(SettingError, match="energy_mj=5 cannot be kept"):
        run.swap(with_ladder(bundle))
    assert [e.closed for e in opens.engines] == [0, 1]
    run(X)

    def fails(_: Any) -> Any:
        raise EngineError("not here")

    run._open = fails
    with pytest.raises(EngineError, match="not here"):
        run.swap(with_ladder(bundle))
    assert run(X).id == 1


def test_swaps_while_threads_hammer(bundle: dynamic.Bundle) -> None:
    opens, engine = Opens(), Fake()
    run = faked(bundle, engine, opener=opens, queue=1000)
    bundles = [with_ladder(bundle), three_stages(bundle)]

    def hammer(number: int) -> list[dynamic.BatchResult]:
        return [(run(X) if i % 2 else run.submit(X).result(LIMIT_S)) for i in range(60)]  # a closed fake raises

    with ThreadPoolExecutor(9) as pool:
        futures = [pool.submit(hammer, n) for n in range(8)]
        for i in range(30):
            run.swap(bundles[i % 2])
        results = [r for f in futures for r in f.result(LIMIT_S)]
    run.close()
    assert len(results) == run.stats().requests == 480
    assert sorted(r.id for r in results) == list(range(480))
    assert [e.closed for e in (engine, *opens.engines)] == [1] * 31
    assert run.stats().engine_failures == 0


def test_real_engines_swapped(bundle: dynamic.Bundle) -> None:
    x = np.random.default_rng(0).standard_normal((16, 12)).astype(np.float32)
    with bundle.runtime(monitor=monitor(), drift_alpha=None, threads=1) as run:
        before, old = run(x), run.engine
        run.swap(bundle)
        assert run.engine is not old
        assert run.engine.threads == 1
        assert old.loaded() == frozenset()  # type: ignore[attr-defined]
        assert run(x).label.tolist() == before.label.tolist()


def test_costs_measured_while_requests_run_are_not_kept(
    bundle: dynamic.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = bundle.save(tmp_path / "shelf").folder
    shutil.rmtree(folder / "costs")
    monkeypatch.setattr("dynamic.bundle.measurements.cost_profile.profile", lambda *given, **options: bundle.costs)
    with bundle.runtime(monitor=monitor(), drift_alpha=None) as run:
        run.swap(dynamic.load(folder))
        assert run.bundle.costs == bundle.costs
        run(X)
    assert not (folder / "costs").exists()
    assert "Call profile() on a bundle before it is swapped in" in caplog.text
    with dynamic.load(folder).runtime(monitor=monitor()):
        assert (folder / "costs").exists(), "measured before there were requests"


@pytest.mark.parametrize(("rows", "loaded"), [((), []), ((1,), [1]), ((5,), [5]), ((1, 3, 7), [1, 7])])
def test_what_requests_need_is_loaded_before_the_exchange(
    bundle: dynamic.Bundle, rows: tuple[int, ...], loaded: list[int]
) -> None:
    found: list[tuple[int, frozenset[int], bool]] = []

    class Loads(Fake):
        def prepare(self, backbones: frozenset[int], rows: int, resident: Any = None, stagewise: bool = False) -> bool:
            found.append((rows, backbones, run.engine is self))
            return super().prepare(backbones, rows, resident, stagewise)

    run = faked(bundle, opener=lambda b: (b, Loads(), ()), policy=Takes("reference"))
    for count in rows:
        run(np.zeros((count, 12), np.float32))
    run.swap(with_ladder(bundle))
    assert found == [(count, frozenset({1}), False) for count in loaded]


@pytest.mark.parametrize(
    ("readings", "budget", "count"),
    [
        ({"memory_available_mb": 10.0}, dynamic.Budget(), 0),  # the networks take 55 MB
        ({"memory_available_mb": 4000.0}, dynamic.Budget(), 1),
        ({"memory_process_mb": 200.0}, dynamic.Budget(memory_mb=220), 0),
        ({}, dynamic.Budget(memory_mb=220), 0),
        ({"memory_process_mb": 200.0}, dynamic.Budget(memory_mb=300), 1),
    ],
)
def test_nothing_is_loaded_beside_the_old_one_where_memory_is_short(
    bundle: dynamic.Bundle, readings: dict[str, float], budget: dynamic.Budget, count: int
) -> None:
    opens = Opens()
    run = faked(bundle, opener=opens, policy=Takes("reference"), budget=budget, monitor=monitor(**readings))
    run(X)
    run.swap(with_ladder(bundle))
    assert len(opens.engines[0].prepared) == count


def test_a_bundle_whose_networks_do_not_load_ahead_is_left_to_requests(bundle: dynamic.Bundle) -> None:
    run = faked(bundle, opener=lambda b: (b, Fake(broken), (("spare", Fake),)), policy=Takes("reference"))
    run(X)
    run.swap(with_ladder(bundle))
    assert run(X).label.tolist() == [0]
    assert run.stats().engine_failures > 0


def test_no_swap_stops_every_thread_to_collect_garbage(bundle: dynamic.Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with bundle.runtime(monitor=monitor(), drift_alpha=None, threads=1) as run:
        run(X)
        collected: list[int] = []
        monkeypatch.setattr("dynamic.engines.memory.gc.collect", lambda *_: collected.append(1))
        run.swap(bundle)
        assert run(X).label.shape == (1,)
    assert not collected


def test_swaps_in_a_row_leave_time_to_requests() -> None:
    clock, slept = Clock(), list[float]()
    spacing = Spacing(clock, slept.append)
    for took, wait in ((0.1, []), (0.2, [0.3]), (5.0, [0.6]), (0.0, [LONGEST_S]), (0.0, [])):
        slept.clear()
        with spacing.action():
            clock.now += took
        assert slept == pytest.approx(wait)
    with spacing.action():
        clock.now += 0.1
    clock.now += PAUSES * 0.1
    slept.clear()
    with pytest.raises(BundleError), spacing.action():
        raise BundleError("no successor")
    assert not slept, "long enough ago"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_answers_and_starts_workers_anew(bundle: dynamic.Bundle) -> None:
    class Started(dynamic.FixedMonitor):
        starts = 0

        def start(self) -> Any:
            self.starts += 1
            return super().start()

    watch = Started()
    x = np.random.default_rng(0).standard_normal((4, 12)).astype(np.float32)
    with bundle.runtime(monitor=watch, drift_alpha=None, threads=1) as run:
        before = [run(x).label.tolist(), run.submit(x).result(LIMIT_S).label.tolist()]
        held = run._controller.lock, run._waiting._changed
        held[0].acquire(), held[1].acquire()  # as if other threads were at work when the process forks

        def work() -> Any:
            found = [run(x).label.tolist(), run.submit(x).result(LIMIT_S).label.tolist()]
            run.swap(bundle)
            found.append(run.submit(x).result(LIMIT_S).label.tolist())
            run.close()
            return found, watch.starts

        try:
            after, starts = in_child(work)
        finally:
            held[0].release(), held[1].release()
        assert after == [before[0]] * 3
        assert starts == 2
        assert watch.starts == 1
        assert run.submit(x).result(LIMIT_S).label.tolist() == before[0]
