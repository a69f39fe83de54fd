"""The state of a source between two readings, and the share of sources that a thread has."""

import threading
from dataclasses import dataclass, field, replace

from dynamic.monitoring.contract import NO_ANSWER, Reading, Source
from dynamic.monitoring.plausibility import JUMPS, Believed, believe

_KEEP_S, _KEEP_PERIODS, _KEEP_INTERVALS = 2.0, 3, 10  # a reading older than the longest of these does not count


@dataclass
class SourceState:
    """The state of a source: its last reading, its problem, and when it is read again."""

    source: Source
    period_s: float
    keep_s: float
    reading: Reading | None = None  # the last good one
    read_at: float = 0.0
    asked_at: float | None = None  # when it last answered or failed. None: never
    pause_s: float = 0.0  # how long it is not read again
    problem: str | None = NO_ANSWER
    failures: int = 0
    hanging: bool = False  # this was logged
    believed: dict[str, Believed] = field(default_factory=dict)


class Worker:
    """A thread and its sources. `busy` is the source that it reads and since when, or None between two sources."""

    def __init__(self, states: list[SourceState]) -> None:
        self.states = states
        self.busy: tuple[SourceState, float] | None = None
        self.ready = threading.Event()
        self.thread: threading.Thread | None = None  # None: it has not started, or could not


def periods(source: Source, interval_s: float) -> tuple[float, float]:
    """Two times of a source in seconds: its period, and how long a reading of it counts."""
    period_s = max(source.period_s, interval_s)
    return period_s, max(_KEEP_S, _KEEP_PERIODS * period_s, _KEEP_INTERVALS * interval_s)


def plausible(state: SourceState, reading: Reading, now: float) -> Reading:
    """The reading with accepted values in place of implausible ones."""
    fields = dict(reading.fields)
    for name, jump in JUMPS.items():
        value = fields.get(name)
        if value is not None:
            state.believed[name] = believe(state.believed.get(name, Believed()), value, now, jump)
            fields[name] = state.believed[name].value
    return replace(reading, fields=fields)
