"""A change that nothing forces waits until it has been better for a while, and longer after each that was premature."""

import math
from dataclasses import dataclass

_SOONEST, _LATEST = 16, 4096  # decisions that a better point must last
_PREMATURE = 8  # times as many within which a change forced back shows that the one before came too early
PAUSE_S = 30.0  # in which nothing dearer runs
_SHORTEST_S, _LONGEST_S = 300.0, 1200.0  # of a rest
_SOON = 4  # rests within which a change that is forced back came too early
_CALM = 32  # times as many without one, after which half is enough again


@dataclass(frozen=True)
class SwitchDelay:
    """`needed` decisions in a row a better point must last; it has for `better`, and the last change is `since` ago."""

    needed: int = _SOONEST
    better: int = 0
    since: int = _SOONEST * _PREMATURE

    def stay(self) -> "SwitchDelay":
        """The current point is the best."""
        if self.needed == _SOONEST and self.since >= _PREMATURE * _SOONEST and not self.better:
            return self  # nothing that may come depends on how long it has been
        since = self.since + 1
        if self.needed > _SOONEST and since >= _CALM * self.needed:
            return SwitchDelay(self.needed // 2, 0, _PREMATURE * self.needed // 2)
        return SwitchDelay(self.needed, 0, since)

    def wait(self) -> "SwitchDelay | None":
        """Another is better, while the current one will do: None where it has been so for long enough, to change."""
        return None if self.better + 1 >= self.needed else SwitchDelay(self.needed, self.better + 1, self.since + 1)

    def changed(self) -> "SwitchDelay":
        """After a change to a better point."""
        return SwitchDelay(self.needed, 0, 0)

    def forced(self, noisy: bool = True) -> "SwitchDelay":
        """The current point will not do any more; `noisy`: what says so follows requests, and may be mistaken.

        What follows a temperature or a battery is part of their control: it comes back all the time, and should.
        """
        soon = noisy and self.since < _PREMATURE * self.needed
        needed = min(2 * self.needed, _LATEST) if soon else self.needed
        return SwitchDelay(needed, 0, _PREMATURE * needed)


@dataclass(frozen=True)
class Cooldown:
    """After heat or a battery has made a cheaper point run, at `backed_s`, nothing dearer runs for a while.

    For `length_s` nothing of the `effort` or more that was too much. When a dearer point that was taken up, at `up_s`,
    is soon forced back, it would be again and again: each time it then rests twice as long, so that changes stay few.
    """

    length_s: float = _SHORTEST_S
    backed_s: float = -math.inf
    up_s: float = -math.inf
    effort: float = math.inf

    def over(self, time_s: float) -> bool:
        """Whether any dearer point may run; a clock that stands, or was set back, says nothing."""
        return not 0 < time_s - self.backed_s < PAUSE_S

    def most(self, time_s: float) -> float:
        """The effort that points must stay below."""
        return self.effort if 0 < time_s - self.backed_s < self.length_s else math.inf

    def changed(self, time_s: float) -> "Cooldown":
        """After a change to a better point."""
        return Cooldown(self.length_s, self.backed_s, time_s, self.effort)

    def forced(self, time_s: float, effort: float) -> "Cooldown":
        """After heat or a battery has ruled out a point of this effort."""
        soon = 0 <= time_s - self.up_s < _SOON * self.length_s
        longer = min(2 * self.length_s, _LONGEST_S) if soon else max(self.length_s / 2, _SHORTEST_S)
        return Cooldown(longer, time_s, self.up_s, effort)
