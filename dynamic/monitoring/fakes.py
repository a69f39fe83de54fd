"""Monitors without sensors: one fixed snapshot, or a recorded trace."""

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from dynamic.monitoring.traces import read_trace
from dynamic.policies.errors import SettingError
from dynamic.policies.snapshot import Snapshot


class FixedMonitor:
    """A monitor with a fixed snapshot. Assign `latest`, or `set` single fields.

    Args:
        snapshot: The snapshot. None: one without any reading.

    Example:
        >>> monitor = dynamic.FixedMonitor(dynamic.Snapshot(time_s=0.0, battery=0.8))
        >>> monitor.set(battery=0.1, plugged=False)
        >>> monitor.latest.battery
        0.1
    """

    def __init__(self, snapshot: Snapshot | None = None) -> None:
        self.latest = snapshot if snapshot is not None else Snapshot(time_s=0.0)

    def set(self, **changes: Any) -> None:
        """Replace fields of the snapshot.

        Args:
            changes: New values by field of `Snapshot`.

        Raises:
            TypeError: A snapshot has no such field.

        Example:
            >>> monitor = dynamic.FixedMonitor()
            >>> monitor.set(temperature_c=71.5)
            >>> monitor.latest.temperature_c
            71.5
        """
        self.latest = replace(self.latest, **changes)

    def start(self) -> Self:
        """Return the monitor. There is nothing to start."""
        return self

    def close(self) -> None:
        """Do nothing."""


class TraceMonitor:
    """Replay recorded snapshots in real time.

    `latest` is the snapshot at the time since `start`. Before that it is the first, and after the end the last. The
    `time_s` of each snapshot is that of the recording. It continues to rise where the trace repeats.

    Args:
        trace: A file of `python -m dynamic record`, or snapshots in the order of `time_s`.
        speed: Factor on the speed of the recording, above 0.
        clock: Time in seconds.
        loop: Whether the trace repeats.

    Raises:
        CorruptError: The file is no trace, or is damaged.
        SchemaError: A newer version wrote the file.
        SettingError: There is no snapshot, times fall, or `speed` is not a positive number.

    Example:
        >>> snapshots = [dynamic.Snapshot(time_s=float(t), battery=1 - t / 100) for t in range(3)]
        >>> seconds = iter([0.0, 1.5])
        >>> monitor = dynamic.TraceMonitor(snapshots, clock=lambda: next(seconds)).start()
        >>> monitor.latest.battery
        0.99
    """

    def __init__(
        self,
        trace: str | Path | Sequence[Snapshot],
        speed: float = 1.0,
        *,
        clock: Callable[[], float] = time.monotonic,
        loop: bool = False,
    ) -> None:
        if not 0 < speed < math.inf:
            raise SettingError(f"speed={speed} must be a positive number, 1 for as it was recorded")
        snapshots = read_trace(Path(trace)).snapshots if isinstance(trace, str | Path) else tuple(trace)
        if not snapshots:
            raise SettingError("a trace needs at least one snapshot")
        self.snapshots: tuple[Snapshot, ...] = tuple(snapshots)
        self._times_s = [snapshot.time_s - snapshots[0].time_s for snapshot in snapshots]
        if any(after < before for before, after in zip(self._times_s, self._times_s[1:], strict=False)):
            raise SettingError("the snapshots of a trace must be in order of time_s")
        # the last snapshot holds for as long as one does on average
        self._length_s = self._times_s[-1] * len(snapshots) / (len(snapshots) - 1) if len(snapshots) > 1 else 0.0
        self._speed, self._clock, self._loop = speed, clock, loop and self._length_s > 0
        self._began: float | None = None
        self._stopped: Snapshot | None = None
        self._current: tuple[int, int, Snapshot] = (0, 0, self.snapshots[0])  # round, place, snapshot

    @property
    def latest(self) -> Snapshot:
        """The snapshot for now: one object until the time of the next."""
        if self._stopped is not None:
            return self._stopped
        if self._began is None:
            return self.snapshots[0]
        elapsed_s = max(0.0, (self._clock() - self._began) * self._speed)
        turn = 0
        if self._loop:
            turn = int(elapsed_s // self._length_s)
            elapsed_s -= turn * self._length_s
        place = max(0, bisect_right(self._times_s, elapsed_s) - 1)
        current = self._current
        if current[:2] != (turn, place):
            snapshot = self.snapshots[place]
            if turn:
                snapshot = replace(snapshot, time_s=snapshot.time_s + turn * self._length_s)
            current = self._current = (turn, place, snapshot)
        return current[2]

    def start(self) -> Self:
        """Begin at the first snapshot. Do nothing where the replay runs already."""
        if self._began is None:
            self._began, self._stopped = self._clock(), None
        return self

    def close(self) -> None:
        """Stop: `latest` no longer changes. A later `start` begins again."""
        if self._began is not None:
            self._stopped, self._began = self.latest, None
