"""Texts from files, one a line, for the shell."""

import logging
import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dynamic.policies.errors import InputError

STANDARD_INPUT = "-"
_SHOWN = 3  # lines in a warning

logger = logging.getLogger("dynamic")


@dataclass(frozen=True)
class TextLine:
    """A line of a file.

    Args:
        name: Name for messages: the file and the number of the line.
        text: The text.
        true_class: Name of its class, where the line begins with one and a tab.
    """

    name: str
    text: str
    true_class: str | None


def text_lines(paths: Iterable[Path], classes: Collection[str]) -> list[TextLine]:
    """The texts of files in order, empty lines left out. Lines end with "\\n" or "\\r\\n", and with no other character.

    Where some lines begin with a class and a tab, and others with something else and a tab, a warning is logged: these
    are texts whole, without a class.

    Args:
        paths: Files in UTF-8. "-" is the standard input.
        classes: Names of classes that a line may begin with.

    Returns:
        The texts.

    Raises:
        InputError: A file does not read, or all of them hold no text.
    """
    files = list(paths)
    lines = [line for path in files for line in _lines(path, frozenset(classes))]
    if not lines:
        raise InputError(f"{', '.join(map(str, files))} holds no text: give files with one text a line")
    others = [line.name for line in lines if line.true_class is None and "\t" in line.text]
    if others and any(line.true_class is not None for line in lines):
        logger.warning(
            "%d of %d lines have a field before a tab that names no class, and are taken whole as texts: %s%s. The "
            "classes are %.200s",
            len(others),
            len(lines),
            ", ".join(others[:_SHOWN]),
            ", ..." if len(others) > _SHOWN else "",
            sorted(classes),
        )
    return lines


def _lines(path: Path, classes: frozenset[str]) -> Iterator[TextLine]:
    try:
        content = (_standard_input() if str(path) == STANDARD_INPUT else path.read_bytes()).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} does not read ({error}): give a text file in UTF-8, one text a line") from error
    # splitlines() cuts at form feeds and other characters that a text may hold
    for number, line in enumerate(content.replace("\r\n", "\n").split("\n"), 1):
        first, tab, rest = line.partition("\t")
        true_class = first if tab and first in classes else None
        text = (rest if true_class is not None else line).strip()
        if text:
            yield TextLine(f"{path}:{number}", text, true_class)


def _standard_input() -> bytes:
    """The standard input, whatever encoding the system has."""
    if sys.stdin is None:  # of a program without a terminal
        raise OSError("there is no standard input")
    return sys.stdin.buffer.read()
