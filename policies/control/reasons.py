"""A decision in words: which point runs, why, and with which figures. The text is built only when it is read."""

import math
from collections.abc import Sequence
from string import Formatter
from typing import Any

from dynamic.policies.budget import Budget
from dynamic.policies.control.device_state import DeviceState
from dynamic.policies.control.feasibility import saves
from dynamic.policies.control.switching import PAUSE_S, Cooldown, SwitchDelay
from dynamic.policies.fast_paths import Rank
from dynamic.policies.frontier import Frontier

Note = tuple[Any, ...]  # a template, or a function that returns the text, and its values


class Reason:
    """Why a point runs.

    Args:
        frontier: The points and their costs.
        place: Number of the point that runs.
        candidates: The points that the limits allow, as bits (see `Rank`).
        rank: The order of the choice.
        notes: What the limits have excluded.
        upgrade_notes: See `worded`.
        budget: The user's limits.
        device: The readings.
        switch_delay: The delay of a change that waits. None: no change waits.
        cooldown: The time without expensive points.
        effort_limit: The effort from which on points are skipped. Infinite: none are.
    """

    __slots__ = (
        "_budget",
        "_candidates",
        "_cooldown",
        "_device",
        "_effort_limit",
        "_frontier",
        "_notes",
        "_place",
        "_rank",
        "_switch_delay",
        "_upgrade_notes",
    )

    def __init__(
        self,
        frontier: Frontier,
        place: int,
        candidates: int,
        rank: Rank,
        notes: Sequence[Note],
        upgrade_notes: Sequence[tuple[int, float]],
        budget: Budget,
        device: DeviceState,
        switch_delay: SwitchDelay | None,
        cooldown: Cooldown,
        effort_limit: float,
    ) -> None:
        self._frontier, self._place, self._candidates, self._rank = frontier, place, candidates, rank
        self._notes, self._upgrade_notes, self._budget, self._device = notes, upgrade_notes, budget, device
        self._switch_delay, self._cooldown, self._effort_limit = switch_delay, cooldown, effort_limit

    def __str__(self) -> str:
        frontier, device = self._frontier, self._device
        point, first = frontier.points[self._place].operating_point, self._rank.first(self._candidates)
        best = (
            f"{frontier.points[first].name!r} is the {self._kind(first)} of {self._candidates.bit_count()} of "
            f"{len(frontier.points)} points. {self._why()}"
        )
        words = best if first == self._place else f"{point.name!r} continues: {best}. {self._waits()}"
        latency = frontier.latency(self._budget.percentile, device.rows, spread=device.spread, size=device.size)
        predicted = plain(latency.figures[self._place] * device.slowdown, 3)
        certified = "It is not certified. " if point.bound is None else ""
        pace = f"{device.slowdown:.2f} times the profile"
        return f"{words}. {certified}The predicted latency is {predicted} ms, {pace}"

    def _kind(self, first: int) -> str:
        frontier, device = self._frontier, self._device
        if device.drift and self._budget.on_drift == "safest":
            return "safest"
        if not saves(self._budget):
            return "most accurate"
        mean = frontier.latency(None, device.rows, size=device.size)
        least, noise = mean.figures[mean.first(self._candidates)], frontier.costs.noise
        if mean.figures[first] <= least:
            return "fastest"
        if mean.figures[first] <= least * (1 + noise):
            return f"fastest (times within {noise:.0%} count as equal)"
        return "fastest at the smallest batch"

    def _why(self) -> str:
        sentences = [worded(self._notes, self._upgrade_notes)] if self._notes else []
        if math.isfinite(self._effort_limit):
            metered = self._frontier.costs.energy_mj is not None
            sentences.append(
                f"Points of {plain(self._effort_limit)} {'mJ' if metered else 'CPU-ms'} or more are skipped for "
                f"{plain(self._cooldown.length_s)} s after heat or a battery excluded one"
            )
        return ". ".join(sentences) or "No limit excludes a point"

    def _waits(self) -> str:
        ago_s = self._device.time_s - self._cooldown.start_s
        if not self._cooldown.is_over(self._device.time_s):
            return (
                f"No better point runs within {plain(PAUSE_S)} s after heat or a battery excluded one ({ago_s:.0f} s "
                "ago)"
            )
        if self._switch_delay is not None:
            delay = self._switch_delay
            return f"A change needs {delay.needed} such decisions in a row, {delay.better} of {delay.needed} so far"
        return "One request that waits does not change the point of the others"


def worded(notes: Sequence[Note], upgrade_notes: Sequence[tuple[int, float]] = ()) -> str:
    """What limits have excluded, as text.

    Args:
        notes: Templates or functions, with their values.
        upgrade_notes: Numbers of the notes whose limit excluded a point only because it is more expensive than the
            current one. Each has the share of the limit that such a point must fit into.

    Returns:
        Sentences without the last full stop.
    """
    sentences = [
        template(*values) if callable(template) else formatted(template, *values) for template, *values in notes
    ]
    for number, share in upgrade_notes:
        sentences[number] += f", and {plain(share)} of that for a more expensive point than the current one"
    return ". ".join(sentences)


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


class _Formatter(Formatter):
    def format_field(self, value: Any, format_spec: str) -> str:
        if format_spec == "share":
            return f"{plain(100 * value, 3)}%"
        if isinstance(value, float) and (not format_spec or format_spec.isdigit()):
            return plain(value, int(format_spec or 4))
        return str(super().format_field(value, format_spec))


_FORMATTER = _Formatter()
