"""Where the network was trained: wrapping, fitting, calibrating, exporting, building. Needs the extra `build`."""

import importlib
from pathlib import Path

from dynamic.extras import with_remedy


def __getattr__(name: str) -> object:
    """A module or room of this folder, loaded when first used."""
    here = Path(__file__).parent
    if name.startswith("_") or not ((here / f"{name}.py").is_file() or (here / name / "__init__.py").is_file()):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        raise with_remedy(error, f"{__name__}.{name}") from error
