"""Inputs of every kind to `run`, `map` and `submit`: a right answer, or one InputError, and nothing certified else.

    python -m benchmarks.robustness.inputs --count 3000

An input is drawn: vectors or pictures of known classes, then up to three changes of values, type, shape, memory and
what it is wrapped in. What must not be: an exception other than InputError, a result that is certified and has a row
without an answer, one that is certified although a value is not finite, another answer where only the memory differs.
"""

import argparse
import array
import collections
import contextlib
import decimal
import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.robustness.asked import CLASSES, FEATURES, LOUD, SIDE, bundles
from dynamic.errors import InputError
from dynamic.runtime.runtime import Runtime

Value = Any
Change = Callable[[Random, Value], Value]
TYPES = ("float16", "float64", "int8", "int64", "uint8", "bool", "complex64", ">f4", ">u1", "object", "str", "M8[s]")
LIMIT_S = 60
DEEPEST = 8  # of lists in lists: inputs have three or four dimensions


class Dlpack:
    """Offers DLPack and nothing else."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def __dlpack__(self, **options: Any) -> Any:
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.values.__dlpack_device__()


class Raises:
    """An array that cannot be had."""

    def __array__(self, *_: Any, **options: Any) -> Any:
        raise KeyError("gone")


def misaligned(values: Any) -> Any:
    """The same values one byte off."""
    made = np.frombuffer(bytearray(values.nbytes + 1), values.dtype, values.size, offset=1).reshape(values.shape)
    made[...] = values
    return made


def read_only(values: Any) -> Any:
    """The same values, which nobody may write to."""
    made = values.copy()
    made.flags.writeable = False
    return made


def with_value(random: Random, values: Any) -> Any:
    """One value or all of them are another one."""
    made = values.astype(np.float32) if values.dtype.kind == "f" else values.copy()
    value = random.choice([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-40]) if made.dtype.kind == "f" else 255
    made[(...) if random.random() < 0.3 else random.randrange(len(made))] = value
    return made


def masked(random: Random, values: Any) -> Any:
    """A masked array, in which something is masked or nothing."""
    mask = np.zeros(values.shape, bool)
    mask.flat[0] = random.random() < 0.7
    return np.ma.masked_array(values, mask)


def cyclic(_: Random, __: Any) -> Any:
    """A list that holds itself."""
    made: list[Any] = []
    made.append(made)
    return made


# the same values: the answer has to be the same
MEMORY: tuple[Change, ...] = (
    lambda r, v: v,
    lambda r, v: np.asfortranarray(v),
    lambda r, v: np.ascontiguousarray(v[::-1, ..., ::-1])[::-1, ..., ::-1],
    lambda r, v: np.repeat(v, 2, axis=-1)[..., ::2],
    lambda r, v: misaligned(v),
    lambda r, v: read_only(v),
    lambda r, v: torch.from_numpy(v.copy()),
    lambda r, v: Dlpack(v),
    lambda r, v: np.ma.masked_array(v),
    lambda r, v: v.view(type("Own", (np.ndarray,), {})),
)
VALUES: tuple[Change, ...] = (with_value, lambda r, v: v.astype(r.choice(TYPES), copy=True))
SHAPES: tuple[Change, ...] = (
    lambda r, v: v[0],
    lambda r, v: v[:0],
    lambda r, v: v[:, :0],
    lambda r, v: v[..., :-1],
    lambda r, v: v[None],
    lambda r, v: v.reshape(-1),
    lambda r, v: v.reshape(-1)[0],
    lambda r, v: np.array(v.reshape(-1)[0]),
    lambda r, v: np.moveaxis(v, -1, 1),
    lambda r, v: np.broadcast_to(v[:1], (r.choice([1, 7, 200]), *v.shape[1:])),
    lambda r, v: v[[0, -1]],
)
WRAPPED: tuple[Change, ...] = (
    lambda r, v: {"input": v},
    lambda r, v: {r.choice(["other", 1, None, b"input"]): v, **({"input": v} if r.random() < 0.5 else {})},
    lambda r, v: collections.UserDict({"input": v}),
    lambda r, v: (v,),
    lambda r, v: (v, v),
    lambda r, v: [v],
    lambda r, v: list(v),
    lambda r, v: [v[0], v[0][:1]],
    lambda r, v: [v[0], None],
    lambda r, v: v.tolist(),
    lambda r, v: np.ascontiguousarray(v).data,  # a memoryview
    lambda r, v: bytearray(np.ascontiguousarray(v).tobytes()),
    lambda r, v: iter(v),
    masked,
    lambda r, v: [masked(r, row) for row in v],
    lambda r, v: torch.from_numpy(v.copy()).to(r.choice([torch.bfloat16, torch.float16, torch.float64])),
    lambda r, v: torch.empty(v.shape, device="meta"),
    lambda r, v: torch.zeros(v.shape, requires_grad=True),
    lambda r, v: torch.zeros(v.shape).to_sparse(),
    lambda r, v: Image.fromarray(np.zeros((r.choice([SIDE, 40]), SIDE, 3), np.uint8)),
    lambda r, v: Image.new(r.choice(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "F", "I;16"]), (SIDE, SIDE)),
    lambda r, v: [Image.fromarray(image) for image in v],
)
OTHER: tuple[Change, ...] = (
    lambda r, v: r.choice([None, 5, 2.5, "word", b"word", "", True, len, {1, 2}, [], (), {}, Path("a.png"), 10**400]),
    lambda r, v: (None,) * r.choice([1, 2]),
    lambda r, v: [None] * r.choice([1, 2]),
    lambda r, v: [[1, 2], [3]],
    lambda r, v: [decimal.Decimal(1)],
    lambda r, v: array.array("d", [1.0, 2.0]),
    lambda r, v: (i for i in (1, 2)),
    lambda r, v: Raises(),
    lambda r, v: np.zeros(3, [("a", "f4")]),
    cyclic,
)


def draw(random: Random, pictures: bool) -> tuple[Value, list[int] | None]:
    """An input, and its labels where it has to be answered with them."""
    labels = [random.randrange(CLASSES) for _ in range(random.choice([1, 1, 2, 5]))]
    values: Any
    if pictures:
        level = [(label + 0.5) / CLASSES * 255 for label in labels]
        values = np.ones((1, SIDE, SIDE, 3)) * np.array(level).reshape(-1, 1, 1, 1)
        values = values.astype(np.uint8)
    else:
        values = np.random.default_rng(random.randrange(2**32)).standard_normal((len(labels), FEATURES))
        values[:, 0] = [(label + 0.5) * LOUD for label in labels]
        values = values.astype(np.float32)
    kind = random.random()
    if kind < 0.05:  # gigabytes, none of which may be converted
        huge = np.broadcast_to(values.reshape(-1)[0], (random.choice([3, 10**5]), 10**5, 3))
        return random.choice([huge, huge[None], {"input": huge}, (huge,), [huge]]), None
    if kind < 0.3:
        return random.choice(MEMORY)(random, values), labels
    if kind < 0.4:
        return random.choice(OTHER)(random, values), None
    changes = [change for group in (VALUES, SHAPES, MEMORY, WRAPPED) if random.random() < 0.45 for change in [group]]
    value = values
    for group in changes:
        with contextlib.suppress(TypeError, ValueError, IndexError, AttributeError, KeyError, RuntimeError):
            value = random.choice(group)(random, value)  # unless it does not go with the change before
    return value, None


def is_not_finite(value: Value, depth: int = 0) -> bool:
    """Whether an array, or one in a dict, a list or whatever else holds numbers, holds NaN or infinity."""
    if depth > DEEPEST or value is None or isinstance(value, (str, bytes)):
        return False
    if isinstance(value, (collections.UserDict, dict)):
        return any(is_not_finite(entry, depth + 1) for entry in value.values())
    if isinstance(value, Dlpack):
        return is_not_finite(value.values, depth + 1)
    if isinstance(value, (tuple, list, collections.deque, collections.UserList)):
        return any(is_not_finite(entry, depth + 1) for entry in value)
    try:
        if isinstance(value, torch.Tensor):  # numpy has no bfloat16
            value = value.detach().to_dense().double().numpy()
        values = np.asarray(value)  # a memoryview, an array of the standard library, a number
        if values.dtype.kind == "O":
            values = values.astype(np.float64)
        return values.dtype.kind in "fc" and not bool(np.isfinite(values).all())
    except Exception:  # a tensor without values, an iterator, text: no network takes it
        return False


def inputs(seed: int, count: float, engines: Sequence[str] = ("onnxruntime", "openvino")) -> dict[str, Any]:
    """Try inputs on both bundles and on each engine in turn.

    Args:
        seed: Of the draw.
        count: How many inputs.
        engines: Their names.

    Returns:
        Counts: `tried`, `answered`, `refused` by InputError, `certified`, `raw` exceptions, `certified_without_answer`,
        `certified_not_finite`, `wrong_answers`, and the first few `errors` in words.
    """
    logging.getLogger("dynamic").setLevel(logging.CRITICAL)
    random = Random(seed)
    counts = Counter[str](tried=0, answered=0, refused=0, certified=0)
    for key in ("raw", "certified_without_answer", "certified_not_finite", "wrong_answers"):
        counts[key] = 0
    errors: list[str] = []
    with bundles(seed) as both:
        runs: list[tuple[Runtime, bool]] = []
        for bundle in both:
            for engine in engines:  # costs that are missing take seconds
                fast = bundle.profile(batch=(1, 4), seconds=0.05, engine=engine, progress=False)
                opened = fast.runtime(engine=engine, fallback=(), drift_alpha=None)
                runs.append((opened, bundle.preprocess is not None))
        try:
            for number in range(int(count)):
                run, pictures = runs[number % len(runs)]
                value, labels = draw(random, pictures)
                how = random.choice(("run", "map", "submit"))
                _try(run, value, labels, how, counts, errors)
        finally:
            for run, _ in runs:
                run.close()
    return {**counts, "errors": errors[:5]}


def _try(
    run: Runtime, value: Value, labels: list[int] | None, how: str, counts: Counter[str], errors: list[str]
) -> None:
    counts["tried"] += 1
    try:
        if how == "run":
            result = run(value)
        elif how == "map":
            result = next(run.map([value]))
        else:
            result = run.submit(value).result(LIMIT_S)
    except InputError as error:
        counts["refused"] += 1
        if labels is not None:
            counts["wrong_answers"] += 1
            errors.append(f"{how}: refused, although good: {error}"[:200])
        return
    except BaseException as error:  # of any kind
        if isinstance(error, KeyboardInterrupt):
            raise
        counts["raw"] += 1
        errors.append(f"{how}({type(value).__name__}): {error!r}"[:200])
        return
    counts["answered"] += 1
    counts["certified"] += result.certified
    answered = (np.atleast_1d(result.label) >= 0) & np.isfinite(np.atleast_1d(result.probability))
    counts["certified_without_answer"] += result.certified and not answered.all()
    counts["certified_not_finite"] += result.certified and is_not_finite(value)
    given = np.atleast_1d(result.label).tolist()
    if labels is not None and (given != labels or not answered.all()):
        counts["wrong_answers"] += 1
        errors.append(f"{how}: {given} instead of {labels}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(json.dumps(inputs(options.seed, options.count), indent=1))
