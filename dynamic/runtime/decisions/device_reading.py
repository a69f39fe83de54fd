"""The device as the policy sees it for one request: the monitor's latest, with what is asked and what waits."""

import logging
import threading
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable
from weakref import WeakMethod

from dynamic.policies.fast_paths import fast_replace
from dynamic.policies.snapshot import Snapshot

logger = logging.getLogger("dynamic")


class HasLatest(Protocol):
    """What a runtime needs of a monitor."""

    @property
    def latest(self) -> Snapshot:
        """The newest snapshot. Reading it must not block."""

    def start(self) -> Any:
        """Begin to refresh. In a forked child, begin again."""

    def close(self) -> None:
        """Stop refreshing."""


@runtime_checkable
class HasListeners(Protocol):
    """What a monitor may have besides: then a runtime decides on the monitor's thread, and not during a request."""

    def subscribe(self, listener: Callable[[], object], /) -> Callable[[], None]:
        """Call a function after each new `latest`. Returns what ends that."""


def begin(monitor: HasLatest) -> None:
    """Start a monitor. One that cannot start is logged, and what it measures is missing.

    Args:
        monitor: The runtime's own, or the user's.
    """
    try:
        monitor.start()
    except Exception as error:
        logger.warning(
            "monitor %s did not start (%r). Requests are answered without what it measures",
            type(monitor).__name__,
            error,
            exc_info=error,
        )


class RequestReading:
    """Snapshots for requests: the same object until something changes.

    A monitor that raises, or gives no snapshot, is logged once, and its last good snapshot holds. `started` is called
    after the monitor was started. `first`: the first snapshot that was read, None before.

    Args:
        monitor: The monitor.
        starts: Start the monitor when it is first read, and not before.
    """

    def __init__(self, monitor: HasLatest, starts: bool = False) -> None:
        self._monitor = monitor
        self._last = Snapshot(time_s=0.0)  # that was good; before any nothing is known
        self._has_warned = False
        # the monitor's snapshot and what was made of it last: one tuple, so that threads always see a pair that fits
        self._last_pair: tuple[Snapshot, Snapshot] | None = None
        self._starts = starts
        self._starting = threading.RLock()  # reentrant: a signal handler may read too
        self.started: Callable[[], None] = lambda: None
        self.news: Callable[[], None] | None = None  # called once, with the monitor's next snapshot
        self.first: Snapshot | None = None
        self._end: Callable[[], None] | None = None  # of the subscription

    def unfollow(self) -> None:
        """End `follow`. Nothing where there is no subscription."""
        end, self._end = self._end, None
        if end is not None:
            try:
                end()
            except Exception as error:
                name = type(self._monitor).__name__
                logger.warning("monitor %s does not end a subscription: %r", name, error, exc_info=error)

    def follow(self, method: Callable[[], None]) -> None:
        """Have a bound method called after each new snapshot, where the monitor can do that.

        The monitor does not keep its object in memory. A subscription that fails is logged, and requests decide.
        """
        if isinstance(self._monitor, HasListeners):
            weak = WeakMethod(method)
            ends: list[Callable[[], None]] = []

            def call() -> None:
                if (alive := weak()) is not None:
                    alive()
                else:
                    ends[0]()

            try:
                end = self._monitor.subscribe(call)
                if not callable(end):
                    raise TypeError(f"subscribe returned {end!r:.80}, and not a function that ends the subscription")
            except Exception as error:
                name = type(self._monitor).__name__
                logger.warning("monitor %s: %r. Requests decide on its snapshots", name, error, exc_info=error)
                return
            ends.append(end)
            self._end = end

    @property
    def waits(self) -> bool:
        """Whether the monitor is started only when it is read next."""
        return self._starts

    def forget(self) -> None:
        """The monitor's threads are not in a forked child: start it there before it is read."""
        self._starts, self._starting = True, threading.RLock()

    @property
    def latest(self) -> Snapshot:
        """The monitor's latest, or the last good one."""
        starting = self._starts and self._start()
        try:
            latest = self._monitor.latest
            if not isinstance(latest, Snapshot):
                raise TypeError(f"{latest!r:.80} is no Snapshot")
        except Exception as error:
            self._failed(error)
        else:
            before, self._last = self._last, latest
            if self.first is None:
                self.first = latest
            if self.news is not None and latest is not before:
                news, self.news = self.news, None
                if news is not None:  # else another thread has taken it
                    news()
        if starting:
            self.started()
        return self._last

    def _start(self) -> bool:
        """Start the monitor, or wait for the thread that does. Returns whether it was this one."""
        with self._starting:
            if not self._starts:
                return False
            begin(self._monitor)
            self._starts = False
            return True

    def of_request(
        self,
        latest: Snapshot,
        rows: int,
        waited_ms: float,
        queue_length: int,
        servers: int | None,
        size: int | None = None,
    ) -> Snapshot:
        """A snapshot for a request of so many rows that has waited. Others wait behind it for so many `servers`.

        `size`: of one of its rows. None: no dimension is dynamic.
        """
        pair = self._last_pair
        if pair is not None and pair[0] is latest:
            snapshot = pair[1]
            same = snapshot.rows == rows and snapshot.waited_ms == waited_ms and snapshot.size == size
            if same and snapshot.queue_length == queue_length and snapshot.servers == servers:
                return snapshot
        snapshot = fast_replace(
            latest, rows=rows, waited_ms=waited_ms, queue_length=queue_length, servers=servers, size=size
        )
        self._last_pair = latest, snapshot
        return snapshot

    def _failed(self, error: Exception) -> None:
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "monitor %s raised %r. Requests are answered by its last good snapshot (told once)",
                type(self._monitor).__name__,
                error,
                exc_info=error,
            )
