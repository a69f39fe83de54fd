"""From what a user hands in to the arrays that a cascade takes."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dynamic.arrays import as_array
from dynamic.bundle import Bundle
from dynamic.engines.contract import Array
from dynamic.engines.loop import check_inputs
from dynamic.policies.errors import InputError


def named_inputs(bundle: Bundle, x: Any) -> Mapping[str, Array]:
    """The inputs by name, each `[B, ...]`: a mapping as it is, anything else as the bundle's preprocessing expects it.

    Raises InputError on what does not fit.
    """
    spec = bundle.spec.inputs
    if isinstance(x, Mapping):
        named = {name: as_array(value, f"input {name!r}") for name, value in x.items()}
        check_inputs(named, spec)
        return named
    if bundle.preprocess is not None:
        return {spec[0].name: bundle.preprocess(x)}
    if isinstance(x, tuple):
        if len(x) != len(spec):
            raise InputError(f"{len(x)} inputs given; this cascade takes {[i.name for i in spec]}")
        return {i.name: as_array(value, f"input {i.name!r}") for i, value in zip(spec, x, strict=True)}
    array = np.atleast_1d(as_array(x, "the input"))
    return {spec[0].name: array[None] if array.ndim == len(spec[0].shape) else array}
