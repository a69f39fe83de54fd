"""Requests that wait for a worker, oldest first, and no more than a limit of them."""

import contextlib
import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from dynamic.policies.errors import ClosedError, EngineError, SettingError, ShedError
from dynamic.policies.validation.numbers import plain

T = TypeVar("T")  # what answers are: results, or the responses of a server
Entry = tuple[Future[T], Any, float]  # with the input and when it came

CLOSED = "this runtime is closed: open another with bundle.runtime(...)"


class _Turn(Future[T]):
    """A future that leaves its queue when it is cancelled, so that it no longer counts as one that waits."""

    def __init__(self, leave: "weakref.WeakMethod[Callable[[], None]]") -> None:
        super().__init__()
        self._leave = leave  # weak: a result that is kept must not keep the runtime

    def cancel(self) -> bool:
        cancelled = super().cancel()
        if cancelled and (leave := self._leave()) is not None:
            leave()
        return cancelled


class Waiting(Generic[T]):
    """A queue of at most `limit` requests, answered by `work(input, when it came)` on `workers` threads.

    Threads start with the first request. A request for which a worker is free does not wait, even before that worker
    has woken up. Where the queue is full, the oldest request in it is shed: it has waited longest, so that its answer
    would be the latest of all. `ended` is called when the last worker has ended after `close`. Raises SettingError
    where a number is not at least 1.

    `close` takes no lock: a signal handler may call it while its own thread is inside `submit`.
    """

    def __init__(
        self,
        limit: int,
        workers: int,
        work: Callable[[Any, float], T],
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        limit, workers = plain(limit), plain(workers)
        for name, value in (("queue", limit), ("workers", workers)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise SettingError(f"{name}={value!r} must be a whole number of at least 1")
        self._limit, self._most, self._work, self._ended = limit, workers, work, ended
        self.workers = workers
        self._closed = False
        self._leave = weakref.WeakMethod(self._forget_cancelled)
        self._until = -math.inf  # when those that wait at `close` stop being answered, on the monotonic clock
        self.shed = self.longest = 0
        self.forget()

    def forget(self) -> Any:
        """What a forked child has of its parent's: neither its threads nor what waits for them."""
        lost = getattr(self, "_items", None), getattr(self, "_wakes", None)
        self._items: deque[Entry[T]] = deque()
        self._wakes: SimpleQueue[None] = SimpleQueue()  # one entry for each request, and for each worker to end
        self._threads: list[threading.Thread] = []
        self._busy = 0  # workers that have taken a request
        # of items, threads and busy together. Reentrant, since a signal handler may submit too
        self._changed = threading.RLock()
        return lost

    def __len__(self) -> int:
        return len(self._items)

    @property
    def oldest_came(self) -> float | None:
        """When the request came that waits longest. None where none waits."""
        try:
            return self._items[0][2]
        except IndexError:
            return None

    @property
    def busy(self) -> int:
        """Requests that are being answered."""
        return self._busy

    def submit(self, x: Any, came: float) -> "Future[T]":
        """Let an input wait for its turn.

        Raises ClosedError after `close`, EngineError where not even one worker can be started: nothing is shed then.
        """
        future: Future[T] = _Turn(self._leave)
        dropped: list[Future[T]] = []
        with self._changed:
            if self._closed:
                raise ClosedError(CLOSED)
            if self._free <= len(self._items) and len(self._threads) < self._most:
                self._begin()
            entry = future, x, came
            self._items.append(entry)
            if len(self._items) - self._free > self._limit:
                self._forget_cancelled()
            while len(self._items) - self._free > self._limit:
                with contextlib.suppress(IndexError):  # a signal handler has closed, and emptied it
                    dropped.append(self._items.popleft()[0])
            self.longest = max(self.longest, len(self._items) - self._free)
        self._wakes.put(None)
        self._shed(dropped)
        if self._closed and self._withdraw(entry):  # closed after the look above: perhaps no worker is left
            raise ClosedError(CLOSED)
        return future

    def close(self, drain: bool = False, timeout_s: float | None = None, wait: bool = True) -> bool:
        """Take no more requests and end the threads. Returns whether none that waits will be answered any more.

        A `close` after one with `drain` does not end it. It waits for it, and no longer than its own `timeout_s`.

        Args:
            drain: Answer those that wait. Otherwise they fail with ClosedError.
            timeout_s: How long to wait for the threads. None is as long as they take. Whatever then still waits fails.
            wait: Whether to wait at all. A signal handler must not.
        """
        ends = math.inf if timeout_s is None else time.monotonic() + timeout_s
        if self._closed and self._until > time.monotonic():  # those that wait are being answered
            ends = min(ends, self._until)
        else:
            self._until = ends if drain else -math.inf
        self._closed = True
        if self._until == -math.inf:
            self._refuse()
        for _ in range(self._most):
            self._wakes.put(None)
        if wait:
            me = threading.current_thread()  # a callback of a future may close: this worker goes on afterwards
            for thread in list(self._threads):
                if thread is not me:
                    thread.join(None if ends == math.inf else max(0.0, ends - time.monotonic()))
            if me not in self._threads:
                self._until = -math.inf
                self._refuse()
        return not self._threads or self._until == -math.inf

    @property
    def _free(self) -> int:
        """Workers that will take the next requests, awake or not."""
        return len(self._threads) - self._busy

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

    def _withdraw(self, entry: Entry[T]) -> bool:
        """Take an entry back. Returns whether nobody else has taken it."""
        try:
            self._items.remove(entry)
        except ValueError:
            return False
        return True

    def _forget_cancelled(self) -> None:
        """Take out what its owner has given up: it waits for nothing."""
        with self._changed:
            for entry in [entry for entry in list(self._items) if entry[0].cancelled()]:  # a handler may change it
                if self._withdraw(entry):
                    entry[0].set_running_or_notify_cancel()  # or `concurrent.futures.wait` waits for it

    def _refuse(self) -> None:
        """Fail whatever waits."""
        while self._items:
            with contextlib.suppress(IndexError):  # a worker was faster
                _fail(self._items.popleft()[0], ClosedError(f"not answered: {CLOSED}"))

    def _shed(self, dropped: "list[Future[T]]") -> None:
        for future in dropped:
            error = ShedError(
                f"shed, having waited longest: queue={self._limit} requests waited when another "
                "came. Submit fewer at a time, allow a cheaper point (max_drop, latency_ms), or give "
                "bundle.runtime a longer queue"
            )
            if _fail(future, error):
                with self._changed:
                    self.shed += 1

    def _serve(self) -> None:
        wakes = self._wakes
        while True:
            wakes.get()
            with self._changed:
                entry = self._items.popleft() if self._items else None
                self._busy += entry is not None
            if entry is None:
                if self._closed:
                    break
                continue  # its request was shed
            future, x, came = entry
            if self._closed and time.monotonic() >= self._until:
                self._done()
                _fail(future, ClosedError(f"not answered: {CLOSED}"))
            elif future.set_running_or_notify_cancel():
                try:
                    result = self._work(x, came)
                except BaseException as error:
                    self._done()  # first, so that whoever waits for the result finds a free worker
                    future.set_exception(error)
                else:
                    self._done()
                    future.set_result(result)
                    del result
            else:
                self._done()
            del future, x, entry  # an idle worker holds nothing
        with contextlib.suppress(ValueError):  # a fork forgot it
            self._threads.remove(threading.current_thread())
        if not self._threads:
            self._ended()

    def _done(self) -> None:
        with self._changed:
            self._busy -= 1


def _fail(future: "Future[T]", error: BaseException) -> bool:
    """Fail a request. False where its owner has given it up already."""
    if not future.set_running_or_notify_cancel():
        return False
    future.set_exception(error)
    return True
