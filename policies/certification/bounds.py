"""p-values for "the mean loss is above a target" that are valid at every sample size, without a limit theorem.

A p-value p is valid: where the mean is at or above the target, P(p <= level) <= level. Each falls as the target rises,
so the smallest target with p <= level is an upper confidence bound (see `upper_bound`).
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_FRACTIONS = 0.5 ** np.arange(10)  # of the largest bet: every loss that matters has one within a factor of 1.4
_TILTS = np.geomspace(1e-4, 8.0, 200)  # of the exponential bound. The least of valid bounds is valid
_FAR = 10.0  # standard deviations beyond which a binomial is not summed
_LEFT_OUT = 1e-19  # more than the probability there, on both sides and of two binomials together
_ROUNDING = 1e-9  # relative, more than the error of products and sums of the other terms


def binomial_p(events: int, count: int, target: float) -> float:
    """Of `events` in `count` trials: P(Bin(count, target) <= events), the exact test (Clopper, Pearson 1934)."""
    if target >= 1:
        return 1.0 if events >= count else 0.0
    if target <= 0:
        return 1.0
    first, chance = _binomial(count, target)
    return _rounded_up(float(chance[: max(events - first + 1, 0)].sum()))


@lru_cache(65536)
def hypergeometric_p(events: int, drawn: int, total: int, losing: int) -> float:
    """P(X <= events), where X of the `drawn` inputs are among the `losing` ones of `total` (Clopper, Pearson 1934).

    It is the exact test of a finite batch, of which inputs are drawn without replacement. It falls as `losing` rises.

    Args:
        events: Losing inputs among those drawn.
        drawn: Inputs drawn.
        total: Inputs of the batch.
        losing: Losing inputs of the batch under the hypothesis. More than `total` are impossible, and the p-value is 0.

    Returns:
        The p-value.
    """
    if losing > total:
        return 0.0
    least, most = max(0, drawn + losing - total), min(drawn, losing)
    if events < least:
        return 0.0
    if events >= most:
        return 1.0
    k = np.arange(least, most, dtype=np.float64)
    rise = (losing - k) / (k + 1) * ((drawn - k) / (total - losing - drawn + k + 1))  # of k + 1 over k
    mode = min(max((drawn + 1) * (losing + 1) // (total + 2), least), most) - least
    with np.errstate(over="ignore"):
        below = np.cumprod(1 / rise[:mode][::-1])[::-1]
    chance = np.concatenate([below, [1.0], np.cumprod(rise[mode:])])
    return _rounded_up(float(chance[: events - least + 1].sum() / chance.sum()))


def batch_p(events: int, drawn: int, total: int, allowed: int) -> float:
    """The p-value for "more than `allowed` losing inputs of a batch are not drawn", where drawn inputs lose nothing.

    The batch has `total` inputs, of which `drawn` are drawn at random, and `events` of these lose. Let exits be nested:
    each step adds inputs. Number the losing inputs in the order in which steps add them. A step with at most `events`
    drawn ones is wrong only where number `allowed + 1` of those not drawn comes before number `events + 1` of those
    drawn. Then at most `events` of the first `allowed + 1 + events` losing inputs are drawn, and that has this
    probability. The first such step decides for all, so steps need no correction (Zeighami et al. 2025,
    arXiv 2509.02896, Definition 2.1 has the promise. The tail is that of Clopper, Pearson 1934).

    Args:
        events: Losing inputs among those drawn.
        drawn: Inputs drawn.
        total: Inputs of the batch.
        allowed: Losing inputs that the promise allows.

    Returns:
        The p-value.
    """
    return hypergeometric_p(events, drawn, total, allowed + 1 + events)


@lru_cache(4096)
def largest_share(events: int, count: int, level: float) -> float:
    """Upper confidence bound of a share at `level` (Clopper, Pearson 1934): the least with `binomial_p` <= level."""
    if events >= count:
        return 1.0
    return upper_bound(lambda share: binomial_p(events, count, share), level, events / count, 1.0)


def signed_p(lost: int, gained: int, count: int, target: float, spare: float) -> float:
    """The p-value for a mean of at least `target` in [0, 1), of losses in {-1, 0, 1}.

    How often a loss is not 0 is a nuisance parameter q. The p-value is maximized over the confidence set of q at level
    `spare`, and `spare` is added, so it is never below that (Berger, Boos 1994, Theorem 2.1). The maximum lies at the
    upper bound of q. With S the sum of losses, d/dq P_q(S <= s) = n/2 (f(s + 1) - f(s)), where f has the probabilities
    of n - 1 losses. For q <= (1 + target^2) / 2 they are those of a sum of independent Bernoullis. Its mode is within 1
    of its mean (Darroch 1964), so they rise below (n - 1) target - 1. For a larger q the exponential bound is used,
    which rises with q everywhere.

    Args:
        lost: Losses of 1.
        gained: Losses of -1.
        count: All losses.
        target: The mean under the hypothesis.
        spare: Level of the confidence set.

    Returns:
        The p-value.
    """
    total = lost - gained
    most = largest_share(lost + gained, count, spare)
    if most < target:
        return spare
    if total > (count - 1) * target - 2:
        return 1.0  # the measured mean is at or above the target
    if most <= (1 + target**2) / 2:
        # P(-1) + P(0) z + P(1) z^2 = (1 - plus + plus z)(minus + (1 - minus) z): S is the difference of two binomials
        root = math.sqrt(max(1 + target**2 - 2 * most, 0.0))
        plus, minus = (most + target) / (1 + target + root), (most - target) / (1 - target + root)
        tail = _difference_at_most(total, count, plus, minus)
    else:
        per_loss = np.log1p(most * (np.cosh(_TILTS) - 1) - target * np.sinh(_TILTS))
        tail = math.exp(min(0.0, float((count * per_loss + _TILTS * total).min())))
    return min(1.0, _rounded_up(tail) + spare)


def betting_p(losses: Floats, target: float, times: float = 1.0) -> float:
    """The p-value for a mean of at least `target` in [0, 1), of independent losses.

    It is 1 over the wealth of a bettor against that mean (Waudby-Smith, Ramdas 2024, Theorem 1). The bets are a mixture
    over constant ones, so that the order of the losses does not matter.

    Args:
        losses: Losses `[N]`, each at most 1.
        target: The mean under the hypothesis.
        times: As if each loss had occurred so many times.

    Returns:
        The p-value.
    """
    stake = np.multiply.outer(_FRACTIONS, (target - losses) / (1 - target))  # [bets, N], at least -1
    with np.errstate(divide="ignore"):
        wealth = times * np.log1p(np.maximum(stake, -1.0)).sum(axis=1)
    highest = float(wealth.max())
    if highest <= 0:
        return 1.0
    return min(1.0, math.exp(-highest) / float(np.exp(wealth - highest).mean()))


def upper_bound(p_value: Callable[[float], float], level: float, low: float = 0.0, high: float = 1.0) -> float:
    """The least target in [low, high] with `p_value(target) <= level`, rounded up. It is `high` where there is none."""
    for _ in range(40):
        middle = 0.5 * (low + high)
        if p_value(middle) <= level:
            high = middle
        else:
            low = middle
        if high - low <= 1e-7:
            break
    return high


def _rounded_up(tail: float) -> float:
    return min(1.0, tail * (1 + _ROUNDING) + _LEFT_OUT)


def _binomial(count: int, share: float) -> tuple[int, Floats]:
    """(first, probabilities of first, first + 1, ...) as far as they matter.

    They come from ratios of neighbours, from the mode outwards. Logarithms of factorials lose 1e-7 at a million.
    """
    far = _FAR * math.sqrt(count * share * (1 - share)) + 3 * _FAR
    first, last = max(0, int(count * share - far)), min(count, int(count * share + far) + 1)
    mode = min(int((count + 1) * share), count)
    k = np.arange(first, last)
    rise = (count - k) / (k + 1) * (share / (1 - share))  # of k + 1 over k
    below = np.cumprod(1 / rise[: mode - first][::-1])[::-1]
    chance = np.concatenate([below, [1.0], np.cumprod(rise[mode - first :])])
    return first, chance / chance.sum()


def _difference_at_most(total: int, count: int, plus: float, minus: float) -> float:
    """P(X - Y <= total) for independent X of Bin(count, plus) and Y of Bin(count, minus)."""
    if minus <= 0:
        return binomial_p(total, count, plus) if total >= 0 else 0.0
    first, chance = _binomial(count, plus)
    below = np.cumsum(chance)
    start, other = _binomial(count, minus)
    at = total + np.arange(start, start + len(other)) - first
    reached = np.where(at < 0, 0.0, below[np.clip(at, 0, len(below) - 1)])
    return float(other @ reached)
