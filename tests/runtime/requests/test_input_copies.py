"""What waits is a copy: a buffer may be filled again as soon as `submit` returns, and results keep what they hold."""

import array
import asyncio
import collections
import io
import threading
from collections import namedtuple
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from support.runtime_cases import Fake, Takes, faked, monitor, shared_blobs, with_ladder

import dynamic
from dynamic.data.picture_decoding import copy_picture, picture_pixels, picture_shape, read_picture
from dynamic.engines.contract import Output
from dynamic.policies.scores import ScoreBins
from dynamic.runtime.requests.input_copies import owned
from dynamic.runtime.runtime import Runtime

LIMIT_S = 120
Pair = namedtuple("Pair", "left right")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> dynamic.Bundle:
    return shared_blobs(tmp_path_factory)


class Gated(Fake):
    """The label is the first value of a row. It waits for the gate before it reads its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.inputs: list[NDArray[Any]] = []

    def run(self, inputs: Any, thresholds: Any, *rest: Any) -> Output:
        assert self.gate.wait(LIMIT_S)
        output = super().run(inputs, thresholds, *rest)
        (x,) = inputs.values()
        self.inputs.append(x)
        logits = np.full((len(x), 4), np.log(0.1), np.float32)
        logits[np.arange(len(x)), x[:, 0].astype(int)] = np.log(0.7)
        return Output(logits, output.stage, output.score)


def gated(bundle: dynamic.Bundle, **options: Any) -> tuple[Runtime, Gated]:
    engine = Gated()
    return faked(bundle, engine, policy=Takes("reference"), queue=2000, drift_alpha=None, **options), engine


def frame(number: int) -> NDArray[np.float32]:
    return np.full((1, 12), number % 4, np.float32)


def as_tensor(buffer: NDArray[Any]) -> Any:
    return torch.from_numpy(buffer)


HOLDS: dict[str, Callable[[NDArray[Any]], Any]] = {
    "the buffer": lambda b: b,
    "a view": lambda b: b[:, :],
    "one row": lambda b: b[0],
    "a tuple": lambda b: (b,),
    "a dict": lambda b: {"input": b},
    "a list of rows": lambda b: [b[0]],
    "a list of tensors": lambda b: [torch.from_numpy(b[0])],
    "a tensor": as_tensor,
    "a dict of tensors": lambda b: {"input": torch.from_numpy(b)},
    "a memoryview": lambda b: memoryview(b),
    "a masked array": lambda b: np.ma.masked_array(b, copy=False),
    "an array subclass": lambda b: b.view(type("Own", (np.ndarray,), {})),
    "Fortran order": lambda b: b.T.reshape(12, 1).T,
}


@pytest.mark.parametrize("what", HOLDS)
def test_a_buffer_is_free_once_it_was_submitted(bundle: dynamic.Bundle, what: str) -> None:
    run, engine = gated(bundle)
    buffer = frame(0)
    futures = []
    for number in range(40):
        buffer[...] = frame(number)
        futures.append(run.submit(HOLDS[what](buffer)))
    buffer[...] = 0
    engine.gate.set()
    assert [np.atleast_1d(f.result(LIMIT_S).label).tolist() for f in futures] == [[number % 4] for number in range(40)]
    run.close()


def test_arrays_of_the_standard_library_are_copied_too() -> None:
    for value in (bytearray(b"\1\2"), array.array("f", [1.0, 2.0]), memoryview(bytearray(b"\1\2"))):
        copied = owned(value)
        value[0] = value[1]
        assert np.asarray(copied).tolist() == [1, 2]


class Rows:
    """A sequence of one's own, as numpy takes it."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: int) -> Any:
        return self.rows[at]


SEQUENCES: dict[str, Callable[[NDArray[Any]], Any]] = {
    "deque": lambda b: collections.deque([b[0]]),
    "UserList": lambda b: collections.UserList([b[0]]),
    "own": lambda b: Rows([b[0]]),
    "own of own": lambda b: Rows([Rows(list(b[0:1]))]),
    "deque of lists": lambda b: collections.deque([[b[0, 0:6], b[0, 6:12]]]),
}


@pytest.mark.parametrize("what", SEQUENCES)
def test_sequences_that_numpy_takes_are_copied(what: str) -> None:
    buffer = np.arange(12, dtype=np.float32)[None]
    value = SEQUENCES[what](buffer)
    expected, copied = np.array(value), owned(value)
    buffer[...] = -1
    np.testing.assert_array_equal(np.asarray(copied), expected)
    inside = {"input": owned({"input": SEQUENCES[what](buffer)})["input"]}
    buffer[...] = 7
    assert np.asarray(inside["input"]).min() == -1


