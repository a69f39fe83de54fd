"""Messages of the library in the words of the shell: `max_drops=0.01` is `--max-drop 0.01` there."""

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

# names in Python of what a parameter of a command gives
_ALIASES: Mapping[str, str] = {
    "max_drops": "max_drop",
    "battery_duration_s": "last_s",
    "calibration_loader": "data",
    "eval_loader": "data",
    "train_loader": "train_data",
}
_CALL = re.compile(r"([\w.]+\([^()]*\))")  # code, such as `dynamic.load(path, modules=cascade)`, stays code
_NAME = re.compile(r"(?<![\w.'-])(?P<name>[a-z_]+)(?P<equal>=?)(?P<follows>[^\s.,:;)]|-?\.\d)?")


def option_names(parameters: Iterable[Any]) -> dict[str, str]:
    """The options of a command, by the names that the library has for what they give.

    Args:
        parameters: Parameters of the command, as typer has them.

    Returns:
        The long spelling of each option, such as "--max-drop" for "max_drop" and "max_drops".
    """
    own = {
        parameter.name: next(option for option in parameter.opts if option.startswith("--"))
        for parameter in parameters
        if any(option.startswith("--") for option in parameter.opts)
    }
    return own | {name: own[theirs] for name, theirs in _ALIASES.items() if theirs in own}


def in_shell_words(message: str, options: Mapping[str, str]) -> str:
    """A message with options of the command instead of arguments of Python.

    Args:
        message: What the library says.
        options: What `option_names` gave.

    Returns:
        The message. Arguments that the command lacks stay as they are, and so does code.
    """

    def option(match: re.Match[str]) -> str:
        name, equal, follows = match["name"], match["equal"], match["follows"] or ""
        if name not in options or not (equal or name in _ALIASES):
            return match[0]
        return f"{options[name]}{' ' if equal and follows else ''}{follows}"

    parts = _CALL.split(message)
    return "".join(part if i % 2 else _NAME.sub(option, part) for i, part in enumerate(parts))


class ShellWarnings(logging.StreamHandler[Any]):
    """Warnings of the library on stderr, in the words of a command.

    Args:
        options: What `option_names` gave.
    """

    def __init__(self, options: Mapping[str, str]) -> None:
        super().__init__()
        self.setLevel(logging.WARNING)
        self._options = options

    def format(self, record: logging.LogRecord) -> str:
        """The message, without the traceback that only a log needs."""
        return in_shell_words(record.getMessage(), self._options)
