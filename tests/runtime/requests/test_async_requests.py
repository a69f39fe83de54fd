"""asyncio servers: the event loop goes on while requests run, and whoever waits learns that the runtime closes."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest
from support.runtime_cases import Fake, X, faked, shared_blobs

import dynamic
from dynamic.errors import ClosedError, InputError, ShedError

LIMIT_S = 120


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> dynamic.Bundle:
    return shared_blobs(tmp_path_factory)


class Held(Fake):
    """Runs a request once it is let through; `began` counts those that have begun."""

    def __init__(self) -> None:
        super().__init__(self._hold)
        self.began, self.gate = threading.Semaphore(0), threading.Semaphore(0)

    def _hold(self, _: Any, backbones: Any, stagewise: bool) -> None:
        if backbones is None:
            self.began.release()
            assert self.gate.acquire(timeout=LIMIT_S)


@pytest.fixture
def engine() -> Iterator[Held]:
    made = Held()
    yield made
    made.gate.release(1000)


def finish(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, LIMIT_S))


async def started(engine: Held) -> None:
    await asyncio.to_thread(engine.began.acquire)


def test_answers_are_those_of_a_call(bundle: dynamic.Bundle) -> None:
    x = np.random.default_rng(0).standard_normal((20, 12)).astype(np.float32)

    async def work(run: dynamic.Runtime) -> list[int]:
        return [int(np.ravel(result.label)[0]) for result in await asyncio.gather(*(run.arun(row) for row in x))]

    with bundle.runtime(drift_alpha=None) as run:
        assert finish(work(run)) == run(x).label.tolist()
        with pytest.raises(InputError):
            finish(run.arun("image"))


def test_the_loop_goes_on_while_a_request_runs(bundle: dynamic.Bundle, engine: Held) -> None:
    async def work() -> tuple[int, int]:
        task = asyncio.create_task(run.arun(X))
        await started(engine)
        turns = 0
        for _ in range(100):
            await asyncio.sleep(0)
            turns += not task.done()
        engine.gate.release()
        return turns, (await task).id

    run = faked(bundle, engine)
    assert finish(work()) == (100, 0)
    run.close()


@pytest.mark.parametrize("drain", [False, True])
def test_whoever_waits_learns_that_the_runtime_closes(bundle: dynamic.Bundle, engine: Held, drain: bool) -> None:
    async def work() -> list[Any]:
        tasks = [asyncio.create_task(run.arun(X)) for _ in range(3)]
        await started(engine)
        closing = asyncio.create_task(asyncio.to_thread(run.close, drain))
        while not run._waiting._closed or (not drain and len(run._waiting)):
            await asyncio.sleep(0.001)
        engine.gate.release(3)
        found = await asyncio.gather(*tasks, return_exceptions=True)
        await closing
        with pytest.raises(ClosedError):
            await run.arun(X)
        return [getattr(each, "id", type(each)) for each in found]

    run = faked(bundle, engine)
    assert finish(work()) == ([0, 1, 2] if drain else [0, ClosedError, ClosedError])


def test_a_task_that_is_cancelled_gives_its_request_up(bundle: dynamic.Bundle, engine: Held) -> None:
    async def work() -> None:
        running, waiting = (asyncio.create_task(run.arun(X)) for _ in range(2))
        await started(engine)
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):  # its own, of the task that was cancelled
            await waiting
        engine.gate.release()
        assert (await running).id == 0

    run = faked(bundle, engine)
    finish(work())
    run.close(drain=True)
    assert run.stats().requests == 1


def test_too_many_are_shed(bundle: dynamic.Bundle, engine: Held) -> None:
    async def work() -> list[Any]:
        tasks = [asyncio.create_task(run.arun(X)) for _ in range(4)]
        await started(engine)
        await asyncio.sleep(0)
        engine.gate.release(4)
        return [getattr(each, "id", type(each)) for each in await asyncio.gather(*tasks, return_exceptions=True)]

    run = faked(bundle, engine, queue=1)
    found = finish(work())
    assert found.count(ShedError) >= 1
    assert len([each for each in found if isinstance(each, int)]) == 4 - found.count(ShedError)
    run.close()


async def asynchronous(count: int) -> AsyncIterator[Any]:
    for value in range(count):
        await asyncio.sleep(0)
        yield np.full((1, 12), value, np.float32)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("kind", ["list", "generator", "asynchronous"])
def test_results_come_in_order_and_nothing_is_shed(bundle: dynamic.Bundle, workers: int, kind: str) -> None:
    inputs = [np.full((1, 12), value, np.float32) for value in range(30)]
    items: Any = {"list": inputs, "generator": iter(inputs), "asynchronous": asynchronous(30)}[kind]

    async def work(run: dynamic.Runtime) -> list[int]:
        return [int(np.ravel(result.label)[0]) async for result in run.amap(items)]

    with bundle.runtime(drift_alpha=None, queue=1, workers=workers) as run:
        assert finish(work(run)) == [int(np.ravel(run(x).label)[0]) for x in inputs]
        assert run.stats().shed == 0


def test_a_source_that_makes_its_reader_wait_does_not_hold_up_the_loop(bundle: dynamic.Bundle) -> None:
    gate = threading.Event()

    def camera() -> Iterator[Any]:
        assert gate.wait(LIMIT_S)
        yield X

    async def work() -> list[int]:
        results = []

        async def read() -> None:
            results.extend([result.id async for result in run.amap(camera())])

        task = asyncio.create_task(read())
        for _ in range(10):
            await asyncio.sleep(0)
        gate.set()
        await task
        return results

    run = faked(bundle)
    assert finish(work()) == [0]
    run.close()


def test_a_result_does_not_wait_for_the_next_item(bundle: dynamic.Bundle) -> None:
    answered = threading.Event()

    def camera() -> Iterator[Any]:
        yield X
        assert answered.wait(LIMIT_S), "the first frame was not answered before the second came"
        yield X

    async def work() -> list[int]:
        results = []
        async for result in run.amap(camera()):
            results.append(result.id)
            answered.set()
        return results

    run = faked(bundle, workers=2)
    assert finish(work()) == [0, 1]
    run.close()


@pytest.mark.parametrize("why", ["closed", "source"])
def test_what_was_accepted_is_answered_before_an_error(bundle: dynamic.Bundle, engine: Held, why: str) -> None:
    run = faked(bundle, engine, workers=4)

    def camera() -> Iterator[Any]:
        yield from [X] * 3
        closing = threading.Thread(target=run.close, kwargs={"drain": True})
        if why == "source":
            engine.gate.release(3)
            raise OSError("unplugged")
        closing.start()
        while not run._controller.closed:
            time.sleep(0.001)
        engine.gate.release(3)
        yield X
        closing.join(LIMIT_S)

    async def work() -> tuple[list[int], type[BaseException]]:
        results = []
        try:
            async for result in run.amap(camera()):
                results.append(result.id)  # noqa: PERF401 (what came before an error counts)
        except (ClosedError, OSError) as error:
            return sorted(results), type(error)
        raise AssertionError("no error")

    assert finish(work()) == ([0, 1, 2], ClosedError if why == "closed" else OSError)
    run.close()


def test_whoever_stops_early_wants_no_more(bundle: dynamic.Bundle, engine: Held) -> None:
    async def work() -> int:
        engine.gate.release(1)
        async with aclosing(run.amap([X] * 10)) as results:  # type: ignore[type-var]
            async for result in results:
                return result.id
        return -1

    run = faked(bundle, engine)
    assert finish(work()) == 0
    engine.gate.release(10)
    run.close(drain=True)
    assert run.stats().requests <= 2