def test_a_deque_of_frames_that_waits_is_a_copy(bundle: dynamic.Bundle) -> None:
    run, engine = gated(bundle)
    buffer, futures = frame(0), []
    for number in range(8):
        buffer[...] = frame(number)
        futures.append(run.submit(collections.deque([buffer[0]])))
    buffer[...] = 0
    engine.gate.set()
    assert [f.result(LIMIT_S).label.tolist() for f in futures] == [[number % 4] for number in range(8)]
    run.close()


def test_sequences_that_make_no_numbers_stay_as_they_are() -> None:
    for value in (collections.deque(["a"]), collections.UserList([None]), Rows([[1], [1, 2]]), {1, 2}, range(3)):
        copied = owned(value)
        assert copied is value or np.asarray(copied).tolist() == [0, 1, 2]


def test_without_a_copy_the_buffer_is_read_where_it_lies(bundle: dynamic.Bundle) -> None:
    run, engine = gated(bundle)
    buffer = frame(1)
    futures = [run.submit(buffer, copy=False) for _ in range(3)]
    buffer[...] = frame(2)
    engine.gate.set()
    assert [f.result(LIMIT_S).label.tolist() for f in futures] == [[2]] * 3
    assert all(np.shares_memory(x, buffer) for x in engine.inputs)
    run.close()


def test_a_request_that_does_not_wait_is_not_copied(bundle: dynamic.Bundle) -> None:
    run, engine = gated(bundle)
    engine.gate.set()
    buffer = frame(3)
    run(buffer), next(run.map([buffer]))
    assert all(np.shares_memory(x, buffer) for x in engine.inputs)


def test_arun_copies_when_it_is_called(bundle: dynamic.Bundle) -> None:
    run, engine = gated(bundle, workers=2)
    buffer = frame(0)

    async def serve() -> list[list[int]]:
        tasks = []
        for number in range(20):
            buffer[...] = frame(number)
            made = run.arun(buffer)  # nothing of a coroutine runs before it is awaited
            tasks.append(asyncio.ensure_future(made) if number % 2 else made)
        buffer[...] = 0
        engine.gate.set()
        return [result.label.tolist() for result in await asyncio.gather(*tasks)]

    assert asyncio.run(serve()) == [[number % 4] for number in range(20)]
    run.close()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_amap_and_map_take_a_buffer_that_is_filled_again(bundle: dynamic.Bundle, asynchronous: bool) -> None:
    run, engine = gated(bundle, workers=3)
    engine.gate.set()

    def camera() -> Iterator[NDArray[Any]]:
        buffer = frame(0)
        for number in range(30):
            buffer[...] = frame(number)
            yield buffer

    async def stream() -> AsyncIterator[NDArray[Any]]:
        for item in camera():
            yield item

    async def serve() -> list[list[int]]:
        return [r.label.tolist() async for r in run.amap(stream() if asynchronous else camera())]

    expected = [[number % 4] for number in range(30)]
    assert asyncio.run(serve()) == expected
    assert [r.label.tolist() for r in run.map(camera())] == expected
    run.close()


def test_labels_that_are_handed_in_may_be_overwritten(bundle: dynamic.Bundle) -> None:
    run, engine = gated(bundle)
    engine.gate.set()
    labels = np.array([0, 1])
    for number in range(4):
        result = run(np.concatenate([frame(number), frame(number + 1)]))
        result.label[:] = 3  # nor does it matter what becomes of a result
        labels[:] = number % 4, (number + 1) % 4
        run.feedback(result.id, labels)
        labels[:] = 0
    feedback = run.stats().feedback
    assert feedback is not None
    assert (feedback.count, feedback.accuracy[1]) == (8, 1.0)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("route", ["graph", "stages"])
