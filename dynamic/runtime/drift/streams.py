"""Cameras: successive frames repeat each other, and are tested for drift once a scene instead of once a frame.

A drift test takes each input for a new one. Frames of a static camera are the same input over and over, which looks
like drift and is none. So inputs are compared on a few hundred of their pixels. Where successive inputs are
near-duplicates the stream is taken for a camera's: an input then counts where it shows a scene that was not seen
before. A scene that stays is watched in another way: by what its own frames looked like and scored earlier.
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist, median
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dynamic.engines.contract import Array, InputSpec
from dynamic.policies.errors import SettingError
from dynamic.policies.validation.numbers import plain

logger = logging.getLogger("dynamic")

Floats = NDArray[np.float32]

_PAIRS = 128  # of neighbouring pixels that stand for a frame of a camera
_FEW = 64  # pixels that stand for an input of any other stream: 2 us on 224 x 224, where 256 cost 6
_LEAST_SIDE = 8  # an input of two dimensions this long or longer is taken for an image
_SAME = 0.1  # mean squared difference over twice the variance: of two near-duplicates at most
_CONTRAST = 0.04  # of the largest variance seen: a frame of less contrast is held to this one
_RECENT = 16  # inputs that a new one is compared with before the stream is taken for a camera's
_ENOUGH, _OTHERS = 8, 4  # near-duplicates that make a stream a camera's, and other inputs that may lie among them
_SCENES = 64  # that are remembered
_LAYOUT = 0.7  # correlation of two frames of one scene at least, however bright or sharp they are
_BLURRED = 0.4  # correlation of a frame with the same scene out of focus at least
_FORGOTTEN = 32  # frames that are like no other, more than near-duplicates, end a camera's stream
_BASE, _LASTING = 16, 32  # frames that say what a scene is like, and that a change must last
_FACTOR = 2.0  # of variance or sharpness: a change of a picture that counts
_LEVEL = 0.5  # of the standard deviation of a scene's pixels, by which its mean must move to count
_MOVED = 0.25  # standard deviations that scores must move to count, as ranks of the calibration's
_GROUPS = 1000  # that are remembered
_FAR = 1e36  # sum of squares of pixels: float32 ends at 3.4e38


@dataclass(frozen=True)
class DriftOptions:
    """What the drift test takes for a new input, where inputs are not independent of each other.

    Args:
        every: Of so many inputs one is tested, for streams in which only inputs far apart are independent.
        only_changed: Test an input only where it shows a scene that is new, and compare scenes with what they looked
            like earlier. None: this is chosen where successive inputs are near-duplicates, with a warning. False:
            never.
        groups: Gives the group of a request, from the input as `run(x)` takes it: the visit, the patient, the
            recording. Of each group the first request is tested.

    Raises:
        SettingError: A value is not one of these.

    Example:
        >>> with bundle.runtime(drift=dynamic.DriftOptions(every=10)) as run:
        ...     answer = run(x)
    """

    every: int = 1
    only_changed: bool | None = None
    groups: Callable[[Any], Hashable] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "every", plain(self.every))
        object.__setattr__(self, "only_changed", plain(self.only_changed))
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise SettingError(f"every={self.every!r} must be a whole number of at least 1: one of so many is tested")
        if self.only_changed is not None and not isinstance(self.only_changed, bool):
            raise SettingError(f"only_changed={self.only_changed!r} must be True, False, or None: the stream decides")
        if self.groups is not None and not callable(self.groups):
            raise SettingError(f"groups={self.groups!r} must be a function that gives the group of an input")


class Entry(NamedTuple):
    """What the drift test takes of an input, see `DriftTest.observe`."""

    point: int
    stage: int
    score: float
    is_cut: bool


@dataclass
class _Scene:
    """Frames of one layout: the first one's pixels, centred and of length 1, and what the first frames were like."""

    unit: Floats
    level: float
    variance: float
    sharpness: float
    ranks: list[float] = field(default_factory=list)
    changed: deque[float] = field(default_factory=lambda: deque(maxlen=_LASTING))
    frames: int = 0
    latest: Floats | None = None

    def take(self, level: float, variance: float, sharpness: float, rank: float) -> bool:
        """Take a frame in: whether the scene has changed its looks for good, and its scores with it."""
        if not self._differs(level, variance, sharpness):
            self.changed.clear()
            if len(self.ranks) < _BASE:
                self.ranks.append(rank)
            return False
        self.changed.append(rank)
        if len(self.changed) < _LASTING or len(self.ranks) < _BASE:
            return False
        return abs(_normal(median(self.changed)) - _normal(median(self.ranks))) >= _MOVED

    def blurred(self, likeness: float, level: float, variance: float, sharpness: float) -> bool:
        """Whether a frame looks like this scene out of focus.

        Blur changes the level little. It takes more of the sharpness than of the variance, and a smooth part remains. A
        smooth part of an image correlates with it as sqrt(its variance / the image's).
        """
        return (
            likeness >= max(_BLURRED, 0.9 * math.sqrt(variance / self.variance) if self.variance else 1.0)
            and abs(level - self.level) < _LEVEL / 2 * math.sqrt(self.variance)
            and sharpness * _FACTOR < self.sharpness
            and sharpness * self.variance < variance * self.sharpness
        )

    def _differs(self, level: float, variance: float, sharpness: float) -> bool:
        moved = abs(level - self.level) > _LEVEL * math.sqrt(self.variance)
        return moved or _apart(variance, self.variance) or _apart(sharpness, self.sharpness)


