"""Requests of an asyncio server: they are answered on the runtime's workers, so that the event loop never waits."""

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from dynamic.result import Result

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
    """The results of `items` in their order, `ahead` of which are under way at once."""
    waiting: deque[asyncio.Future[Result]] = deque()
    try:
        async for item in items if isinstance(items, AsyncIterable) else _read_apart(items):
            waiting.append(asyncio.wrap_future(submit(item)))
            if len(waiting) > ahead:
                yield await waiting.popleft()
        while waiting:
            yield await waiting.popleft()
    finally:  # whoever stops early wants no more answers
        for future in waiting:
            future.cancel()


async def _read_apart(items: Iterable[T]) -> AsyncIterator[T]:
    """The items, each read on another thread: a camera makes whoever reads it wait."""
    source: Iterator[T] = await asyncio.to_thread(iter, items)
    while (item := await asyncio.to_thread(next, source, _END)) is not _END:
        yield item  # type: ignore[misc]
