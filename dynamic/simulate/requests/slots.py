"""Times and energies of operating points on a device, and time in short slots, for an oracle."""

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
    """P points on a device without other load.

    Args:
        times_s: Possible times of a request `[P, D]`, by exit stage and noise.
        chance: Probability of each of these times `[P, D]`.
        energy_mj: Mean energy of an answer `[P]`.
        accuracy: Accuracy in calibration `[P]`.
    """

    times_s: Floats
    chance: Floats
    energy_mj: Floats
    accuracy: Floats

    @classmethod
    def of(cls, frontier: Frontier, outcomes: list[Outcome], device: Device) -> "Service":
        """The points of a frontier that has the costs of the device. Outcomes come in its order."""
        shares = np.array([outcome.point.shares for outcome in outcomes])  # [P, S]
        median_s = np.array([outcome.median_ms for outcome in outcomes]) / 1e3
        sigma = np.array([outcome.sigma for outcome in outcomes])
        noisy = bool((sigma > 0).any())
        nodes, weights = (_NODES, _WEIGHTS) if noisy else (np.zeros(1), np.ones(1))
        times_s = (median_s[..., None] * np.exp(sigma[..., None] * nodes)).reshape(len(outcomes), -1)
        chance = (shares[..., None] * weights).reshape(len(outcomes), -1)
        chance = chance / chance.sum(axis=1, keepdims=True)
        possible = chance.max(axis=0) > 0
        mean_s = (times_s * chance).sum(axis=1)
        accuracy = np.array([point.accuracy.mid for point in frontier.points])
        return cls(times_s[:, possible], chance[:, possible], mean_s * device.active_mw, accuracy)


@dataclass(frozen=True, eq=False)
class Slots:
    """N slots of time.

    Args:
        slot_s: Length of a slot in seconds.
        arrivals: Number of requests in each slot `[N]`.
        ambient_c: Ambient temperature in each slot `[N]`.
        allowed: Points that memory and the budget's accuracy allow `[N, P]`.
        counted: Whether energy of the slot counts against the limit `[N]`.
    """

    slot_s: float
    arrivals: Floats
    ambient_c: Floats
    allowed: NDArray[np.bool_]
    counted: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Heat:
    """The thermal model of a device.

    Args:
        start_c: Temperature at the start.
        base_mw: Power without inference.
        limit_c: Highest temperature.
        resistance_c_per_w: Degrees that a watt leads to in the end.
        capacity_j_per_c: Heat capacity in joules per degree.
    """

    start_c: float
    base_mw: float
    limit_c: float
    resistance_c_per_w: float
    capacity_j_per_c: float
