"""Requests that are answered together: what they share, how long they wait, and that none changes another's answer."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.runtime_cases import Fake, faked
from support.serving.gates import until
from support.serving.serve_cases import LIMIT_S, number_bundle

import dynamic
from dynamic.policies import FixedPolicy
from dynamic.serve import batches as module
from dynamic.serve.answering import WholeRequests
from dynamic.serve.batches import Batches

ROWS = np.random.default_rng(2).standard_normal((40, 12)).astype(np.float32)
LONG_MS = 1e9  # who waits so long fails its test at LIMIT_S


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> dynamic.Bundle:
    return number_bundle(tmp_path_factory)


class Seen:
    """What the engine was asked to run: rows, and whether stage by stage. It waits while `gate` is closed."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = 0

    def __call__(self, engine: Any, backbones: Any, stagewise: bool) -> None:
        if backbones is None:
            self.entered += 1
            assert self.gate.wait(LIMIT_S)


class Counting(Fake):
    """The fake engine, with the rows of each call."""

    def __init__(self, fails: Any = lambda *_: None) -> None:
        super().__init__(fails)
        self.rows: list[int] = []

    def run(self, inputs: Any, *rest: Any) -> Any:
        self.rows.append(len(next(iter(inputs.values()))))
        return super().run(inputs, *rest)


class Time:
    """A clock that a test sets, and an engine that takes time by it. `takes`: seconds of each run, in turn."""

    def __init__(self, *takes: float) -> None:
        self.now, self.takes = 0.0, list(takes)

    def __call__(self) -> float:
        return self.now


@contextmanager
def batched(
    bundle: dynamic.Bundle, engine: Any, budget: dynamic.Budget | None = None, *, most: int = 4, wait_ms: float = 0.0
) -> Iterator[Batches]:
    with faked(bundle, engine, budget) as run:
        batches = Batches(WholeRequests(run), most, wait_ms)
        try:
            yield batches
        finally:
            batches.close()


def asked(pool: ThreadPoolExecutor, batches: Batches, *inputs: Any, **limits: Any) -> list[Future[Any]]:
    """Requests that wait, in this order."""
    futures = []
    for x in inputs:
        before = len(batches._waiting)
        futures.append(pool.submit(batches, x, **limits))
        until(lambda before=before: len(batches._waiting) == before + 1, "it waits")  # type: ignore[misc]
    return futures


def test_requests_share_a_batch_and_get_their_own_answers(bundle: dynamic.Bundle) -> None:
    """Every row is answered as `run(x)` answers it alone, whoever it shares a batch with."""
    policy = FixedPolicy(bundle.frontier.points[-1].name)
    options = {"monitor": dynamic.FixedMonitor(), "drift_alpha": None}  # these rows are unlike the calibration's
    with bundle.runtime(policy=policy, **options) as run, ThreadPoolExecutor(10) as pool:
        expected = run(ROWS)
        batches = Batches(WholeRequests(run), 16, wait_ms=2.0)
        answers = list(pool.map(batches, [*ROWS[:20], *(ROWS[i : i + 2] for i in range(20, 40, 2))], timeout=LIMIT_S))
        batches.close()
    assert [type(answer).__name__ for answer in answers] == ["Prediction"] * 20 + ["BatchResult"] * 10
    labels = np.concatenate([np.atleast_1d(answer.label) for answer in answers])
    stages = np.concatenate([np.atleast_1d(answer.stage) for answer in answers])
    probabilities = np.concatenate([np.atleast_2d(answer.probabilities) for answer in answers])
    assert labels.tolist() == expected.label.tolist()
    assert stages.tolist() == expected.stage.tolist()
    np.testing.assert_allclose(probabilities, expected.probabilities, rtol=1e-5, atol=1e-6)
    assert {answer.certified for answer in answers} == {expected.certified}


def test_a_batch_fills_while_another_runs(bundle: dynamic.Bundle) -> None:
    seen = Seen()
    engine = Counting(seen)
    with ThreadPoolExecutor(8) as pool, batched(bundle, engine) as batches:
        seen.gate.clear()
        first = pool.submit(batches, ROWS[0])
        until(lambda: seen.entered == 1, "the first runs")
        rest = asked(pool, batches, *ROWS[1:7])
        seen.gate.set()
        assert [future.result(LIMIT_S).label for future in (first, *rest)] == [0] * 7
        assert engine.rows == [1, 4, 2]


