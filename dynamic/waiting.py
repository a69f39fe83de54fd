"""Requests that wait for a worker, oldest first, and no more than a limit of them."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from dynamic.policies.errors import BudgetError, ClosedError, EngineError, ShedError
from dynamic.policies.plain import plain
from dynamic.result import Result

Entry = tuple["Future[Result]", Any, float]  # with the input and when it came


class Waiting:
    """A queue of at most `limit` requests, answered by `work(input, when it came)` on `workers` threads.

    Threads start with the first request. Where the queue is full, the oldest request in it is shed: it has waited
    longest, so that its answer would be the latest of all. Raises BudgetError where a number is not at least 1.
    """

    def __init__(self, limit: int, workers: int, work: Callable[[Any, float], Result]) -> None:
        limit, workers = plain(limit), plain(workers)
        for name, value in (("queue", limit), ("workers", workers)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise BudgetError(f"{name}={value!r} must be a whole number of at least 1")
        self._limit, self._most, self._work = limit, workers, work
        self._closed = False
        self.shed = self.longest = 0
        self.forget()

    def forget(self) -> Any:
        """What a forked child has of its parent's: neither its threads nor what waits for them."""
        lost = getattr(self, "_items", None)
        self._items: deque[Entry] = deque()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._changed = threading.Condition(threading.Lock())  # and the lock of everything here
        return lost

    def __len__(self) -> int:
        return len(self._items)

    def submit(self, x: Any, came: float) -> "Future[Result]":
        """Let an input wait for its turn.

        Raises ClosedError after `close`, EngineError where not even one worker can be started: nothing is shed then.
        """
        future: Future[Result] = Future()
        dropped: list[Future[Result]] = []
        with self._changed:
            if self._closed:
                raise ClosedError("this runtime is closed: open another with bundle.runtime(...)")
            if self._idle <= len(self._items) and len(self._threads) < self._most:
                self._begin()
            while len(self._items) >= self._limit:
                dropped.append(self._items.popleft()[0])
            self._items.append((future, x, came))
            self.longest = max(self.longest, len(self._items))
            self._changed.notify()
        self._shed(dropped)
        return future

    def close(self) -> None:
        """Take no more, finish what runs, cancel what waits, and end the threads."""
        with self._changed:
            self._closed = True
            waiting, self._items = self._items, deque()
            threads, self._threads = self._threads, []
            self._changed.notify_all()
        for future, _, _ in waiting:
            if future.cancel():
                future.set_running_or_notify_cancel()  # tells those who wait for several
        for thread in threads:
            if thread is not threading.current_thread():  # a callback of a future may close
                thread.join()

    def _begin(self) -> None:
        thread = threading.Thread(target=self._serve, name="dynamic-worker", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no more threads are to be had: those that are there have to do
            if not self._threads:
                raise EngineError(
                    f"no thread for a worker is to be had ({error}): raise the limit on threads, or answer on your own "
                    "with run(x)"
                ) from error
        else:
            self._threads.append(thread)

    def _shed(self, dropped: "list[Future[Result]]") -> None:
        for future in dropped:
            if future.set_running_or_notify_cancel():  # or its owner has given it up already
                with self._changed:
                    self.shed += 1
                future.set_exception(
                    ShedError(
                        f"shed, having waited longest: queue={self._limit} requests waited when another "
                        "came; submit fewer at a time, allow a cheaper point (max_drop, latency_ms), or give "
                        "bundle.runtime a longer queue"
                    )
                )

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._idle += 1
                while not self._items and not self._closed:
                    self._changed.wait()
                self._idle -= 1
                if self._closed:
                    return
                future, x, came = self._items.popleft()
            if future.set_running_or_notify_cancel():
                try:
                    result = self._work(x, came)
                except BaseException as error:
                    future.set_exception(error)
                else:
                    future.set_result(result)
                    del result
            del future, x  # an idle worker holds nothing
