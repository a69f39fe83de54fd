"""Decisions on the monitor's thread: requests do not pay for a new snapshot, and nothing else changes."""

import gc
import logging
import threading
import weakref
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import pytest
from support.runtime_cases import shared_blobs

import dynamic
from dynamic.errors import ClosedError, SettingError
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


class Deciding(BudgetPolicy):
    """Notes which thread asks it."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[int] = []

    def decide(self, *given: Any) -> tuple[Decision, BudgetState]:
        self.threads.append(threading.get_ident())
        return super().decide(*given)


class ByBattery(Policy):
    """The first point with a full battery, and the last with an empty one."""

    decides_each_request = False

    def decide(self, frontier: Any, budget: Any, snapshot: dynamic.Snapshot, state: Any) -> tuple[Decision, Any]:
        return Decision(frontier.points[-1 if snapshot.battery == 0.0 else 0]), state


def steady(run: Any) -> None:
    """Until a request repeats the one before, and the policy has seen no request since."""
    for _ in range(200):
        run(X[0])
        if run._controller.plan is not None:
            return
    raise AssertionError("no request repeats another")


def test_a_new_snapshot_is_decided_on_by_the_monitor_s_thread(bundle: dynamic.Bundle) -> None:
    monitor, policy = Pushed(), Deciding()
    with bundle.runtime(monitor=monitor, policy=policy, drift_alpha=None) as run:
        steady(run)
        policy.threads.clear()
        for _ in range(5):
            run(X[0])
            monitor.push(cpu_load=0.1)
        assert len(policy.threads) == 5
        assert threading.get_ident() not in policy.threads
        before = len(policy.threads)
        run(X[0])  # by the plan of the last push
        assert len(policy.threads) == before


def test_a_request_runs_what_was_decided_between_two(bundle: dynamic.Bundle) -> None:
    monitor, changes = Pushed(), []
    with bundle.runtime(monitor=monitor, policy=ByBattery(), on_change=changes.append) as run:
        steady(run)
        first, last = run.frontier.points[0], run.frontier.points[-1]
        assert first is not last
        monitor.push(battery=0.0)
        assert [change.after for change in changes] == [first, last]
        assert run(X[0]).decision.point is last
        monitor.push(battery=1.0)
        assert run(X[0]).decision.point is first
        assert len(changes) == 3
        assert run.stats().decision_changes == 2


def test_answers_are_those_of_a_runtime_that_decides_in_requests(bundle: dynamic.Bundle) -> None:
    """The same snapshots between the same requests give the same points, and the policy the same observations."""
    rng = np.random.default_rng(1)
    loads = rng.uniform(size=60).tolist()
    histories = []
    for between in (True, False):
        monitor = Pushed()
        with bundle.runtime(monitor=monitor, policy=ByBattery(), drift_alpha=None) as run:
            if not between:
                run._read.unfollow()
            history = []
            for number, load in enumerate(loads):
                if number % 3 == 0:
                    monitor.push(cpu_load=load, battery=float(load > 0.5))
                answer = run(X[number])
                history.append((answer.decision.point.name, answer.label, answer.stage))
        histories.append(history)
    assert histories[0] == histories[1]
    assert len({name for name, _, _ in histories[0]}) == 2


def test_an_idle_device_rests(bundle: dynamic.Bundle) -> None:
    monitor, policy = Pushed(), Deciding()
    with bundle.runtime(monitor=monitor, policy=policy, drift_alpha=None) as run:
        steady(run)
        run(X[0])
        policy.threads.clear()
        for _ in range(controller._MOST_IDLE + 20):
            monitor.push(cpu_load=0.1)
        assert len(policy.threads) == controller._MOST_IDLE + 1  # one for the request, and so many without any
        run(X[0])  # decides itself: the plan is old
        assert policy.threads[-1] == threading.get_ident()
        monitor.push(cpu_load=0.2)
        assert policy.threads[-1] != threading.get_ident()


def test_nothing_is_decided_without_a_plan_or_once_closed(bundle: dynamic.Bundle) -> None:
    monitor, policy = Pushed(), Deciding()
    with bundle.runtime(monitor=monitor, policy=policy, drift_alpha=None) as run:
        monitor.push(cpu_load=0.1)
        assert policy.threads == []
        steady(run)
        listeners = list(monitor.listeners)
    assert monitor.listeners == []
    asked = len(policy.threads)
    for listener in listeners:  # one that was under way when it closed
        listener()
    assert len(policy.threads) == asked


def test_what_fails_between_requests_is_seen_by_the_next(bundle: dynamic.Bundle) -> None:
    monitor = Pushed()
    with bundle.runtime(monitor=monitor, policy=ByBattery()) as run:
        steady(run)

        def raises(*_: Any) -> None:
            raise MemoryError("no memory")

        bind, run.deployment.engines.bind = run.deployment.engines.bind, raises  # type: ignore[method-assign]
        (listener,) = monitor.listeners
        monitor.latest = dynamic.Snapshot(time_s=1.0, battery=1.0)
        with pytest.raises(MemoryError):
            listener()
        assert run._controller.plan is None
        assert run._controller.deciding_thread is None
        assert run.deployment.users == 0
        run.deployment.engines.bind = bind  # type: ignore[method-assign]
        assert run(X[0]).decision.point is run.frontier.points[0]


def test_a_change_may_close_the_runtime(bundle: dynamic.Bundle) -> None:
    """On the thread of the monitor, which it does not wait for."""
    with dynamic.Monitor(0.01, battery=lambda: level[0], root="/nothing") as monitor:
        level, closed = [1.0], threading.Event()
        run = bundle.runtime(monitor=monitor, policy=ByBattery())

        def close(change: dynamic.Change) -> None:
            if change.before is not None:
                run.close()
                monitor.close()
                closed.set()

        run._controller._announce._on_change = close  # type: ignore[attr-defined]
        steady(run)
        level[0] = 0.0
        for _ in range(6000):  # the next request decides where the monitor had no turn
            if closed.wait(0.01):
                break
        assert closed.is_set()
        with pytest.raises(ClosedError):
            run(X[0])


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
    seen_twice, other = threading.Event(), threading.Event()

    def fails() -> None:
        calls.append("fails")
        if calls.count("fails") == 2:
            seen_twice.set()
        raise ValueError("a fault of the listener")

    with caplog.at_level(logging.WARNING, "dynamic"), dynamic.Monitor(0.01, root="/nothing") as monitor:
        end = monitor.subscribe(fails)
        assert seen_twice.wait(60)  # it raised, and was called again
        end()
        end()
        monitor.subscribe(other.set)
        assert other.wait(60)
    assert "a fault of the listener" in caplog.text
    with pytest.raises(SettingError, match="3"):
        monitor.subscribe(3)  # type: ignore[arg-type]
