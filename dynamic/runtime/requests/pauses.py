"""Pauses between expensive actions in a row, so that requests get most of the device meanwhile."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PAUSES = 3.0  # a pause takes so many times what the last action took: requests then have three quarters of the time
LONGEST_S = 1.0  # of a pause: whoever swaps back to the last bundle must not wait long


class Spacing:
    """Lets actions begin no sooner than some time after the last one ended. One that stands alone never waits.

    Args:
        clock: Seconds.
        sleep: Waits for some seconds.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._clock, self._sleep = clock, sleep
        self._next_s = -float("inf")

    @contextmanager
    def action(self) -> Iterator[None]:
        """Wait where the last action ended a moment ago, then run the block and measure it."""
        pause_s = self._next_s - self._clock()
        if pause_s > 0:
            self._sleep(pause_s)
        began_s = self._clock()
        try:
            yield
        finally:
            ended_s = self._clock()
            self._next_s = ended_s + min(PAUSES * (ended_s - began_s), LONGEST_S)
