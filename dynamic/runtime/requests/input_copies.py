"""Copies of inputs that wait: whoever submits one may overwrite it while it does, as cameras do with their buffer."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dynamic.data.picture_decoding import copy_picture, is_picture

_PLAIN = (int, float, bool, complex, str, bytes, type(None), np.generic)  # nobody can overwrite these
_NUMBERS = "biufcmM"  # kinds of arrays
_DEEPEST = 32  # of lists in lists: numpy refuses deeper ones


def owned(value: Any, depth: int = 0) -> Any:
    """The same input in memory that nobody else knows.

    Args:
        value: An input as `run(x)` takes it: arrays, tensors, images, and lists, tuples or dicts of them.
        depth: Of lists that it lies in.

    Returns:
        A copy. What is no input at all stays as it is, so that whoever answers it says what is wrong.
    """
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, _PLAIN) or depth > _DEEPEST:
        return value
    if isinstance(value, Mapping):
        return {name: owned(entry, depth + 1) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        entries = [owned(entry, depth + 1) for entry in value]
        if isinstance(value, list):
            return entries
        return type(value)(*entries) if hasattr(value, "_fields") else tuple(entries)
    try:
        if is_picture(value):
            return copy_picture(value)
        return _copy(value)
    except Exception:  # a tensor without values, a picture that does not read, ...
        return value


def _copy(value: Any) -> Any:
    """A copy of what holds numbers: a tensor as it is, all else as an array. Anything else raises."""
    if hasattr(value, "clone") and hasattr(value, "detach"):
        return value.clone()
    if hasattr(value, "__array__") or hasattr(value, "__array_interface__") or hasattr(value, "__array_struct__"):
        return np.array(value)
    if hasattr(value, "__dlpack__"):
        return np.from_dlpack(value).copy()
    try:
        return np.array(memoryview(value))
    except TypeError:
        return _sequence_copy(value)


def _sequence_copy(value: Any) -> Any:
    """A copy of what has a length and items, such as a deque, as numpy reads it. What makes no numbers stays."""
    if not (hasattr(type(value), "__len__") and hasattr(type(value), "__getitem__")):
        return value
    array = np.array(value)
    return array if array.dtype.kind in _NUMBERS else value
