"""What the device looks like now, refreshed in the background: reading it costs one attribute access."""

import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

import psutil

from dynamic.policies.errors import BudgetError
from dynamic.policies.snapshot import Snapshot

logger = logging.getLogger("dynamic")

Fields = Mapping[str, Any]  # fields of a Snapshot
Source = Callable[[], Fields]

_STALE_INTERVALS, _STALE_S = 10, 2.0  # a reading older than the larger of the two is no reading
_LIMITS = {
    "cpu_load": (0.0, 1.0),
    "cpu_cores": (0.0, 1e5),
    "frequency_ratio": (0.0, 10.0),
    "memory_available_mb": (0.0, 1e12),
    "memory_process_mb": (0.0, 1e12),
    "battery": (0.0, 1.0),
}


@dataclass(frozen=True)
class Battery:
    """For a battery function that knows more than the charge: `level` 0..1, and whether on the mains."""

    level: float
    plugged: bool | None = None


class Monitor:
    """Watches the device from daemon threads; `latest` is the newest snapshot and never blocks.

    `cpu()` -> load of other processes, 0..1; `memory()` -> available MB (10^6 bytes); `battery()` -> charge
    0..1 or a `Battery`: functions to use instead of what psutil finds. Each has a thread of its own, so that a
    slow one holds up nobody. A source that is absent, raises or returns nonsense is logged once on logger
    "dynamic" and left out (None in the snapshot, its name in `missing`) until it works; the others go on.

    Raises BudgetError where `interval_s` is not a positive number.
    """

    def __init__(
        self,
        interval_s: float = 0.2,
        cpu: Callable[[], float] | None = None,
        memory: Callable[[], float] | None = None,
        battery: Callable[[], float | Battery] | None = None,
    ) -> None:
        if not 0 < interval_s < math.inf:
            raise BudgetError(f"interval_s={interval_s} must be a positive number of seconds, for instance 0.2")
        self.interval_s = interval_s
        self.latest = Snapshot(time_s=time.monotonic())
        self._users: dict[str, Source] = {}
        if cpu is not None:
            self._users["cpu"] = lambda: {"cpu_load": cpu(), "cpu_cores": float(len(usable_cores()))}
        if memory is not None:
            self._users["memory"] = lambda: {"memory_available_mb": memory()}
        if battery is not None:
            self._users["battery"] = lambda: _battery_fields(battery())
        self._reported: set[str] = set()
        self._threads: list[threading.Thread] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()  # of the readings
        self._readings: dict[str, tuple[float, Fields]] = {}  # source -> (time_s, fields)
        self._pid: int | None = None  # the process whose threads these are

    def start(self) -> Self:
        """Begin to refresh; waits for the first reading, but no longer than the interval.

        Does nothing where it runs already. Threads do not survive a fork: call it again in the child.
        """
        if self._pid == os.getpid():
            return self
        self._pid = os.getpid()
        # all new: a fork may have copied a lock that was held, and old threads must not publish any more
        self._stop, self._lock, self._readings = threading.Event(), threading.Lock(), {}
        own: dict[str, Source] = {
            "cpu": OtherLoad(),
            "frequency": _frequency,
            "memory": _memory,
            "process": _process_memory(),
            "battery": _battery,
        }
        groups = [{name: read for name, read in own.items() if name not in self._users}]
        groups += [{name: read} for name, read in self._users.items()]
        names = frozenset(own)
        ready = [threading.Event() for _ in groups]
        self._threads = [
            threading.Thread(
                target=self._watch,
                args=(group, names, self._stop, self._lock, self._readings, event),
                name="dynamic-monitor",
                daemon=True,
            )
            for group, event in zip(groups, ready, strict=True)
        ]
        end = time.monotonic() + self.interval_s
        for thread in self._threads:
            thread.start()
        for event in ready:
            event.wait(max(0.0, end - time.monotonic()))
        return self

    def close(self) -> None:
        """Stop refreshing; `latest` keeps the last reading. A later `start` begins anew."""
        self._stop.set()
        if self._pid == os.getpid():
            for thread in self._threads:
                thread.join(self.interval_s)  # one that hangs in a user's function ends when that returns
        self._threads, self._pid = [], None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _watch(
        self,
        sources: Mapping[str, Source],
        names: frozenset[str],
        stop: threading.Event,
        lock: threading.Lock,
        readings: dict[str, tuple[float, Fields]],
        ready: threading.Event,
    ) -> None:
        while not stop.is_set():
            for name, read in sources.items():
                fields = self._read(name, read)
                with lock:
                    if fields is None:
                        readings.pop(name, None)
                    else:
                        readings[name] = (time.monotonic(), fields)
            with lock:
                if not stop.is_set():
                    self.latest = self._snapshot(names, readings)
            ready.set()
            stop.wait(self.interval_s)

    def _read(self, name: str, read: Source) -> Fields | None:
        try:
            return _checked(read())
        except Exception as error:
            if name not in self._reported:
                self._reported.add(name)
                level = logging.INFO if isinstance(error, AbsentError) else logging.WARNING
                logger.log(level, "the monitor goes on without %s: %s", name, error or repr(error))
            return None

    def _snapshot(self, names: frozenset[str], readings: Mapping[str, tuple[float, Fields]]) -> Snapshot:
        now = time.monotonic()
        oldest = now - max(_STALE_S, _STALE_INTERVALS * self.interval_s)
        fresh = {name: fields for name, (read_at, fields) in readings.items() if read_at >= oldest}
        merged = {field: value for fields in fresh.values() for field, value in fields.items()}
        return Snapshot(time_s=now, **merged, missing=tuple(sorted(names - set(fresh))))