def test_a_request_with_many_rows_is_not_cut(bundle: dynamic.Bundle) -> None:
    engine = Counting()
    with ThreadPoolExecutor(1) as pool, batched(bundle, engine, wait_ms=LONG_MS) as batches:
        answer: Any = pool.submit(batches, ROWS[:9]).result(LIMIT_S)
        assert len(answer) == 9
        assert engine.rows == [9]


def test_a_full_batch_does_not_wait(bundle: dynamic.Bundle) -> None:
    engine = Counting()
    with ThreadPoolExecutor(4) as pool, batched(bundle, engine, wait_ms=LONG_MS) as batches:
        assert [answer.label for answer in pool.map(batches, ROWS[:4], timeout=LIMIT_S)] == [0] * 4
        assert engine.rows == [4]


def test_a_batch_waits_no_longer_than_a_deadline_in_it_allows(bundle: dynamic.Bundle) -> None:
    """It would wait for days. The second request has 100 ms, and takes the first along."""
    engine = Counting()
    with ThreadPoolExecutor(2) as pool, batched(bundle, engine, wait_ms=LONG_MS) as batches:
        (patient,) = asked(pool, batches, ROWS[0])
        assert pool.submit(batches, ROWS[1], deadline_ms=100.0).result(LIMIT_S).label == 0
        assert patient.result(LIMIT_S).label == 0


def test_a_deadline_does_not_wait_for_the_batch_of_another_kind(bundle: dynamic.Bundle) -> None:
    engine = Counting()
    with ThreadPoolExecutor(2) as pool, batched(bundle, engine, wait_ms=LONG_MS) as batches:
        (patient,) = asked(pool, batches, np.full(12, np.nan, np.float32))
        assert pool.submit(batches, ROWS[1], deadline_ms=100.0).result(LIMIT_S).label == 0
        assert engine.rows == [1]
        assert not patient.done()
        batches.hurry()
        assert not patient.result(LIMIT_S).certified


def test_the_deadline_of_the_budget_holds_too(bundle: dynamic.Bundle) -> None:
    engine, budget = Counting(), dynamic.Budget(deadline_ms=100.0)
    with ThreadPoolExecutor(1) as pool, batched(bundle, engine, budget, wait_ms=LONG_MS) as batches:
        assert pool.submit(batches, ROWS[0]).result(LIMIT_S).label == 0
        assert engine.calls[0][0], "stage by stage"


def test_the_deadline_of_the_budget_holds_where_it_is_nearer(bundle: dynamic.Bundle) -> None:
    """A request asks for days, and waits no longer for others than the budget allows."""
    engine, budget = Counting(), dynamic.Budget(deadline_ms=100.0)
    with ThreadPoolExecutor(1) as pool, batched(bundle, engine, budget, wait_ms=LONG_MS) as batches:
        assert pool.submit(batches, ROWS[0], deadline_ms=LONG_MS).result(LIMIT_S).label == 0
        _, left_s, _ = engine.calls[0]
        assert left_s is not None
        assert left_s <= 0.1


def test_late_rows_get_the_answer_of_an_exit_and_others_their_whole_one(bundle: dynamic.Bundle) -> None:
    seen = Seen()
    engine = Counting(seen)
    with ThreadPoolExecutor(8) as pool, batched(bundle, engine, dynamic.Budget(max_drop=0.0), most=8) as batches:
        seen.gate.clear()
        first = pool.submit(batches, ROWS[0])
        until(lambda: seen.entered == 1, "the first runs")
        late = asked(pool, batches, ROWS[1], ROWS[2], deadline_ms=1e-3)
        patient = asked(pool, batches, ROWS[3], ROWS[4], ROWS[5])
        seen.gate.set()
        assert [future.result(LIMIT_S).certified for future in (first, *late, *patient)] == [
            True,
            *[False] * 2,
            *[True] * 3,
        ]
        points = [future.result(LIMIT_S).decision.point.name for future in (first, *late, *patient)]
        assert points == ["reference", "quick", "quick", *["reference"] * 3], "the one with an exit is cut there"
        assert engine.rows == [1, 2, 3]
        assert [stagewise for stagewise, *_ in engine.calls] == [False, True, False]


