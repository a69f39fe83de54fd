"""The state of the device, refreshed in the background: reading it costs one attribute access."""

import logging
import math
import os
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dynamic.monitoring.contract import Battery, SourceReport
from dynamic.monitoring.fakes import FixedMonitor, TraceMonitor
from dynamic.monitoring.sensor_loop import Watch
from dynamic.monitoring.sources.system import sources
from dynamic.policies.errors import SettingError
from dynamic.policies.snapshot import Snapshot
from dynamic.policies.validation.numbers import plain

__all__ = ["Battery", "FixedMonitor", "Monitor", "TraceMonitor"]

logger = logging.getLogger("dynamic")


class Monitor:
    """Read the sensors of the device in daemon threads. `latest` is the newest snapshot, and access never blocks.

    A function replaces the sensor of the machine. Each function has its own thread, so that a slow one delays no other.
    In a container its limits count.

    A source that is absent, raises or returns an impossible value is logged once on logger "dynamic". Its fields are
    None and its name is in `missing` until it works. A source that does not answer is excluded once its last reading is
    2 s old, or three of its periods if they are longer. A source may have several members: batteries, cores, counters,
    levels of a container. A member that fails is excluded alone, and `sources()` names it.

    A battery that jumps by more than 5 points, or a temperature by more than 15 degrees, counts from the third equal
    reading on. The `time_s` of a snapshot is the time of its newest reading.

    Args:
        interval_s: Seconds between refreshes, above 0.
        cpu: Load of other processes on the cores that this process may use, 0 to 1.
        memory: Memory that this process may still take, in 10^6 bytes.
        battery: Charge, 0 to 1, or a `Battery`.
        process: Memory of this process in 10^6 bytes.
        temperature: Temperature in degrees Celsius.
        power: Power that the device draws, in milliwatts.
        frequency: Clock over its maximum.
        throttled: Whether the hardware lowers its clock.
        cpu_pressure: Share of time in which work waits for a core, 0 to 1.
        memory_pressure: Share of time in which work waits for memory, 0 to 1.
        root: Folder whose proc/ and sys/ are read.

    Raises:
        SettingError: `interval_s` is not a positive number, or a sensor is no function.

    Example:
        >>> with dynamic.Monitor(battery=lambda: 0.42, root="/nothing") as monitor:
        ...     names = [source.name for source in monitor.sources()]
        >>> "battery" in names
        True
    """

    def __init__(
        self,
        interval_s: float = 0.2,
        *,
        cpu: Callable[[], float] | None = None,
        memory: Callable[[], float] | None = None,
        battery: Callable[[], float | Battery] | None = None,
        process: Callable[[], float] | None = None,
        temperature: Callable[[], float] | None = None,
        power: Callable[[], float] | None = None,
        frequency: Callable[[], float] | None = None,
        throttled: Callable[[], bool] | None = None,
        cpu_pressure: Callable[[], float] | None = None,
        memory_pressure: Callable[[], float] | None = None,
        root: str | Path = "/",
    ) -> None:
        interval_s = plain(interval_s)
        if not isinstance(interval_s, (int, float)) or not 0 < interval_s < math.inf:
            raise SettingError(f"interval_s={interval_s!r} must be a positive number of seconds, for instance 0.2")
        arguments: dict[str, Callable[[], Any] | None] = {
            "cpu": cpu,
            "memory": memory,
            "process": process,
            "battery": battery,
            "temperature": temperature,
            "power": power,
            "frequency": frequency,
            "throttled": throttled,
            "cpu_pressure": cpu_pressure,
            "memory_pressure": memory_pressure,
        }
        self._functions = {name: function for name, function in arguments.items() if function is not None}
        for name, function in self._functions.items():
            if not callable(function):
                raise SettingError(f"{name}={function!r} must be a function without arguments that reads the sensor")
        self.interval_s = interval_s
        self.latest = Snapshot(time_s=time.monotonic())
        self._root = Path(root)
        self._reported: set[str] = set()
        self._watch: Watch | None = None
        self._pid: int | None = None  # the process whose threads these are
        self._left: list[Watch] = []
        self._listeners: dict[int, Callable[[], object]] = {}  # by number
        self._numbers = count()

    def start(self) -> Self:
        """Begin to refresh. Wait for the first reading, but no longer than the interval.

        A monitor that runs only starts the threads that could not be started before. Threads do not survive a fork:
        call it again in the child.
        """
        if self._watch is not None:
            if self._pid == os.getpid():
                self._watch.start()
                return self
            self._leave(self._watch)
        self._pid = os.getpid()
        # all new: file handles and what a fork may have copied of locks are not used again
        source_list = sources(self._root, self._functions)
        self._watch = Watch(source_list, self.interval_s, self._set, self._reported, after_publish=self._call_listeners)
        self._watch.start()
        return self

    def close(self) -> None:
        """Stop. `latest` keeps the last reading. A later `start` begins again."""
        watch, self._watch = self._watch, None
        if watch is None:
            return
        if self._pid == os.getpid():
            watch.stop()
        else:
            self._leave(watch)

    def sources(self) -> tuple[SourceReport, ...]:
        """Return the origin of every reading, or the reason why there is none. Empty unless the monitor runs."""
        watch = self._watch
        return () if watch is None or self._pid != os.getpid() else watch.reports()

    def subscribe(self, listener: Callable[[], object]) -> Callable[[], None]:
        """Have a function called after each new `latest`, on a thread of the monitor.

        While it runs, the sensors of that thread are not read. One that raises is logged once, and is called again.

        Args:
            listener: Takes no arguments.

        Returns:
            A function that ends the subscription. It may be called again.

        Raises:
            SettingError: `listener` is no function.

        Example:
            >>> import threading
            >>> arrived = threading.Event()
            >>> with dynamic.Monitor(root="/nothing") as monitor:
            ...     end = monitor.subscribe(arrived.set)
            ...     arrived.wait(60)
            ...     end()
            True
        """
        if not callable(listener):
            raise SettingError(f"listener={listener!r} must be a function without arguments")
        number = next(self._numbers)
        self._listeners[number] = listener

        def end() -> None:
            self._listeners.pop(number, None)

        return end

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _leave(self, parents: Watch) -> None:
        """Keep what a fork copied, and touch nothing of it: a thread of the parent may hold any lock in it."""
        self._left.append(parents)

    def _set(self, snapshot: Snapshot) -> None:
        self.latest = snapshot

    def _call_listeners(self) -> None:
        for number, listener in list(self._listeners.items()):
            try:
                listener()
            except BaseException as error:  # whatever a user's function raises: the sensors are read all the same
                key = f"listener {number}"
                if key not in self._reported:
                    self._reported.add(key)
                    message = "%r, which listens to the monitor, raised %r. It is called again (logged once)"
                    logger.warning(message, listener, error, exc_info=error)
