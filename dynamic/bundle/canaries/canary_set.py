"""Canaries: calibration inputs that travel with a bundle, with the logits that every stage gave for them.

A certificate holds where stages answer as they did in calibration. Processors differ in silence: in the width of sums
of int8 products, in bf16, in the kernels that an engine chooses. So each new machine runs the canaries once and
compares (`dynamic.bundle.canaries.check`).
"""

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from dynamic.engines.contract import Array, CascadeSpec, InputSpec
from dynamic.engines.inputs.dimensions import DimRange, size_fault
from dynamic.engines.stage_loop import check_inputs
from dynamic.policies.errors import CorruptError, InputError
from dynamic.policies.validation.array_files import read_arrays
from dynamic.storage.temporary_files import fresh_file

CANARIES = "canaries.npz"  # of a bundle's folder
MOST, LEAST = 64, 8  # canaries of a bundle
MOST_BYTES = 1_000_000  # of the file, as long as there are more than LEAST
_LEVELS = 256  # values of a channel that is stored as codes
_MOST_VALUES = 2**30  # of an input without a limit, as in a manifest
_HEADER = 1024  # bytes of an array in a file beside its values: 128 as numpy writes them
Source = Literal["calibration", "given", "noise"]


@dataclass(frozen=True, eq=False)
class Canaries:
    """N inputs and what S stages of C classes gave for them in calibration.

    Args:
        inputs: by input name, each `[N, ...]`, as the engine takes them.
        logits: `[N, S, C]` float32, each stage's own, raw.
        source: "calibration": held-out inputs, cut to one size where few have the same. "given": inputs that the user
            chose to publish. "noise": drawn from a seed. Noise reaches other values inside a network than real inputs
            do, so it can miss a difference.

    Raises:
        InputError: shapes that do not fit each other, or no input at all.
    """

    inputs: Mapping[str, Array]
    logits: NDArray[np.float32]
    source: Source

    def __post_init__(self) -> None:
        if self.logits.ndim != 3 or self.logits.dtype != np.float32 or not len(self.logits):
            raise InputError(
                f"canary logits are {self.logits.dtype} {list(self.logits.shape)}. Expected float32 [N, S, C], N > 0"
            )
        for name, array in self.inputs.items():
            if len(array) != len(self.logits):
                raise InputError(f"canary input {name!r} has {len(array)} rows, the logits have {len(self.logits)}")
        if self.source not in get_args(Source):
            raise InputError(f"source={self.source!r} is not known. Use one of {get_args(Source)}")

    def __len__(self) -> int:
        return len(self.logits)

    def first(self, count: int) -> "Canaries":
        """The first `count` canaries."""
        return Canaries({name: array[:count] for name, array in self.inputs.items()}, self.logits[:count], self.source)

    def save(self, path: Path) -> "Canaries":
        """Write as many as fit into `MOST_BYTES`, at least `LEAST`, without loss. Gives those that were written."""
        canaries = self.first(MOST)
        content = canaries._content()
        while len(content) > MOST_BYTES and len(canaries) > LEAST:
            fitting = len(canaries) * MOST_BYTES // len(content)
            canaries = canaries.first(max(LEAST, min(fitting, len(canaries) - 1)))
            content = canaries._content()
        with fresh_file(path) as partial:
            partial.write_bytes(content)
        return canaries

    def _content(self) -> bytes:
        arrays: dict[str, Any] = {"logits": self.logits, "source": np.array(self.source)}
        for name, array in self.inputs.items():
            arrays |= {f"{name}/{part}": values for part, values in _packed(np.ascontiguousarray(array)).items()}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        return buffer.getvalue()

    @classmethod
    def load(cls, path: Path, spec: CascadeSpec) -> "Canaries":
        """Read what `save` wrote.

        Raises:
            CorruptError: the file does not read, or its inputs, stages or classes are not those of the cascade.
        """
        arrays = read_arrays(path, "canaries", "build or copy the bundle again", _most_unpacked(spec))
        try:
            inputs = {i.name: _unpacked(_checked(_parts(arrays, i.name), i), i.dtype) for i in spec.inputs}
            canaries = cls(inputs, arrays["logits"], str(arrays["source"]))  # type: ignore[arg-type]
            check_inputs(canaries.inputs, spec.inputs)
        except (ValueError, KeyError, IndexError, TypeError, OverflowError) as error:
            raise CorruptError(f"{path} does not read as canaries ({error}). Build or copy the bundle again") from error
        expected = [len(spec.stages), spec.classes]
        if list(canaries.logits.shape[1:]) != expected:
            raise CorruptError(
                f"{path} holds logits {list(canaries.logits.shape)}, the cascade gives [N, {expected[0]}, "
                f"{expected[1]}]. Build or copy the bundle again"
            )
        return canaries


