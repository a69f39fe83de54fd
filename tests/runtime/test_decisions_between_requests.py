"""Decisions on the monitor's thread: requests do not pay for a new snapshot, and nothing else changes."""

import gc
import logging
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Self

import numpy as np
import pytest
from support.runtime_cases import Fake, faked, shared_blobs, steady

import dynamic
from dynamic.engines.contract import Output
from dynamic.errors import SettingError
from dynamic.policies import BudgetPolicy, Decision, Policy
from dynamic.policies.control.budget_policy import BudgetState
from dynamic.runtime.decisions import controller

X = np.random.default_rng(0).normal(size=(64, 12)).astype(np.float32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> dynamic.Bundle:
    return shared_blobs(tmp_path_factory)


@pytest.fixture(autouse=True)
def nothing_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is, no request ends a plan by what it took."""
    monkeypatch.setattr("dynamic.runtime.request_plan.slow_ms", lambda expected_ms, _: (1e9,) * len(expected_ms))


class Pushed:
    """A monitor whose snapshots come when the test says so, on a thread of its own."""

    def __init__(self) -> None:
        self.latest = dynamic.Snapshot(time_s=0.0, cpu_load=0.0)
        self.listeners: list[Callable[[], object]] = []

    def subscribe(self, listener: Callable[[], object]) -> Callable[[], None]:
        self.listeners.append(listener)
        return lambda: self.listeners.clear()

    def push(self, **readings: Any) -> None:
        self.latest = dynamic.Snapshot(time_s=self.latest.time_s + 0.2, **readings)
        thread = threading.Thread(target=lambda: [listener() for listener in self.listeners])
        thread.start()
        thread.join(60)
        assert not thread.is_alive()

    def start(self) -> Self:
        return self

    def close(self) -> None: ...


class ByBattery(Policy):
    """The first point with a full battery, and the last with an empty one."""

    decides_each_request = False

    def decide(self, frontier: Any, budget: Any, snapshot: dynamic.Snapshot, state: Any) -> tuple[Decision, Any]:
        return Decision(frontier.points[-1 if snapshot.battery == 0.0 else 0]), state


class Recorded(BudgetPolicy):
    """Notes by request: which thread decided, what was observed, and the state behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[int] = []
        self.observed: list[tuple[str, tuple[int, ...]]] = []

    def decide(self, *given: Any) -> tuple[Decision, BudgetState]:
        self.threads.append(threading.get_ident())
        return super().decide(*given)

    def observe(self, state: BudgetState, feedback: dynamic.policies.Feedback) -> BudgetState:
        self.observed += [(feedback.point.name, stage) for stage in feedback.stages]
        # what a request takes differs from run to run: as profiled each time
        same = replace(feedback, latency_ms=feedback.expected_ms)
        return super().observe(state, same)


class Bound(Fake):
    """An engine that gives requests what repeats a point."""

    def bind(self, backbones: Any, thresholds: Any, rows: int) -> Callable[[Any], Output]:
        return lambda inputs: self.run(inputs, thresholds)


def test_a_new_snapshot_is_decided_on_by_the_monitor_s_thread(bundle: dynamic.Bundle) -> None:
    monitor, policy = Pushed(), Recorded()
    with bundle.runtime(monitor=monitor, policy=policy, drift_alpha=None) as run:
        steady(run, X[0])
        policy.threads.clear()
        for _ in range(5):
            for _ in range(controller._FEWEST):
                run(X[0])
            monitor.push(cpu_load=0.1)
        assert len(policy.threads) == 5
        assert threading.get_ident() not in policy.threads
        run(X[0])  # by the plan of the last push
        assert len(policy.threads) == 5


def test_another_point_is_decided_on_by_the_request_that_runs_it(bundle: dynamic.Bundle) -> None:
    monitor, changes, threads = Pushed(), [], []

    def note(change: dynamic.Change) -> None:
        changes.append(change)
        threads.append(threading.get_ident())

    with bundle.runtime(monitor=monitor, policy=ByBattery(), on_change=note) as run:
        steady(run, X[0])
        run(X[0])
        first, last = run.frontier.points[0], run.frontier.points[-1]
        assert first is not last
        monitor.push(battery=0.0)
        assert len(changes) == 1
        assert run(X[0]).decision.point is last
        assert [change.after for change in changes] == [first, last]
        steady(run, X[0])
        run(X[0])
        monitor.push(battery=1.0)
        assert run(X[0]).decision.point is first
        assert set(threads) == {threading.get_ident()}
        assert run.stats().decision_changes == 2


@pytest.mark.parametrize("requests", [1, 2, 5])
@pytest.mark.parametrize("snapshots", [1, 3])
def test_decisions_are_those_of_requests_alone(bundle: dynamic.Bundle, requests: int, snapshots: int) -> None:
    """A limit on latency and a load that comes and goes: the same points, delays, observations and changes."""
    loads = [0.0] * 5 + [0.95] * 5 + [0.0] * 30
    histories = []
    for follows in (True, False):
        monitor, policy = Pushed(), Recorded()
        budget = dynamic.Budget(latency_ms=15)  # points take 10, 6 and 1 ms
        with faked(bundle, Bound(), budget, monitor=monitor, policy=policy, drift_alpha=None) as run:
            if not follows:
                run._read.unfollow()
            history = []
            for number, load in enumerate(loads):
                for _ in range(snapshots):
                    monitor.push(cpu_load=load, cpu_cores=1.0)
                for row in range(requests):
                    answer = run(X[(number * requests + row) % len(X)])
                    history.append((answer.decision.point.name, answer.label, answer.stage))
            histories.append((history, policy.observed, run.stats().decision_changes, run.deployment.guard._state))
        own = [thread for thread in policy.threads if thread != threading.get_ident()]
        assert bool(own) == (follows and requests >= controller._FEWEST)
    (history, observed, changes, state), (expected, expected_observed, expected_changes, expected_state) = histories
    assert history == expected
    assert observed == expected_observed
    assert changes == expected_changes
    assert (state.current, state.switch_delay) == (expected_state.current, expected_state.switch_delay)
    assert len({name for name, _, _ in history}) == 2


def test_a_slow_stream_decides_once_a_request(bundle: dynamic.Bundle) -> None:
    monitor, policy = Pushed(), Recorded()
    with bundle.runtime(monitor=monitor, policy=policy, drift_alpha=None) as run:
        steady(run, X[0])
        monitor.push(cpu_load=0.1)
        run(X[0])
        policy.threads.clear()
        for _ in range(5):
            for _ in range(3):
                monitor.push(cpu_load=0.1)
            run(X[0])
        assert policy.threads == [threading.get_ident()] * 5


def test_after_a_pause_as_long_as_the_last_no_request_decides(bundle: dynamic.Bundle) -> None:
    """Groups of requests with pauses of four snapshots: one for the group before, and three without requests."""
    monitor, policy = Pushed(), Recorded()
    with bundle.runtime(monitor=monitor, policy=policy, drift_alpha=None) as run:
        steady(run, X[0])
        own = []
        for _ in range(4):
            policy.threads.clear()
            for _ in range(10):
                run(X[0])
            own.append(policy.threads.count(threading.get_ident()))
            for _ in range(4):
                monitor.push(cpu_load=0.1)
        assert own[1] == 1  # the length of a pause is not known before one has ended
        assert own[2:] == [0, 0]
        for _ in range(50):
            monitor.push(cpu_load=0.1)
        assert policy.threads.count(threading.get_ident()) == 0
        assert len(policy.threads) <= 4  # an idle device does not decide


def test_a_budget_that_is_set_meanwhile_is_not_decided_on_by_the_old_one(bundle: dynamic.Bundle) -> None:
    monitor = Pushed()
    changes: list[dynamic.Change] = []
    with bundle.runtime(monitor=monitor, policy=ByBattery(), on_change=changes.append) as run:
        steady(run, X[0])
        run(X[0])
        before = run.deployment.decision
        run.budget = dynamic.Budget()
        monitor.push(battery=0.0)
        assert run.deployment.decision is before
        assert len(changes) == 1


def test_closing_waits_for_a_decision(bundle: dynamic.Bundle) -> None:
    monitor, asked, go_on = Pushed(), threading.Event(), threading.Event()

    class Slow(ByBattery):
        def decide(self, *given: Any) -> tuple[Decision, Any]:
            if threading.get_ident() != main:
                asked.set()
                assert go_on.wait(60)
            return super().decide(*given)

    main = threading.get_ident()
    run = bundle.runtime(monitor=monitor, policy=Slow(), drift_alpha=None)
    steady(run, X[0])
    run(X[0])
    (listener,) = monitor.listeners
    monitor.latest = dynamic.Snapshot(time_s=1.0, battery=1.0)
    deciding = threading.Thread(target=listener)
    deciding.start()
    assert asked.wait(60)
    closing = threading.Thread(target=run.close)
    closing.start()
    closing.join(0.2)
    assert closing.is_alive()
    go_on.set()
    for thread in (deciding, closing):
        thread.join(60)
        assert not thread.is_alive()
    assert run.deployment.users == 0


def test_nothing_is_decided_without_a_plan_or_once_closed(bundle: dynamic.Bundle) -> None:
    monitor, policy = Pushed(), Recorded()
    with bundle.runtime(monitor=monitor, policy=policy, drift_alpha=None) as run:
        monitor.push(cpu_load=0.1)
        assert policy.threads == []
        steady(run, X[0])
        listeners = list(monitor.listeners)
    assert monitor.listeners == []
    asked = len(policy.threads)
    for listener in listeners:  # one that was under way when it closed
        listener()
    assert len(policy.threads) == asked


def test_what_fails_between_requests_is_seen_by_the_next(bundle: dynamic.Bundle) -> None:
    monitor = Pushed()
    with faked(bundle, Bound(), monitor=monitor, policy=ByBattery(), drift_alpha=None) as run:
        steady(run, X[0])
        for _ in range(controller._FEWEST):
            run(X[0])

        def raises(*_: Any) -> None:
            raise MemoryError("no memory")

        run.deployment.engines.bind = raises  # type: ignore[method-assign]
        (listener,) = monitor.listeners
        monitor.latest = dynamic.Snapshot(time_s=1.0, battery=1.0)
        with pytest.raises(MemoryError):
            listener()
        assert run._controller.plan is None
        assert run._controller.deciding_thread is None
        assert run.deployment.users == 0
        with pytest.raises(MemoryError):
            run(X[0])


@pytest.mark.parametrize("result", ["raises", "nothing", "ends once"])
def test_a_monitor_with_another_subscribe_is_read_all_the_same(
    bundle: dynamic.Bundle, result: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Other(Pushed):
        def subscribe(self, listener: Callable[[], object]) -> Any:
            if result == "raises":
                raise TypeError("subscribe() missing 1 argument: 'topic'")
            if result == "nothing":
                return None
            self.listeners.append(listener)
            return lambda: self.listeners.remove(listener)

    with caplog.at_level(logging.WARNING, "dynamic"):
        run = bundle.runtime(monitor=Other(), policy=ByBattery())
        assert run(X[0]).decision.point is run.frontier.points[0]
        run.close()
        run.close()
    assert ("subscribe" in caplog.text) == (result != "ends once")


def test_a_monitor_keeps_no_runtime_in_memory(bundle: dynamic.Bundle) -> None:
    monitor = Pushed()
    run = bundle.runtime(monitor=monitor)
    run(X[0])
    alive = weakref.ref(run._controller)
    del run
    gc.collect()
    assert alive() is None
    (listener,) = monitor.listeners
    listener()
    assert monitor.listeners == []


def test_listeners_are_called_until_they_end(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []
    is_second, other = threading.Event(), threading.Event()

    def fails() -> None:
        calls.append("fails")
        if len(calls) == 2:
            is_second.set()
        raise SystemExit("a fault of the listener")

    with caplog.at_level(logging.WARNING, "dynamic"), dynamic.Monitor(0.01, battery=lambda: 0.5, root="/nothing") as m:
        end = m.subscribe(fails)
        assert is_second.wait(60)  # it raised, and was called again
        end()
        end()
        at_end = len(calls)
        m.subscribe(other.set)
        assert other.wait(60)
        # a call of the other thread may have been under way
        assert len(calls) <= at_end + 1
    assert caplog.text.count("is called again") == 1
    with pytest.raises(SettingError, match="3"):
        m.subscribe(3)  # type: ignore[arg-type]
