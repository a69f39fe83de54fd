"""How much slower than profiled the device is now, and how far single requests differ from that.

ALERT (Wan et al., USENIX ATC 2020, section 3.3) filters the ratio of observed to expected time by a scalar Kalman
filter and derives percentiles from its variance. Here the filter uses the logarithm of the ratio. It keeps estimates
positive, and twice as slow and twice as fast count alike. The variance of single requests is estimated separately. A
Kalman filter's variance is of the mean, and it falls however much requests scatter.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

_DRIFT = 0.001  # variance that the true log ratio gains from one request to the next
_NOISE = 0.09  # variance of one observation: a request differs from its expectation by about 30%
_FARTHEST = 2.0  # standard deviations by which one observation moves the mean at most
_RUN = 4  # requests in a row beyond the noise, all to one side, after which the device has changed
_WEIGHT = 1 / 32  # of one request in the scatter
_LARGEST = 2.0  # of a log ratio in the scatter: one request that is 7 times too slow must not count for minutes


@dataclass(frozen=True)
class Slowdown:
    """An estimate of log(observed / expected) time.

    Args:
        mean: Its mean.
        variance: Variance of the mean.
        scatter: Variance of single requests around the mean.
        run: Requests in a row beyond the noise. Above 0 all were too slow, below 0 too fast.
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

    def observe(self, observed_ms: Sequence[float], expected_ms: Sequence[float]) -> "Slowdown":
        """The estimate after these requests, in their order. Those without an expected time do not change it.

        The innovation is clipped (Huber 1964), because one stalled request does not make a slow device. Several in a
        row do. The mean is then as uncertain as at the start, so it follows at once. Otherwise it is well known, and
        decisions near a limit do not follow noise.
        """
        mean, variance, scatter, run = self.mean, self.variance, self.scatter, self.run
        learned = False
        for observed, expected in zip(observed_ms, expected_ms, strict=True):
            if not (0 < observed < math.inf and 0 < expected < math.inf):
                continue
            learned = True
            off = math.log(observed / expected) - mean
            noise = max(_NOISE, scatter)  # as large as single requests scatter
            side = 0 if off * off <= noise else 1 if off > 0 else -1
            run = run + side if side * run > 0 else side
            variance = (variance if abs(run) < _RUN else max(variance, noise)) + _DRIFT
            most = _FARTHEST * math.sqrt(variance + noise)
            gain = variance / (variance + noise)
            mean, variance = mean + gain * max(-most, min(most, off)), (1 - gain) * variance
            far = max(-_LARGEST, min(_LARGEST, off))
            scatter += _WEIGHT * (far * far - scatter)
        return Slowdown(mean, variance, scatter, run) if learned else self
