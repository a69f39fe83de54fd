"""Delays before a change of the point that no limit forces. A change that was too early makes the next delay longer."""

import math
from dataclasses import dataclass

_SOONEST, _LATEST = 16, 4096  # requests for which a point must be better before it runs
_PREMATURE = 8  # times as many: a change that is forced back within them was too early
PAUSE_S = 30.0  # in which no more expensive point runs
_SHORTEST_S, _LONGEST_S = 300.0, 1200.0  # of a cooldown
_SOON = 4  # cooldowns: a change that is forced back within them was too early
_CALM = 32  # times as many requests without a change, after which the delay is halved


@dataclass(frozen=True)
class SwitchDelay:
    """How long a better point must remain better before it runs.

    Args:
        needed: Requests in a row.
        better: Requests in a row so far.
        since: Requests since the last change.
    """

    needed: int = _SOONEST
    better: int = 0
    since: int = _SOONEST * _PREMATURE

    def confirm(self, requests: int = 1) -> "SwitchDelay":
        """After a decision in which the current point is the best. `requests` have run since the last one."""
        if self.needed == _SOONEST and self.since >= _PREMATURE * _SOONEST and not self.better:
            return self  # the exact number has no further effect
        since = self.since + requests
        if self.needed > _SOONEST and since >= _CALM * self.needed:
            return SwitchDelay(self.needed // 2, 0, _PREMATURE * self.needed // 2)
        return SwitchDelay(self.needed, 0, since)

    def wait(self, requests: int = 1) -> "SwitchDelay | None":
        """After a decision in which another point is better and the current one is allowed. None: change now.

        `requests` have run since the last decision. Those before the first decision that found a better point do not
        count, since a single decision may follow noise.
        """
        better = self.better + requests if self.better else 1
        return None if better >= self.needed else SwitchDelay(self.needed, better, self.since + requests)

    def after_change(self) -> "SwitchDelay":
        """After a change to a better point."""
        return SwitchDelay(self.needed, 0, 0)

    def after_exclusion(self, noisy: bool = True) -> "SwitchDelay":
        """After a limit has excluded the current point.

        A `noisy` limit follows single requests and may be wrong, so the next delay may become longer. Temperature and
        battery are controlled, so a change back is normal there.
        """
        soon = noisy and self.since < _PREMATURE * self.needed
        needed = min(2 * self.needed, _LATEST) if soon else self.needed
        return SwitchDelay(needed, 0, _PREMATURE * needed)


@dataclass(frozen=True)
class Cooldown:
    """A time without expensive points, after heat or a battery has excluded one.

    An expensive point that runs again and is soon excluded again doubles the next cooldown, so that changes are few.

    Args:
        length_s: For so long no point of `effort` or more runs.
        start_s: When a point was excluded.
        upgrade_s: When a more expensive point last began to run.
        effort: Effort of the point that was excluded.
    """

    length_s: float = _SHORTEST_S
    start_s: float = -math.inf
    upgrade_s: float = -math.inf
    effort: float = math.inf

    def is_over(self, time_s: float) -> bool:
        """Whether any more expensive point may run. A clock that stands still, or was set back, starts no pause."""
        return not 0 < time_s - self.start_s < PAUSE_S

    def effort_limit(self, time_s: float) -> float:
        """The effort that points must be below. Infinite: there is no limit."""
        return self.effort if 0 < time_s - self.start_s < self.length_s else math.inf

    def after_change(self, time_s: float) -> "Cooldown":
        """After a change to a better point."""
        return Cooldown(self.length_s, self.start_s, time_s, self.effort)

    def after_exclusion(self, time_s: float, effort: float) -> "Cooldown":
        """After heat or a battery has excluded a point of this effort."""
        soon = 0 <= time_s - self.upgrade_s < _SOON * self.length_s
        longer = min(2 * self.length_s, _LONGEST_S) if soon else max(self.length_s / 2, _SHORTEST_S)
        return Cooldown(longer, time_s, self.upgrade_s, effort)
