"""The oracle's second step: the best point for each request, by how long it has waited, when all arrivals are known."""

import numpy as np
from numpy.typing import NDArray

from dynamic.simulate.requests.slots import Floats, Service


def waits(limit_s: float) -> Floats:
    """The waits `[G]` in seconds that are told apart: evenly up to a little over the limit, then wider and wider."""
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
    """The best point `[M, G]` for each of M requests where it has waited `grid_s [G]`, by dynamic programming.

    A request costs 1 - accuracy, and `penalty` where it takes longer than `limit_s [M]` from its arrival; what follows
    costs what it then costs on average (Bellman 1957). What one takes is its time alone times `contention [M]`; the
    next then waits that much longer, less the gap to it. `allowed [M, P]`. No deadline cuts a request
    short. Costs between waits: linear.
    """
    count = len(allowed)
    found = np.empty((count, len(grid_s)), np.int16)
    ahead = np.zeros(len(grid_s))  # what all later requests cost, by the wait of the first of them
    gaps_s = np.append(np.diff(arrival_s), np.inf)
    wrong = 1 - service.accuracy  # [P]
    rows = np.arange(len(grid_s))
    for i in range(count - 1, -1, -1):
        done_s = grid_s[:, None, None] + service.times_s * contention[i]  # [G, P, D]
        later = np.interp(np.maximum(done_s - gaps_s[i], 0.0), grid_s, ahead) if np.isfinite(gaps_s[i]) else 0.0
        cost = ((penalty * (done_s > limit_s[i]) + later) * service.chance).sum(axis=2) + wrong  # [G, P]
        cost[:, ~allowed[i]] = np.inf
        found[i] = cost.argmin(axis=1)
        ahead = cost[rows, found[i]]
        # only differences count, and the sum must not lose its digits over a million requests
        ahead = ahead - ahead[0]
    return found
