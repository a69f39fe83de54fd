"""Whether the inputs of a bundle at work still look like those it was calibrated on."""

import logging
import math
from collections.abc import Sequence

from dynamic.engines.contract import Output
from dynamic.policies.drift import DriftTest
from dynamic.policies.frontier import FrontierPoint
from dynamic.policies.ladder import Ladder

logger = logging.getLogger("dynamic")

# Of a batch, that are tested for drift: a large one must not pay for each. Where a row stands says nothing of what it
# holds, so the first are as good as any, and rows that are left out take nothing from what the test promises.
TESTED = 8


class DriftWatch:
    """The drift test of a ladder's inputs. Not safe for several threads at once.

    `alpha` None, or a ladder that was measured `elsewhere` (on another engine or precision): inputs are not watched.
    """

    def __init__(self, ladder: Ladder, alpha: float | None, elsewhere: bool) -> None:
        watched = alpha is not None and not elsewhere
        self.test = DriftTest(ladder.scores if watched else (), 0.01 if alpha is None else alpha)
        self._entrances: dict[FrontierPoint, tuple[int, float]] = {}  # see `_entrance`
        if watched and ladder.scores and not self.test.watching:
            logger.warning(
                "inputs are not watched for drift: under score %r all score alike at their first exit", ladder.score
            )

    @property
    def found(self) -> bool | None:
        """Whether there is drift; None where inputs are not watched."""
        return self.test.alarm if self.test.watching else None

    def restart(self) -> None:
        """Watch anew."""
        self.test.restart()

    def observe(self, point: FrontierPoint, stages: Sequence[int], output: Output) -> tuple[bool, bool]:
        """Test what these rows scored: whether inputs have drifted, and whether these rows are the first to say so."""
        test = self.test
        if test.alarm or not test.watching:
            return test.alarm, False
        entrance = self._entrances.get(point)
        if entrance is None:
            entrance = self._entrances[point] = _entrance(point)
        first, threshold = entrance
        for row, score in enumerate(output.score[:TESTED].tolist()):
            # a row that a deadline cut at its first exit has a score there below the threshold, as one that went on
            test.observe(first, threshold, stages[row], score)
        return test.alarm, test.alarm

    def warn(self, on_drift: str) -> None:
        """Tell of the alarm."""
        logger.warning(
            "inputs no longer look like those of the calibration (nor do repeated or sorted ones): noticed after %d, a "
            "false alarm with probability at most %g; results are not certified from now on, and %s",
            self.test.inputs,
            self.test.alpha,
            "the safest point that the budget allows runs (on_drift='safest')"
            if on_drift == "safest"
            else f"decisions stay as they are (on_drift={on_drift!r})",
        )


def _entrance(point: FrontierPoint) -> tuple[int, float]:
    """The first stage whose exit is evaluated, and its threshold; -inf where it is the last."""
    first = point.plan.on.index(True)
    return first, float(point.thresholds[first]) if first < len(point.thresholds) else -math.inf
