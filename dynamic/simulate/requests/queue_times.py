"""The second step of the oracle: the best point for each request and wait, when all arrivals are given."""

import numpy as np
from numpy.typing import NDArray

from dynamic.simulate.requests.slots import Floats, Service


def waits(limit_s: float) -> Floats:
    """The grid of waits `[G]` in seconds: even until a little over the limit, then wider and wider."""
    return np.concatenate([np.linspace(0.0, 1.2 * limit_s, 37), limit_s * np.geomspace(1.3, 60.0, 14)])


def best_points(
    service: Service,
    arrival_s: Floats,
    contention: Floats,
    limit_s: Floats,
    allowed: NDArray[np.bool_],
    penalty: float,
    grid_s: Floats,
) -> NDArray[np.int16]:
    """The best point for each request and wait, by dynamic programming (Bellman 1957).

    A request costs 1 - accuracy, and `penalty` where it is late. To this come the expected costs of all later requests.
    The time of a request is its time alone times `contention`. The next request waits that much longer, less the gap
    between the two. No deadline cuts a request short. Costs between two waits are linear.

    Args:
        service: Times, energies and accuracies of the points.
        arrival_s: Arrival times `[M]` in seconds.
        contention: Factor on the time of each request `[M]`.
        limit_s: Longest time from arrival to answer `[M]` in seconds.
        allowed: Points that each request may take `[M, P]`.
        penalty: Cost of a late request, in wrong answers.
        grid_s: Waits `[G]` in seconds.

    Returns:
        Point for each request and wait `[M, G]`.
    """
    count = len(allowed)
    points = np.empty((count, len(grid_s)), np.int16)
    ahead = np.zeros(len(grid_s))  # what all later requests cost, by the wait of the first of them
    gaps_s = np.append(np.diff(arrival_s), np.inf)
    wrong = 1 - service.accuracy  # [P]
    rows = np.arange(len(grid_s))
    for i in range(count - 1, -1, -1):
        done_s = grid_s[:, None, None] + service.times_s * contention[i]  # [G, P, D]
        later = np.interp(np.maximum(done_s - gaps_s[i], 0.0), grid_s, ahead) if np.isfinite(gaps_s[i]) else 0.0
        cost = ((penalty * (done_s > limit_s[i]) + later) * service.chance).sum(axis=2) + wrong  # [G, P]
        cost[:, ~allowed[i]] = np.inf
        points[i] = cost.argmin(axis=1)
        ahead = cost[rows, points[i]]
        # only differences count, and the sum must not lose its digits over a million requests
        ahead = ahead - ahead[0]
    return points
