"""How deep the rows of a request go, from the shares of inputs that exit at each stage. Rows are independent."""

from collections.abc import Sequence

from dynamic.policies.ladder import OperatingPoint


def visits(point: OperatingPoint, rows: int) -> list[tuple[float, float]]:
    """By stage: the chance that one of `rows` inputs gets there, and how many inputs do in that case."""
    chances = [1.0 - (1.0 - min(share, 1.0)) ** rows for share in _reach(point)]
    return [(c, rows * share / c if c else 0.0) for c, share in zip(chances, _reach(point), strict=True)]


def gets_to(stage: int, depth: int) -> list[float]:
    """1 for an input that exits at `stage` or later, by the stage of its exit `[depth + 1]`."""
    return [float(at >= stage) for at in range(depth + 1)]


def sum_given_depth(
    point: OperatingPoint, rows: int, *, depth: int, value: Sequence[float]
) -> tuple[float, float, float]:
    """Distribution of a sum over the rows of a request whose deepest row exits at `depth`.

    Args:
        point: The point, with its `shares [S]`.
        rows: Inputs in the request.
        depth: The stage at which the deepest of them exits.
        value: What one input adds, by the stage of its exit `[depth + 1]`.

    Returns:
        The chance of this depth, and then mean and variance of the sum.
    """

    def no_deeper(d: int) -> tuple[float, float, float]:
        # the chance that no row goes beyond d, and first and second moment of the sum times that chance
        share = point.shares[: d + 1]
        all_, one = sum(share), sum(p * v for p, v in zip(share, value, strict=False))
        two = sum(p * v * v for p, v in zip(share, value, strict=False))
        pairs = rows * (rows - 1) * all_ ** (rows - 2) * one**2 if rows > 1 else 0.0
        return all_**rows, rows * all_ ** (rows - 1) * one, rows * all_ ** (rows - 1) * two + pairs

    chance, first, second = (a - b for a, b in zip(no_deeper(depth), no_deeper(depth - 1), strict=True))
    if chance > 1e-12:
        mean = first / chance
        return chance, mean, max(second / chance - mean**2, 0.0)
    # no record exits there: one input does, and the others exit as usual
    before = sum(point.shares[: depth + 1])
    usual = sum(p * v for p, v in zip(point.shares, value, strict=False)) / before if before > 0 else value[depth]
    return 0.0, value[depth] + (rows - 1) * usual, 0.0


def _reach(point: OperatingPoint) -> tuple[float, ...]:
    """Share of inputs that get as far as each stage `[S]`."""
    reach, remaining = [], 1.0
    for share in point.shares:
        reach.append(max(remaining, 0.0))
        remaining -= share
    return tuple(reach)
