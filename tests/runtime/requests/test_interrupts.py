"""Signal handlers that use the runtime which their own thread is in: at every line of it, and 300 real signals."""

import contextlib
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from support.child_process import in_child
from support.engine_cases import CLASSES, TwoExits
from support.runtime_cases import Fake, Takes, X, faked, shared_blobs

import dynamic
from dynamic.engines.options import Route
from dynamic.errors import ClosedError, InputError
from dynamic.offline.cascade import Cascade
from dynamic.policies import Decision
from dynamic.runtime.requests.interrupts import in_signal_handler
from dynamic.runtime.runtime import Runtime

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="this system has no such signal")
LIMIT_S = 120
FOLDER = str(Path(dynamic.__file__).parent)
BUDGETS = dynamic.Budget(), dynamic.Budget(max_drop=0.3)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> dynamic.Bundle:
    return shared_blobs(tmp_path_factory)


@pytest.fixture(scope="module")
def with_carry() -> dynamic.Bundle:
    """One network with an exit, so that the second stage continues from what the first has computed."""
    torch.manual_seed(0)
    loader = [(torch.randn(200, 1, 8, 8), torch.arange(200) % CLASSES)]
    return dynamic.build(Cascade([TwoExits()]), loader, progress=False).profile(batch=(1,), seconds=0.02)


@pytest.fixture(autouse=True)
def usual_handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


