"""Names of files in a bundle: they stay in its folder, as they are written and once links are followed."""

import os
from pathlib import Path, PurePosixPath
from typing import Any

_MOST_LETTERS = 1000
_FORBIDDEN = frozenset("\\\0:")  # a separator and a drive on Windows, the end of a name


def file_name(value: Any) -> str:
    """The name of a file in a bundle, as a manifest has it.

    Args:
        value: As it was read.

    Returns:
        The name.

    Raises:
        ValueError: It is no text, or leads out of the folder, or is written in two ways.
    """
    if not isinstance(value, str) or not 0 < len(value) <= _MOST_LETTERS:
        raise ValueError(f"{value!r:.80} is no name of a file")
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts or _FORBIDDEN & set(value) or not value.isprintable():
        raise ValueError(f"the manifest names {value!r:.80}, outside the bundle")
    if str(path) != value or value == ".":
        raise ValueError(f"the manifest names {value!r:.80}, which is not the plain form {str(path)!r:.80}")
    return value


def check_inside(path: Path, folder: Path) -> None:
    """Check that a path stays in a folder once links are followed.

    Args:
        path: The path.
        folder: The folder, which may be a link itself.

    Raises:
        ValueError: It leads elsewhere.
    """
    place, root = os.path.realpath(path), os.path.realpath(folder)
    if os.path.commonpath([place, root]) != root:
        raise ValueError(f"it leads out of the bundle, to {place}")
