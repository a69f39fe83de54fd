"""A decision in words: which point runs, why, and what the numbers are. Words are made only when they are read."""

import math
from collections.abc import Sequence
from string import Formatter
from typing import Any

from dynamic.policies.budget import Budget
from dynamic.policies.control.device_state import DeviceState
from dynamic.policies.control.switching import PAUSE_S, Cooldown, SwitchDelay
from dynamic.policies.fast_paths import Rank
from dynamic.policies.frontier import Frontier

Note = tuple[Any, ...]  # a template, or a function that gives the text, and its values


class Reason:
    """Why a point runs.

    `candidates` (bits, see `Rank`): the points that the choice was among; `rank`: the order of the choice. `notes`:
    what the limits have excluded; `spared`: see `worded`. `hold` is given where the point runs only because a change
    waits. `barred`: the effort from which on points rest (inf: none).
    """

    __slots__ = (
        "_barred",
        "_budget",
        "_candidates",
        "_frontier",
        "_hold",
        "_notes",
        "_place",
        "_rank",
        "_rest",
        "_seen",
        "_spared",
    )

    def __init__(
        self,
        frontier: Frontier,
        place: int,
        candidates: int,
        rank: Rank,
        notes: Sequence[Note],
        spared: Sequence[tuple[int, float]],
        budget: Budget,
        seen: DeviceState,
        hold: SwitchDelay | None,
        rest: Cooldown,
        barred: float,
    ) -> None:
        self._frontier, self._place, self._candidates, self._rank = frontier, place, candidates, rank
        self._notes, self._spared, self._budget, self._seen = notes, spared, budget, seen
        self._hold, self._rest, self._barred = hold, rest, barred

    def __str__(self) -> str:
        frontier, seen = self._frontier, self._seen
        point, first = frontier.points[self._place].operating_point, self._rank.first(self._candidates)
        best = (
            f"{frontier.points[first].name!r} is the {self._kind(first)} of {self._candidates.bit_count()} of "
            f"{len(frontier.points)} points: {self._why()}"
        )
        words = best if first == self._place else f"{point.name!r} stays: {best}, and {self._waits()}"
        latency = frontier.latency(self._budget.percentile, seen.rows, seen.spread)
        certified = "not certified, " if point.bound is None else ""
        predicted = plain(latency.figures[self._place] * seen.slowdown, 3)
        return f"{words} ({certified}predicted {predicted} ms, slowdown {seen.slowdown:.2f})"

    def _kind(self, first: int) -> str:
        frontier, seen = self._frontier, self._seen
        if seen.drift and self._budget.on_drift == "safest":
            return "safest"
        if self._rank is frontier.accuracy:
            return "most accurate"
        mean = frontier.latency(None, seen.rows)
        least, noise = mean.figures[mean.first(self._candidates)], frontier.costs.noise
        if mean.figures[first] <= least:
            return "fastest"
        if mean.figures[first] <= least * (1 + noise):
            return f"fastest (times within {noise:.0%} count as equal)"
        return "fastest at the smallest batch"

    def _why(self) -> str:
        said = [worded(self._notes, self._spared)] if self._notes else []
        if math.isfinite(self._barred):
            metered = self._frontier.costs.energy_mj is not None
            said.append(
                f"points of {plain(self._barred)} {'mJ' if metered else 'CPU-ms'} or more rest "
                f"{plain(self._rest.length_s)} s after heat or a battery excluded one"
            )
        return "; ".join(said) or "nothing rules it out"

    def _waits(self) -> str:
        ago_s = self._seen.time_s - self._rest.backed_s
        if not self._rest.over(self._seen.time_s):
            return (
                f"no better point runs before {plain(PAUSE_S)} s after heat or a battery forced one ({ago_s:.0f} s ago)"
            )
        if self._hold is not None:
            return f"a change waits until that has been so in {self._hold.needed} decisions: {_count(self._hold)}"
        return "one request that waits changes nothing for the others"


def worded(notes: Sequence[Note], spared: Sequence[tuple[int, float]] = ()) -> str:
    """What limits have excluded, as text.

    `spared`: the notes whose limit excluded a point only since it is more expensive than the current one, and the share
    of the limit that such a point must meet.
    """
    said = [template(*values) if callable(template) else formatted(template, *values) for template, *values in notes]
    for number, spare in spared:
        said[number] += f", a more expensive point than the current one at most {plain(spare)} of that"
    return "; ".join(said)


def formatted(template: str, *values: Any) -> str:
    """The template with its values: `{}` is a plain number, `{:3}` one of three digits, `{:share}` a percentage."""
    return _FORMATTER.format(template, *values)


def plain(value: float, digits: int = 4) -> str:
    """A number with so many digits, without an exponent: 16000, not 1.6e+04."""
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    places = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    text = f"{value:.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _count(hold: SwitchDelay) -> str:
    return f"{hold.better} of {hold.needed} decisions so far"


class _Formatter(Formatter):
    def format_field(self, value: Any, format_spec: str) -> str:
        if format_spec == "share":
            return f"{plain(100 * value, 3)}%"
        if isinstance(value, float) and (not format_spec or format_spec.isdigit()):
            return plain(value, int(format_spec or 4))
        return str(super().format_field(value, format_spec))


_FORMATTER = _Formatter()
