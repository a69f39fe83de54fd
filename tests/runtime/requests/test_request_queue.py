"""Requests that wait: in order, no more than a limit, and what happens to them when the runtime closes."""

import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from typing import Any

import numpy as np
import pytest
from support.runtime_cases import Fake, Takes, X, faked, monitor, shared_blobs
from support.sensor_cases import wait_until

import dynamic
from dynamic.errors import ClosedError, EngineError, InputError, SettingError, ShedError
from dynamic.policies import Decision
from dynamic.progress import track

LIMIT_S = 120


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> dynamic.Bundle:
    return shared_blobs(tmp_path_factory)


class Gated(Fake):
    """Runs a request once it is let through; `began` says that one has begun."""

    def __init__(self) -> None:
        super().__init__(self._pause)
        self.began, self.gate = threading.Semaphore(0), threading.Semaphore(0)

    def _pause(self, _: Any, backbones: Any, stagewise: bool) -> None:
        if backbones is None:
            self.began.release()
            assert self.gate.acquire(timeout=LIMIT_S)

    def wait(self) -> None:
        assert self.began.acquire(timeout=LIMIT_S)


class Noting(Takes):
    """Notes the snapshots."""

    def __init__(self) -> None:
        super().__init__("quick")
        self.seen: list[dynamic.Snapshot] = []

    def decide(self, frontier: Any, budget: Any, snapshot: Any, state: Any) -> tuple[Decision, Any]:
        self.seen.append(snapshot)
        return super().decide(frontier, budget, snapshot, state)


@pytest.fixture
def engine() -> Iterator[Gated]:
    made = Gated()
    yield made
    made.gate.release(1000)


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "dynamic-worker"]


def test_answers_are_those_of_a_call(bundle: dynamic.Bundle) -> None:
    x = np.random.default_rng(0).standard_normal((20, 12)).astype(np.float32)
    with bundle.runtime(monitor=monitor(), drift_alpha=None) as run:
        futures = [run.submit(row) for row in x]
        labels = [future.result(LIMIT_S).label for future in futures]
        assert labels == [run(row).label for row in x]
        with pytest.raises(InputError):
            run.submit("image").result(LIMIT_S)
        stats = run.stats()
    assert (stats.requests, stats.shed) == (40, 0)
    assert not workers()


def test_the_oldest_is_shed_and_the_policy_sees_the_queue(bundle: dynamic.Bundle, engine: Gated) -> None:
    policy = Noting()
    run = faked(bundle, engine, policy=policy, queue=3)
    assert not workers(), "before the first request"
    running = run.submit(X)
    engine.wait()  # the worker has taken it, and 0 wait
    waiting = [run.submit(X) for _ in range(3)]
    assert run.stats().queue_longest == 3
    newest = [run.submit(X) for _ in range(2)]
    assert len(workers()) == 1
    for shed in waiting[:2]:
        with pytest.raises(ShedError, match=r"queue=3 .*longer queue"):
            shed.result(0)
    engine.gate.release(4)
    answered = [f.result(LIMIT_S) for f in (running, waiting[2], *newest)]
    assert [r.id for r in answered] == [0, 1, 2, 3], "in the order in which they came"
    assert [s.queue_length for s in policy.seen] == [0, 2, 1, 0]
    assert policy.seen[0].waited_ms is not None
    assert all(s.waited_ms == r.waited_ms <= r.latency_ms for s, r in zip(policy.seen, answered, strict=True))
    stats = run.stats()
    assert (stats.shed, stats.queue_longest, stats.requests) == (2, 3, 4)
    run.close()


def test_what_its_owner_gave_up_is_not_shed(bundle: dynamic.Bundle, engine: Gated) -> None:
    run = faked(bundle, engine, queue=2)
    run.submit(X)
    engine.wait()
    waiting = [run.submit(X) for _ in range(2)]
    assert waiting[0].cancel()
    last = run.submit(X)
    assert run.stats().shed == 0
    engine.gate.release(10)
    waiting[1].result(LIMIT_S), last.result(LIMIT_S)
    assert run.stats().requests == 3
    run.close()


def test_threads_that_are_not_to_be_had(bundle: dynamic.Bundle, engine: Gated, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: Any) -> None:
        raise RuntimeError("can't start new thread")

    run = faked(bundle, engine, queue=2, workers=2)
    with monkeypatch.context() as short:
        short.setattr(threading.Thread, "start", start)
        with pytest.raises(EngineError, match=r"no thread for a worker is to be had \(can't start new thread\)"):
            run.submit(X)
    assert run.stats().queue_longest == 0
    first = run.submit(X)
    engine.wait()
    with monkeypatch.context() as short:
        short.setattr(threading.Thread, "start", start)
        shed, *kept = [run.submit(X) for _ in range(3)]  # one worker is there
    with pytest.raises(ShedError):
        shed.result(0)
    engine.gate.release(3)
    assert sorted(f.result(LIMIT_S).id for f in (first, *kept)) == [0, 1, 2]
    run.close()


