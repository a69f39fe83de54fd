"""Adaptive inference: spend on each input what it needs and no more than the device can spare.

Names are loaded when first used, so that loading and running a bundle never imports torch;
the list of public names stands in ``__init__.pyi``.
"""

import ast
import importlib
from pathlib import Path

__version__ = "0.1.0"

# policies/ and models/ stand at the root of the repository and are installed inside the package:
# in a checkout (editable install, pytest from the root) they are found one folder up.
_here = Path(__file__).parent
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


_BUILDS = ("onnx", "torch")  # left out on the device
_names = _public_names()
__all__ = sorted(_names)


def __getattr__(name: str) -> object:
    if name not in _names:
        raise AttributeError(f"module 'dynamic' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(_names[name]), name)
    except ModuleNotFoundError as error:
        if error.name not in _BUILDS:
            raise
        remedy = f'dynamic.{name} needs {error.name}, which is not installed: pip install "dynamic-inference[build]"'
        raise ModuleNotFoundError(remedy, name=error.name) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
