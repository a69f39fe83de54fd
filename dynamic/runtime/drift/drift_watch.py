"""Whether the inputs of a bundle at work still look like those it was calibrated on."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dynamic.engines.contract import Array, InputSpec, Output
from dynamic.policies.certification.drift import Bag, DriftTest, exits_differ
from dynamic.policies.frontier import CostedPoint
from dynamic.policies.ladder import Ladder
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
        points = ladder.points if watched else ()
        self.test = DriftTest([point.exits for point in points], 0.01 if alpha is None else alpha)
        # the number of each point, and its thresholds as engines compare them
        self._points: dict[tuple[float, ...], tuple[int, tuple[float, ...]]] = {
            point.thresholds: (number, tuple(np.array(point.thresholds, np.float32).tolist()))
            for number, point in enumerate(points)
            if point.exits
        }
        self._calibration = tuple(Bag(point.exits) for point in points)  # no other input joins these
        self._frames = Frames(inputs, options.only_changed, self._rank)
        self._groups = Groups(options.groups)
        self.groups_requests = self._groups.asked  # whether the user's function has to look at each request
        self._every, self._count = options.every, 0
        alike = [point.name for point in points if point.exits and not exits_differ(point.exits)]
        if alike:
            logger.warning(
                "inputs are not watched for drift at %s: under score %r all inputs exit at one stage with one score",
                ", ".join(map(repr, alike)),
                ladder.score,
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
        test, own = self.test, self._points.get(point.operating_point.thresholds)
        before, by_request = test.alarm, []
        for request in requests:
            if own is not None and not test.alarm and request.captured is not None:
                self._test(*own, point.plan.deepest, request, request.captured)
            by_request.append(test.alarm)
        return Drifts(by_request, is_new=test.alarm and not before)

    def _test(self, point: int, thresholds: Sequence[float], deepest: int, request: Tested, captured: Captured) -> None:
        """Test the rows of one request, which ran under this point of the ladder."""
        test, frames = self.test, self._frames
        tested = request.output.score[:TESTED].tolist()
        for row, score in enumerate(tested):
            if self._every > 1:
                self._count += 1
                if self._count % self._every:
                    continue
            stage = request.stages[row]
            # its score did not pass the threshold, so a deadline cut the request there
            is_cut = stage < deepest and not thresholds[stage] < score
            entry = Entry(point, stage, score, is_cut)
            if not captured:
                test.observe(*entry)
                continue
            if len(captured[row]) != frames.count:  # captured before the stream was taken for a camera's
                continue
            was = frames.camera
            suspicious = not was and test.latest > _SUSPICIOUS
            for each in frames.take(captured[row], row, len(tested), entry, suspicious):
                test.observe(*each)
            if frames.camera and not was:
                test.restart()  # what repeated inputs have won says nothing
            test.alarm |= frames.changed

    def _rank(self, entry: Entry) -> float:
        """The share of calibration inputs that are stranger, half of those that are alike among them."""
        return 1.0 - self._calibration[entry.point].rank(entry.stage, entry.score, entry.is_cut, 0.5, joins=False)

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
