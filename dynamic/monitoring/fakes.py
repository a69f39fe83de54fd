"""Monitors that tell what they are told: one snapshot, or a recorded day."""

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


class TraceMonitor:
    """Replays snapshots: a file that `python -m dynamic record` wrote, or a sequence of them, in order of `time_s`.

    `latest` is the snapshot for the time since `start`, `speed` times as fast; the first before, and after the last
    either that one for good or, with `loop`, the first again. Their `time_s` stays the recorded one, and goes on rising
    when the trace is repeated. `clock` in seconds.

    Raises CorruptError or SchemaError on a file that does not read (see `read_trace`), SettingError on no snapshots,
    on times that fall, and on a `speed` that is no positive number.
    """

    def __init__(
        self,
        trace: str | Path | Sequence[Snapshot],
        speed: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        loop: bool = False,
    ) -> None:
        if not 0 < speed < math.inf:
            raise SettingError(f"speed={speed} must be a positive number, 1 for as it was recorded")
        found = read_trace(Path(trace)).snapshots if isinstance(trace, str | Path) else tuple(trace)
        if not found:
            raise SettingError("a trace needs at least one snapshot")
        self.snapshots: tuple[Snapshot, ...] = tuple(found)
        self._times_s = [snapshot.time_s - found[0].time_s for snapshot in found]
        if any(after < before for before, after in zip(self._times_s, self._times_s[1:], strict=False)):
            raise SettingError("the snapshots of a trace must be in order of time_s")
        # the last snapshot holds for as long as one does on average
        self._length_s = self._times_s[-1] * len(found) / (len(found) - 1) if len(found) > 1 else 0.0
        self._speed, self._clock, self._loop = speed, clock, loop and self._length_s > 0
        self._began: float | None = None
        self._stopped: Snapshot | None = None
        self._kept: tuple[int, int, Snapshot] = (0, 0, self.snapshots[0])  # round, place, what was told for it

    @property
    def latest(self) -> Snapshot:
        """The snapshot for now; the same object until the next one's time has come."""
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
        kept = self._kept
        if kept[:2] != (turn, place):
            snapshot = self.snapshots[place]
            if turn:
                snapshot = replace(snapshot, time_s=snapshot.time_s + turn * self._length_s)
            kept = self._kept = (turn, place, snapshot)
        return kept[2]

    def start(self) -> Self:
        """Begin at the first snapshot; does nothing where it runs already."""
        if self._began is None:
            self._began, self._stopped = self._clock(), None
        return self

    def close(self) -> None:
        """`latest` stays as it is now; a later `start` begins anew."""
        if self._began is not None:
            self._stopped, self._began = self.latest, None
