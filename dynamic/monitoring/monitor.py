"""What the device looks like now, refreshed in the background: reading it costs one attribute access."""

import math
import os
import time
from collections.abc import Callable
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


class Monitor:
    """Watches the device from daemon threads; `latest` is the newest snapshot and never blocks.

    Functions to use instead of what the machine has: `cpu()` -> load by other processes, 0..1, of the cores this one
    may use; `memory()` -> MB (10^6 bytes) that this process may still take; `process()` -> MB it holds; `battery()` ->
    charge 0..1 or a `Battery`; `temperature()` -> degrees Celsius; `power()` -> mW that the device draws;
    `frequency()` -> ratio to the maximum; `throttled()` -> True or False; `cpu_pressure()`, `memory_pressure()` ->
    share of time, 0..1. Each has a thread of its own, so that a slow one holds up nobody. In a container its own limits
    count. `root`: of the file tree whose proc/ and sys/ are read.

    A source that is absent, raises or returns nonsense is logged once on logger "dynamic" and left out (None in the
    snapshot, its name in `missing`) until it works. The others go on. Of a source with several members (batteries,
    cores, counters, levels of a container) one that fails or says what cannot be is left out alone, and logged once.
    `sources()` names it. A source that does not answer is left out once its last reading is 2 s old (three times its
    period where that is longer: batteries are read every 2 s). A battery that jumps by more than 5 points, or a
    temperature by more than 15 degrees, is believed at the third reading that says so. `time_s` of a snapshot is when
    the newest reading in it was taken.

    Raises SettingError where `interval_s` is not a positive number, or a source is no function.
    """

    def __init__(
        self,
        interval_s: float = 0.2,
        cpu: Callable[[], float] | None = None,
        memory: Callable[[], float] | None = None,
        battery: Callable[[], float | Battery] | None = None,
        *,
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
        given: dict[str, Callable[[], Any] | None] = {
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
        self._functions = {name: function for name, function in given.items() if function is not None}
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

    def start(self) -> Self:
        """Begin to refresh; waits for the first reading, but no longer than the interval.

        Does nothing where it runs already, but to start threads that could not be started before: their sources are
        missing until then. Threads do not survive a fork: call it again in the child.
        """
        if self._watch is not None:
            if self._pid == os.getpid():
                self._watch.start()
                return self
            self._leave(self._watch)
        self._pid = os.getpid()
        # all new: file handles and what a fork may have copied of locks are not used again
        self._watch = Watch(sources(self._root, self._functions), self.interval_s, self._set, self._reported)
        self._watch.start()
        return self

    def close(self) -> None:
        """Stop refreshing; `latest` keeps the last reading. A later `start` begins anew."""
        watch, self._watch = self._watch, None
        if watch is None:
            return
        if self._pid == os.getpid():
            watch.stop()
        else:
            self._leave(watch)

    def sources(self) -> tuple[SourceReport, ...]:
        """Where every reading comes from, or why there is none; empty unless it runs."""
        watch = self._watch
        return () if watch is None or self._pid != os.getpid() else watch.reports()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _leave(self, parents: Watch) -> None:
        """Keep what a fork copied, and touch nothing of it: a thread that is not here may hold any lock in it."""
        self._left.append(parents)

    def _set(self, snapshot: Snapshot) -> None:
        self.latest = snapshot
