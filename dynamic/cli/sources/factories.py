"""Objects that a user names in a Python file or module."""

import importlib
import importlib.util
import os
import sys
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from dynamic.engines.engine_factory import is_there
from dynamic.policies.errors import InputError, SettingError


def names_python(text: str) -> bool:
    """Whether it is `file.py:name` or `module:name`."""
    module, _, name = text.rpartition(":")
    return bool(module) and name.isidentifier() and (module.endswith(".py") or _is_dotted(module))


def object_at(text: str, what: str) -> Any:
    """What a name in a Python file or module stands for. A file and what it imports run.

    Args:
        text: `file.py:name`, or `module:name` as Python imports it. The working folder is searched last, and only for
            that module.
        what: What it is, for messages, such as "network".

    Returns:
        The object.

    Raises:
        SettingError: It has another form.
        InputError: There is no such file, module or name, or the file does not run.
    """
    module, _, name = text.rpartition(":")
    if not names_python(text):
        raise SettingError(f"{what} {text!r}: give module:factory or file.py:factory, such as mine.py:small")
    home = _from_file(Path(module), text, what) if module.endswith(".py") else _from_module(module, text, what)
    if not hasattr(home, name):
        near = get_close_matches(name, [n for n in vars(home) if not n.startswith("_")], 1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise InputError(f"{what} {text!r}: {module} has no attribute {name!r}{hint}. Give a name that it defines")
    return getattr(home, name)


def call(maker: Any, text: str, what: str) -> Any:
    """What a function without arguments returns. An error of the user's own code says where it is."""
    try:
        return maker()
    except Exception as error:  # of the user's own code
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        where = "" if place is None else f" ({Path(place.tb_frame.f_code.co_filename).name}, line {place.tb_lineno})"
        raise InputError(
            f"{what} {text!r} raised {type(error).__name__}: {error}{where}. It is called without arguments: correct it"
        ) from error


def _is_dotted(module: str) -> bool:
    return all(part.isidentifier() for part in module.split("."))


def _from_file(file: Path, text: str, what: str) -> ModuleType:
    if not file.is_file():
        raise InputError(f"{what} {text!r}: {file} does not exist. Give the path of a Python file, file.py:function")
    name = file.stem
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None) == str(file.resolve()):
        return loaded
    spec = importlib.util.spec_from_file_location(name, file.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if (folder := str(file.resolve().parent)) not in sys.path:
        sys.path.append(folder)  # last: for the files beside it, and no installed package is taken from there
    if loaded is None:
        sys.modules[name] = module  # torch finds the code of a class through it
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        if loaded is None:
            sys.modules.pop(name, None)
        raise InputError(
            f"{what} {text!r}: {file} does not run ({type(error).__name__}: {error}). Correct it"
        ) from error
    return module


def _from_module(module: str, text: str, what: str) -> ModuleType:
    if os.getcwd() not in sys.path and not is_there(module.partition(".")[0]):
        sys.path.append(os.getcwd())  # last: no package that is installed is taken from there
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{what} {text!r} is not found from {os.getcwd()} ({error}): give module:factory as Python imports it"
        ) from error
