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
    reference, *measured = _compared(points, 0.0, others)
    return tuple(
        point
        for i, point in enumerate(points)
        if i == 0
        or not (_saves_nothing(measured[i - 1], reference) or any(_dominates(other, figures[i]) for other in figures))
    )


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


def _saves_nothing(point: Sequence[float], reference: Sequence[float]) -> bool:
    """Whether no measured cost of a point is below the reference's, and nothing certain speaks for it.

    Noise does not count here: the reference promises no loss at all, and may be measured to be faster. Then only a
    point that promises as much and measured more accuracy is worth a choice.
    """
    costs_more = all(own >= least for own, least in zip(point[2:], reference[2:], strict=True))
    return costs_more and (point[0] > reference[0] or _dominates(reference, point))


def _dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    pairs = list(zip(a, b, strict=True))
    return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)
