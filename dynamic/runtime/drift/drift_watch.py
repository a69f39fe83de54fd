"""Whether the inputs of a bundle at work still look like those it was calibrated on."""

import logging
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dynamic.engines.contract import Array, InputSpec, Output
from dynamic.policies.certification.drift import DriftTest
from dynamic.policies.frontier import CostedPoint
from dynamic.policies.ladder import Ladder
from dynamic.policies.scores import ScoreBins
from dynamic.runtime.drift.streams import DriftOptions, Entry, Frames, Groups

logger = logging.getLogger("dynamic")

Captured = tuple[NDArray[np.float32], ...]  # pixels of each row that is tested, none where they are not compared

# Of a batch, that are tested for drift: a large one must not pay for each. Where a row stands says nothing of what it
# holds, so the first are as good as any, and rows that are left out take nothing from what the test promises.
TESTED = 8


_SUSPICIOUS = 3.0  # money of the test's, from which on inputs are compared with all of the latest


class Tested(Protocol):
    """What the test needs of a request."""

    @property
    def stages(self) -> Sequence[int]:
        """`[B]`, where each row exited."""

    @property
    def output(self) -> Output:
        """What the engine gave, with the scores `[B]` at these stages."""

    @property
    def captured(self) -> Captured | None:
        """What `DriftWatch.capture` gave for it."""


@dataclass(frozen=True)
class Drifts:
    """What the drift test says of some requests.

    Args:
        by_request: Whether inputs had drifted after each request.
        is_new: Whether one of these requests is the first to show it.
    """

    by_request: Sequence[bool]
    is_new: bool = False


