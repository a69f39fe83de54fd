"""What each operating point does on a device, and time in short slots, for somebody who knows the future."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.frontier import Frontier
from dynamic.simulate.device_models import Device
from dynamic.simulate.requests.outcomes import Outcome

Floats = NDArray[np.float64]
# Gauss-Hermite: what three values with these chances share with the normal distribution are its first five moments
_NODES, _WEIGHTS = np.array([-(3**0.5), 0.0, 3**0.5]), np.array([1 / 6, 2 / 3, 1 / 6])


@dataclass(frozen=True, eq=False)
class Service:
    """P points on a device, alone: `times_s [P, D]` a request may take, each with `chance [P, D]`, by the stage it
    leaves at and the noise; `energy_mj [P]` of an answer on average; `accuracy [P]` as measured in calibration.
    """

    times_s: Floats
    chance: Floats
    energy_mj: Floats
    accuracy: Floats

    @classmethod
    def of(cls, frontier: Frontier, outcomes: list[Outcome], device: Device) -> "Service":
        """`frontier` with the device's costs, `outcomes` in its order."""
        shares = np.array([outcome.point.shares for outcome in outcomes])  # [P, S]
        median_s = np.array([outcome.median_ms for outcome in outcomes]) / 1e3
        sigma = np.array([outcome.sigma for outcome in outcomes])
        noisy = bool((sigma > 0).any())
        nodes, weights = (_NODES, _WEIGHTS) if noisy else (np.zeros(1), np.ones(1))
        times_s = (median_s[..., None] * np.exp(sigma[..., None] * nodes)).reshape(len(outcomes), -1)
        chance = (shares[..., None] * weights).reshape(len(outcomes), -1)
        chance = chance / chance.sum(axis=1, keepdims=True)
        seen = chance.max(axis=0) > 0
        mean_s = (times_s * chance).sum(axis=1)
        accuracy = np.array([point.accuracy.mid for point in frontier.points])
        return cls(times_s[:, seen], chance[:, seen], mean_s * device.active_mw, accuracy)


@dataclass(frozen=True, eq=False)
class Slots:
    """N slots of `slot_s` seconds: `arrivals [N]` in each and `ambient_c [N]`.

    `allowed [N, P]`: points that memory and the budget's accuracy leave. `counted [N]`: energy used then comes out of
    what is limited.
    """

    slot_s: float
    arrivals: Floats
    ambient_c: Floats
    allowed: NDArray[np.bool_]
    counted: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Heat:
    """A device's warmth: `start_c`, `base_mw` without inference, the limit, and the device's two figures of heat."""

    start_c: float
    base_mw: float
    limit_c: float
    resistance_c_per_w: float
    capacity_j_per_c: float
