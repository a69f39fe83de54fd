"""How many replicas the tail has: as many as the rows that the head passes on need, whatever waits there now."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dynamic.policies.errors import SettingError
from dynamic.policies.validation.numbers import plain

HEAD_ROWS, PASSED_ROWS, ROW_MS = "rows_per_s", "passed_per_s", "row_ms"  # what replicas report
_BUSY = 0.7  # of the time that a replica works: what arrives at random waits without end at 1.0


@dataclass(frozen=True)
class Replicas:
    """How many processes a deployment has.

    Args:
        least: At least so many.
        most: At most so many. As many as `least`: their number never changes.

    Raises:
        SettingError: They are no whole numbers of at least 1, or `most` is less.
    """

    least: int
    most: int

    @classmethod
    def of(cls, value: Any, name: str) -> "Replicas":
        """The replicas that an argument of this name asks for: a number, or a pair."""
        least, most = value if isinstance(value, (tuple, list)) and len(value) == 2 else (value, value)
        numbers = plain(least), plain(most)
        if (
            any(isinstance(one, bool) or not isinstance(one, int) for one in numbers)
            or not 1 <= numbers[0] <= numbers[1]
        ):
            raise SettingError(
                f"{name}={value!r} must be a whole number of at least 1, or a pair of them, the least and the most"
            )
        return cls(*numbers)


def replicas_for(rows_per_s: float, share: float, row_ms: float, replicas: Replicas) -> int:
    """How many replicas of the tail the head's rows need.

    Args:
        rows_per_s: Rows that arrive at the head.
        share: Of them that continue.
        row_ms: What one of these keeps a replica of the tail busy.
        replicas: The least and the most.

    Returns:
        The number at which each replica is busy for 70% of the time at most, within the limits.
    """
    busy = rows_per_s * share * row_ms / 1e3  # of replicas, all day
    return min(max(math.ceil(busy / _BUSY - 1e-9), replicas.least), replicas.most)


class Rates:
    """Rates of counters that only rise, between one call and the next.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._before = clock, clock()
        self._counts: dict[str, float] = {}

    def __call__(self, counts: Mapping[str, float]) -> dict[str, float]:
        """By name, how much a counter has risen in a second since the last call."""
        now = self._clock()
        passed_s = max(now - self._before, 1e-9)
        rates = {name: max(count - self._counts.get(name, 0.0), 0.0) / passed_s for name, count in counts.items()}
        self._before, self._counts = now, dict(counts)
        return rates


def follow_head(contexts: Mapping[Any, Any]) -> tuple[dict[Any, int], dict[Any, dict[str, Any]]]:
    """The policy of an application whose tail follows its head, for `autoscaling_policy` in a file of Ray Serve.

    The head's replicas report how many rows arrive, and how many they pass on. The tail's report what a row takes them.
    Every other deployment keeps its number, and so does the tail while no replica of the head has reported.

    Args:
        contexts: By deployment, the `AutoscalingContext` of Ray.

    Returns:
        By deployment, how many replicas there should be, and no state.
    """
    targets = {one: context.target_num_replicas for one, context in contexts.items()}
    reports = {context.deployment_name: context.aggregated_metrics or {} for context in contexts.values()}
    has_head = any(report.get(HEAD_ROWS) for report in reports.values())
    for one, context in contexts.items():
        if not has_head or ROW_MS not in reports[context.deployment_name]:
            continue
        arriving = _sum(reports, HEAD_ROWS)
        share = _sum(reports, PASSED_ROWS) / arriving if arriving else 0.0
        limits = Replicas(context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas)
        times = list(reports[context.deployment_name][ROW_MS].values())
        targets[one] = replicas_for(arriving, share, sum(times) / len(times) if times else 0.0, limits)
    return targets, {}


def _sum(reports: Mapping[str, Mapping[str, Mapping[Any, float]]], name: str) -> float:
    """Of all replicas of all deployments."""
    return sum(sum(report.get(name, {}).values()) for report in reports.values())
