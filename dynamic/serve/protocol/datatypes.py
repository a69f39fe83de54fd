"""Data types of tensors, and their values as JSON and as bytes.

Source: the Open Inference Protocol, https://github.com/kserve/open-inference-protocol, "Tensor Data Types", and
Triton's extension for binary tensor data.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.validation.fields import short
from dynamic.serve.request_errors import invalid

DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}
_NAMES = {dtype.name: name for name, dtype in DATATYPES.items() if name != "BYTES"}
_LENGTH = np.dtype("<u4")  # before each element of BYTES
_MOST_DIMENSIONS = 16
_MOST_SIDE = 2**31


def datatype_of(dtype: str | np.dtype[Any]) -> str:
    """The protocol's name of a dtype of numpy."""
    return _NAMES[np.dtype(dtype).name]


def checked_datatype(datatype: Any, what: str) -> str:
    """The data type. Raises RequestError on an unknown one."""
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise invalid(f"{what} has datatype {short(datatype)}: give one of {', '.join(DATATYPES)}")
    return datatype


def checked_shape(shape: Any, what: str) -> tuple[int, ...]:
    """The shape. Raises RequestError where it is no list of sizes."""
    sides = tuple(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else ()
    if not 1 <= len(sides) <= _MOST_DIMENSIONS or not all(
        isinstance(side, int) and not isinstance(side, bool) and 0 <= side < _MOST_SIDE for side in sides
    ):
        raise invalid(
            f"{what} has shape {short(shape)}: give 1 to {_MOST_DIMENSIONS} whole numbers of at least 0, rows first"
        )
    return sides


def json_array(data: Any, datatype: str, shape: tuple[int, ...], what: str) -> NDArray[Any]:
    """The array of a tensor whose values are JSON, flat or nested. Raises RequestError where they do not fit.

    Values are counted, and their types checked, before numpy sees them: it pads texts to the length of the longest.
    """
    if not isinstance(data, list):
        raise invalid(f"{what} has data {short(data)}: give a list of values")
    flat, sides = _flat(data, what)
    check_count(len(flat), shape, what)
    if datatype == "BYTES":
        return _strings(flat, shape, what)
    if len(sides) > 1 and tuple(sides) != shape:
        raise invalid(f"{what} has nested data of shape {sides}, and its shape is {list(shape)}")
    return _converted(flat, datatype, what).reshape(shape)


def _flat(data: list[Any], what: str) -> tuple[list[Any], list[int]]:
    """Values in row-major order, and the sides of the lists that they lay in."""
    sides = [len(data)]
    while data and isinstance(data[0], list):
        sides.append(len(data[0]))
        if len(sides) > _MOST_DIMENSIONS:
            raise invalid(f"{what} has lists in more than {_MOST_DIMENSIONS} levels: give its values flat")
        for row in data:
            if not isinstance(row, list):
                raise invalid(f"{what} mixes lists and values: give its values flat, or nested as its shape is")
            if len(row) != sides[-1]:
                raise invalid(
                    f"{what} has data that make no tensor, lists of {sides[-1]} and of {len(row)} values: give its "
                    "values flat, or nested as its shape is"
                )
        data = [value for row in data for value in row]
    return data, sides


def _strings(flat: list[Any], shape: tuple[int, ...], what: str) -> NDArray[Any]:
    for value in flat:
        if not isinstance(value, str):
            raise invalid(f"{what} holds {short(value)}: BYTES in JSON are strings")
    try:
        return as_objects([value.encode() for value in flat], shape)
    except UnicodeEncodeError as error:
        raise invalid(f"{what} holds half a surrogate pair ({error!s:.80}): give whole characters") from error


_WORDS = {str: "text", type(None): "null", bool: "true or false", float: "fractions", int: "whole numbers"}
_TYPES: dict[str, tuple[type, ...]] = {"b": (bool,), "u": (int,), "i": (int,), "f": (int, float)}


def _converted(flat: list[Any], datatype: str, what: str) -> NDArray[Any]:
    """Values of JSON as an array `[N]`."""
    dtype = DATATYPES[datatype]
    for kind in set(map(type, flat)).difference(_TYPES[dtype.kind]):
        raise invalid(
            f"{what} holds {_WORDS.get(kind, 'lists or objects')}, and its datatype is {datatype}: give such values, "
            "or another datatype"
        )
    if dtype.kind in "iu" and flat:
        limits = np.iinfo(dtype)
        for value in (min(flat), max(flat)):
            if not limits.min <= value <= limits.max:
                raise invalid(f"{what} holds {short(value)}, and {datatype} goes from {limits.min} to {limits.max}")
    if dtype.kind != "f":
        return np.array(flat, dtype)
    try:
        with np.errstate(over="ignore"):
            converted = np.array(flat, np.float64).astype(dtype)
    except OverflowError:  # a whole number beyond float64
        converted = np.array([np.inf], dtype)
    if not np.isfinite(converted).all():
        limit = float(np.finfo(dtype).max)
        raise invalid(f"{what} holds a number beyond {datatype}, which goes to {limit:.6g}: give smaller ones")
    return converted


def binary_array(content: memoryview, datatype: str, shape: tuple[int, ...], what: str) -> NDArray[Any]:
    """The array of a tensor whose values are bytes, little-endian in row-major order, as a view.

    Raises RequestError where they are more or fewer than the shape needs.
    """
    if datatype == "BYTES":
        elements = unpacked(content, math.prod(shape), what)
        check_count(len(elements), shape, what)
        return as_objects(elements, shape)
    dtype = DATATYPES[datatype]
    needed = math.prod(shape) * dtype.itemsize
    if len(content) != needed:
        raise invalid(f"{what} has {len(content)} bytes, and {datatype} {list(shape)} needs {needed}")
    if dtype.kind == "b" and np.frombuffer(content, np.uint8).max(initial=0) > 1:
        raise invalid(f"{what} holds bytes other than 0 and 1: BOOL has one byte a value")
    return np.frombuffer(content, dtype).reshape(shape)


def unpacked(content: memoryview, most: int, what: str) -> list[bytes]:
    """Elements of BYTES, each after its length in 4 bytes.

    Raises RequestError where a length leads past the end, or there are more than `most`.
    """
    elements: list[bytes] = []
    start = 0
    while start < len(content):
        if len(elements) == most:
            raise invalid(f"{what} has more than the {most} elements of its shape: give as many as it says")
        head = content[start : start + 4]
        length = int.from_bytes(head, "little")
        start += 4 + length
        if len(head) < 4 or start > len(content):
            raise invalid(
                f"{what}: element {len(elements)} of BYTES ends {start - len(content)} bytes behind the data. Put its "
                "length before each element, 4 bytes, little-endian"
            )
        elements.append(bytes(content[start - length : start]))
    return elements


def packed(array: NDArray[Any]) -> bytes:
    """The bytes of an array, as `binary_array` reads them."""
    if array.dtype.kind != "O":
        return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    return b"".join(np.array(len(value), _LENGTH).tobytes() + value for value in array.ravel().tolist())


def check_count(count: int, shape: tuple[int, ...], what: str) -> None:
    """Raises RequestError where there are not as many values as a shape needs."""
    needed = math.prod(shape)
    if count != needed:
        raise invalid(f"{what} has {count} values, and its shape {list(shape)} needs {needed}")


def as_objects(elements: Sequence[bytes], shape: tuple[int, ...]) -> NDArray[Any]:
    """Elements of BYTES as an array."""
    array = np.empty(len(elements), object)
    array[:] = elements
    return array.reshape(shape)