class Frames:
    """Which inputs of a stream the drift test takes, by their pixels. Not safe for several threads at once.

    `camera`: whether the stream is taken for a camera's now. `changed`: whether a scene has changed for good.
    `skipped`: inputs that repeated a scene.

    Args:
        inputs: The inputs of the cascade.
        only_changed: See `DriftOptions`.
        rank: Gives the rank of an input among those of the calibration, 0 to 1.
    """

    def __init__(self, inputs: Sequence[InputSpec], only_changed: bool | None, rank: Callable[[Entry], float]) -> None:
        self._name = next((spec.name for spec in inputs if _is_image(spec.shape)), None)
        if only_changed and self._name is None:
            raise SettingError(
                f"only_changed=True compares pixels, and no input is an image (two sides of {_LEAST_SIDE} or more): "
                f"{[spec.shape for spec in inputs]}. Give every= or groups= instead"
            )
        self.watching = only_changed is not False and self._name is not None
        self._always, self._rank = only_changed is True, rank
        self.camera, self.skipped = self._always, 0
        self._shape: tuple[int, ...] = ()  # of an image
        self._places: _Places = _places((_LEAST_SIDE, _LEAST_SIDE))
        self._largest = 0.0  # variance of a frame
        self._most = math.inf  # squared difference that near-duplicates of that variance have
        self._warned = False
        self.restart()

    def restart(self) -> None:
        """Forget what scenes were like: what they look like now is what later frames are compared with."""
        self.changed = False
        self._recent: deque[Floats] = deque(maxlen=_RECENT)
        self._held: list[Entry] = []  # near-duplicates, of a stream that may be a camera's
        self._others = self._single = 0
        self._scenes: list[_Scene] = []
        self._current: dict[int, int] = {}  # the scene that a place of a batch showed last
        self._units: Floats = np.zeros((0, 0), np.float32)

    def pixels(self, inputs: Mapping[str, Array], row: int) -> Floats:
        """The pixels that stand for a row of the inputs, whatever its size: more of them for a camera."""
        images = inputs[self._name]  # type: ignore[index]
        shape = images.shape[1:]
        if shape != self._shape:
            self._shape, self._places = shape, _places(shape)
            self._recent.clear()
        places = self._places[self.camera]
        values: Floats = images.take(places + row * math.prod(shape) if row else places)
        return values if values.dtype == np.float32 else values.astype(np.float32)

    @property
    def count(self) -> int:
        """How many pixels stand for an input now."""
        return len(self._places[self.camera])

    def take(self, pixels: Floats, row: int, rows: int, entry: Entry, suspicious: bool) -> Sequence[Entry]:
        """The entries to test now, of an input and of others that were held back.

        Args:
            pixels: What stands for the input (see `pixels`).
            row: Which row of its request it is.
            rows: How many rows that has.
            entry: What the drift test takes of it.
            suspicious: Whether the test has gathered some evidence.

        Returns:
            The entries.
        """
        if not float(np.vdot(pixels, pixels)) < _FAR:  # not finite, or so large that differences would not be
            return (entry,)  # like no scene, and none that a later frame could be like
        if self.camera:
            return self._in_camera(pixels, row, entry)
        recent = self._recent
        # the same place of the last request. Where several cameras take turns, any input some time ago
        again = False
        if len(recent) >= rows:
            apart = pixels - recent[-rows]
            again = apart.dot(apart) <= self._most and self._same(pixels, recent[-rows], _variance(pixels))
        if suspicious and not again:
            variance = _variance(pixels)
            again = any(self._same(pixels, other, variance) for other in recent)
        recent.append(pixels)
        if again:
            self._held.append(entry)
            if len(self._held) >= _ENOUGH:
                self._begin()
            return ()
        if self._held:
            self._others += 1
            if self._others > _OTHERS:  # they were no camera's: tested late, but tested
                held, self._held, self._others = self._held, [], 0
                return (*held, entry)
        return (entry,)

    def _same(self, one: Floats, other: Floats, variance: float) -> bool:
        """Whether two frames are near-duplicates. `variance` is that of the first."""
        apart, times = one - other, 2 * _SAME * len(one)
        self._largest = max(self._largest, variance)
        self._most = times * self._largest
        return float(apart.dot(apart)) <= times * max(variance, _CONTRAST * self._largest)

    def _begin(self) -> None:
        """Take the stream for a camera's."""
        self.camera = True
        self.skipped += len(self._held)
        self._held = []
        logger.log(
            logging.INFO if self._warned else logging.WARNING,
            "successive inputs are near-duplicates (%d of them: pixels differ by at most %g of twice their variance): "
            "taken for a camera. From now on the drift test counts scenes, not frames, and a scene that stays alarms "
            "where its looks and its scores change for good. drift=DriftOptions(only_changed=False) counts every input",
            _ENOUGH,
            _SAME,
        )
        self._warned = True

    def _in_camera(self, pixels: Floats, row: int, entry: Entry) -> Sequence[Entry]:
        scene, figures = self._scene_of(pixels, row)
        if not entry.is_cut:  # its score says nothing of how it would have been answered
            self.changed |= scene.take(*figures, self._rank(entry))
        again = scene.latest is not None and self._same(pixels, scene.latest, figures[1])
        scene.latest = pixels
        self._single = max(self._single - 1, 0) if again else self._single + 1
        if self._single >= _FORGOTTEN and not self._always:
            self.camera = False
            self.restart()
            logger.info("successive inputs are no near-duplicates any more: the drift test counts every input again")
        elif scene.frames > 1:
            self.skipped += 1
            return ()
        return (entry,)

    def _scene_of(self, pixels: Floats, row: int) -> tuple[_Scene, tuple[float, float, float]]:
        """The scene that a frame shows, new or known, and the frame's level, variance and sharpness."""
        half = len(pixels) // 2
        level = float(np.add.reduce(pixels)) / len(pixels)
        centred = pixels - np.float32(level)
        squares = float(centred.dot(centred))
        steps = pixels[half:] - pixels[:half]  # between neighbours
        figures = level, squares / len(pixels), float(steps.dot(steps)) / half
        self._largest = max(self._largest, figures[1])
        unit = centred / np.float32(math.sqrt(squares) or 1.0)
        place = self._scene_at(unit, figures, row)
        if place is None:
            if len(self._scenes) == _SCENES:
                del self._scenes[0]
                self._current = {where: at - 1 for where, at in self._current.items() if at}
            place = len(self._scenes)
            self._scenes.append(_Scene(unit, *figures))
            self._units = np.stack([scene.unit for scene in self._scenes])
        scene = self._scenes[place]
        scene.frames += 1
        self._current[row] = place
        return scene, figures

    def _scene_at(self, unit: Floats, figures: tuple[float, float, float], row: int) -> int | None:
        """Where the scene stands that a frame shows. None: it is new."""
        if self._units.shape[1] != len(unit):
            self._scenes, self._current = [], {}  # of another size of images
            return None
        current = self._current.get(row)
        if current is not None and unit.dot(self._scenes[current].unit) >= _LAYOUT:
            return current
        likeness = self._units @ unit
        best = int(likeness.argmax())
        flat = _CONTRAST * self._largest  # next to nothing is shown, so that no layout can be compared
        if likeness[best] >= _LAYOUT or max(figures[1], self._scenes[best].variance) <= flat:
            return best
        if current is not None and self._scenes[current].blurred(float(likeness[current]), *figures):
            return current
        return None


