"""How long a decision is repeated before the policy decides again. Runtime and simulator follow the same rules."""

from collections.abc import Sequence

# requests that were answered since the last decision: then the policy decides again. It takes 0.4 to 1.3 ms beside a
# request of a tight loop. With 32 the mean of such a loop was 25 us longer, and the 97th percentile 1.5 times as long
MOST_OBSERVATIONS = 128
_SLOW = 2.0  # two requests in a row that take so many times what was expected: then too. One may have been unlucky


def slow_ms(expected_ms: Sequence[float], slowdown: float) -> tuple[float, ...]:
    """The time of a request at each stage beyond which it is slow. Two slow ones in a row: the device has changed.

    Args:
        expected_ms: `[S]`, profiled time of a request that exits at each stage.
        slowdown: Of the decision.

    Returns:
        `[S]`, in milliseconds.
    """
    return tuple(_SLOW * slowdown * ms for ms in expected_ms)
