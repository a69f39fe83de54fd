"""How much slower than profiled the device is now: a scalar Kalman filter on the logarithm of the ratio.

ALERT (Wan et al., USENIX ATC 2020, section 3.3) filters the ratio itself; its logarithm keeps estimates positive and
treats twice as slow and twice as fast alike.
"""

import math
from dataclasses import dataclass

_DRIFT = 0.01  # variance that the true log ratio gains from one request to the next
_NOISE = 0.09  # variance of one observation: a request is off its expectation by about 30%
_FARTHEST = 2.0  # standard deviations: a stall moves the estimate by no more than a surprise of that size


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
        """The estimate after one more request; one without an expectation changes nothing.

        The innovation is clipped (Huber 1964): one request that the system stalled must not look like a slow device,
        while several in a row do.
        """
        if not (observed_ms > 0 and expected_ms > 0):
            return self
        variance = self.variance + _DRIFT
        most = _FARTHEST * math.sqrt(variance + _NOISE)
        surprise = max(-most, min(most, math.log(observed_ms / expected_ms) - self.mean))
        gain = variance / (variance + _NOISE)
        return Slowdown(self.mean + gain * surprise, (1 - gain) * variance)