class Groups:
    """The groups that requests belong to, of which the first request is tested."""

    def __init__(self, group_of: Callable[[Any], Hashable] | None) -> None:
        self._group_of = group_of
        self._latest: dict[Hashable, None] = {}
        self._warned = False

    @property
    def asked(self) -> bool:
        """Whether there is a function that gives groups."""
        return self._group_of is not None

    def first(self, x: Any) -> bool:
        """Whether a request is the first of its group."""
        if self._group_of is None:
            return True
        try:
            group = self._group_of(x)
            if group in self._latest:
                return False
            self._latest[group] = None
        except Exception as error:
            if not self._warned:
                self._warned = True
                logger.warning(
                    "groups=%r raised %r: such requests are not tested for drift (logged once)", self._group_of, error
                )
            return False
        if len(self._latest) > _GROUPS:
            del self._latest[next(iter(self._latest))]
        return True


def _is_image(shape: Sequence[Any]) -> bool:
    """Whether two sides are long. One of any length counts as long."""
    return sum(not isinstance(side, int) or side >= _LEAST_SIDE for side in shape) >= 2


_Places = tuple[NDArray[np.intp], NDArray[np.intp]]  # for an input of any stream, and for a frame of a camera


def _places(shape: Sequence[int]) -> _Places:
    """Where pixels stand in a flat image: a few of them, and the first ones of pairs, then their neighbours."""
    size = math.prod(shape)
    axis = max(range(len(shape)), key=lambda a: (shape[a], a))
    step = math.prod(shape[axis + 1 :])
    first = np.flatnonzero(np.arange(size) // step % shape[axis] < shape[axis] - 1)
    chosen = np.random.default_rng(0).permutation(first)[:_PAIRS]
    ordered = np.sort(chosen)
    return np.sort(chosen[:_FEW]), np.concatenate([ordered, ordered + step])


def _variance(pixels: Floats) -> float:
    """As `pixels.var()`, in 2 us where that takes 8."""
    centred = pixels - np.float32(np.add.reduce(pixels) / len(pixels))
    return float(centred.dot(centred)) / len(pixels)


def _apart(one: float, other: float) -> bool:
    low, high = sorted((one, other))
    return high > _FACTOR * low


def _normal(rank: float) -> float:
    return NormalDist().inv_cdf(min(max(rank, 0.002), 0.998))
