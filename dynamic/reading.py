"""The device as the policy sees it for one request: the monitor's latest, with what is asked and what waits."""

from typing import Any, Protocol

from dynamic.policies.snapshot import Snapshot


class HasLatest(Protocol):
    """What a runtime needs of a monitor."""

    @property
    def latest(self) -> Snapshot:
        """The newest snapshot; reading it must not block."""

    def start(self) -> Any:
        """Begin to refresh; in a forked child, begin anew."""

    def close(self) -> None:
        """Stop refreshing."""


class Reading:
    """Snapshots for requests: the same object until something changes."""

    def __init__(self, monitor: HasLatest) -> None:
        self._monitor = monitor
        # the monitor's snapshot and what was made of it last: one tuple, so that threads always see a pair that fits
        self._known: tuple[Snapshot, Snapshot] | None = None
        self._forked = False

    def forget(self) -> None:
        """The monitor's threads are not in a forked child: start it there before it is read."""
        self._forked = True

    def __call__(self, rows: int, waited_ms: float, queue_length: int) -> Snapshot:
        """The monitor's latest, for a request of so many rows that has waited, with others waiting behind it."""
        if self._forked:
            self._forked = False
            self._monitor.start()
        latest, known = self._monitor.latest, self._known
        if known is not None and known[0] is latest:
            made = known[1]
            if made.rows == rows and made.waited_ms == waited_ms and made.queue_length == queue_length:
                return made
        made = with_fields(latest, rows=rows, waited_ms=waited_ms, queue_length=queue_length)
        self._known = latest, made
        return made


def with_fields(snapshot: Snapshot, **fields: Any) -> Snapshot:
    """A copy with other fields; `dataclasses.replace` takes ten times as long, for every request that has waited."""
    made: Snapshot = object.__new__(Snapshot)
    made.__dict__.update(snapshot.__dict__, **fields)
    return made