@pytest.mark.parametrize("rows", [1, 5])
def test_results_keep_their_values(bundle: dynamic.Bundle, engine: str, route: str, rows: int) -> None:
    pytest.importorskip(engine)
    opened = bundle.open(engine, route=route, threads=1)
    random, outputs, copies = np.random.default_rng(0), [], []
    buffer = np.zeros((rows, 12), np.float32)
    for _ in range(4):
        buffer[...] = random.standard_normal(buffer.shape)
        output = opened.run({"input": buffer}, np.array([0.7], np.float32))
        outputs.append(output)
        copies.append([np.array(a) for a in (output.logits, output.stage, output.score)])
        assert not any(np.shares_memory(a, buffer) for a in (output.logits, output.stage, output.score))
    for output, copied in zip(outputs, copies, strict=True):
        for ours, theirs in zip((output.logits, output.stage, output.score), copied, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    opened.close()


def test_copies_of_all_kinds_share_no_memory() -> None:
    values = np.arange(6.0).reshape(2, 3)
    pair = owned(Pair(values, [values, "word", None, 3]))
    assert isinstance(pair, Pair)
    assert pair.right[1:] == ["word", None, 3]
    assert not np.shares_memory(pair.left, values)
    assert not np.shares_memory(pair.right[0], values)
    tensor = torch.zeros(3)
    assert isinstance(owned(tensor), torch.Tensor)
    assert owned(tensor).data_ptr() != tensor.data_ptr()
    for value in (5, "word", b"word", None, 2.5, np.float32(1), Path("here"), len):
        assert owned(value) is value
    endless: list[Any] = []
    endless.append(endless)
    owned(endless)  # ends


def encoded(mode: str, form: str, **options: Any) -> io.BytesIO:
    random = np.random.default_rng(0)
    if mode == "I;16":
        image = Image.fromarray(random.integers(0, 65536, (6, 8)).astype(np.uint16))
    else:
        image = Image.fromarray(random.integers(0, 256, (6, 8, 3)).astype(np.uint8)).convert(mode)
    file = io.BytesIO()
    image.save(file, form, **options)
    return file


def turned(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


@pytest.mark.parametrize(
    ("mode", "form", "options"),
    [
        ("RGB", "png", {}),
        ("RGBA", "png", {}),
        ("L", "png", {}),
        ("LA", "png", {}),
        ("1", "png", {}),
        ("I;16", "png", {}),
        ("RGB", "jpeg", {"exif": turned(6)}),
        ("RGB", "png", {"exif": turned(3)}),
        ("RGB", "tiff", {"exif": turned(8)}),
        ("RGB", "tiff", {"tiffinfo": {0x0112: 5}}),
        ("I;16", "tiff", {"tiffinfo": {0x0112: 2}}),
    ],
)
def test_a_copied_picture_has_the_same_pixels_and_outlives_its_file(
    mode: str, form: str, options: dict[str, Any]
) -> None:
    file = encoded(mode, form, **options)
    with Image.open(file) as image:
        truth = picture_pixels(image)
    with Image.open(file) as image:
        copied = copy_picture(image)
        if image.mode in ("RGB", "L"):
            image.paste(0, (0, 0, image.width, image.height))
    np.testing.assert_array_equal(picture_pixels(copied), truth)


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("form", ["tiff", "jpeg", "png"])
def test_pictures_are_turned_once(form: str, number: int) -> None:
    file = encoded("RGB", form, **({"tiffinfo": {0x0112: number}} if form == "tiff" else {"exif": turned(number)}))
    with Image.open(file) as image:
        truth = np.asarray(ImageOps.exif_transpose(image))
    with Image.open(file) as image:
        assert picture_shape(image) == truth.shape
        np.testing.assert_array_equal(picture_pixels(image), truth)
        assert picture_shape(image) == truth.shape, "once it is decoded too"
    np.testing.assert_array_equal(read_picture(file.getvalue(), "it"), truth)


def test_pictures_that_wait_are_copies() -> None:
    image = Image.new("RGB", (4, 4), (1, 2, 3))
    copied = owned([image])[0]
    image.paste(0, (0, 0, 4, 4))
    assert copied.getpixel((0, 0)) == (1, 2, 3)


def test_groups_of_the_drift_test_see_the_input_of_their_request(bundle: dynamic.Bundle) -> None:
    found: list[float] = []

    def group(x: Any) -> int:
        found.append(float(x[0, 0]))
        return len(found)

    made = with_ladder(bundle)
    exits = (ScoreBins((0.5,), (10, 10)), ScoreBins((), (0,)))
    points = tuple(replace(point, exits=exits) for point in made.ladder.points)
    watched = replace(made, ladder=replace(made.ladder, points=points))
    options = dynamic.runtime.drift.streams.DriftOptions(groups=group)
    # at this point everybody runs the first exit, whose score is tested
    policy = Takes("quick")
    run = Runtime.on_engine(watched, watched.frontier, Fake(), dynamic.Budget(), monitor(), policy, drift=options)
    with run:
        buffer = frame(0)
        futures = []
        for number in range(4):
            buffer[...] = frame(number)
            futures.append(run.submit(buffer))
        for future in futures:
            future.result(LIMIT_S)
    assert found == [0.0, 1.0, 2.0, 3.0]
