"""Where this library keeps what it can make again."""

import os
from pathlib import Path


def cache_folder() -> Path | None:
    """The cache folder. None for a user without a home directory, as in containers: then nothing is stored."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return folder / "dynamic-inference" if folder.is_absolute() else None
