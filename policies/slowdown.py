"""How much slower than profiled the device is now: a scalar Kalman filter on the logarithm of the ratio.

ALERT (Wan et al., USENIX ATC 2020, section 3.3) filters the ratio itself; its logarithm keeps estimates positive and
treats twice as slow and twice as fast alike.
"""

import math
from dataclasses import dataclass

_DRIFT = 0.01  # variance that the true log ratio gains from one request to the next
_NOISE = 0.09  # variance of one observation: a request is off its expectation by about 30%
_FARTHEST = 3.0  # log ratios beyond a factor of 20 are taken as that: one stall must not blind the filter


@dataclass(frozen=True)
class Slowdown:
    """Estimated mean and variance of log(observed / expected)."""

    mean: float = 0.0
    variance: float = _NOISE

    @property
    def ratio(self) -> float:
        """Observed over expected."""
        return math.exp(self.mean)

    def observe(self, observed_ms: float, expected_ms: float) -> "Slowdown":
        """The estimate after one more request; one without an expectation changes nothing."""
        if not (observed_ms > 0 and expected_ms > 0):
            return self
        seen = max(-_FARTHEST, min(_FARTHEST, math.log(observed_ms / expected_ms)))
        variance = self.variance + _DRIFT
        gain = variance / (variance + _NOISE)
        return Slowdown(self.mean + gain * (seen - self.mean), (1 - gain) * variance)
