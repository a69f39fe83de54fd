"""Texts from files, one a line, for the shell."""

import sys
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dynamic.policies.errors import InputError

STANDARD_INPUT = "-"


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
    """The texts of files in order, empty lines left out.

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
    return lines


def _lines(path: Path, classes: frozenset[str]) -> Iterator[TextLine]:
    try:
        content = sys.stdin.read() if str(path) == STANDARD_INPUT else path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} does not read ({error}): give a text file in UTF-8, one text a line") from error
    for number, line in enumerate(content.splitlines(), 1):
        first, tab, rest = line.partition("\t")
        true_class = first if tab and first in classes else None
        text = (rest if true_class is not None else line).strip()
        if text:
            yield TextLine(f"{path}:{number}", text, true_class)
