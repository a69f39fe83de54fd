"""Two folders change places in one step, where the kernel and the file system can do it."""

import ctypes
import errno
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

_HERE = -100  # AT_FDCWD: relative paths start at the working folder
_EXCHANGE = 2  # renameat2(2), since Linux 3.15; ext4, xfs, btrfs, tmpfs, f2fs, overlayfs
_CANNOT = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY)


def exchange(one: Path, other: Path) -> bool:
    """Let two entries of one file system change places in one step. No reader finds one of them missing.

    Args:
        one: A file or folder.
        other: Another.

    Returns:
        False where the system or the file system cannot do it. Nothing has changed then.

    Raises:
        OSError: It was refused, as for a mounted volume.
    """
    function = _renameat2()
    if function is None:
        return False
    if function(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))


@cache
def _renameat2() -> Callable[..., int] | None:
    """The function of the C library. None where it has none (before glibc 2.28)."""
    if sys.platform != "linux":
        return None
    try:
        function: Any = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    function.restype = ctypes.c_int
    exchange: Callable[..., int] = function
    return exchange