@contextmanager
def timed(bundle: dynamic.Bundle, *takes: float) -> Iterator[tuple[Batches, Counting, Time, ThreadPoolExecutor, Seen]]:
    """Batches of up to eight rows on the clock of the test. Their first request runs until the gate opens."""
    seen, clock = Seen(), Time(0.0, *takes)

    def run(*call: Any) -> None:
        seen(*call)
        if call[1] is None:
            clock.now += clock.takes.pop(0)

    engine = Counting(run)
    with faked(bundle, engine, dynamic.Budget(max_drop=0.0), clock=clock) as runtime, ThreadPoolExecutor(8) as pool:
        batches = Batches(WholeRequests(runtime), 8, 0.0, clock)
        try:
            seen.gate.clear()
            first = pool.submit(batches, ROWS[0])
            until(lambda: seen.entered == 1, "the first runs")
            yield batches, engine, clock, pool, seen
            assert first.result(LIMIT_S).certified
        finally:
            seen.gate.set()
            batches.close()


def test_a_late_request_takes_no_answer_from_one_that_has_time(bundle: dynamic.Bundle) -> None:
    """The whole answer to one row takes 10 ms. One has none left, one 15 ms, one has no deadline."""
    with timed(bundle, *[0.0] * 3) as (batches, engine, clock, pool, seen):
        (over,) = asked(pool, batches, ROWS[1], deadline_ms=1.0)
        (near,) = asked(pool, batches, ROWS[2], deadline_ms=16.0)
        (patient,) = asked(pool, batches, ROWS[3])
        clock.now = 0.001
        seen.gate.set()
        answers = [future.result(LIMIT_S) for future in (over, near, patient)]
        assert [answer.certified for answer in answers] == [False, True, True]
        assert [answer.decision.point.name for answer in answers] == ["quick", "reference", "reference"]
        assert engine.rows == [1, 1, 1, 1]
        left_s = [deadline_s for _, deadline_s, _ in engine.calls]
        assert left_s == [None, pytest.approx(0.015), pytest.approx(0.0), None]


def test_one_without_time_for_a_full_answer_keeps_the_exit_that_it_has_time_for(bundle: dynamic.Bundle) -> None:
    """One deadline is over, and the other allows 3 ms. It comes first, with its 3 ms."""
    with timed(bundle, *[0.0] * 2) as (batches, engine, clock, pool, seen):
        (over,) = asked(pool, batches, ROWS[1], deadline_ms=1.0)
        (late,) = asked(pool, batches, ROWS[2], deadline_ms=4.0)
        clock.now = 0.001
        seen.gate.set()
        assert [future.result(LIMIT_S).certified for future in (over, late)] == [False, False]
        assert [deadline_s for _, deadline_s, _ in engine.calls] == [None, pytest.approx(0.003), pytest.approx(0.0)]


def test_a_request_that_becomes_late_meanwhile_takes_no_answer_from_others(bundle: dynamic.Bundle) -> None:
    """Two have time when the batch begins. Its first part takes 100 ms, and then one of them has none."""
    with timed(bundle, 0.1, 0.0, 0.0) as (batches, engine, clock, pool, seen):
        (late,) = asked(pool, batches, ROWS[1], deadline_ms=2.0)
        (surprised,) = asked(pool, batches, ROWS[2], deadline_ms=90.0)
        (patient,) = asked(pool, batches, ROWS[3])
        clock.now = 0.001
        seen.gate.set()
        answers = [future.result(LIMIT_S) for future in (late, surprised, patient)]
        assert [answer.certified for answer in answers] == [False, False, True]
        assert [deadline_s for _, deadline_s, _ in engine.calls] == [
            None,
            pytest.approx(0.001),
            pytest.approx(-0.011),
            None,
        ]


def test_rows_that_are_not_finite_take_no_certificate_from_others(bundle: dynamic.Bundle) -> None:
    seen = Seen()
    engine = Counting(seen)
    gap = np.full(12, np.nan, np.float32)
    with ThreadPoolExecutor(8) as pool, batched(bundle, engine, most=8) as batches:
        seen.gate.clear()
        first = pool.submit(batches, ROWS[0])
        until(lambda: seen.entered == 1, "the first runs")
        rest = asked(pool, batches, ROWS[1], gap, ROWS[2])
        seen.gate.set()
        assert [future.result(LIMIT_S).certified for future in (first, *rest)] == [True, True, False, True]
        assert engine.rows == [1, 2, 1]


