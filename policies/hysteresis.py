"""A change that nothing forces waits until it has been better for a while, and longer after each that was premature."""

from dataclasses import dataclass

_SOONEST, _LATEST = 16, 4096  # decisions that a better point must last
_PREMATURE = 8  # times as many within which a change forced back shows that the one before came too early
_CALM = 32  # times as many without one, after which half is enough again


@dataclass(frozen=True)
class Hold:
    """`needed` decisions in a row a better point must last; it has for `better`, and the last change is `since` ago."""

    needed: int = _SOONEST
    better: int = 0
    since: int = _SOONEST * _PREMATURE

    def stay(self) -> "Hold":
        """The current point is the best."""
        since = self.since + 1
        if self.needed > _SOONEST and since >= _CALM * self.needed:
            return Hold(self.needed // 2, 0, _PREMATURE * self.needed // 2)
        return Hold(self.needed, 0, since)

    def wait(self) -> "Hold | None":
        """Another is better, while the current one will do: None where it has been so for long enough, to change."""
        return None if self.better + 1 >= self.needed else Hold(self.needed, self.better + 1, self.since + 1)

    def changed(self) -> "Hold":
        """After a change to a better point."""
        return Hold(self.needed, 0, 0)

    def forced(self, noisy: bool = True) -> "Hold":
        """The current point will not do any more; `noisy`: what says so follows requests, and may be mistaken.

        What follows a temperature or a battery is part of their control: it comes back all the time, and should.
        """
        soon = noisy and self.since < _PREMATURE * self.needed
        needed = min(2 * self.needed, _LATEST) if soon else self.needed
        return Hold(needed, 0, _PREMATURE * needed)
