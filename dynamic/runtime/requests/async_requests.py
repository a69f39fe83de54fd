"""Requests of an asyncio server: they are answered on the runtime's workers, so that the event loop never waits."""

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from dynamic.runtime.result import Result

T = TypeVar("T")
_END = object()


async def answer(submit: "Callable[[Any], Future[Result]]", x: Any) -> Result:
    """Submit one input and wait for its result without blocking the event loop.

    Where the task that waits is cancelled, a request that still waits for its turn is given up.
    """
    return await asyncio.wrap_future(submit(x))


async def answers_of(
    submit: "Callable[[Any], Future[Result]]", items: Iterable[Any] | AsyncIterable[Any], ahead: int
) -> AsyncIterator[Result]:
    """The results of `items` in their order, `ahead` of which are under way at once.

    A result is given as soon as it is there, however long the next item takes to come. Where a request is refused, or
    `items` raise, what was accepted before is answered first.
    """
    source = aiter(items) if isinstance(items, AsyncIterable) else _read_apart(items)
    waiting: deque[asyncio.Future[Result]] = deque()
    reading: asyncio.Future[Any] | None = None
    refused: Exception | None = None
    ended = False
    try:
        while waiting or not ended:
            if reading is None and not ended and len(waiting) <= ahead:
                reading = asyncio.ensure_future(anext(source, _END))
            oldest = {waiting[0]} if waiting else set()
            await asyncio.wait(oldest | ({reading} if reading else set()), return_when=asyncio.FIRST_COMPLETED)
            if reading is not None and reading.done():
                done, reading = reading, None
                try:
                    item = done.result()
                    ended = item is _END
                    if not ended:
                        waiting.append(asyncio.wrap_future(submit(item)))
                except Exception as error:
                    refused, ended = error, True
            while waiting and waiting[0].done():
                yield waiting.popleft().result()
        if refused is not None:
            raise refused
    finally:  # whoever stops early wants no more answers
        for future in waiting:
            future.cancel()
        if reading is not None:
            reading.cancel()


async def _read_apart(items: Iterable[T]) -> AsyncIterator[T]:
    """The items, each read on another thread: a camera makes whoever reads it wait."""
    source: Iterator[T] = await asyncio.to_thread(iter, items)
    while (item := await asyncio.to_thread(next, source, _END)) is not _END:
        yield item  # type: ignore[misc]
