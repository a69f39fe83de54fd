"""Cameras: frames that repeat each other raise no alarm, and a picture that changes for good does."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from support.policy_cases import INF, make_costs, make_point
from support.runtime_cases import monitor, shared_blobs

import dynamic
from dynamic.engines.contract import InputSpec, Output
from dynamic.errors import SettingError
from dynamic.policies import BudgetPolicy
from dynamic.policies.certification.drift import ScoreBins
from dynamic.policies.ladder import Ladder
from dynamic.runtime.drift.drift_watch import DriftWatch
from dynamic.runtime.drift.streams import DriftOptions
from dynamic.runtime.runtime import Runtime

Floats = NDArray[np.float32]
SHAPE = (3, 32, 32)
REFERENCE = make_point("reference", (INF,), (0.0, 1.0), accuracy=0.9, bound=0.0, drop=0.0, backbones=(1,))
QUICK = make_point("quick", (0.5,), (0.5, 0.5), accuracy=0.8, bound=0.1, drop=0.1, backbones=(0, 1))
SAVE = dynamic.Budget(max_drop=0.1)
NOISE = 4 / 255


@lru_cache(maxsize=2000)
def scene(seed: int) -> Floats:
    """An image whose neighbours are alike, of contrast 0.2 around 0.5."""
    made = gaussian_filter(np.random.default_rng(seed).standard_normal(SHAPE), (0, 1.2, 1.2), mode="wrap")
    return (0.5 + 0.2 * (made - made.mean()) / made.std()).astype(np.float32)


def frame_of(image: Floats, random: np.random.Generator) -> Floats:
    """A frame of an image, with the noise of a sensor."""
    return image + random.normal(0, NOISE, SHAPE).astype(np.float32)


def score(image: Floats, seed: int) -> float:
    """What a network may score: by the scene some number, less where it is blurred or dark, and a little noise."""
    return float(np.clip(np.random.default_rng(seed).uniform(0.4, 1) * min(sharpness(image), 1.0), 0, 1))


def sharpness(image: Floats) -> float:
    return float(np.abs(np.diff(image, axis=-1)).mean()) / 0.05


class Scored(NamedTuple):
    """What the drift test needs of a request."""

    stages: list[int]
    output: Output
    captured: tuple[Floats, ...] | None


class Scores:
    """Two stages: an input leaves at the first where its score is above the threshold."""

    name, precision, threads = "onnxruntime", "f32", 1
    agrees = True

    def __init__(self) -> None:
        self.scores: list[float] = []

    def ready(self, rows: int) -> bool:
        return True

    def prepare(self, *_: Any) -> bool:
        return False

    def run(self, inputs: Mapping[str, NDArray[Any]], thresholds: NDArray[np.float32], *_: Any) -> Output:
        rows = len(next(iter(inputs.values())))
        found = np.array([self.scores.pop(0) for _ in range(rows)], np.float32)
        logits = np.log(np.full((rows, 4), 0.25, np.float32))
        return Output(logits, np.where(thresholds[0] < found, 0, 1), found)

    def close(self) -> None:
        return None


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> dynamic.Bundle:
    return shared_blobs(tmp_path_factory)


def bins(scores: NDArray[np.float64]) -> ScoreBins:
    """The scores, counted between their quantiles."""
    edges = np.unique(np.quantile(scores, np.arange(1, 64) / 64)) if len(scores) else scores
    counts = np.bincount(np.searchsorted(edges, scores, side="left"), minlength=len(edges) + 1)
    return ScoreBins(tuple(edges.tolist()), tuple(counts.tolist()))


class Stream:
    """A runtime on such an engine, whose calibration held the scores of 2,000 scenes."""

    def __init__(self, bundle: dynamic.Bundle, shape: tuple[int, ...] = SHAPE, **options: Any) -> None:
        known = np.random.default_rng(5).uniform(0.4, 1, 2000) + 0.02 * np.random.default_rng(6).standard_normal(2000)
        points = tuple(
            replace(p, exits=tuple(bins(known[(known > p.thresholds[0]) == first]) for first in (True, False)))
            for p in (REFERENCE, QUICK)
        )
        ladder = replace(bundle.ladder, points=points, certified=True)
        spec = replace(bundle.spec, inputs=(InputSpec("input", shape, "float32"),))
        made = replace(bundle, spec=spec, ladder=ladder, costs=make_costs([[1], [10]], memory_mb=(5.0, 50.0)))
        self.engine = Scores()
        self.random = np.random.default_rng(0)
        self.run = Runtime.on_engine(made, made.frontier, self.engine, SAVE, monitor(), BudgetPolicy(), **options)

    def __call__(self, image: Floats, seed: int, frames: int = 1, noisy: float = 0.02) -> bool:
        """Show a scene for so many frames: whether there is an alarm."""
        for _ in range(frames):
            self.engine.scores.append(score(image, seed) + noisy * self.random.standard_normal())
            self.run(frame_of(image, self.random)[None])
        return bool(self.run.stats().drift)


@pytest.mark.parametrize("seed", range(5))
def test_a_static_camera_raises_no_alarm(bundle: dynamic.Bundle, seed: int, caplog: pytest.LogCaptureFixture) -> None:
    stream = Stream(bundle)
    assert not stream(scene(seed), seed, 300)
    stats = stream.run.stats()
    assert stats.near_duplicates == 298, "all but the first frame, and the first after the stream is a camera's"
    (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert "successive inputs are near-duplicates (8 of them" in record.getMessage()
    assert "only_changed=False" in record.getMessage()


@pytest.mark.parametrize("broken", [np.nan, np.inf, 1e38, -3e19])
@pytest.mark.parametrize("only_changed", [True, None])
def test_a_frame_of_no_usual_numbers_spoils_no_later_one(
    bundle: dynamic.Bundle, broken: float, only_changed: bool | None
) -> None:
    stream = Stream(bundle, drift=DriftOptions(only_changed=only_changed))
    for _ in range(30):
        stream(scene(0), 0)
    frames = stream.run._controller.deployment.watch._frames
    pixels = np.full(256 if frames.camera else 64, broken, np.float32)
    assert len(frames.take(pixels, 0, 1, (0, 0.5, 0, 0.9), True)) == 1
    before = stream.run.stats().near_duplicates
    assert not stream(scene(0), 0, 90)
    assert stream.run.stats().near_duplicates == before + 90


@pytest.mark.parametrize("level", [0.0, 1.0, 0.25])
def test_a_picture_of_one_colour_is_a_scene(bundle: dynamic.Bundle, level: float) -> None:
    """A lens cap: nothing is shown, over and over."""
    stream = Stream(bundle)
    for _ in range(400):
        stream.engine.scores.append(0.7)
        stream.run(np.full((1, *SHAPE), level, np.float32))
    stats = stream.run.stats()
    assert not stats.drift
    assert stats.near_duplicates == 398


def test_a_static_camera_of_100_000_frames(bundle: dynamic.Bundle) -> None:
    """The watch alone, as the runtime calls it. By day light comes and goes by a fifth."""
    stream = Stream(bundle)
    watch, point = stream.run.deployment.watch, stream.run.frontier.points[1]
    random, image = np.random.default_rng(1), scene(1)
    light = 1 + 0.2 * np.sin(np.arange(200) / 30).astype(np.float32)
    pool = [{"input": light[i] * frame_of(image, random)[None]} for i in range(200)]
    scores = np.float32(score(image, 1)) + 0.02 * random.standard_normal((1000, 1)).astype(np.float32)
    outputs = [Output(np.zeros((1, 4), np.float32), np.zeros(1, np.int64), found) for found in scores]
    for i in range(100_000):
        captured = watch.capture(pool[i % 200])
        watch.observe(point, [Scored([0], outputs[i % 1000], captured)])
    assert watch.drifted is False
    assert watch.near_duplicates > 99_000


def blur(image: Floats) -> Floats:
    return gaussian_filter(image, (0, 1.5, 1.5), mode="wrap").astype(np.float32)


def night(image: Floats) -> Floats:
    return 0.25 * image


def fog(image: Floats) -> Floats:
    return 0.3 * image + 0.6


@pytest.mark.parametrize("shift", [blur, night, fog], ids=lambda f: f.__name__)
@pytest.mark.parametrize("seed", range(5))
def test_a_shift_on_a_static_camera_is_noticed(bundle: dynamic.Bundle, seed: int, shift: Any) -> None:
    stream = Stream(bundle)
    assert not stream(scene(seed), seed, 500)
    assert stream(shift(scene(seed)), seed, 100)
    assert stream.run.stats().drift is True


def test_dusk_that_falls_slowly_is_noticed(bundle: dynamic.Bundle, caplog: pytest.LogCaptureFixture) -> None:
    stream = Stream(bundle)
    assert not stream(scene(2), 2, 200)
    for step in range(400):
        stream((1 - 0.8 * step / 400) * scene(2), 2)
    assert stream(0.2 * scene(2), 2, 40)
    assert "a scene that stays has changed its looks" in caplog.text


def test_a_shift_that_passes_is_none(bundle: dynamic.Bundle) -> None:
    """Somebody walks by the lens, again and again."""
    stream = Stream(bundle)
    for _ in range(20):
        stream(scene(3), 3, 50)
        stream(night(scene(3)), 3, 20)
    assert not stream(scene(3), 3)


def test_scenes_that_stay_for_a_while_and_then_are_blurred(bundle: dynamic.Bundle) -> None:
    stream = Stream(bundle)
    for seed in range(100, 250):
        assert not stream(scene(seed), seed, 10)
    assert stream.run.stats().near_duplicates >= 150 * 9 - 1
    noticed = next(seed for seed in range(300, 500) if stream(blur(scene(seed)), seed, 10))
    assert noticed < 400


def test_scenes_that_come_back_count_once(bundle: dynamic.Bundle) -> None:
    """An empty belt and the same few goods in turns."""
    stream = Stream(bundle)
    for turn in range(150):
        stream(scene(turn % 4), turn % 4, 3)
    assert not stream.run.stats().drift
    assert stream.run.stats().near_duplicates >= 450 - 16


@pytest.mark.parametrize("cameras", [2, 4])
def test_cameras_that_take_turns(bundle: dynamic.Bundle, cameras: int) -> None:
    stream = Stream(bundle)
    for turn in range(300):
        assert not stream(scene(turn % cameras), turn % cameras)
    for turn in range(400):
        stream(night(scene(turn % cameras)), turn % cameras)
    assert stream.run.stats().drift


def test_cameras_in_a_batch(bundle: dynamic.Bundle) -> None:
    stream = Stream(bundle)

    def frames(count: int, shift: Any) -> bool:
        for _ in range(count):
            images = [shift(scene(seed)) for seed in range(4)]
            stream.engine.scores.extend(score(image, seed) for seed, image in enumerate(images))
            stream.run(np.stack([frame_of(image, stream.random) for image in images]))
        return bool(stream.run.stats().drift)

    assert not frames(300, lambda image: image)
    assert stream.run.stats().near_duplicates == 4 * 298
    assert frames(40, blur)


def test_independent_inputs_are_all_tested(bundle: dynamic.Bundle, caplog: pytest.LogCaptureFixture) -> None:
    stream = Stream(bundle)
    for seed in range(500, 900):
        assert not stream(scene(seed), seed)
    watch = stream.run.deployment.watch
    assert (watch.near_duplicates, watch.test.inputs) == (0, 400)
    assert not caplog.records
    noticed = next(seed for seed in range(2000, 2400) if stream(blur(scene(seed)), seed))
    assert noticed < 2150


def test_a_few_repetitions_are_tested_too(bundle: dynamic.Bundle) -> None:
    """Blank scans among others are inputs like any other: nothing is left out of what the test promises."""
    stream = Stream(bundle)
    for seed in range(600, 800):
        stream(scene(seed - (seed % 10 == 9)), seed)  # one of ten is like the one before
    watch = stream.run.deployment.watch
    for seed in range(800, 820):
        stream(scene(seed), seed)
    assert (watch.near_duplicates, watch.test.inputs) == (0, 220)


def test_after_a_camera_every_input_counts_again(bundle: dynamic.Bundle, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dynamic")
    stream = Stream(bundle)
    stream(scene(0), 0, 50)
    before = stream.run.stats().near_duplicates
    for seed in range(1, 100):
        stream(scene(seed), seed)
    assert stream.run.stats().near_duplicates <= before + 1
    assert "the drift test counts every input again" in caplog.text


def test_it_may_be_said_beforehand(bundle: dynamic.Bundle, caplog: pytest.LogCaptureFixture) -> None:
    stream = Stream(bundle, drift=DriftOptions(only_changed=True))
    assert not stream(scene(0), 0, 300)
    assert (stream.run.stats().near_duplicates, caplog.text) == (299, "")
    every = Stream(bundle, drift=DriftOptions(only_changed=False))
    assert every(scene(0), 0, 300)
    assert every.run.stats().near_duplicates == 0


def test_after_a_restart_the_picture_of_now_is_what_later_ones_are_compared_with(bundle: dynamic.Bundle) -> None:
    stream = Stream(bundle)
    stream(scene(0), 0, 100)
    assert stream(night(scene(0)), 0, 100)
    stream.run.restart_drift()
    assert not stream(night(scene(0)), 0, 300)
    assert stream(scene(0), 0, 100)


def test_one_of_so_many_inputs(bundle: dynamic.Bundle) -> None:
    stream = Stream(bundle, drift=DriftOptions(every=10))
    for seed in range(100):
        stream(scene(seed), seed)
    assert stream.run.deployment.watch.test.inputs == 10


def test_one_of_each_group(bundle: dynamic.Bundle, caplog: pytest.LogCaptureFixture) -> None:
    visit = 0
    stream = Stream(bundle, drift=DriftOptions(groups=lambda x: visit))
    for visit in range(50):
        for seed in range(4):
            stream(scene(4 * visit + seed), 4 * visit + seed)
    assert stream.run.deployment.watch.test.inputs == 50
    wrong = Stream(bundle, drift=DriftOptions(groups=lambda x: x["visit"]))
    for seed in range(5):
        wrong(scene(seed), seed)
    assert wrong.run.deployment.watch.test.inputs == 0
    assert caplog.text.count("logged once") == 1


@pytest.mark.parametrize(
    "options",
    [{"every": 0}, {"every": 1.5}, {"every": True}, {"only_changed": "yes"}, {"groups": 3}],
    ids=str,
)
def test_wrong_options(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(SettingError, match=f"{name}=.* must be"):
        DriftOptions(**options)


def test_pixels_need_images(bundle: dynamic.Bundle) -> None:
    with pytest.raises(SettingError, match=r"no input is an image .*\(12,\)"):
        bundle.runtime(monitor=monitor(), drift=DriftOptions(only_changed=True))
    with pytest.raises(SettingError, match=r"drift=0\.01 must be DriftOptions"):
        bundle.runtime(monitor=monitor(), drift=0.01)


@pytest.mark.parametrize("shape", [(8, 8), (1, 8, 8), (64, 100), (32, 32, 3), (3, 224, 224)], ids=str)
def test_images_of_any_layout(bundle: dynamic.Bundle, shape: tuple[int, ...]) -> None:
    watched = replace(QUICK, exits=(ScoreBins((0.7,), (10, 10)), ScoreBins((), (0,))))
    ladder: Ladder = replace(bundle.ladder, points=(watched,))
    watch = DriftWatch(ladder, 0.01, False, (InputSpec("x", shape, "uint8"),))
    point = replace(bundle.frontier.points[0], operating_point=watched)
    random = np.random.default_rng(0)
    image = random.integers(50, 200, shape)
    for _ in range(200):
        frame = (image + random.integers(-3, 4, shape)).astype(np.uint8)
        output = Output(np.zeros((1, 4), np.float32), np.zeros(1, np.int64), np.full(1, 0.9, np.float32))
        watch.observe(point, [Scored([0], output, watch.capture({"x": frame[None]}))])
    assert (watch.drifted, watch.near_duplicates) == (False, 198)
