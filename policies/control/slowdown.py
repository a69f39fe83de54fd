"""How much slower than profiled the device is now, and how far single requests are off that.

ALERT (Wan et al., USENIX ATC 2020, section 3.3) filters the ratio of observed to expected time by a scalar Kalman
filter and promises percentiles from its variance; the logarithm of the ratio keeps estimates positive and treats twice
as slow and twice as fast alike. The variance of single requests is followed on its own: a Kalman filter's is of the
mean, and falls however much requests scatter.
"""

import math
from dataclasses import dataclass

_DRIFT = 0.001  # variance that the true log ratio gains from one request to the next
_NOISE = 0.09  # variance of one observation: a request is off its expectation by about 30%
_FARTHEST = 2.0  # standard deviations: a stall moves the mean by no more than a surprise of that size
_RUN = 4  # requests in a row that are off by more than the noise, all to one side: then the device has changed
_WEIGHT = 1 / 32  # of one request in the scatter
_LARGEST = 2.0  # of a log ratio in the scatter: one request 7 times too slow must not rule for minutes


@dataclass(frozen=True)
class Slowdown:
    """Estimated mean and variance of log(observed / expected); `scatter`: variance of single requests around it.

    `run`: how many requests in a row were off by more than the noise, all too slow (above 0) or too fast (below).
    """

    mean: float = 0.0
    variance: float = _NOISE
    scatter: float = 0.0
    run: int = 0

    @property
    def ratio(self) -> float:
        """Observed over expected."""
        return math.exp(self.mean)

    @property
    def spread(self) -> float:
        """Standard deviation of a single request's log ratio."""
        return math.sqrt(self.scatter)

    def observe(self, observed_ms: float, expected_ms: float) -> "Slowdown":
        """The estimate after one more request; one without an expectation changes nothing.

        The innovation is clipped (Huber 1964): one request that the system stalled must not look like a slow device,
        while several in a row do: then the mean is as uncertain as at the start, and follows at once. In between it is
        known well and stays where it is, so that decisions near a limit do not follow noise.
        """
        if not (0 < observed_ms < math.inf and 0 < expected_ms < math.inf):
            return self
        off = math.log(observed_ms / expected_ms) - self.mean
        noise = max(_NOISE, self.scatter)  # as single requests are seen to be off
        side = 0 if off * off <= noise else 1 if off > 0 else -1
        run = self.run + side if side * self.run > 0 else side
        variance = (self.variance if abs(run) < _RUN else max(self.variance, noise)) + _DRIFT
        most = _FARTHEST * math.sqrt(variance + noise)
        surprise = max(-most, min(most, off))
        gain = variance / (variance + noise)
        far = max(-_LARGEST, min(_LARGEST, off))
        scatter = self.scatter + _WEIGHT * (far * far - self.scatter)
        return Slowdown(self.mean + gain * surprise, (1 - gain) * variance, scatter, run)
