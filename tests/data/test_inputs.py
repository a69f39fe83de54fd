"""Whatever is handed in gets the right answer or one clear InputError, on every engine, which is not blamed."""

import array
import decimal
import io
import tracemalloc
from collections import UserDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.runtime_cases import monitor, shared_blobs
from torch import nn

import dynamic
from dynamic.errors import InputError
from dynamic.runtime.runtime import Runtime

WAYS = [("onnxruntime", "graph"), ("onnxruntime", "stages"), ("openvino", "graph"), ("openvino", "stages")]
X = np.random.default_rng(0).standard_normal((4, 12)).astype(np.float32)
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3)).astype(np.uint8)


class Bright(nn.Module):
    """Four classes by brightness, in linear steps."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(1, 4)
        self.last.weight.data = torch.tensor([[0.0], [10.0], [20.0], [30.0]])
        self.last.bias.data = torch.tensor([0.0, -2.5, -7.5, -15.0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(x.mean((1, 2, 3))[:, None])  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dynamic.Bundle:
    """A bundle that takes uint8 [16, 16, 3]."""
    level = (torch.arange(400) % 4 + 0.5) / 4
    inputs = (level[:, None, None, None] + 0.02 * torch.randn(400, 3, 16, 16)).clamp(0, 1)
    built = dynamic.build([Bright(), Bright()], [(inputs, torch.arange(400) % 4)], preprocess=dynamic.Preprocess.of())
    return built.save(tmp_path_factory.mktemp("inputs") / "pictures").profile(batch=(1, 4), seconds=0.05)


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> dynamic.Bundle:
    return shared_blobs(tmp_path_factory)


Opener = Callable[[dynamic.Bundle], Runtime]


@pytest.fixture(scope="module", params=WAYS, ids="-".join)
def opened(request: pytest.FixtureRequest) -> Iterator[Opener]:
    engine, route = request.param
    pytest.importorskip(engine)
    made: dict[Path, Runtime] = {}

    def opener(bundle: dynamic.Bundle) -> Runtime:
        if bundle.folder not in made:
            options: Any = {"engine": engine, "threads": 1, "route": route}
            fast = bundle.profile(batch=(1,), seconds=0.02, **options)  # costs that are missing take seconds
            made[bundle.folder] = Runtime(
                fast, dynamic.Budget(), monitor=monitor(), drift_alpha=None, fallback=(), **options
            )
        return made[bundle.folder]

    yield opener
    for run in made.values():
        assert run.stats().engine_failures == 0, "the caller's faults are no engine's"
        run.close()


class Dlpack:
    """Offers DLPack and nothing else."""

    def __init__(self, values: np.ndarray[Any, Any]) -> None:
        self.values = values

    def __dlpack__(self, **options: Any) -> Any:
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.values.__dlpack_device__()


class Raises:
    """An array that cannot be had."""

    def __array__(self, *_: Any, **options: Any) -> Any:
        raise KeyError("gone")


class Odd:
    """Names that arrays have, with other things behind them."""

    shape, dtype, ndim = None, 3, "two"


def misaligned(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    buffer = bytearray(values.nbytes + 1)
    made = np.frombuffer(buffer, values.dtype, values.size, offset=1).reshape(values.shape)
    made[...] = values
    return made


def masked(values: np.ndarray[Any, Any], hidden: bool) -> Any:
    mask = np.zeros(values.shape, bool)
    mask.flat[0] = hidden
    return np.ma.masked_array(values, mask)


def mapped(values: np.ndarray[Any, Any], folder: Path) -> Any:
    values.tofile(folder / "values")
    return np.memmap(folder / "values", values.dtype, "r", shape=values.shape)


def cyclic() -> list[Any]:
    made: list[Any] = []
    made.append(made)
    return made


RIGHT: dict[str, Callable[[np.ndarray[Any, Any], Path], Any]] = {
    "itself": lambda x, _: x,
    "Fortran order": lambda x, _: np.asfortranarray(x),
    "negative strides": lambda x, _: np.ascontiguousarray(x[::-1, ..., ::-1])[::-1, ..., ::-1],
    "every second": lambda x, _: np.repeat(x, 2, axis=-1)[..., ::2],
    "misaligned": lambda x, _: misaligned(x),
    "read-only": lambda x, _: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
    "memory map": mapped,
    "nothing masked": lambda x, _: masked(x, False),
    "a tensor": lambda x, _: torch.from_numpy(x),
    "DLPack": lambda x, _: Dlpack(x),
    "a subclass": lambda x, _: x.view(type("Own", (np.ndarray,), {})),
}


@pytest.mark.parametrize("what", RIGHT)
def test_right_answers_from_any_memory(opened: Any, vectors: dynamic.Bundle, tmp_path: Path, what: str) -> None:
    run = opened(vectors)
    truth = run(X)
    given = RIGHT[what](X, tmp_path)
    for result in (
        run(given),
        run({"input": given}),
        run((given,)),
        next(run.map([given])),
        run.submit(given).result(120),
    ):
        np.testing.assert_allclose(result.log_probs, truth.log_probs, atol=1e-5)


@pytest.mark.parametrize("what", [*RIGHT, "big-endian", "pictures", "a list"])
def test_right_answers_from_any_pixels(opened: Any, pictures: dynamic.Bundle, tmp_path: Path, what: str) -> None:
    more: dict[str, Callable[[], Any]] = {
        "big-endian": lambda: PIXELS.astype(">u1"),
        "pictures": lambda: [Image.fromarray(image) for image in PIXELS],
        "a list": lambda: list(PIXELS),
    }
    run = opened(pictures)
    truth = run(PIXELS)
    given = more[what]() if what in more else RIGHT[what](PIXELS, tmp_path)
    for result in (run(given), next(run.map([given])), run.submit(given).result(120)):
        np.testing.assert_allclose(result.log_probs, truth.log_probs, atol=1e-5)


WRONG: dict[str, Callable[[np.ndarray[Any, Any]], Any]] = {
    "bfloat16": lambda x: torch.from_numpy(x).to(torch.bfloat16),
    "meta": lambda x: torch.empty(x.shape, device="meta"),
    "gradients": lambda x: torch.zeros(x.shape, requires_grad=True),
    "sparse": lambda x: torch.zeros(x.shape).to_sparse(),
    "nothing": lambda x: None,
    "a tuple of nothing": lambda x: (None,),
    "a list of nothing": lambda x: [None, None],
    "an empty tuple": lambda x: (),
    "an empty list": lambda x: [],
    "an empty dict": lambda x: {},
    "a dict of nothing": lambda x: {"input": None},
    "ragged": lambda x: [[1, 2], [3]],
    "ragged arrays": lambda x: [x[0], x[0][:1]],
    "objects": lambda x: x.astype(object),
    "half objects": lambda x: np.array([[1.0, None]], object),
    "a word": lambda x: "word",
    "bytes": lambda x: b"word",
    "words": lambda x: np.array(["a", "b"]),
    "a number": lambda x: 5,
    "0-d": lambda x: np.array(5, x.dtype),
    "a scalar": lambda x: x.dtype.type(5),
    "a huge number": lambda x: [10**400],
    "decimals": lambda x: [decimal.Decimal(1)],
    "a set": lambda x: {1, 2},
    "a function": lambda x: len,
    "a generator": lambda x: (i for i in (1, 2)),
    "bytearray": lambda x: bytearray(3),
    "array.array": lambda x: array.array("d", [1.0, 2.0]),
    "cyclic": lambda x: cyclic(),
    "another name": lambda x: {"other": x},
    "a number as name": lambda x: {1: x},
    "names of all kinds": lambda x: {1: x, None: x, "input": x},
    "a UserDict of another name": lambda x: UserDict({"other": x}),
    "too many": lambda x: (x, x, x, x, x),
    "masked": lambda x: masked(x, True),
    "masked in a list": lambda x: [masked(row, True) for row in x],
    "masked in a dict": lambda x: {"input": masked(x, True)},
    "no rows": lambda x: x[:0],
    "no columns": lambda x: x[:, :0],
    "one dimension more": lambda x: x[None, None],
    "another type": lambda x: x.astype(np.float64),
    "half": lambda x: x.astype(np.float16),
    "complex": lambda x: x.astype(complex),
    "dates": lambda x: x.astype(np.int64).view("M8[s]"),
    "fields": lambda x: np.zeros(3, [("a", "f4")]),
    "big-endian": lambda x: x.astype(">f4"),
    "raises": lambda x: Raises(),
    "odd names": lambda x: Odd(),
    "a picture": lambda x: Image.new("RGB", (40, 30)),
    "a gray picture": lambda x: Image.new("L", (16, 16)),
    "a palette": lambda x: Image.new("P", (16, 16)),
    "pictures": lambda x: [Image.new("RGB", (40, 30))] * 2,
    "gigabytes": lambda x: np.broadcast_to(np.zeros((), x.dtype), (10**6, 10**6, 3)),
    "a list of gigabytes": lambda x: [np.broadcast_to(np.zeros((), x.dtype), (10**6, 10**6, 3))],
    "a list of lists of gigabytes": lambda x: {"input": [[np.broadcast_to(np.zeros((), x.dtype), (10**6, 10**6, 3))]]},
    "gigabytes of another type": lambda x: np.broadcast_to(0.0, (10**9, *x.shape[1:])),
}


@pytest.mark.parametrize("kind", ["vectors", "pictures"])
def test_one_clear_error_for_anything_else(opened: Any, kind: str, request: pytest.FixtureRequest) -> None:
    run = opened(request.getfixturevalue(kind))
    for what, make in WRONG.items():
        x = X if kind == "vectors" else PIXELS
        for answer in (run, lambda x: next(run.map([x])), lambda x: run.submit(x).result(120)):
            with pytest.raises(InputError) as caught:
                answer(make(x))
            assert len(str(caught.value)) > 25, what
    assert run(x).label.shape == (4,), "it goes on"


def damaged() -> Image.Image:
    file = io.BytesIO()
    Image.fromarray(PIXELS[0]).save(file, "png")
    return Image.open(io.BytesIO(file.getvalue()[:80]))


def closed() -> Image.Image:
    file = io.BytesIO()
    Image.fromarray(PIXELS[0]).save(file, "png")
    with Image.open(file) as image:
        return image


@pytest.mark.parametrize("make", [damaged, closed])
def test_pictures_that_do_not_read(opened: Any, pictures: dynamic.Bundle, make: Any) -> None:
    run = opened(pictures)
    for answer in (run, lambda x: run.submit(x).result(120)):
        with pytest.raises(InputError, match="does not read as an image"):
            answer(make())


@pytest.mark.parametrize("how", ["run", "submit", "map"])
@pytest.mark.parametrize("large", ["array", "batch", "list", "tensor", "by name", "Fortran order"])
def test_a_picture_that_is_too_large_is_refused_before_it_is_converted(
    pictures: dynamic.Bundle, large: str, how: str
) -> None:
    image = np.zeros((1000, 800, 3), np.uint8)  # 2.4 MB, 3,000 times too large
    given: Any = {
        "array": image,
        "batch": image[None],
        "list": [PIXELS[0], image],
        "tensor": torch.from_numpy(image),
        "by name": {"input": np.zeros((1, 3, 1000, 800), np.float32)},
        "Fortran order": np.asfortranarray(image),
    }[large]
    with pictures.runtime(monitor=monitor(), drift_alpha=None) as run:
        answers: Any = {"run": run, "submit": lambda x: run.submit(x).result(120), "map": lambda x: next(run.map([x]))}
        answers[how](PIXELS[0])
        tracemalloc.start()
        try:
            with pytest.raises(InputError, match=r"shape \[.*1000, 800.*expected \[(B, )?3, 16, 16\]"):
                answers[how](given)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 0.2 * image.nbytes, "numpy's memory is traced"


@pytest.mark.parametrize("how", ["run", "submit"])
def test_a_picture_of_pillow_that_is_too_large_is_not_decoded(
    pictures: dynamic.Bundle, vectors: dynamic.Bundle, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.BytesIO()
    Image.new("RGB", (1000, 800)).save(file, "png")

    def load(_: Any) -> Any:
        raise AssertionError("decoded")

    for bundle in (pictures, vectors):
        with bundle.runtime(monitor=monitor(), drift_alpha=None) as run, Image.open(file) as image:
            monkeypatch.setattr(type(image), "load", load)
            with pytest.raises(InputError, match=r"shape \[800, 1000, 3\]"):
                run(image) if how == "run" else run.submit(image).result(120)


def test_a_turned_picture_is_judged_by_its_turned_size(pictures: dynamic.Bundle) -> None:
    crop = dynamic.Preprocess.of(crop=(16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.new("RGB", (20, 10)).save(file, "jpeg", exif=exif)
    with Image.open(file) as image:
        for shape, fits in (((3, 20, 10), True), ((3, 10, 20), False)):
            if fits:
                dynamic.Preprocess.of().check(image, shape)
                assert dynamic.Preprocess.of()(image, shape).shape == (1, *shape)
            else:
                with pytest.raises(InputError, match=r"\[20, 10, 3\].*expected \[3, 10, 20\]"):
                    dynamic.Preprocess.of()(image, shape)
        assert crop(image, (3, 16, 16)).shape == (1, 3, 16, 16)


@pytest.mark.parametrize("shape", [(16, 16), (16, 16, 1), (30, 20, 3), (20, 30, 4), (1, 1, 3), (7, 5)])
@pytest.mark.parametrize(
    "steps",
    [
        (),
        (dynamic.data.Resize(12),),
        (dynamic.data.Resize(12, longest=14),),
        (dynamic.data.Resize((9, 11)),),
        (dynamic.data.CenterCrop((8, 20)),),
        (
            dynamic.data.RGB(),
            dynamic.data.Resize(10),
            dynamic.data.CenterCrop((10, 10)),
        ),
        (dynamic.data.Gray(1),),
        (dynamic.data.Gray(3),),
    ],
)
def test_the_size_that_is_checked_is_the_size_that_comes_out(shape: tuple[int, ...], steps: Any) -> None:
    preprocess = dynamic.Preprocess((*steps, dynamic.data.Scale()))
    image = np.zeros(shape, np.uint8)
    made = preprocess(image).shape[1:]
    preprocess.check(image, made)
    assert preprocess(image, made).shape == (1, *made)
    with pytest.raises(InputError, match="preprocessing makes"):
        preprocess.check(image, (made[0], made[1] + 1, made[2]))