class DriftWatch:
    """The drift test of a ladder's inputs. Not safe for several threads at once.

    `alpha` None, or a ladder that was measured `elsewhere` (on another engine or precision): inputs are not watched.
    `inputs` of the cascade, and `options`: which inputs count, see `dynamic.runtime.drift.streams`.
    """

    def __init__(
        self,
        ladder: Ladder,
        alpha: float | None,
        elsewhere: bool,
        inputs: Sequence[InputSpec] = (),
        options: DriftOptions | None = None,
    ) -> None:
        watched = alpha is not None and not elsewhere
        options = options or DriftOptions()
        self.test = DriftTest(ladder.scores if watched else (), 0.01 if alpha is None else alpha)
        self._entrances: dict[CostedPoint, tuple[int, float]] = {}  # see `_entrance`
        self._ranks = tuple(_Ranks(bins) for bins in ladder.scores)
        self._frames = Frames(inputs, options.only_changed, self._rank)
        self._groups = Groups(options.groups)
        self.groups_requests = self._groups.asked  # whether the user's function has to look at each request
        self._every, self._count = options.every, 0
        if watched and ladder.scores and not self.test.watching:
            logger.warning(
                "inputs are not watched for drift: under score %r all score alike at their first exit", ladder.score
            )

    @property
    def drifted(self) -> bool | None:
        """Whether there is drift. None where inputs are not watched."""
        return self.test.alarm if self.test.watching else None

    @property
    def near_duplicates(self) -> int:
        """Inputs that were not tested because they repeated a scene."""
        return self._frames.skipped

    def restart(self) -> None:
        """Watch anew."""
        self.test.restart()
        self._frames.restart()

    def capture(self, inputs: Mapping[str, Array], x: Any = None) -> Captured | None:
        """What `observe` needs of the inputs of a request, copied, since the caller may overwrite them.

        Args:
            inputs: By name, each `[B, ...]`.
            x: The request as it came, for the user's function that gives its group.

        Returns:
            The pixels of each row that is tested. None where the request is not tested.
        """
        if self.test.alarm or not self.test.watching or (self.groups_requests and not self._groups.first(x)):
            return None
        frames = self._frames
        if not frames.watching:
            return ()
        rows = min(len(next(iter(inputs.values()))), TESTED)
        if rows == 1:
            return (frames.pixels(inputs, 0),)
        return tuple(frames.pixels(inputs, row) for row in range(rows))

    def observe(self, point: CostedPoint, requests: Sequence[Tested]) -> Drifts:
        """Test what the rows of requests scored.

        Args:
            point: The operating point that they ran under.
            requests: What each of them showed.

        Returns:
            Whether inputs had drifted after each request, and whether one of these is the first to show it.
        """
        test, entrance = self.test, self._entrances.get(point)
        if entrance is None:
            entrance = self._entrances[point] = _entrance(point)
        before, by_request = test.alarm, []
        for request in requests:
            if not test.alarm and request.captured is not None:
                self._test(*entrance, request.stages, request.output.score.tolist(), request.captured)
            by_request.append(test.alarm)
        return Drifts(by_request, is_new=test.alarm and not before)

    def _test(
        self, first: int, threshold: float, stages: Sequence[int], scores: Sequence[float], captured: Captured
    ) -> None:
        """Test the rows of one request: `stages [B]` of their exits, and the scores there."""
        test, frames = self.test, self._frames
        tested = scores[:TESTED]
        for row, score in enumerate(tested):
            if self._every > 1:
                self._count += 1
                if self._count % self._every:
                    continue
            # a row that a deadline cut at its first exit has a score there below the threshold, as one that went on
            if not captured:
                test.observe(first, threshold, stages[row], score)
                continue
            if len(captured[row]) != frames.count:  # captured before the stream was taken for a camera's
                continue
            was = frames.camera
            suspicious = not was and test.latest > _SUSPICIOUS
            entry = (first, threshold, stages[row], score)
            for each in frames.take(captured[row], row, len(tested), entry, suspicious):
                test.observe(*each)
            if frames.camera and not was:
                test.restart()  # what repeated inputs have won says nothing
            test.alarm |= frames.changed

    def _rank(self, entry: Entry) -> float:
        """Where an input stands among those of the calibration, 0 to 1, as far as its exit tells."""
        first, threshold, stage, score = entry
        if stage == first:
            return self._ranks[first](score)
        # it went on: below the threshold there, and of those where it left
        return self._ranks[first].below(threshold) * self._ranks[stage](score)

    def warn(self, on_drift: str) -> None:
        """Log the alarm."""
        noticed = (
            "a scene that stays has changed its looks (brightness, contrast or sharpness) and its scores for good: "
            "noticed on pixels"
            if self._frames.changed
            else "inputs no longer look like those of the calibration (nor do sorted ones): noticed after "
            f"{self.test.inputs}, a false alarm with probability at most {self.test.alpha:g}"
        )
        logger.warning(
            "%s. Results are not certified from now on, and %s",
            noticed,
            "the safest point that the budget allows runs (on_drift='safest')"
            if on_drift == "safest"
            else f"decisions stay as they are (on_drift={on_drift!r})",
        )


class _Ranks:
    """Ranks of scores among those of the calibration at one stage, in the middle of those that its bins hold alike."""

    def __init__(self, bins: ScoreBins) -> None:
        self._edges = bins.edges
        self._total = max(sum(bins.counts), 1)
        self._sums = (0, *accumulate(bins.counts))

    def __call__(self, score: float) -> float:
        """The share of calibration inputs below a score, half of its own bin among them."""
        at = bisect_left(self._edges, score) if score == score else 0  # NaN lies in the lowest
        return (self._sums[at] + self._sums[at + 1]) / (2 * self._total)

    def below(self, threshold: float) -> float:
        """The share of calibration inputs in the bin of a threshold or lower."""
        return self._sums[bisect_left(self._edges, threshold) + 1] / self._total


def _entrance(point: CostedPoint) -> tuple[int, float]:
    """The first stage whose exit is evaluated, and its threshold. It is -inf for the last stage."""
    first = point.plan.on.index(True)
    return first, float(point.thresholds[first]) if first < len(point.thresholds) else -math.inf
