"""Pictures of answers: the pixels are those of the image, and the words those of the answer."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot
from PIL import Image
from support.simulation_cases import FRONTIER

import dynamic
from dynamic.engines.contract import Output
from dynamic.policies import Decision
from dynamic.policies.errors import InputError
from dynamic.report.answer_pictures import pixels

NAMES = ("cat", "dog", "fox", "owl")
P = np.array([[0.1, 0.6, 0.25, 0.05], [0.7, 0.1, 0.1, 0.1]], np.float32)


@pytest.fixture(autouse=True)
def figures() -> Iterator[None]:
    pyplot.switch_backend("agg")
    yield
    pyplot.close("all")


def batch(p: np.ndarray = P, classes: tuple[str, ...] | None = NAMES) -> dynamic.BatchResult:
    rows = len(p)
    output = Output(np.log(p), np.arange(rows), np.ones(rows, np.float32))
    return dynamic.BatchResult(0, output, classes, 12.5, Decision(FRONTIER.points[0], True, (), "why"), True)


def test_an_image_has_the_likeliest_classes_below_it() -> None:
    image = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    axes = batch()[0].plot(image)
    assert np.array_equal(axes.images[0].get_array(), image / 255)
    assert axes.get_xlabel() == "dog 0.600\nfox 0.250\ncat 0.100"
    assert axes.get_title() == "stage 0, 12.5 ms, certified"


def test_without_an_image_classes_are_bars() -> None:
    own = pyplot.subplots()[1]
    axes = batch()[0].plot(axes=own)
    assert axes is own
    assert [label.get_text() for label in axes.get_yticklabels()] == ["dog", "fox", "cat", "owl"]
    assert np.allclose([bar.get_width() for bar in axes.patches], [0.6, 0.25, 0.1, 0.05])
    assert [x.get_text() for x in batch(classes=None)[0].plot().get_yticklabels()] == ["1", "2", "0", "3"]


def test_a_batch_is_several_images() -> None:
    images = np.zeros((2, 4, 4))
    first, second = batch().plot(images)
    assert first.get_xlabel().startswith("dog 0.600")
    assert second.get_xlabel().startswith("cat 0.700")
    assert len(batch(np.full((20, 4), 0.25, np.float32)).plot(np.zeros((20, 4, 4)))) == 16
    with pytest.raises(InputError, match="3 images for 2 answers"):
        batch().plot(np.zeros((3, 4, 4)))
    with pytest.raises(InputError, match=r"batch\.plot\(images\)"):
        dynamic.plot(batch())


def test_an_answer_that_is_none_says_so() -> None:
    axes = batch(np.full((1, 4), np.nan, np.float32))[0].plot(np.zeros((4, 4)))
    assert axes.get_xlabel() == "no finite answer"


def test_images_of_every_kind(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    for image in (rgb, rgb.transpose(2, 0, 1), Image.fromarray(rgb), tmp_path / "a.png", str(tmp_path / "a.png")):
        assert np.array_equal(pixels(image), rgb / 255)
    assert np.array_equal(pixels(rgb[..., :1]), rgb[..., 0] / 255)
    assert np.allclose(pixels(np.array([[-1.0, 3.0]])), [[0.0, 1.0]])  # normalized: scaled to what can be drawn
    assert np.array_equal(pixels(np.array([[0.25, 0.5]])), [[0.25, 0.5]])
    assert np.array_equal(pixels(np.zeros((2, 2), np.uint8)), np.zeros((2, 2)))
    for wrong in (np.zeros(3), np.zeros((2, 5, 5)), np.array([["a"]])):
        with pytest.raises(InputError, match="cannot be drawn"):
            pixels(wrong)


def test_an_image_goes_with_an_answer_alone() -> None:
    with pytest.raises(InputError, match="an image goes with an answer"):
        dynamic.plot(FRONTIER, image=np.zeros((2, 2)))