def test_several_workers(bundle: dynamic.Bundle, engine: Gated) -> None:
    run = faked(bundle, engine, workers=2)
    futures = [run.submit(X) for _ in range(4)]
    engine.wait(), engine.wait()  # two at once
    assert len(workers()) == 2
    engine.gate.release(4)
    assert sorted(f.result(LIMIT_S).id for f in futures) == [0, 1, 2, 3]
    run.close()


def test_closing_ends_what_runs_and_refuses_what_waits(bundle: dynamic.Bundle, engine: Gated) -> None:
    run = faked(bundle, engine)
    running = run.submit(X)
    engine.wait()
    waiting = [run.submit(X) for _ in range(3)]
    closing = threading.Thread(target=run.close)
    closing.start()
    done, _ = wait(waiting, LIMIT_S)
    assert len(done) == 3
    assert all(isinstance(f.exception(0), ClosedError) for f in waiting)
    assert not running.done()
    assert not engine.closed
    with pytest.raises(ClosedError, match=r"closed: open another with bundle\.runtime"):
        run.submit(X)
    engine.gate.release()
    closing.join(LIMIT_S)
    assert running.result(0).label.tolist() == [0]
    assert engine.closed == 1
    assert not workers()
    with pytest.raises(ClosedError, match=r"not answered: this runtime is closed"):
        waiting[0].result(0)


def test_draining_answers_what_was_accepted(bundle: dynamic.Bundle, engine: Gated) -> None:
    run = faked(bundle, engine)
    accepted = [run.submit(X) for _ in range(4)]
    engine.wait()
    closing = threading.Thread(target=run.close, kwargs={"drain": True})
    closing.start()
    while not run._controller.closed:
        time.sleep(0.001)
    for use in (lambda: run.submit(X), lambda: run(X)):
        with pytest.raises(ClosedError):
            use()
    assert not any(f.done() for f in accepted)
    engine.gate.release(4)
    closing.join(LIMIT_S)
    assert [f.result(0).id for f in accepted] == [0, 1, 2, 3]
    assert engine.closed == 1
    assert not workers()


def test_draining_ends_in_time(bundle: dynamic.Bundle, engine: Gated) -> None:
    run = faked(bundle, engine)
    running, *waiting = [run.submit(X) for _ in range(3)]
    engine.wait()
    run.close(drain=True, timeout_s=0.05)  # the engine does not go on
    assert [type(f.exception(0)) for f in waiting] == [ClosedError] * 2
    assert not running.done()
    assert not engine.closed, "a request runs on it"
    engine.gate.release()
    assert running.result(LIMIT_S).id == 0
    for thread in workers():
        thread.join(LIMIT_S)
    assert engine.closed == 1


def test_what_was_cancelled_takes_no_place(bundle: dynamic.Bundle, engine: Gated) -> None:
    run = faked(bundle, engine, queue=2)
    running = run.submit(X)
    engine.wait()
    first, given_up = run.submit(X), run.submit(X)
    assert len(run._waiting) == 2
    assert given_up.cancel()
    assert len(run._waiting) == 1, "it waits no more"
    assert given_up in wait([given_up], LIMIT_S).done
    last = run.submit(X)
    engine.gate.release(3)
    assert [f.result(LIMIT_S).id for f in (running, first, last)] == [0, 1, 2]
    assert run.stats().shed == 0
    run.close()


def test_closing_does_not_wait_longer_than_it_may(bundle: dynamic.Bundle, engine: Gated) -> None:
    run = faked(bundle, engine, workers=2)
    running = [run.submit(X) for _ in range(2)]
    engine.wait(), engine.wait()
    run.close(timeout_s=0)
    assert not any(f.done() for f in running)
    engine.gate.release(2)
    assert sorted(f.result(LIMIT_S).id for f in running) == [0, 1]


def test_a_callback_may_drain(bundle: dynamic.Bundle, engine: Gated) -> None:
    run = faked(bundle, engine)
    accepted = [run.submit(X) for _ in range(3)]
    accepted[0].add_done_callback(lambda _: run.close(drain=True))  # on the worker that answers the others
    engine.gate.release(3)
    assert [f.result(LIMIT_S).id for f in accepted] == [0, 1, 2]
    for thread in workers():
        thread.join(LIMIT_S)
    assert engine.closed == 1


@pytest.mark.parametrize("timeout_s", [-1, float("nan"), float("inf")])
def test_how_long_closing_may_take_is_a_number(bundle: dynamic.Bundle, timeout_s: float) -> None:
    run = faked(bundle)
    with pytest.raises(SettingError, match=r"timeout_s=.* must be a number of seconds of at least 0"):
        run.close(timeout_s=timeout_s)
    assert run(X).id == 0
    run.close()