class FixedMonitor:
    """A monitor that says what it is told; assign `latest`, or `set` single fields."""

    def __init__(self, snapshot: Snapshot | None = None) -> None:
        self.latest = snapshot if snapshot is not None else Snapshot(time_s=0.0)

    def set(self, **changes: Any) -> None:
        """Replace fields of the snapshot: `monitor.set(battery=0.1, plugged=False)`."""
        self.latest = replace(self.latest, **changes)

    def start(self) -> Self:
        """Nothing to start."""
        return self

    def close(self) -> None:
        """Nothing to stop."""


class AbsentError(Exception):
    """This machine has no such sensor."""


class OtherLoad:
    """Share of the usable cores' time that other processes took since the last call, 0..1.

    What the system counts as busy on those cores, minus this process's own CPU time. None until the system's
    clock ticks (often 10 ms) give a difference worth dividing.
    """

    _LEAST_S = 0.1

    def __init__(self) -> None:
        self._cores: tuple[int, ...] = ()
        self._total_s = self._busy_s = self._own_s = 0.0
        self._load: float | None = None

    def __call__(self) -> Fields:
        cores = usable_cores()
        total_s, busy_s, own_s = *_core_times(cores), time.process_time()
        if cores != self._cores:
            self._cores, self._load = cores, None
            self._total_s, self._busy_s, self._own_s = total_s, busy_s, own_s
        elapsed_s = total_s - self._total_s  # of all cores together
        if elapsed_s >= self._LEAST_S:
            others_s = (busy_s - self._busy_s) - (own_s - self._own_s)
            self._load = min(1.0, max(0.0, others_s / elapsed_s))
            self._total_s, self._busy_s, self._own_s = total_s, busy_s, own_s
        return {"cpu_load": self._load, "cpu_cores": float(len(cores))}


def usable_cores() -> tuple[int, ...]:
    """Numbers of the cores this process may run on (its affinity mask, where the system has one)."""
    if sys.platform == "linux":
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def _core_times(cores: tuple[int, ...]) -> tuple[float, float]:
    """(all, busy) seconds of these cores since the system started."""
    times = psutil.cpu_times(percpu=True)
    total = idle = 0.0
    for core in cores:
        if core < len(times):
            named = times[core]._asdict()
            # guests are counted in user and nice already
            total += sum(value for name, value in named.items() if not name.startswith("guest"))
            idle += named.get("idle", 0.0) + named.get("iowait", 0.0)
    return total, total - idle


def _frequency() -> Fields:
    found = _existing(psutil, "cpu_freq")
    if found is None or not found.max:
        raise AbsentError("the system does not tell the CPU's frequency")
    return {"frequency_ratio": found.current / found.max}


def _memory() -> Fields:
    return {"memory_available_mb": psutil.virtual_memory().available / 1e6}


def _process_memory() -> Source:
    process = psutil.Process()
    return lambda: {"memory_process_mb": process.memory_info().rss / 1e6}


def _battery() -> Fields:
    found = _existing(psutil, "sensors_battery")
    if found is None:
        raise AbsentError("this machine has no battery that psutil knows; give Monitor(battery=function)")
    return _battery_fields(Battery(min(1.0, found.percent / 100), found.power_plugged))


def _battery_fields(found: float | Battery) -> Fields:
    battery = found if isinstance(found, Battery) else Battery(found)
    return {"battery": battery.level, "plugged": battery.plugged}


def _existing(module: Any, name: str) -> Any:
    """`module.name()`, or None where the system has no such thing."""
    try:
        return getattr(module, name)()
    except (AttributeError, NotImplementedError, FileNotFoundError):
        return None


def _checked(fields: Fields) -> Fields:
    """The fields as plain numbers; raises ValueError on a value that cannot be."""
    good: dict[str, Any] = {}
    for name, value in fields.items():
        if name == "plugged" or (name == "cpu_load" and value is None):
            good[name] = None if value is None else bool(value)
            continue
        low, high = _LIMITS[name]
        if not low <= float(value) <= high:  # False for NaN
            raise ValueError(f"{name}={value!r} is not between {low:g} and {high:g}")
        good[name] = float(value)
    return good