def signalled_at(work: Callable[[], Any], lines: Callable[[int], bool]) -> int:
    """Run `work` with a signal before each line of the library whose number `lines` accepts: how many lines ran."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.startswith(FOLDER):
            return None
        if event == "line":
            count += 1
            if lines(count):
                signal.raise_signal(signal.SIGUSR1)
        return trace

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(None)
    return count


CALLS: dict[str, Callable[[Runtime, dynamic.Bundle], Any]] = {
    "run": lambda run, _: run(X),
    "submit": lambda run, _: run.submit(X),
    "feedback": lambda run, _: run.feedback(run(X).id, 0),
    "restart_drift": lambda run, _: run.restart_drift(),
    "stats": lambda run, _: run.stats(),
    "budget": lambda run, _: setattr(run, "budget", BUDGETS[1]),
    "exchange": lambda run, bundle: run._exchange(run._serve(run.bundle, run.frontier, Fake(), ()), None).retire(),
}


@pytest.mark.parametrize("call", CALLS)
def test_every_line_may_be_interrupted(bundle: dynamic.Bundle, call: str) -> None:
    def work() -> tuple[int, int, int]:
        run, seen = faked(bundle), []

        def handler(*_: Any) -> None:
            seen.append(run.stats().requests)
            run.budget = BUDGETS[len(seen) % 2]

        signal.signal(signal.SIGUSR1, handler)
        lines = signalled_at(lambda: CALLS[call](run, bundle), lambda _: True)
        run.close()
        return lines, len(seen), max(seen)

    lines, signals, requests = in_child(work)
    assert lines == signals > 3
    assert requests <= 1


@pytest.mark.parametrize("route", ["graph", "stages"])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_request_of_a_handler_leaves_the_answer_that_it_interrupts(
    with_carry: dynamic.Bundle, engine: str, route: Route
) -> None:
    """Engines keep carries and outputs in buffers of the thread, which is the same."""
    images = np.random.default_rng(0).normal(size=(2, 1, 8, 8)).astype(np.float32)

    def answer(run: Runtime, image: Any) -> list[float]:
        return [*run(image).log_probs.tolist(), run(image).score]

    with with_carry.runtime(engine=engine, route=route, threads=1, drift_alpha=None) as run:
        expected = [answer(run, image) for image in images]
        inner: list[list[float]] = []
        signal.signal(signal.SIGUSR1, lambda *_: inner.append(answer(run, images[1])))
        outer: list[list[float]] = []
        lines = signalled_at(lambda: outer.append(answer(run, images[0])), lambda _: True)
    assert lines > 10
    assert outer == [expected[0]]
    assert inner == [expected[1]] * lines


@pytest.mark.parametrize("call", ["run", "submit", "exchange", "feedback"])
def test_a_handler_may_close_at_every_line(bundle: dynamic.Bundle, call: str) -> None:
    def work() -> tuple[int, set[int], set[str]]:
        total, closed, errors = 10**9, set(), set()
        number = 0
        while number < total:
            number += 1
            engine = Fake()
            run = faked(bundle, engine)
            signal.signal(signal.SIGUSR1, lambda *_, run=run: run.close())
            made: list[Any] = []
            try:
                lines = signalled_at(
                    lambda run=run, made=made: made.append(CALLS[call](run, bundle)), lambda n, at=number: n == at
                )
                total = min(total, lines)
                if lines < number:  # a slow conversion takes a line more: this time the signal came after the end
                    run.close()
                    break
            except ClosedError:
                errors.add("ClosedError")
            for future in made:
                if isinstance(future, Future):
                    assert future.exception(LIMIT_S) is None or isinstance(future.exception(), ClosedError)
            with pytest.raises(ClosedError):
                run(X)
            run.close()
            closed.add(engine.closed)
        return total, closed, errors

    lines, closed, errors = in_child(work)
    assert lines > 10
    assert closed == {1}, "whoever held the last request has closed the engine, once"
    assert errors <= {"ClosedError"}


@pytest.mark.parametrize("use", ["run", "submit", "feedback", "restart_drift", "swap"])
def test_a_handler_may_use_all_the_rest_too(bundle: dynamic.Bundle, use: str) -> None:
    def work() -> int:
        run, uses = faked(bundle), []
        first = run(X).id

        def handler(*_: Any) -> None:
            uses.append(1)
            if use == "feedback":
                with contextlib.suppress(InputError):  # its label counts once
                    run.feedback(first, 0)
            elif use == "swap":
                CALLS["exchange"](run, bundle)
            else:
                CALLS[use](run, bundle)

        signal.signal(signal.SIGUSR1, handler)
        signalled_at(lambda: run(X), lambda n: n % 5 == 0)
        signalled_at(lambda: run.submit(X).result(LIMIT_S), lambda n: n % 5 == 0)
        run.close()
        return len(uses)

    assert in_child(work) > 10


class Signals(Takes):
    """A policy during whose decision, which the runtime makes under its lock, a signal comes."""

    def decide(self, frontier: Any, budget: Any, snapshot: Any, state: Any) -> tuple[Decision, Any]:
        if threading.current_thread() is threading.main_thread():
            signal.raise_signal(signal.SIGUSR1)
        return super().decide(frontier, budget, snapshot, state)


def test_300_signals_during_requests_beside_workers(bundle: dynamic.Bundle) -> None:
    def work() -> tuple[int, int, list[bool]]:
        run = faked(bundle, policy=Signals("quick"), workers=2, queue=10_000)
        counts: list[int] = []

        def handler(*_: Any) -> None:
            counts.append(run.stats().requests)
            run.budget = BUDGETS[len(counts) % 2]

        signal.signal(signal.SIGUSR1, handler)
        stop = threading.Event()

        def send() -> None:
            while not stop.is_set():
                os.kill(os.getpid(), signal.SIGUSR1)
                time.sleep(0.001)

        others = [threading.Thread(target=send)]
        futures: list[Future[dynamic.BatchResult]] = []
        others[0].start()
        requests = 0
        while len(counts) < 300:
            run(X)
            futures.append(run.submit(X))
            futures[-1].add_done_callback(lambda _: run.stats())
            requests += 2
        stop.set()
        others[0].join()
        for future in futures:
            future.result(LIMIT_S)
        found = run.stats().requests
        run.close()
        return requests, found, [a <= b for a, b in pairwise(counts)]

    requests, found, rising = in_child(work)
    assert requests == found
    assert len(rising) >= 299
    assert all(rising)


def test_a_signal_that_closes_while_the_main_thread_waits_for_workers(bundle: dynamic.Bundle) -> None:
    """300 runtimes, each closed from a handler while results are awaited."""

    def work() -> set[str]:
        found = set()
        for _ in range(300):
            engine = Fake()
            run = faked(bundle, engine, workers=2)
            signal.signal(signal.SIGUSR1, lambda *_, run=run: run.close())
            futures = [run.submit(X) for _ in range(3)]
            sender = threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGUSR1))
            sender.start()
            for future in futures:
                error = future.exception(LIMIT_S)
                found.add(type(error).__name__)
            sender.join()
            run.close()
            assert engine.closed == 1
        return found

    assert in_child(work) <= {"NoneType", "ClosedError"}


def test_a_handler_that_drains_returns_at_once_and_workers_answer_the_rest(bundle: dynamic.Bundle) -> None:
    def work() -> tuple[list[int], int]:
        gate = threading.Event()
        engine = Fake(lambda _, backbones, stagewise: backbones is None and not gate.wait(LIMIT_S))
        run = faked(bundle, engine)
        signal.signal(signal.SIGUSR1, lambda *_: run.close(drain=True, timeout_s=LIMIT_S))
        futures = [run.submit(X) for _ in range(4)]
        signal.raise_signal(signal.SIGUSR1)
        assert not engine.closed
        with pytest.raises(ClosedError):
            run.submit(X)
        gate.set()
        answered = [future.result(LIMIT_S).id for future in futures]
        run.close()  # waits for the worker
        return answered, engine.closed

    assert in_child(work) == ([0, 1, 2, 3], 1)


def test_a_monitor_is_read_and_closed_by_a_handler() -> None:
    def work() -> int:
        count = 0
        watch = dynamic.Monitor(interval_s=0.05).start()

        def handler(*_: Any) -> None:
            nonlocal count
            count += 1
            watch.sources()
            if count == 5:
                watch.close()

        signal.signal(signal.SIGUSR1, handler)
        signalled_at(watch.sources, lambda _: True)
        watch.close()
        return count

    assert in_child(work) >= 5


def test_what_is_a_signal_handler() -> None:
    found: list[bool] = []

    class Handles:
        def method(self, *_: Any) -> None:
            deeper()

        def __call__(self, number: int, frame: Any) -> None:
            deeper()

    def deeper() -> None:
        found.append(in_signal_handler())

    def handler(number: int, frame: Any) -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # another one from now on
        deeper()

    handlers: list[Any] = [handler, lambda *_: deeper(), Handles().method, Handles()]
    handlers.append(functools.partial(lambda word, number, frame: deeper(), "bound"))
    for each in handlers:
        signal.signal(signal.SIGUSR1, each)
        signal.raise_signal(signal.SIGUSR1)
    assert found == [True] * 5
    assert not in_signal_handler()
    handler(1, sys._getframe().f_back)
    other = threading.Thread(target=deeper)
    other.start()
    other.join()
    assert found[5:] == [False, False]


@pytest.mark.parametrize("value", [3, None, "word", {"a": 1}], ids=str)
def test_a_name_of_arguments_may_be_bound_to_something_else(bundle: dynamic.Bundle, value: Any) -> None:
    def main(*args: Any) -> int:
        args = value
        engine = Fake()
        faked(bundle, engine).close()
        return engine.closed if args is value else -1

    assert main(1, 2) == 1


def test_looking_for_a_handler_consumes_no_iterator(bundle: dynamic.Bundle) -> None:
    def each(*items: int) -> list[int]:
        items = iter(items)  # type: ignore[assignment]
        faked(bundle).close()
        return list(items)

    assert each(1, 2, 3) == [1, 2, 3]


def test_a_drain_goes_on_where_the_block_ends(bundle: dynamic.Bundle) -> None:
    """A handler begins to drain inside `with run:`, whose end closes the runtime too."""

    def work() -> list[int]:
        gate = threading.Event()
        engine = Fake(lambda _, backbones, stagewise: backbones is None and not gate.wait(LIMIT_S))
        with faked(bundle, engine) as run:
            signal.signal(signal.SIGUSR1, lambda *_: run.close(drain=True, timeout_s=LIMIT_S))
            futures = [run.submit(X) for _ in range(5)]
            signal.raise_signal(signal.SIGUSR1)
            threading.Timer(0.2, gate.set).start()
        return [future.result(0).id for future in futures]

    assert in_child(work) == [0, 1, 2, 3, 4]


def test_a_policy_may_use_the_runtime_that_asks_it(bundle: dynamic.Bundle) -> None:
    def work() -> list[int]:
        seen: list[int] = []

        class Asks(Takes):
            def decide(self, frontier: Any, budget: Any, snapshot: Any, state: Any) -> tuple[Decision, Any]:
                seen.append(run.stats().requests)
                run.budget = BUDGETS[0]
                run.feedback(run(X).id, 0) if not seen[1:] else None
                return super().decide(frontier, budget, snapshot, state)

        run = faked(bundle, policy=Asks("quick"))
        run(X), run(X)
        run.close()
        return seen

    assert in_child(work) == [0, 0, 2], "the request in the first decision, then that one, then the second"


def test_figures_fit_each_other_while_others_are_entered(bundle: dynamic.Bundle) -> None:
    run = faked(bundle)
    stop = threading.Event()

    def requests() -> None:
        while not stop.is_set():
            run(np.repeat(X, 2, axis=0))

    threads = [threading.Thread(target=requests) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(300):
            stats = run.stats()
            assert stats.inputs == 2 * stats.requests
            assert sum(stats.stage_shares) == pytest.approx(1) or not stats.requests
            assert sum(stats.point_shares.values()) == pytest.approx(1) or not stats.requests
    finally:
        stop.set()
        for thread in threads:
            thread.join(LIMIT_S)
    run.close()
