"""Which input of a cascade goes into which input of an ONNX file."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dynamic.engines.contract import Array
from dynamic.offline.onnx_files.contract import FileInput
from dynamic.policies.errors import InputError

_KINDS = {"f": "floating point", "i": "whole numbers", "u": "whole numbers", "b": "truth values"}
_BYTES = ("uint8", "int8", "bool")  # never a rounding of another type


def match_inputs(
    inputs: Sequence[FileInput], arrays: Mapping[str, Array], setting: Mapping[str, str] | None, path: Path
) -> dict[str, str]:
    """The cascade's input for each input of a file.

    Args:
        inputs: Of the file.
        arrays: A batch of the cascade's inputs by name.
        setting: What the user says: the file's input for inputs of the cascade.
        path: The file.

    Returns:
        Names of the cascade's inputs by names of the file's. The cascade may have more.

    Raises:
        InputError: Names, shapes or dtypes do not fit, or several inputs fit as well.
    """
    pairs: dict[str, str] = {}
    for own, theirs in (setting or {}).items():
        if own not in arrays:
            raise InputError(f"{path}: inputs= names {own!r}, and the inputs are {list(arrays)}: give one of them")
        pairs[theirs] = own
    left = [i for i in inputs if i.name not in pairs]
    for one in left:
        if one.name in arrays and one.name not in pairs.values():
            pairs[one.name] = one.name
    left = [i for i in left if i.name not in pairs]
    free = [name for name in arrays if name not in pairs.values()]
    if len(left) == 1 and len(free) == 1:
        pairs[left[0].name] = free[0]
    else:
        for one in left:
            fitting = [name for name in free if _fault(one, arrays[name]) is None]
            if len(fitting) != 1:
                raise _no_match(one, arrays, free, fitting, path)
            pairs[one.name] = fitting[0]
            free.remove(fitting[0])
    for one in inputs:
        fault = _fault(one, arrays[pairs[one.name]])
        if fault is not None:
            raise InputError(f"{path}: {fault}, for input {pairs[one.name]!r} of the cascade. {_REMEDY}")
    return {one.name: pairs[one.name] for one in inputs}


_REMEDY = "Give batches as the file takes them, or export it for these"


def _fault(one: FileInput, array: Array) -> str | None:
    """Why an array does not go into an input, in words. None: it does."""
    shape = [len(array), *array.shape[1:]]
    batch = f"{array.dtype} {['B', *array.shape[1:]]}".replace("'", "")
    if one.dims is not None and len(one.dims) != len(shape):
        return f"input {one} has {len(one.dims)} dimensions, and the batch has {batch}"
    if one.dims is not None and not one.dims:
        return f"input {one} has no dimension of rows, and the batch has {batch}"
    fixed = one.dims[1:] if one.dims is not None else ()
    if any(size is not None and size != own for size, own in zip(fixed, shape[1:], strict=False)):
        return f"input {one} takes another shape than the batch's {batch}"
    if not casts(array.dtype.name, one.dtype):
        return f"input {one} takes {_KINDS.get(np.dtype(one.dtype).kind, one.dtype)}, and the batch has {batch}"
    return None


def casts(dtype: str, other: str) -> bool:
    """Whether a cascade's input of one dtype goes into a file's of another: floats into floats, integers into such."""
    if dtype == other:
        return True
    if dtype in _BYTES or other in _BYTES:
        return False
    kinds = {np.dtype(dtype).kind, np.dtype(other).kind}
    return kinds == {"f"} or kinds <= {"i", "u"}


def _no_match(
    one: FileInput, arrays: Mapping[str, Array], free: Sequence[str], fitting: Sequence[str], path: Path
) -> InputError:
    own = ", ".join(f"{n!r} {arrays[n].dtype} {['B', *arrays[n].shape[1:]]}".replace("'B'", "B") for n in free)
    how = f"dynamic.onnx_model({path.name!r}, inputs={{'NAME OF THE CASCADE': {one.name!r}}})"
    if fitting:
        return InputError(f"{path}: inputs {list(fitting)} fit input {one} as well. Name one of them, {how}")
    rest = f"those left are {own}" if free else "none is left"
    return InputError(f"{path}: no input of the cascade fits input {one}, {rest}. {_REMEDY}, or name it, {how}")
