"""Which points are no worse than another in every figure, as far as a profile can distinguish figures."""

import math
from collections.abc import Sequence

from dynamic.policies.costing.costed_point import CostedPoint


def remove_dominated(
    points: Sequence[CostedPoint], noise: float, others: Sequence[Sequence[CostedPoint]] = ()
) -> tuple[CostedPoint, ...]:
    """The points that no other dominates, in order. The first, which is the reference, always remains.

    `others`: the same points with costs at other sizes of input, which count too.
    """
    figures = _compared(points, noise, others)
    return tuple(p for i, p in enumerate(points) if i == 0 or not any(_dominates(f, figures[i]) for f in figures))


def rank_within_noise(figures: Sequence[float], noise: float) -> list[float]:
    """Figures in which noise alone ranks no point behind one of more compute.

    Args:
        figures: Measured figures, in the order of the ladder. That is the order of compute, the largest first.
        noise: A fraction. Figures that differ by less cannot be distinguished.

    Returns:
        The figures. One that is above an earlier one by no more than the noise is just below that one.
    """
    if not noise:
        return list(figures)
    ranked: list[float] = []
    for figure in figures:
        near = [own for own in ranked if own <= figure <= own * (1 + noise)]
        ranked.append(math.nextafter(min(near), -math.inf) if near else figure)
    return ranked


def _compared(
    points: Sequence[CostedPoint], noise: float, others: Sequence[Sequence[CostedPoint]]
) -> list[list[float]]:
    """All figures of all points, where less is better. Times are ranked within the noise."""
    columns = [[p.promised_drop for p in points], [-p.accuracy.mid for p in points]]
    sized = zip(points, *others, strict=True)
    timed = [[figure for p in same for figure in (*p.mean_ms, *p.p95_ms, *p.cpu_ms)] for same in sized]
    columns += [rank_within_noise(list(column), noise) for column in zip(*timed, strict=True)]
    columns.append([p.memory_mb for p in points])
    return [list(row) for row in zip(*columns, strict=True)]


def _dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    pairs = list(zip(a, b, strict=True))
    return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)
