"""Files of arrays, `.npz`, from an untrusted source: without pickle, within a limit of size, and with one error.

zipfile, zlib and numpy raise a dozen kinds of errors on damaged files, and numpy allocates whatever shape a header
names. So sizes are compared before memory is allocated.
"""

import errno
import math
import os
import secrets
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from dynamic.policies.errors import CorruptError

MOST_BYTES = 4 * 2**30  # of all arrays of a file: logits of 50,000 images, 20 stages and 1,000 classes
_RATIO = 1100  # of one array: deflate packs by at most 1032
_RATIO_OF_ALL, _SMALL = 100, 64 * 2**20  # labels pack by hundreds, logits by less than 10. Less than so many bytes may
_NO_SYNC = (errno.EINVAL, errno.EROFS, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)  # of volumes that cannot
_KINDS = "biufU"  # bool, integers, floats, text


def read_arrays(path: Path, what: str, remedy: str, most_bytes: int = MOST_BYTES) -> dict[str, NDArray[Any]]:
    """Every array of a file.

    Args:
        path: An `.npz` file.
        what: What it should hold, for the error.
        remedy: What to do where it does not.
        most_bytes: What its arrays may take together. A small file may hold less: 100 times its own size, or 64 MB.

    Returns:
        The arrays by name.

    Raises:
        CorruptError: It does not read, or is larger.
    """
    try:
        with open(path, "rb", opener=_open) as raw, zipfile.ZipFile(raw) as file:
            members = file.infolist()
            size = os.fstat(raw.fileno()).st_size
            most_bytes = min(most_bytes, max(_RATIO_OF_ALL * size, _SMALL))
            total = sum(member.file_size for member in members)
            if any(member.file_size > _RATIO * member.compress_size + 1000 for member in members):
                raise ValueError(f"it claims to be packed by more than a factor of {_RATIO}")
            if total > most_bytes:
                raise ValueError(f"its arrays take {total / 1e6:.0f} MB, the limit is {most_bytes / 1e6:.0f} MB")
            arrays = {}
            for member in members:
                with file.open(member) as content:
                    arrays[member.filename.removesuffix(".npy")] = _array(content, member.file_size)
        if len(arrays) != len(members):
            raise ValueError("a name comes twice")
        return arrays
    except MemoryError as error:
        raise CorruptError(f"{path} does not fit into memory: free some, or {remedy}") from error
    except Exception as error:  # zipfile alone raises RuntimeError, NotImplementedError, zlib.error and others
        reason = str(error) or type(error).__name__
        raise CorruptError(f"{path} does not read as {what} ({reason:.200}): {remedy}") from error


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write a packed file of arrays without pickle. It appears whole or not at all.

    Args:
        path: The file. One that is there is replaced, and so is a link.
        arrays: The arrays by name.

    Raises:
        OSError: It could not be written. Nothing is left of it.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        with partial.open("xb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
            file.flush()
            try:
                os.fsync(file.fileno())
            except OSError as error:
                if error.errno not in _NO_SYNC:
                    raise
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _open(path: str, flags: int) -> int:
    """The file, open, where it is a regular one: a pipe must not hold the reader."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("it is no file")
    return descriptor


def _array(content: IO[bytes], size: int) -> NDArray[Any]:
    """The array of a member of so many bytes."""
    version = npy.read_magic(content)
    header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, is_fortran, dtype = header(content)
    if dtype.kind not in _KINDS:
        raise ValueError(f"arrays of {dtype} are not read: numpy would need allow_pickle=True, which runs code")
    if any(side < 0 for side in shape):
        raise ValueError(f"the shape {shape} is negative")
    if not dtype.itemsize:  # numpy takes a letter for each of them all the same
        raise ValueError(f"values of {dtype} have no bytes")
    bytes_ = math.prod(shape) * dtype.itemsize
    if bytes_ > size:
        raise ValueError(f"the shape {shape} of {dtype} takes {bytes_} bytes, the file has {size}")
    array = np.empty(math.prod(shape), dtype)
    count = content.readinto(array.view(np.uint8)) if bytes_ else 0  # type: ignore[attr-defined]
    if count != bytes_ or content.read(1):
        raise ValueError(f"its content does not have the {bytes_} bytes of the shape {shape} of {dtype}")
    return array.reshape(shape, order="F" if is_fortran else "C")
