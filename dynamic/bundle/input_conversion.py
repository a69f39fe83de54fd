"""From what a user hands in to the arrays that a cascade takes."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dynamic.bundle.contract import DeployedBundle
from dynamic.data.arrays import Side, as_numbers, fits
from dynamic.data.picture_decoding import is_picture
from dynamic.engines.contract import Array, InputSpec
from dynamic.engines.stage_loop import check_inputs
from dynamic.policies.errors import InputError

_DEEPEST = 32  # of lists in lists, which may hold themselves


def named_inputs(bundle: DeployedBundle, x: Any) -> tuple[Mapping[str, Array], bool]:
    """The inputs by name, each `[B, ...]`, and whether `x` is one input without a batch dimension.

    A mapping is taken as it is, anything else as the bundle's preprocessing expects it. Shapes and types are checked
    before anything is converted or copied. Values are copied only where they do not lie in memory in order. Raises
    InputError on what does not fit.
    """
    inputs = bundle.spec.inputs
    if bundle.preprocess is not None and not isinstance(x, Mapping):
        arrays = bundle.preprocess.arrays(x, inputs)
        return arrays, len(arrays[inputs[0].name]) == 1 and bundle.preprocess.is_single(x)
    views, single = _views(inputs, x)
    if bundle.preprocess is not None:
        bundle.preprocess.check_arrays(views)
    for one in inputs:
        if one.ids is not None:
            _check_ids(one.name, views[one.name], one.ids)
    return {name: _in_order(array) for name, array in views.items()}, single


def check_shapes(bundle: DeployedBundle, x: Any) -> None:
    """Raises InputError where `named_inputs` would for a shape or a type, without converting arrays or images."""
    if bundle.preprocess is not None and not isinstance(x, Mapping):
        bundle.preprocess.check(x, bundle.spec.inputs[0].sides)
    else:
        _views(bundle.spec.inputs, x)


def _check_ids(name: str, array: Array, rows: int) -> None:
    """Raises InputError on an id that is beyond a table of so many rows. Some engines fail there, others read on."""
    least, most = array.min(initial=0), array.max(initial=0)
    if least < 0 or most >= rows:
        raise InputError(
            f"input {name!r} holds the id {least if least < 0 else most}, and the table of embeddings behind it has "
            f"{rows} rows, 0 to {rows - 1}: give ids of the network's own vocabulary"
        )


def _views(spec: tuple[InputSpec, ...], x: Any) -> tuple[Mapping[str, Array], bool]:
    """Inputs without preprocessing, checked, and whether they are one without a batch dimension."""
    single = False
    if isinstance(x, Mapping):
        sides = {i.name: i.sides for i in spec}
        named = {name: _numbers(value, f"input {name!r}", sides.get(name, ())) for name, value in x.items()}
    elif isinstance(x, tuple):
        if len(x) != len(spec):
            raise InputError(f"{len(x)} inputs given. This cascade takes {[i.name for i in spec]}")
        named = {i.name: _numbers(value, f"input {i.name!r}", i.sides) for i, value in zip(spec, x, strict=True)}
    else:
        first = spec[0]
        array = np.atleast_1d(_numbers(x, "the input", first.sides))
        single = array.ndim == len(first.shape)
        named = {first.name: array[None] if single else array}
    check_inputs(named, spec)
    return named, single


def _numbers(value: Any, what: str, shape: tuple[Side, ...]) -> Array:
    """The array of an input of a `shape`, alone or with a batch dimension.

    Images and lists of arrays have to be copied for it. So their shapes are checked before, as they may be huge.
    """
    if isinstance(value, np.ndarray) or not (is_picture(value) or isinstance(value, list)):
        return as_numbers(value, what)
    actual = _shape(value)
    if actual is not None and not fits(actual, shape) and not fits(actual[1:], shape):
        wanted = ", ".join(map(str, shape))
        raise InputError(
            f"{what} is a {type(value).__name__} of shape {list(actual)}, expected [{wanted}], or a batch of it. "
            "Give arrays as the network takes them, or build the bundle with preprocess="
        )
    return as_numbers(value, what)


def _shape(value: Any, depth: int = 0) -> tuple[int, ...] | None:
    """The shape of an image, or of the array that a list of equal arrays or images makes. None: it is not known."""
    if is_picture(value):
        bands = len(value.getbands())
        return (value.height, value.width, bands)[: 3 if bands > 1 else 2]
    if isinstance(value, list):
        inside = _shape(value[0], depth + 1) if value and depth < _DEEPEST else None
        return None if inside is None else (len(value), *inside)
    shape = getattr(value, "shape", None)
    return tuple(shape) if isinstance(shape, tuple) else None


def _in_order(array: Array) -> Array:
    """The array, C-contiguous and aligned, as engines read it."""
    flags = array.flags
    return array if flags.c_contiguous and flags.aligned else np.require(array, requirements=("C", "A"))
