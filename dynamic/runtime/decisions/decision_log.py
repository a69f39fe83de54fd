"""Reports every change of decision: a log line with fields, and the user's own function."""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass

from dynamic.policies.decision import Decision
from dynamic.policies.frontier import CostedPoint
from dynamic.policies.snapshot import Snapshot
from dynamic.policies.words.short_repr import short_repr, wrapped

logger = logging.getLogger("dynamic")


@dataclass(frozen=True, eq=False)
class Change:
    """A change of the decision.

    Args:
        time_s: When the sensors were read, in seconds of a monotonic clock.
        before: The point that ran. None: this is the first decision.
        after: The point that runs now.
        decision: The decision, with its reason.
        snapshot: The readings that it saw.

    Example:
        >>> changes = []
        >>> with bundle.runtime(on_change=changes.append) as run:
        ...     answer = run(x)
        >>> print(changes[0].before, changes[0].after.name == answer.decision.point.name)
        None True
    """

    time_s: float
    before: CostedPoint | None
    after: CostedPoint
    decision: Decision
    snapshot: Snapshot

    def __str__(self) -> str:
        before = "start" if self.before is None else self.before.name
        return wrapped(f"{before} -> {self.after.name}: {self.decision.reason}", "    ")

    def __repr__(self) -> str:
        before = None if self.before is None else self.before.name
        return short_repr("Change", [f"{before!r} -> {self.after.name!r}", f"reason={self.decision.reason!r}"])


OnChange = Callable[[Change], object]


class Announcer:
    """Reports changes on logger "dynamic" and to a function, on the thread of the request that decided.

    Log records carry `record.dynamic`: time_s, from, to, reason, violated_limits, and the snapshot's known fields. A
    function that raises is logged once and is called again.
    """

    def __init__(self, on_change: OnChange | None) -> None:
        self._on_change = on_change
        self._has_warned = False

    def __call__(self, before: CostedPoint | None, decision: Decision, snapshot: Snapshot) -> None:
        """Report one change."""
        try:
            if logger.isEnabledFor(logging.INFO):
                _log(before, decision, snapshot)
            if self._on_change is not None:
                self._on_change(Change(snapshot.time_s, before, decision.point, decision, snapshot))
        except Exception as error:
            if not self._has_warned:
                self._has_warned = True
                logger.warning(
                    "on_change raised %r. Requests are answered all the same (told once)", error, exc_info=error
                )


def _log(before: CostedPoint | None, decision: Decision, snapshot: Snapshot) -> None:
    name = decision.point.name
    readings = {field: value for field, value in asdict(snapshot).items() if value not in (None, ())}
    fields = {
        "time_s": readings.pop("time_s"),
        "from": None if before is None else before.name,
        "to": name,
        "reason": decision.reason,
        "violated_limits": decision.violated_limits,
        "snapshot": readings,
    }
    logger.info("decision %s: %s", name, decision.reason, extra={"dynamic": fields})