def test_one_that_does_not_fit_fails_alone(bundle: dynamic.Bundle) -> None:
    engine = Counting()
    with ThreadPoolExecutor(3) as pool, batched(bundle, engine, wait_ms=LONG_MS, most=2) as batches:
        (patient,) = asked(pool, batches, ROWS[0])
        with pytest.raises(dynamic.errors.InputError):
            pool.submit(batches, np.zeros(13, np.float32)).result(LIMIT_S)
        assert pool.submit(batches, ROWS[1]).result(LIMIT_S).label == 0
        assert patient.result(LIMIT_S).label == 0


def test_where_a_batch_fails_its_requests_are_answered_one_by_one(bundle: dynamic.Bundle) -> None:
    seen = Seen()
    engine = Counting(seen)
    plain = engine.run

    def few(inputs: Any, *rest: Any) -> Any:
        if len(next(iter(inputs.values()))) > 1:
            raise MemoryError("of one row only")
        return plain(inputs, *rest)

    engine.run = few  # type: ignore[method-assign]
    with ThreadPoolExecutor(3) as pool, batched(bundle, engine, wait_ms=LONG_MS, most=3) as batches:
        assert [answer.label for answer in pool.map(batches, ROWS[:3], timeout=LIMIT_S)] == [0] * 3
        assert engine.rows == [1, 1, 1]


@pytest.mark.parametrize("step", ["_left_s", "_split", "_limits"])
def test_an_error_in_the_thread_of_the_batches_fails_their_requests_alone(
    bundle: dynamic.Bundle, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Whatever step it is in: who waits gets the error, and the next request its answer."""
    with ThreadPoolExecutor(1) as pool, batched(bundle, Counting()) as batches:
        with monkeypatch.context() as patch:

            def fails(*_: Any) -> Any:
                raise MemoryError("of this batch")

            patch.setattr(batches, step, fails)
            with pytest.raises(MemoryError, match="of this batch"):
                pool.submit(batches, ROWS[0]).result(LIMIT_S)
        assert pool.submit(batches, ROWS[1]).result(LIMIT_S).label == 0


def test_an_error_while_answers_are_given_out_leaves_those_given(
    bundle: dynamic.Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, parts = Seen(), []
    with ThreadPoolExecutor(4) as pool, batched(bundle, Counting(seen), most=8) as batches:
        seen.gate.clear()
        first = pool.submit(batches, ROWS[0])
        until(lambda: seen.entered == 1, "the first runs")
        given, failed = asked(pool, batches, ROWS[1], ROWS[2])

        def part(*given: Any) -> Any:
            parts.append(given)
            if len(parts) == 3:
                raise MemoryError("of the third")
            return plain(*given)

        plain = module._part
        monkeypatch.setattr(module, "_part", part)
        seen.gate.set()
        assert [future.result(LIMIT_S).label for future in (first, given)] == [0, 0]
        with pytest.raises(MemoryError, match="of the third"):
            failed.result(LIMIT_S)
        assert pool.submit(batches, ROWS[3]).result(LIMIT_S).label == 0


def test_a_swap_converts_what_waits_again(tmp_path_factory: pytest.TempPathFactory, bundle: dynamic.Bundle) -> None:
    """What waits for the old bundle shares a batch with nobody who comes after, so that it waits no longer."""
    other = replace(bundle, classes=bundle.classes).save(tmp_path_factory.mktemp("other") / "blobs")
    with (
        ThreadPoolExecutor(2) as pool,
        bundle.runtime(monitor=dynamic.FixedMonitor()) as run,
        closing(Batches(WholeRequests(run), 2, LONG_MS)) as batches,
    ):
        (patient,) = asked(pool, batches, ROWS[0])
        run.swap(other)
        answer: Any = pool.submit(batches, ROWS[1:3]).result(LIMIT_S)
        assert set(answer.name) <= set("abcd")
        assert patient.result(LIMIT_S).name in "abcd"


def test_after_the_end_requests_are_refused_and_those_that_wait_answered(bundle: dynamic.Bundle) -> None:
    engine = Counting()
    with (
        ThreadPoolExecutor(1) as pool,
        faked(bundle, engine) as run,
        closing(Batches(WholeRequests(run), 4, LONG_MS)) as batches,
    ):
        (patient,) = asked(pool, batches, ROWS[0])
        batches.close()
        assert patient.result(LIMIT_S).label == 0
        with pytest.raises(dynamic.errors.ClosedError, match="ending"):
            batches(ROWS[1])
