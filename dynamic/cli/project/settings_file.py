"""`dynamic.toml`: the options of a project, for every command that has them."""

import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from dynamic.policies.errors import InputError, SettingError

NAME = "dynamic.toml"


def read_settings(path: Path) -> dict[str, Any]:
    """The keys of a settings file. Raises InputError where it does not read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"-c {path} does not exist: write it with dynamic init") from error
    except (OSError, ValueError) as error:
        raise InputError(f"-c {path} does not read ({error}): correct the line, or write it again with init") from error


def defaults_for(
    settings: Mapping[str, Any], command: str, options: Mapping[str, Mapping[str, bool]], path: Path
) -> dict[str, Any]:
    """The defaults that a settings file has for a command.

    A key of the file itself is for every command that has such an option. A table that is named like a command is for
    that command alone, and counts more.

    Args:
        settings: What the file holds.
        command: Name of the command.
        options: Names of the options of every command, and whether each takes several values.
        path: The file, for messages.

    Returns:
        Value of each option, by the name of its parameter.

    Raises:
        SettingError: A key or table is unknown, or a value is of a kind that no option has.
    """
    every = {name for own in options.values() for name in own}
    defaults: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            if key not in options:
                raise _unknown(f"table [{key}]", key, list(options), path, "command")
            for name, one in value.items():
                if _name(name) not in options[key]:
                    raise _unknown(f"{name!r} in [{key}]", name, list(options[key]), path, f"option of {key}")
                if key == command:
                    defaults[_name(name)] = _value(one, f"{name} in [{key}]", options[key][_name(name)], path)
        elif _name(key) not in every:
            raise _unknown(repr(key), key, sorted(every | options.keys()), path, "option of any command")
    for key, value in settings.items():
        name = _name(key)
        if not isinstance(value, dict) and name in options.get(command, {}) and name not in defaults:
            defaults[name] = _value(value, key, options[command][name], path)
    return defaults


def _name(key: str) -> str:
    return key.replace("-", "_")


def _value(value: Any, key: str, several: bool, path: Path) -> Any:
    """A value as the command line would give it."""
    plain = (str, int, float, bool)
    if isinstance(value, list) and several and all(isinstance(one, plain) for one in value):
        return value
    if isinstance(value, plain):
        return [value] if several else value
    kind = "a list" if isinstance(value, list) else f"a {type(value).__name__}"
    raise SettingError(
        f"{path}: {key} is {kind}: give {'a list of values' if several else 'a number, a string or true'}"
    )


def _unknown(what: str, key: str, names: list[str], path: Path, kind: str) -> SettingError:
    near = get_close_matches(_name(key), names, 1, 0.4)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names[:6])} and others"
    return SettingError(f"{path}: {what} is no {kind}, {hint}")
