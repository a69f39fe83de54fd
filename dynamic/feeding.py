"""From what a user hands in to the arrays that a cascade takes."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dynamic.arrays import as_numbers
from dynamic.bundle import Bundle
from dynamic.decoding import is_picture
from dynamic.engines.contract import Array, InputSpec
from dynamic.engines.loop import check_inputs
from dynamic.policies.errors import InputError


def named_inputs(bundle: Bundle, x: Any) -> Mapping[str, Array]:
    """The inputs by name, each `[B, ...]`: a mapping as it is, anything else as the bundle's preprocessing expects it.

    Shapes and types are checked before anything is converted or copied. Values are copied only where they do not lie in
    memory in order. Raises InputError on what does not fit.
    """
    if bundle.preprocess is not None and not isinstance(x, Mapping):
        (first, *_) = bundle.spec.inputs
        return {first.name: bundle.preprocess(x, first.shape)}
    return {name: _in_order(array) for name, array in _views(bundle.spec.inputs, x).items()}


def check_shapes(bundle: Bundle, x: Any) -> None:
    """Raises InputError where `named_inputs` would for a shape or a type, without converting arrays or images."""
    if bundle.preprocess is not None and not isinstance(x, Mapping):
        bundle.preprocess.check(x, bundle.spec.inputs[0].shape)
    else:
        _views(bundle.spec.inputs, x)


def _views(spec: tuple[InputSpec, ...], x: Any) -> Mapping[str, Array]:
    """Inputs without preprocessing, checked."""
    if isinstance(x, Mapping):
        named = {name: as_numbers(value, f"input {name!r}") for name, value in x.items()}
    elif isinstance(x, tuple):
        if len(x) != len(spec):
            raise InputError(f"{len(x)} inputs given; this cascade takes {[i.name for i in spec]}")
        named = {i.name: as_numbers(value, f"input {i.name!r}") for i, value in zip(spec, x, strict=True)}
    else:
        if is_picture(x):
            _check_picture(x, spec[0])
        array = np.atleast_1d(as_numbers(x, "the input"))
        named = {spec[0].name: array[None] if array.ndim == len(spec[0].shape) else array}
    check_inputs(named, spec)
    return named


def _check_picture(image: Any, spec: InputSpec) -> None:
    """Raises InputError where an image has another shape than the input, before it is decoded."""
    bands = len(image.getbands())
    shape = (image.height, image.width, bands)[: 3 if bands > 1 else 2]
    if spec.shape not in (shape, shape[1:]):
        raise InputError(
            f"the image has shape {list(shape)}; input {spec.name!r} takes {list(spec.shape)}, and this bundle has no "
            "preprocessing: give arrays as the network takes them, or build it with preprocess="
        )


def _in_order(array: Array) -> Array:
    """The array, C-contiguous and aligned, as engines read it."""
    flags = array.flags
    return array if flags.c_contiguous and flags.aligned else np.require(array, requirements=("C", "A"))