def noise(example: Mapping[str, Array], count: int = MOST, seed: int = 0) -> dict[str, Array]:
    """Inputs drawn evenly between the least and the largest value of an example, in 256 steps so that they pack well.

    Args:
        example: by name, each `[B, ...]`.
        count: rows.
        seed: of the draw.

    Returns:
        By name, each `[count, ...]` in the example's type.
    """
    random = np.random.default_rng(seed)
    drawn = {}
    for name, array in example.items():
        shape = (count, *array.shape[1:])
        if array.dtype.kind == "b":
            drawn[name] = random.integers(0, 2, shape).astype(bool)
        elif array.dtype.kind in "iu":
            drawn[name] = random.integers(array.min(), array.max(), shape, endpoint=True, dtype=array.dtype)
        else:
            low, high = np.nanmin(array), np.nanmax(array)
            drawn[name] = (low + (high - low) * (random.integers(0, 256, shape) / 255)).astype(array.dtype)
    return drawn


def _packed(array: Array) -> dict[str, Array]:
    """An array `[N, ...]` without loss: codes into 256 values for each channel where that does, else as it is.

    Normalized pixels are such: 256 values a channel. Codes are stored as differences along the last axis, which deflate
    shortens by a fifth for photographs.
    """
    if array.dtype.kind != "f" or array.ndim < 2:
        return {"values": array}
    channels = array.reshape(len(array), array.shape[1] if array.ndim == 4 else 1, -1)  # [N, K, D]
    levels = [np.unique(channels[:, k]) for k in range(channels.shape[1])]
    if max(map(len, levels)) > 256:
        return {"values": array}
    table = np.stack([np.pad(values, (0, 256 - len(values)), mode="edge") for values in levels])
    codes = np.stack([np.searchsorted(values, channels[:, k]) for k, values in enumerate(levels)], axis=1)
    codes = codes.reshape(array.shape).astype(np.uint8)
    packed = {"codes": np.diff(codes, axis=-1, prepend=np.uint8(0)), "levels": table}
    same = _unpacked(packed, str(array.dtype)).tobytes() == array.tobytes()  # not so for NaN and for -0.0 beside 0.0
    return packed if same else {"values": array}


def _parts(arrays: Mapping[str, Array], name: str) -> dict[str, Array]:
    """What `_packed` gave for the input `name`. Raises InputError where there is none."""
    parts = {key.removeprefix(f"{name}/"): array for key, array in arrays.items() if key.startswith(f"{name}/")}
    if not parts:
        raise InputError(f"there is no input {name!r}")
    return parts


def _most_unpacked(spec: CascadeSpec) -> int:
    """The bytes that the arrays of `MOST` canaries of a cascade can take."""
    total = MOST * len(spec.stages) * spec.classes * 4 + 3 * _HEADER  # logits, source, and one to spare
    for i in spec.inputs:
        itemsize = 8 if i.dtype == "bfloat16" else np.dtype(i.dtype).itemsize  # numpy has no bfloat16
        channels = i.shape[0] if len(i.shape) == 3 else 1
        values = math.prod(side if isinstance(side, int) else _largest(side) for side in i.sides)
        total += MOST * min(values, _MOST_VALUES) * itemsize + channels * _LEVELS * itemsize + 2 * _HEADER
    return total


def _largest(span: DimRange) -> int:
    """The largest size, where there is no limit as much as an input may hold."""
    return _MOST_VALUES if span.max is None else span.size(span.max)


def _checked(parts: Mapping[str, Array], spec: InputSpec) -> Mapping[str, Array]:
    """The parts of an input, before they are unpacked into more. Raises ValueError where they are of other shapes."""
    array = parts["values"] if "values" in parts else parts["codes"]
    fault = size_fault([(spec.name, array.shape, spec.shape, spec.ranges)])
    if fault is not None:
        raise ValueError(f"{fault:.300}")
    if len(array) > MOST:
        raise ValueError(f"input {spec.name!r:.80} has {len(array)} rows, the limit is {MOST}")
    return parts


def _unpacked(parts: Mapping[str, Array], dtype: str) -> Array:
    if "values" in parts:
        return parts["values"]
    codes = np.cumsum(parts["codes"], axis=-1, dtype=np.uint8)
    channels = codes.reshape(len(codes), len(parts["levels"]), -1)
    values = np.stack([level[channels[:, k]] for k, level in enumerate(parts["levels"])], axis=1)
    return np.asarray(values.reshape(codes.shape), dtype)
