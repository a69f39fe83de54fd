"""Adaptive inference: spend on each input what it needs and no more than the device can spare.

Names are loaded on first use, so that loading and running a bundle never imports torch. The list of public names is
in ``__init__.pyi``.
"""

# first: it takes the working folder off the path, which could answer the imports below
from dynamic import safe_path as safe_path

# isort: split
import ast
import importlib
from pathlib import Path

from dynamic.extras import with_remedy

__version__ = "0.1.0"

# policies/ and models/ stand at the root of the repository and are installed inside the package:
# in a checkout (editable install, pytest from the root) they are found one folder up.
_here = Path(__file__).parent
_ROOMS = (
    "bundle",
    "cli",
    "data",
    "engines",
    "models",
    "monitoring",
    "offline",
    "policies",
    "profiling",
    "report",
    "runtime",
    "serve",
    "simulate",
    "storage",
)
if not (_here / "policies").is_dir():
    __path__.append(str(_here.parent))


def _public_names() -> dict[str, str]:
    """Public name -> module that defines it, read from the ``from x import (y as y)`` lines of the stub."""
    names = {}
    for node in ast.parse((_here / "__init__.pyi").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                names[alias.asname or alias.name] = node.module
    return names


_names = _public_names()
__all__ = sorted(_names)


def __getattr__(name: str) -> object:
    try:
        if name in _names:
            value: object = getattr(importlib.import_module(_names[name]), name)
        elif _is_module(name):  # `dynamic.models` and others, as docs write them
            value = importlib.import_module(f"dynamic.{name}")
        else:
            raise AttributeError(f"module 'dynamic' has no attribute {name!r}")
    except ModuleNotFoundError as error:
        raise with_remedy(error, f"dynamic.{name}") from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__", *_ROOMS]


def _is_module(name: str) -> bool:
    return not name.startswith("_") and (name in _ROOMS or (_here / f"{name}.py").is_file())