@pytest.mark.parametrize("count", [1, 2])
def test_a_free_worker_counts_before_it_wakes(bundle: dynamic.Bundle, engine: Gated, count: int) -> None:
    run = faked(bundle, engine, workers=count, queue=1)
    first = [run.submit(X) for _ in range(count)]
    engine.gate.release(count)
    for future in first:
        future.result(LIMIT_S)
    for _ in range(count):
        engine.wait()
    with run._waiting._changed:  # nobody can wake up now: all workers are free
        accepted = [run.submit(X) for _ in range(count + 1)]
        assert not any(f.done() for f in accepted), "each worker takes one, and one may wait"
        assert run.stats().queue_longest <= 1
        run.submit(X)
        with pytest.raises(ShedError):
            accepted[0].result(0)
    engine.gate.release(100)
    run.close(drain=True)
    assert [type(f.exception(0)) for f in accepted[1:]] == [type(None)] * count


def test_a_closed_runtime_says_so(bundle: dynamic.Bundle) -> None:
    with bundle.runtime(monitor=monitor()) as run:
        run(X)
    for use in (lambda: run(X), lambda: run.submit(X), lambda: list(run.map([X])), lambda: run.swap(bundle)):
        with pytest.raises(ClosedError, match="this runtime is closed"):
            use()
    assert run.stats().requests == 1  # what was done can still be asked
    run.close()  # once more is harmless


def test_a_request_of_another_thread_ends_before_the_engine_closes(bundle: dynamic.Bundle, engine: Gated) -> None:
    run = faked(bundle, engine)
    found: list[dynamic.BatchResult] = []
    other = threading.Thread(target=lambda: found.append(run(X)))
    other.start()
    engine.wait()
    run.close()
    assert not engine.closed
    engine.gate.release()
    other.join(LIMIT_S)
    assert (len(found), engine.closed) == (1, 1)


def test_a_callback_may_close(bundle: dynamic.Bundle) -> None:
    run = faked(bundle)
    closed: Future[None] = Future()

    def close(_: Any) -> None:
        run.close()
        closed.set_result(None)

    run.submit(X).add_done_callback(close)
    closed.result(LIMIT_S)


@pytest.mark.parametrize("options", [{"queue": 0}, {"queue": 2.5}, {"workers": 0}, {"workers": True}], ids=str)
def test_wrong_sizes(bundle: dynamic.Bundle, options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(SettingError, match=f"{name}=.* whole number of at least 1"):
        faked(bundle, **options)


def test_an_interrupted_map_leaves_no_thread(bundle: dynamic.Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    before = set(threading.enumerate())

    def items() -> Iterator[Any]:
        yield X
        raise KeyboardInterrupt

    with bundle.runtime() as run:
        results = run.map(items(), progress=True)
        next(results)
        with pytest.raises(KeyboardInterrupt):
            next(results)
        assert run(X).id == 1, "it goes on"
    assert set(threading.enumerate()) == before
    assert "inference" in capsys.readouterr().err


def test_a_progress_bar_starts_no_thread(capsys: pytest.CaptureFixture[str]) -> None:
    before = set(threading.enumerate())
    assert list(track(range(3), "counting", 3, True)) == [0, 1, 2]
    assert set(threading.enumerate()) == before
    assert "counting" in capsys.readouterr().err


def test_an_idle_worker_holds_no_result(bundle: dynamic.Bundle) -> None:
    import weakref

    run = faked(bundle)
    x = np.zeros((1, 12), np.float32)
    seen = weakref.ref(x)
    run.submit(x).result(LIMIT_S)
    del x
    assert wait_until(lambda: seen() is None)  # the worker goes back to wait
    run.close()


def test_threads_and_budgets_and_a_queue_at_once(bundle: dynamic.Bundle, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    budgets = [dynamic.Budget(), dynamic.Budget(max_drop=0.3), dynamic.Budget(latency_ms=2.0, deadline_ms=1e4)]
    run = faked(bundle, queue=10_000, workers=2)
    requests, each = 8, 60
    futures: list[Future[dynamic.BatchResult]] = []
    results: list[dynamic.BatchResult] = []

    def hammer(number: int) -> None:
        for i in range(each):
            run.budget = budgets[(number + i) % 3]
            results.append(run(X))
            futures.append(run.submit(np.repeat(X, 2, axis=0)))
            assert run.stats().requests > 0

    threads = [threading.Thread(target=hammer, args=(n,)) for n in range(requests)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    results += [f.result(LIMIT_S) for f in futures]
    stats = run.stats()
    assert len(results) == stats.requests == 2 * requests * each
    assert sorted(r.id for r in results) == list(range(stats.requests))
    assert stats.inputs == 3 * requests * each
    assert sum(stats.stage_shares) == pytest.approx(1)
    assert sum(stats.point_shares.values()) == pytest.approx(1)
    assert stats.certified_share == pytest.approx(sum(r.certified for r in results) / len(results))
    assert stats.mean_latency_ms == pytest.approx(np.mean([r.latency_ms for r in results]))
    assert stats.mean_waited_ms == pytest.approx(np.mean([r.waited_ms for r in results]))
    assert (stats.shed, stats.engine_failures, stats.policy_failures, stats.deadline_cuts) == (0, 0, 0, 0)
    assert 0 < stats.queue_longest <= requests * each
    assert run.deployment.users == 0
    run.close()
